#!/usr/bin/env bash
# Keeps the arrows between the folders, one door per dependency, and a few rules of style that a search can see.
# Prints what breaks a rule, then `check_layering: N rules, M broken`; exit 1 if any is.
cd "$(dirname "$0")/.." || exit 2
rules=0 broken=0
check() { # name, offending lines (empty: the rule holds)
    rules=$((rules + 1))
    [ -z "$2" ] && return
    broken=$((broken + 1))
    printf '%s:\n%s\n' "$1" "$2" | sed '2,$s/^/    /'
}

# A folder, and the folders whose public header it may include.
arrows='
base
kernels   base
io        base kernels
autograd  base kernels
fakequant base kernels autograd
layers    base kernels autograd fakequant
models    base kernels autograd fakequant layers io
runtime   base kernels autograd fakequant layers io models
distill   base kernels autograd fakequant layers io models runtime
ptq       base kernels autograd fakequant layers io models runtime distill
cli       base kernels autograd fakequant layers io models runtime distill ptq'
while read -r folder allowed; do
    [ -n "$folder" ] || continue
    bad=
    for file in src/"$folder"/*.[ch]; do
        [ -e "$file" ] || continue
        while read -r header; do
            from=${header%%/*}
            [ "$from" = "$folder" ] && continue
            [ -e "src/$folder/$header" ] && continue
            case " $allowed " in
                *" $from "*) [ "$header" = "$from/$from.h" ] || bad="$bad$file includes $header, private to $from"$'\n' ;;
                *) bad="$bad$file includes $header"$'\n' ;;
            esac
        done < <(sed -n 's/^ *# *include "\([^"]*\)".*/\1/p' "$file")
    done
    check "what $folder may use (${allowed:-nothing})" "${bad%$'\n'}"
done <<<"$arrows"
known=$(awk 'NF {print $1}' <<<"$arrows" | sort)
check 'every folder of src/ has its arrows here' \
    "$(comm -13 <(echo "$known") <(for f in src/*/; do basename "$f"; done | sort))"
check 'examples and benchmarks use public headers' \
    "$(grep -nE '^ *# *include "' examples/*.c bench/*.c /dev/null 2>/dev/null | grep -vE '"([a-z]+)/\1\.h"')"

# A library's header, and the one file that includes it.
door() { # pattern of the header, files that may (an extended regular expression)
    check "the one door of <$1>" "$(grep -rnE "^ *# *include [<\"]($1)[>\"]" src --include='*.[ch]' | grep -vE "^($2):")"
}
door 'cblas(-openblas)?\.h' 'src/kernels/gemm_openblas\.c'
door '(openblas/)?lapacke?(_config)?\.h|openblas_config\.h|f77blas\.h' 'src/kernels/(gemm|lapack)_openblas\.c'
door '(oneapi/dnnl/)?dnnl[a-z_]*\.h' 'src/kernels/gemm_onednn\.c'
door 'hdf5(_hl)?\.h|H5[A-Za-z]+public\.h' 'src/io/hdf5\.c'
door '(cjson/)?cJSON(_Utils)?\.h' 'src/base/json\.c'
door 'pcre2\.h|utf8proc\.h|zlib\.h' 'src/io/[a-z0-9_]+\.c'
door '[a-z]*intrin\.h|arm_neon\.h' 'src/(base|kernels)/isa_[a-z0-9]+\.[ch]'
check 'LAPACK in one file beside OpenBLAS' "$(grep -rnE '\b[sd](potrf|potri|trtri|trsm|gesvd|syev)_ *\(' src --include='*.c' |
    grep -vE '^src/kernels/(gemm|lapack)_openblas\.c:')"

# Linkage prefixes: what a folder's object files export starts with its two letters. Needs a build to look at.
build=${1:-}
prefixes='base:nb kernels:kn autograd:ag fakequant:fq layers:ly models:md runtime:rt ptq:pt distill:kd io:fm'
state=
if [ -n "$build" ] && command -v nm >/dev/null; then
    for pair in $prefixes; do
        lib=$build/lib${pair%:*}.a
        [ -f "$lib" ] || continue
        check "linkage of ${pair%:*} begins with ${pair#*:}_" "$(nm -g --defined-only "$lib" 2>/dev/null |
            awk 'NF == 3 && $2 != "U" {print $3}' | grep -vE "^${pair#*:}_|^__(asan|odr_asan|ubsan|lsan)" | sort -u)"
        state="$state$(objdump -t "$lib" 2>/dev/null | awk 'NF > 4 && $(NF-2) ~ /^\.(data|bss)$/ && $NF !~ /^(\.|__|_\.)/ {print $NF}')"
    done
fi

check 'file names are unique' "$(find src examples bench tests -name '*.[ch]' -printf '%f\n' 2>/dev/null | sort | uniq -d)"
check 'the library neither prints nor exits' "$(grep -nE '(^|[^a-zA-Z_>."])(printf|puts|putchar|vprintf|perror|exit|_exit|abort) *\(|[^a-zA-Z_](fprintf|fputs|fputc|fwrite) *\([^;]*\b(stdout|stderr)\b' \
    $(find src -name '*.[ch]' -not -path 'src/cli/*') | grep -vE ':[0-9]+: *(/?\*|//)')"
check 'a file opens with what it is' "$(for f in src/*/*.[ch] tests/*.[ch] examples/*.[ch] bench/*.[ch]; do
    [ -e "$f" ] && ! head -n 1 "$f" | grep -q "^/\* $(basename "$f") - " && echo "$f"; done)"
check 'links of the documents lead somewhere' "$(for f in README.md docs/*.md; do
    for link in $(grep -oE '\]\([a-zA-Z0-9_./-]+\)' "$f" | tr -d '])('); do
        [ -e "$(dirname "$f")/$link" ] || echo "$f: $link"; done; done)"
check 'nothing unfinished' "$(grep -rnE '\b(TODO|FIXME|XXX|HACK)\b' src tests examples bench --include='*.[ch]')"
check 'no path of one machine' "$(git ls-files -z 2>/dev/null | grep -zvE '^tests/check_layering.sh$' |
    xargs -0 -r grep -nIE '(^|[^A-Za-z0-9_.])/(work|root|home/[a-z]+)/' 2>/dev/null)"
check 'nothing above 1.5 MB' "$(git ls-files -z 2>/dev/null | xargs -0 -r du -k 2>/dev/null | awk '$1 > 1536')"

long=$(wc -l src/*/*.[ch] examples/*.c 2>/dev/null | awk '$1 > 500 && $2 != "total" {print $2 " (" $1 ")"}')
[ -z "$long" ] || printf 'warning, over 500 lines:\n%s\n' "$long"
case "$state" in
    *ubsan* | *asan* | '') ;;
    *) echo "note, state that outlives a call:" $state ;;
esac
echo "check_layering: $rules rules, $broken broken"
[ $broken = 0 ]
