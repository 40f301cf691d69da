#!/bin/sh
# The training step against PyTorch's, in turns on the same machine: bench/train_step.sh [NIBBLE] [SHAPE] [BATCH] [CTX]
# NIBBLE_PYTHON names a Python with torch; without it only nibble's figures are printed.
nibble=${1:-build/nibble} shape=${2:-stories15M} batch=${3:-4} ctx=${4:-256}
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
"$nibble" --version
for round in 1 2; do
    "$nibble" bench train --shape "$shape" --batch "$batch" --ctx "$ctx" --recipe w4a8kv8 --precision auto --json --quiet
    "$nibble" bench train --shape "$shape" --batch "$batch" --ctx "$ctx" --recipe float --precision auto --json --quiet
    if [ -n "${NIBBLE_PYTHON:-}" ]; then
        "$NIBBLE_PYTHON" bench/peer_train.py --shape "$shape" --batch "$batch" --ctx "$ctx" --modes "${MODES:-compile-bf16}"
    else
        echo "PyTorch skipped: NIBBLE_PYTHON is not set"
    fi
done
