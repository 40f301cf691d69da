"""Reads what test_formats_client.c wrote with the formats' own Python packages, and writes files for it to read.

    formats_client.py check FOLDER     FOLDER/expected/NAME.f32 holds array NAME's values; exit 1 at the first difference
    formats_client.py write FOLDER     makes FOLDER/py.safetensors, py.gguf with the arrays of `made`
Exit 77 when a package is missing (pip install numpy safetensors gguf h5py).
"""

import pathlib
import sys

try:
    import gguf
    import h5py
    import numpy
    import safetensors.numpy
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)


def same(name, found, folder):
    wanted = numpy.fromfile(folder / "expected" / (name + ".f32"), numpy.float32)
    found = numpy.asarray(found).astype(numpy.float32).reshape(-1)
    if found.tobytes() != wanted.tobytes():
        sys.exit(f"{name}: {found[:8]}..., wanted {wanted[:8]}...")


def bf16(raw):
    return (raw.view(numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)


def check_safetensors(folder):
    data = (folder / "c.safetensors").read_bytes()
    arrays = safetensors.numpy.load(data)
    for name, x in arrays.items():
        same(name, x, folder)
    if safetensors.numpy.save(arrays, {"format": "pt"}) != data:
        sys.exit("safetensors: its own writer gives other bytes")
    return len(arrays)


def check_gguf(folder):
    reader = gguf.GGUFReader(folder / "c.gguf")
    for t in reader.tensors:
        same(t.name, gguf.dequantize(t.data, t.tensor_type), folder)
    field = {name: f.contents() for name, f in reader.fields.items()}
    wanted = {
        "general.architecture": "llama",
        "general.alignment": 64,
        "llama.attention.layer_norm_rms_epsilon": float(numpy.float32(1e-5)),
        "tokenizer.ggml.tokens": ["<s>", "\u2581the", ""],
        "tokenizer.ggml.scores": [0.0, -1.0, -2.0],
        "tokenizer.ggml.add_bos_token": True,
        "f64": 0.1,
        "i64": -(2**63),
    }
    for key, value in wanted.items():
        if field[key] != value:
            sys.exit(f"gguf: {key} is {field[key]!r}, wanted {value!r}")
    return len(reader.tensors)


def check_hdf5(folder):
    n = 0
    with h5py.File(folder / "c.h5") as f:
        def visit(name, x):
            nonlocal n
            if isinstance(x, h5py.Dataset):
                same(name.replace("/", "|"), x[()], folder)
                n += 1
        f.visititems(visit)
        if f.attrs["config"] != b"{}" or f["param"].attrs["step"] != 7:
            sys.exit(f"hdf5: attributes are {dict(f.attrs)}, {dict(f['param'].attrs)}")
        if f.userblock_size != 512:
            sys.exit(f"hdf5: the user block has {f.userblock_size} bytes")
    return n


def made():
    rng = numpy.random.default_rng(1)
    return {
        "b.weight": rng.standard_normal((3, 64)).astype(numpy.float32),
        "a": rng.standard_normal(5).astype(numpy.float16),
        "z": rng.standard_normal((2, 3, 4)),
        "codes": rng.integers(-128, 128, (7, 3)).astype(numpy.int8),
        "ids": rng.integers(0, 1 << 40, 6),
        "empty": numpy.zeros((0, 4), numpy.float32),
    }


def write(folder):
    (folder / "expected").mkdir(exist_ok=True)
    arrays = made()
    safetensors.numpy.save_file(arrays, folder / "py.safetensors", {"format": "pt", "by": "python"})
    writer = gguf.GGUFWriter(folder / "py.gguf", "llama")
    writer.add_context_length(128)
    writer.add_token_list(["<s>", "\u2581the"])
    writer.add_token_scores([0.0, -1.5])
    for name, x in arrays.items():
        if x.size and x.dtype != numpy.int64:
            writer.add_tensor(name, x)
        x.astype(numpy.float32).tofile(folder / "expected" / (name + ".f32"))
    for kind in ("Q8_0", "Q4_0", "Q4_1", "BF16"):
        kind_type = gguf.GGMLQuantizationType[kind]
        coded = gguf.quantize(arrays["b.weight"], kind_type)
        writer.add_tensor(kind, coded, raw_dtype=kind_type)
        gguf.dequantize(coded, kind_type).astype(numpy.float32).tofile(folder / "expected" / (kind + ".f32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


folder = pathlib.Path(sys.argv[2])
if sys.argv[1] == "write":
    write(folder)
else:
    print(check_safetensors(folder), check_gguf(folder), check_hdf5(folder), "arrays are equal")
