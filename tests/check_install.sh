#!/usr/bin/env bash
# Installs BUILD into a folder of its own and builds a program against what lies there, by pkg-config and by CMake.
set -eu
build=$(cd "$1" && pwd)
here=$build/check_install
rm -rf "$here"
mkdir -p "$here/user"
cmake --install "$build" --prefix "$here/prefix" >/dev/null
cat >"$here/user/user.c" <<'END'
#include <nibble/base.h>
#if __has_include(<nibble/models.h>)
#include <nibble/models.h>
#endif
#if __has_include(<nibble/ptq.h>)
#include <nibble/ptq.h>
#endif
#if __has_include(<nibble/distill.h>)
#include <nibble/distill.h>
#endif
int main(void)
{
    int64_t n = 0;
    return nb_parse_count(&n, "1.5k") != NB_OK || n != 1500;
}
END
cat >"$here/user/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.25)
project(user C)
find_package(nibble 0.1 REQUIRED)
add_executable(user user.c)
target_link_libraries(user nibble::nibble)
END

pc=$(find "$here/prefix" -name nibble.pc -printf '%h')
flags=$(PKG_CONFIG_PATH=$pc pkg-config --cflags --libs nibble)
cc=$(sed -n 's/^CMAKE_C_COMPILER:[A-Z]*=//p' "$build/CMakeCache.txt")
"${cc:-cc}" -std=c11 -Wall -Werror -o "$here/by_pkg_config" "$here/user/user.c" $flags
"$here/by_pkg_config"
echo 'by pkg-config: fine'

cmake -S "$here/user" -B "$here/user/build" -DCMAKE_PREFIX_PATH="$here/prefix" -DCMAKE_C_COMPILER="${cc:-cc}" >/dev/null
cmake --build "$here/user/build" >/dev/null
"$here/user/build/user"
echo 'by CMake: fine'

if [ -x "$here/prefix/bin/nibble" ]; then
    "$here/prefix/bin/nibble" --version
fi
