#!/bin/sh
# Prefill and decode against llama.cpp's library on an equal file, in turns: bench/run_peer.sh [NIBBLE] [RECIPE] [PREFILL] [DECODE]
# The model has random weights of SmolLM2's shape, folded and exported to GGUF here; RECIPE: q4_0 (head Q8_0) or q4_0_all. nibble
# also runs OWN (a recipe's name or file, default w4a8kv8), which no GGUF holds, against the same file. Threads: $THREADS, 2.
# Prints a line of JSON for each run and the ratios of the best, by the clock and by time of the processor: with THREADS=1 the
# latter holds on a busy machine too, with more it counts threads that wait. Without libllama (tools/clients.sh) it says so and prints ours alone.
set -eu
nibble=${1:-build/nibble} recipe=${2:-q4_0} prefill=${3:-512} decode=${4:-128} threads=${THREADS:-2} own=${OWN:-w4a8kv8}
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bench() { "$nibble" bench run "$@" --prefill "$prefill" --decode "$decode" --threads "$threads" --json --quiet; }

"$nibble" --version
bench --shape smollm2 --recipe "$recipe" -o "$work/model.h5" >/dev/null
bench --shape smollm2 --recipe "$own" -o "$work/own.h5" >/dev/null
peer=
if [ -z "${NIBBLE_LIBLLAMA:-}" ] || [ -z "${NIBBLE_LLAMA_SOURCES:-}" ]; then
    echo 'llama.cpp skipped: NIBBLE_LIBLLAMA and NIBBLE_LLAMA_SOURCES are not set (eval "$(tools/clients.sh)")'
else
    "$nibble" export "$work/model.h5" --to gguf -o "$work/model.gguf" --quiet
    peer=$work/client_llama
    cc -std=gnu11 -O1 -o "$peer" tests/client_llama.c -I"$NIBBLE_LLAMA_SOURCES/include" \
        -I"$NIBBLE_LLAMA_SOURCES/ggml/include" -ldl -lm
fi
for round in 1 2 3; do
    bench "$work/model.h5" | tee -a "$work/same"
    bench "$work/own.h5" | tee -a "$work/own"
    if [ -n "$peer" ]; then
        "$peer" "$NIBBLE_LIBLLAMA" time "$work/model.gguf" "$prefill" "$decode" 1 "$threads" | tee -a "$work/peer"
    fi
done
best() { sed "s/.*\"$2\": *\([0-9.]*\).*/\1/" "$work/$1" | sort -n | tail -1; }
for what in prefill_tok_s decode_tok_s prefill_cpu_tok_s decode_cpu_tok_s; do
    line="$what: nibble $recipe $(best same $what), nibble $own $(best own $what)"
    if [ -n "$peer" ]; then
        line="$line, llama.cpp $recipe $(best peer $what); ratios $(echo "$(best same $what) $(best own $what) $(best peer $what)" |
            awk '{printf "%.2f and %.2f", $1 / $3, $2 / $3}')"
    fi
    echo "$line"
done
