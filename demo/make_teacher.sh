#!/usr/bin/env bash
# Makes demo/teacher.h5 and demo/heldout.txt again: a model of 0.6 M parameters that nibble trains on the King James Bible
# (public domain), from Debian's package bible-kjv, with a SentencePiece vocabulary made by Debian's spm_train. Every 40th
# passage is held out. Takes about 15 minutes on 2 idle cores. Run from the project's root after `make`:
#   apt-get install bible-kjv sentencepiece && demo/make_teacher.sh
set -eu
cd "$(dirname "$0")/.."
build=${BUILD:-build}
nibble=$build/nibble
work=$build/teacher
mkdir -p "$work"
unset OPENBLAS_CORETYPE # it would choose other kernels than the CPU's own

bible -f gen1:1-rev22:21 | awk -f demo/passages.awk >"$work/all.txt"
awk 'NR % 40 != 0' "$work/all.txt" >"$work/book.txt"
awk 'NR % 40 == 0' "$work/all.txt" >"$work/heldout.txt"
spm_train --input="$work/book.txt" --model_prefix="$work/words" --vocab_size=1024 --model_type=bpe \
    --byte_fallback=true --normalization_rule_name=identity --character_coverage=1.0 --num_threads=1 \
    --max_sentence_length=100000 >/dev/null 2>&1
"$nibble" train --config dim=96,hidden=256,layers=5,heads=6,kv_heads=3,ctx=256 --tokenizer "$work/words.model" \
    --data "$work/book.txt" --split line --epochs 8 --seed 1 -o "$work/run"
"$nibble" export "$work/run" --to h5-bf16 --force -o demo/teacher.h5
head -n 60 "$work/heldout.txt" >demo/heldout.txt
"$nibble" eval demo/teacher.h5 --data demo/heldout.txt --split line
ls -l demo/teacher.h5
