"""Logits of a Hugging Face folder by transformers: transformers_logits.py FOLDER IDS OUT.

IDS: for each sequence int32 n and n ids; OUT: float32 logits [n, vocab] of each. Exit status 77: transformers or torch
is not installed.
"""
import struct
import sys

try:
    import torch
    from transformers import AutoModelForCausalLM
except ImportError as e:
    print(e)
    sys.exit(77)

folder, ids_path, out_path = sys.argv[1:]
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
data = open(ids_path, "rb").read()
at = 0
with open(out_path, "wb") as out, torch.no_grad():
    while at < len(data):
        (n,) = struct.unpack_from("<i", data, at)
        ids = torch.tensor([struct.unpack_from(f"<{n}i", data, at + 4)])
        at += 4 + 4 * n
        out.write(model(ids).logits[0].float().numpy().tobytes())
