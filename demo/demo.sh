#!/usr/bin/env bash
# The whole way on a small model that comes with the project (demo/make_teacher.sh made it): it writes training data, two
# students learn from it on 4-bit weights, 8-bit inputs and an 8- or 4-bit cache, are folded to integers, measured, run and
# exported. Everything lies in build/demo afterwards. Deterministic but for speeds; under 6 minutes on 2 cores.
set -eu
cd "$(dirname "$0")/.."
build=${BUILD:-build}
work=$build/demo
nibble=$build/nibble
teacher=demo/teacher.h5
recipes="w4a8kv8 w4a8kv4"
steps=${STEPS:-240}
unset OPENBLAS_CORETYPE # it would halve the speed of float products
rm -rf "$work"
mkdir -p "$work"
begin=$(date +%s)

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n%s\n' "$*"; }
show() { # runs nibble and shows the line as one would type it
    echo "\$ nibble $*"
    "$nibble" "$@"
}
value() { sed -n "s/.*\"$2\":\([^,}]*\).*/\1/p" "$1"; } # of a key in one line of JSON
qat_line() { echo "qat $teacher --data $work/train.h5 --heldout $work/heldout.h5 --recipe $1 --steps $steps --lr 2e-4 --seed 1 --save-every 20 -o $work/run-$1"; }

say "1. The teacher: a float model"
show info $teacher

say "2. It writes what its students will learn from, and what they will be measured on"
show data $teacher --tokens 1M --seed 1 -o "$work/train.h5"
show data $teacher --tokens 25k --seed 2 -o "$work/heldout.h5"

say "3. Students: the same model on integers, trained to say what the teacher would"
show $(qat_line w4a8kv8)
echo
echo "(the second one is interrupted after its first checkpoint ...)"
echo "\$ nibble $(qat_line w4a8kv4)   # and Ctrl-C"
"$nibble" $(qat_line w4a8kv4) &
student=$!
while [ ! -e "$work/run-w4a8kv4/last.h5" ] && kill -0 $student 2>/dev/null; do sleep 0.1; done
kill -TERM $student 2>/dev/null || true
wait $student && code=0 || code=$?
echo "(... exit code $code; said again, it goes on from there, to the same bits as without the interruption)"
show $(qat_line w4a8kv4)

say "4. Integers: the trained students, and the plain rounding they are compared with"
for r in $recipes; do
    show fold "$work/run-$r" -o "$work/qat-$r.h5"
    show fold $teacher --recipe "$r" -o "$work/rtn-$r.h5"
done

say "5. Other programs' formats: the codes that training used"
show export "$work/qat-w4a8kv8.h5" --to llama2c -o "$work/w4a8kv8.bin"
show fold $teacher --recipe q4_0 -o "$work/rtn-q4_0.h5"
show export "$work/rtn-q4_0.h5" --to gguf -o "$work/q4_0.gguf"

say "6. What they write after \"And he said unto them,\""
names="float rtn-w4a8kv8 qat-w4a8kv8 rtn-w4a8kv4 qat-w4a8kv4"
path_of() { if [ "$1" = float ]; then echo $teacher; else echo "$work/$1.h5"; fi; }
for name in $names; do
    printf '%-13s' "$name"
    "$nibble" run "$(path_of $name)" -p "And he said unto them," -n 60 --temp 0.7 --seed 4 --quiet | tr '\n' ' '
    echo
done

say "7. Measured on text that none of them saw, and against the teacher on its own text"
for name in $names; do
    model=$(path_of $name)
    "$nibble" info "$model" --json >"$work/$name.info"
    "$nibble" eval "$model" --data demo/heldout.txt --split line --json --quiet >"$work/$name.text"
    "$nibble" eval "$model" --teacher $teacher --data "$work/heldout.h5" --json --quiet >"$work/$name.own"
    "$nibble" run "$model" -n 250 --temp 1 --seed 5 --json --quiet >"$work/$name.run"
done
printf '%-13s %9s %11s %11s %9s %9s %9s\n' model bytes bits/weight perplexity KL same-top tokens/s
for name in $names; do
    printf '%-13s %9d %11.2f %11.3f %9.4f %8.1f%% %9.0f\n' $name "$(value "$work/$name.info" bytes)" \
        "$(value "$work/$name.info" bits_per_param)" "$(value "$work/$name.text" ppl)" "$(value "$work/$name.own" kl)" \
        "$(value "$work/$name.own" same_top | awk '{print 100 * $1}')" "$(value "$work/$name.run" tokens_per_second)"
done
echo
echo "float: the teacher in fp32; rtn: rounded to nearest; qat: trained. w4a8kv4: 4-bit weights, 8-bit inputs, 4-bit cache."
echo "perplexity: demo/heldout.txt; KL(teacher || model) in nats and same likeliest token: $work/heldout.h5."
echo "$(($(date +%s) - begin)) seconds; everything lies in $work"
