#!/bin/sh
# SimpleCNN in training and in integers, against PyTorch and onnxruntime in turns: bench/pictures.sh [NIBBLE] [DIR] [STEPS]
# DIR holds MNIST's idx files, plain (the first STEPS * 64 training pictures are used: a step's time does not depend on which).
# NIBBLE_PYTHON names a Python with torch, NIBBLE_ORT_PYTHON one with onnxruntime; without them nibble's figures are printed alone. Threads:
# $THREADS, 2; rounds: $ROUNDS, 3. A line of JSON a run, then medians by time of the processor, user and system, less what a run of half the steps
# takes: what is left is steps alone. PyTorch's is of its loop alone.
set -eu
nibble=${1:-build/nibble} data=${2:-mnist} steps=${3:-100} threads=${THREADS:-2} rounds=${ROUNDS:-3}
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
export OMP_NUM_THREADS="$threads" OMP_WAIT_POLICY=passive
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$nibble" --version

# images and labels of the first N: the header's count is N's 4 bytes
part() {
    mkdir -p "$work/$1"
    for kind in images:16:784:3 labels:8:1:1; do
        IFS=: read -r name head each dims <<EOF
$kind
EOF
        from=$data/train-$name-idx$dims-ubyte
        { head -c 4 "$from"
          printf "$(printf '\\%03o\\%03o\\%03o\\%03o' $(($1 / 16777216)) $(($1 / 65536 % 256)) $(($1 / 256 % 256)) $(($1 % 256)))"
          tail -c +9 "$from" | head -c $((head - 8 + $1 * each)); } >"$work/$1/train-$name-idx$dims-ubyte"
    done
    cp "$data"/t10k-* "$work/$1/"
}
half=$((steps * 32)) whole=$((steps * 64))
part $half
part $whole

cpu() { # NAME COMMAND...: appends user + system seconds to NAME's list
    name=$1
    shift
    { /usr/bin/env bash -c 'TIMEFORMAT="%U %S"; time "$@" >/dev/null 2>&1' _ "$@"; } 2>&1 | awk '{print $1 + $2}' >"$work/last"
    cat "$work/last" >>"$work/$name"
    echo "{\"run\": \"$name\", \"cpu_seconds\": $(cat "$work/last")}"
}
options="--quiet --restart --epochs 1"
"$nibble" train --model simplecnn --data "mnist:$work/$whole" $options -o "$work/f"
"$nibble" qat "$work/f" --data "mnist:$work/$whole" --recipe w8a8 $options -o "$work/q"
"$nibble" fold "$work/q" -o "$work/q.h5" --quiet
"$nibble" export "$work/q.h5" --to onnx -o "$work/q.onnx" --quiet
python() { # NAME PYTHON ARGUMENTS...
    if [ -z "$2" ]; then
        echo "$1 skipped: NIBBLE_PYTHON or NIBBLE_ORT_PYTHON is not set"
        return
    fi
    name=$1 python=$2
    shift 2
    "$python" bench/peer_pictures.py "$@" | tee "$work/last"
    sed -n 's/.*"cpu_seconds": *\([0-9.]*\).*/\1/p' "$work/last" >>"$work/$name"
}
for round in $(seq "$rounds"); do
    for n in $half $whole; do
        for precision in fp32 auto; do
            cpu train-$precision-$n "$nibble" train --model simplecnn --data "mnist:$work/$n" $options --precision $precision -o "$work/t"
        done
        for recipe in w8a8 w4a4; do
            cpu qat-$recipe-$n "$nibble" qat "$work/f" --data "mnist:$work/$n" --recipe $recipe $options -o "$work/t"
        done
    done
    python torch "${NIBBLE_PYTHON:-}" train "$work/$whole" $((steps / 2)) 64
    cpu integers "$nibble" eval "$work/q.h5" --data "mnist:$data" --quiet
    python onnxruntime "${NIBBLE_ORT_PYTHON:-}" run "$data" "$work/q.onnx"
done
median() { sort -n "$work/$1" | awk '{v[NR] = $1} END {print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'; }
for name in train-fp32 train-auto qat-w8a8 qat-w4a4; do
    echo "$(median $name-$whole) $(median $name-$half)" | awk -v n=$name -v s=$((steps / 2)) '{printf "%s: %.1f ms a step\n", n, ($1 - $2) / s * 1000}'
done
[ -s "$work/torch" ] && median torch | awk -v s=$((steps / 2)) '{printf "PyTorch: %.1f ms a step\n", $1 / s * 1000}'
median integers | awk '{printf "integers, with reading the files: %.0f pictures a second of the processor\n", 10000 / $1}'
[ -s "$work/onnxruntime" ] && median onnxruntime | awk '{printf "onnxruntime: %.0f\n", 10000 / $1}'
exit 0
