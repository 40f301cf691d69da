"""Reads model files with other people's readers and writes what they hold as floats, for the tests to compare.

    decode.py FILE...      FILE.bin: llama2.c v1 or v2 (numpy, by export.py's layout)
                           FILE.gguf: the package gguf          FILE.safetensors: the package safetensors

FILE.dump takes, for each tensor: u32 bytes of the name, the name, u32 dimensions, u64 each, float32 values.
"""
import struct
import sys

import numpy as np


def llama2c(path):
    data = open(path, "rb").read()
    magic, version = struct.unpack_from("<Ii", data)
    assert magic == 0x616B3432 and version in (1, 2), path
    dim, hidden, layers, heads, kv_heads, vocab, _ = struct.unpack_from("<7i", data, 8)
    shared = data[36]
    group = struct.unpack_from("<i", data, 37)[0] if version == 2 else 0
    kv = dim // heads * kv_heads
    at = 256

    def floats(n):
        nonlocal at
        x = np.frombuffer(data, "<f4", n, at)
        at += 4 * n
        return x

    def matrix(rows, columns):
        nonlocal at
        if version == 1:
            return floats(rows * columns).reshape(rows, columns)
        q = np.frombuffer(data, np.int8, rows * columns, at)
        at += rows * columns
        scale = floats(rows * columns // group)
        return (q.reshape(-1, group).astype(np.float32) * scale[:, None]).reshape(rows, columns)

    for what in ("attention_norm", "ffn_norm"):
        for layer in range(layers):
            yield f"layers.{layer}.{what}.weight", floats(dim)
    yield "norm.weight", floats(dim)
    yield "tok_embeddings.weight", matrix(vocab, dim)
    for what, rows, columns in (("attention.wq", dim, dim), ("attention.wk", kv, dim), ("attention.wv", kv, dim),
                                ("attention.wo", dim, dim), ("feed_forward.w1", hidden, dim),
                                ("feed_forward.w2", dim, hidden), ("feed_forward.w3", hidden, dim)):
        for layer in range(layers):
            yield f"layers.{layer}.{what}.weight", matrix(rows, columns)
    if not shared:
        yield "output.weight", matrix(vocab, dim)
    assert at == len(data), path


def gguf(path):
    from gguf import GGUFReader
    from gguf.quants import dequantize

    for t in GGUFReader(path).tensors:
        yield t.name, dequantize(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)])


def safetensors(path):
    from safetensors.numpy import load_file

    yield from load_file(path).items()


READERS = {"bin": llama2c, "gguf": gguf, "safetensors": safetensors}
for path in sys.argv[1:]:
    with open(path + ".dump", "wb") as out:
        for name, x in READERS[path.rsplit(".", 1)[1]](path):
            name = name.encode()
            out.write(struct.pack("<I", len(name)) + name + struct.pack("<I", x.ndim) + struct.pack(f"<{x.ndim}Q", *x.shape))
            out.write(np.ascontiguousarray(x, "<f4").tobytes())
