"""What bitsandbytes makes of the same numbers: bitsandbytes_codes.py IN OUT. IN: int32 M, N, K, then float32 x [M, K], w [N, K]; both files little-endian.
OUT: int32 nf4 [N K], fp4 [N K] (codes), float32 absmax [N K / 64] twice, float32 y [M, N] of LLM.int8() row by row (threshold 6, float16);
then of NF4 and FP4 with compress_statistics: uint8 codes of absmax [N K / 64], float32 their absmax [N K / 64 / 256], offset [1], float32 the scales that
they mean [N K / 64], float32 the weights that they mean [N, K]; float32 the dynamic map [256]."""
import sys

import numpy
import torch
import bitsandbytes.functional as f

torch.set_num_threads(1)
data = numpy.fromfile(sys.argv[1], "<f4")
m, n, k = data[:3].view("<i4")
x = torch.tensor(data[3 : 3 + m * k].reshape(m, k))
w = torch.tensor(data[3 + m * k :].reshape(n, k))
with open(sys.argv[2], "wb") as out:
    stats = []
    for kind in ("nf4", "fp4"):
        packed, state = f.quantize_4bit(w.clone(), blocksize=64, quant_type=kind)
        packed = packed.flatten().to(torch.int32)
        torch.stack((packed >> 4, packed & 15), 1).numpy().astype("<i4").tofile(out)
        stats.append(state.absmax)
    for s in stats:
        s.numpy().astype("<f4").tofile(out)
    codes, scale, _ = f.int8_vectorwise_quant(w.half())
    for row in x.half():
        a, a_scale, columns = torch.ops.bitsandbytes.int8_vectorwise_quant(row[None].clone(), 6.0)
        y, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(row[None], a, codes, a_scale, scale, columns, None)
        y.float().numpy().astype("<f4").tofile(out)
    for kind in ("nf4", "fp4"):
        packed, state = f.quantize_4bit(w.clone(), blocksize=64, quant_type=kind, compress_statistics=True)
        state.absmax.numpy().tofile(out)
        state.state2.absmax.numpy().astype("<f4").tofile(out)
        state.offset.reshape(1).numpy().astype("<f4").tofile(out)
        (f.dequantize_blockwise(state.absmax, state.state2) + state.offset).numpy().astype("<f4").tofile(out)
        f.dequantize_4bit(packed, state).numpy().astype("<f4").tofile(out)
    f.create_dynamic_map().numpy().astype("<f4").tofile(out)
