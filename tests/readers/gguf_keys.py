"""Which keys of two GGUF files differ, as the package gguf reads them: type, or bytes of the value.

    gguf_keys.py SOURCE EXPORTED     prints the keys that differ or stand in one file alone, sorted, one a line
"""

import sys

import gguf


def keys(path):
    fields = gguf.GGUFReader(path).fields.values()
    return {f.name: (f.types, [x.tobytes() for x in f.parts[1:]]) for f in fields if not f.name.startswith("GGUF.")}


source, exported = keys(sys.argv[1]), keys(sys.argv[2])
if [k for k in source if k in exported] != [k for k in exported if k in source]:
    sys.exit("the order differs")
for name in sorted(source.keys() | exported.keys()):
    if source.get(name) != exported.get(name):
        print(name)
