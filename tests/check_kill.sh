#!/bin/sh
# A run killed with SIGKILL at random moments, and said again until it is finished, ends in the same bytes as one never
# interrupted: plainly, with gradients accumulated, and from stored logits, whose making is killed too.
#   NIBBLE=build/nibble KILLS=20 tests/check_kill.sh        needs ../shared/data/stories260k
set -u
nibble=${NIBBLE:-build/nibble} kills=${KILLS:-3}
data=../shared/data/stories260k
[ -r "$data/stories260K.bin" ] || { echo "skipped: no $data"; exit 0; }
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
model="$data/stories260K.bin"
bad=0
run() { # folder, more options; replaces the shell, so that its process is the program itself
    folder=$1
    shift
    exec "$nibble" qat "$model" --tokenizer "$data/tok512.bin" --data "$scratch/data.h5" --recipe w4a8kv4 --steps 24 \
        --batch 2 --ctx 64 --eval-every 6 --save-every 2 --average 0.9 --seed 1 --threads 1 --quiet -o "$folder" "$@" \
        2>"$scratch/log"
}
# One kind of run, killed and finished `kills` times.
check() { # name, options
    name=$1 done=0 seed=0 times=0
    shift
    begin=$(date +%s%N)
    (run "$scratch/$name" "$@") || { cat "$scratch/log"; exit 1; }
    whole_ms=$((($(date +%s%N) - begin) / 1000000))
    while [ "$done" -lt "$kills" ]; do
        rm -rf "$scratch/killed"
        rounds=0
        while :; do
            run "$scratch/killed" "$@" & pid=$!
            # a moment anywhere in the time of a whole run; a run that ends before it has finished the work
            seed=$((seed + 1))
            moment=$(awk -v seed="$seed$$" -v ms="$whole_ms" 'BEGIN { srand(seed); printf "%.3f", rand() * ms / 1000 }')
            (sleep "$moment"; kill -9 $pid 2>/dev/null) & killer=$!
            wait $pid 2>/dev/null; rc=$?
            kill $killer 2>/dev/null; wait $killer 2>/dev/null
            [ $rc -eq 0 ] && break
            [ $rc -eq 137 ] || { echo "$name: exit $rc after a kill:"; cat "$scratch/log"; exit 1; }
            rounds=$((rounds + 1))
            [ $rounds -lt 40 ] || { (run "$scratch/killed" "$@") || exit 1; break; }
        done
        [ $rounds -gt 0 ] || continue # it was never killed: does not count
        done=$((done + 1)) times=$((times + rounds)) same=yes
        for f in last.h5 best.h5; do
            cmp -s "$scratch/$name/$f" "$scratch/killed/$f" || { echo "$name: $f differs after $rounds kills"; same=no; }
        done
        left=$(find "$scratch/killed" -name '*.tmp*' | wc -l)
        [ "$left" -le "$rounds" ] || { echo "$name: $left temporary files"; same=no; }
        [ $same = yes ] || bad=$((bad + 1))
    done
    echo "$name: $kills runs killed $times times and resumed"
}
"$nibble" data "$model" --tokenizer "$data/tok512.bin" --tokens 8k --ctx 64 --seed 1 --quiet -o "$scratch/data.h5" || exit 1
check plain
check accumulated --accumulate 2
check stored --top-k 8
echo "$bad runs differ"
[ $bad -eq 0 ]
