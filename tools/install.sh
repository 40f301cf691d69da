#!/usr/bin/env bash
# Installs what is missing, by Debian package name.
#   tools/install.sh SET...      sets: build test clang ccache tidy client smollm2
#   tools/install.sh --print SET...   only prints the packages
# Does nothing where everything is there. Without apt or root it prints the line to run by hand and goes on: what is
# there under another name (another distribution, a compiler of one's own) is found by CMake just as well.
set -u

packages_of() {
    case "$1" in
        build) echo "gcc libc6-dev make cmake pkg-config ninja-build libopenblas-openmp-dev libdnnl-dev libhdf5-dev" \
                    "libcjson-dev libpcre2-dev libutf8proc-dev zlib1g-dev" ;;
        test) echo "check python3" ;;
        clang) echo "clang-14 libomp-14-dev" ;;
        ccache) echo ccache ;;
        tidy) echo "clang-format-14 clang-tidy-14 valgrind" ;;
        client) echo "python3 python3-venv nodejs git sentencepiece"
                command -v npm >/dev/null || echo npm ;; # a Node from elsewhere brings its own, and Debian's conflicts
        smollm2) echo "python3 python3-pip" ;;
        *) echo "install.sh: no set '$1'; there are build, test, clang, ccache, tidy, client, smollm2" >&2; exit 2 ;;
    esac
}

print=no
if [ "${1:-}" = --print ]; then
    print=yes
    shift
fi
wanted=
for set in "$@"; do
    names=$(packages_of "$set") || exit 2
    wanted="$wanted $names"
done
if [ $print = yes ]; then
    echo $wanted
    exit 0
fi

missing=
for name in $wanted; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)
    [ "$state" = installed ] || missing="$missing $name"
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null && as_root="sudo -n"
fi
if ! command -v apt-get >/dev/null || { [ "$(id -u)" != 0 ] && [ -z "$as_root" ]; }; then
    echo "nibble needs these Debian packages; install them (or what your system calls them) by hand:"
    echo "    sudo apt-get install --no-install-recommends$missing"
    exit 0
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
get() { $as_root apt-get install -y -q --no-install-recommends $missing >"$1" 2>&1; }
log=$(mktemp)
if ! get "$log"; then
    $as_root apt-get update -q >/dev/null 2>&1
    if ! get "$log"; then
        tail -n 5 "$log"
        rm -f "$log"
        echo "could not install them; by hand:"
        echo "    sudo apt-get update && sudo apt-get install --no-install-recommends$missing"
        exit 1
    fi
fi
rm -f "$log"
