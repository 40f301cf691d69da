#!/usr/bin/env bash
# A model writes text, many rows at once, beside llama.cpp's library decoding as many sequences together, in turns:
#   bench/data_peer.sh [NIBBLE] [MODEL.gguf] [ROWS] [TOKENS IN A ROW] [ROUNDS]
# MODEL: $NIBBLE_SMOLLM2. nibble samples (`data --start mixed`), two batches of ROWS and of twice as many (the default of --batch), less a
# run of two tokens a row, which loads as long; llama.cpp decodes given tokens and samples none. Threads: $THREADS, 2. Prints a line for each
# run and the ratios of the best by the clock and by time of the processor: with THREADS=1 the latter holds on a busy machine too, with
# more it counts threads that wait.
set -eu
nibble=${1:-build/nibble} model=${2:-${NIBBLE_SMOLLM2:-}} rows=${3:-64} length=${4:-128} rounds=${5:-3} threads=${THREADS:-2}
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
if [ -z "$model" ] || [ -z "${NIBBLE_LIBLLAMA:-}" ] || [ -z "${NIBBLE_LLAMA_SOURCES:-}" ]; then
    echo 'skipped: wants a GGUF file, NIBBLE_LIBLLAMA and NIBBLE_LLAMA_SOURCES (eval "$(tools/clients.sh)")'
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$nibble" --version
peer=$work/client_llama
cc -std=gnu11 -O1 -o "$peer" tests/client_llama.c -I"$NIBBLE_LLAMA_SOURCES/include" -I"$NIBBLE_LLAMA_SOURCES/ggml/include" -ldl -lm

TIMEFORMAT='%R %U %S'
# rows, tokens in a row: seconds by the clock, of the processor
run() {
    { time OMP_NUM_THREADS=$threads "$nibble" data "$model" --start mixed --precision auto --tokens $((2 * $1 * $2)) --ctx "$2" \
        --batch "$1" --seed 1 -o "$work/out.h5" --force --restart --quiet; } 2>&1 | awk '{print $1, $2 + $3}'
}
# rows: tokens/s by the clock, by time of the processor
write() {
    echo "$(run "$1" 2) $(run "$1" "$length")" |
        awk -v n=$((2 * $1 * (length - 2))) '{printf "%.0f %.0f\n", n / ($3 - $1), n / ($4 - $2)}'
}
decode() {
    "$peer" "$NIBBLE_LIBLLAMA" time "$model" 0 "$length" "$rows" "$threads" |
        sed 's/.*"decode_tok_s": *\([0-9.]*\).*"decode_cpu_tok_s": *\([0-9.]*\).*/\1 \2/'
}
best() { awk -v c="$2" '$c > most {most = $c} END {print most}' "$work/$1"; }

echo 'tokens/s by the clock, by time of the processor'
for ((round = 0; round < rounds; round++)); do
    echo "nibble, $rows rows: $(write "$rows" | tee -a "$work/same")"
    echo "nibble, $((2 * rows)) rows: $(write $((2 * rows)) | tee -a "$work/twice")"
    echo "llama.cpp, $rows sequences: $(decode | tee -a "$work/peer")"
done
for c in 1 2; do
    echo "$(best same $c) $(best twice $c) $(best peer $c)" |
        awk -v what="$([ $c = 1 ] && echo 'clock' || echo 'processor')" \
            '{printf "%s: nibble %d and %d, llama.cpp %d tokens/s; ratios %.2f and %.2f\n", what, $1, $2, $3, $1 / $3, $2 / $3}'
done
