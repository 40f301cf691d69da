#!/bin/bash
# Calibrating on one text and scoring on another, and how much text: bench/study_calibration.sh NIBBLE MODEL TEXT_A TEXT_B [TOKENIZER]
# Every METHODS (importance,awq,gptq: those that `nibble ptq --list` knows) by RECIPE on SAMPLES windows, as Markdown: KL to the float model and perplexity.
# WINDOWS of 512 tokens are scored as llama-perplexity does. Both texts are cut in two: the first half calibrates, the second is scored.
set -e
[ $# -ge 4 ] || { sed -n 2,4p "$0"; exit 2; }
nibble=$1 model=$2 a=$3 b=$4 tokenizer=${5:+--tokenizer $5}
recipe=${RECIPE:-q4_0} windows=${WINDOWS:-8} length=${LENGTH_OF_WINDOW:-256} samples=${SAMPLES:-"4 16 64"}
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"
known=$("$nibble" ptq --list | grep -v '^ ' | cut -d' ' -f1)
methods=
for m in $(echo "${METHODS:-importance,awq,gptq}" | tr , ' '); do
    if echo "$known" | grep -qx "$m"; then methods=$methods,$m; else echo "$m: not a method of this nibble, left out" >&2; fi
done
half() { # half FILE NAME: NAME.calib and NAME.score
    bytes=$(($(stat -c %s "$1") / 2))
    [ "$bytes" -le "${MOST_BYTES:-2000000}" ] || bytes=${MOST_BYTES:-2000000}
    head -c "$bytes" "$1" > "$2.calib"
    tail -c "$bytes" "$1" > "$2.score"
}
half "$a" "$work/A"
half "$b" "$work/B"
echo "A: $(basename "$a"), B: $(basename "$b"); $(basename "$model") by $recipe, windows of $length tokens to calibrate, $windows of 512 to score"
echo
echo "| calibrated on | windows | scored on | method | KL | perplexity |"
echo "|---|---:|---|---|---:|---:|"
for on in A B; do
    for n in $samples; do
        for of in A B; do
            "$nibble" compare "$model" $tokenizer --methods "${methods#,}" --recipe "$recipe" --data "$work/$on.calib" --eval-data "$work/$of.score" \
                --windows "$windows" --calib-samples "$n" --calib-length "$length" --work "$work/rows" --csv --quiet |
                awk -F, -v on=$on -v n="$n" -v of=$of 'NR > 2 { gsub(/"/, "", $1); printf "| %s | %s | %s | %s | %.4f | %.3f |\n", on, n, of, $1, $9, $6 }'
        done
    done
done
