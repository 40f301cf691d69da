"""The peer of `nibble bench train`: one optimizer step of LLM-QAT in PyTorch at the same shape (W4 rows, A8 tokens, KV8 per token, min-max,
straight-through), KL to a teacher of that shape, AdamW (fused). Prints one JSON object per mode.
  python bench/peer_train.py --shape stories15M --batch 4 --ctx 256 --modes compile-bf16,eager-fp32 --steps 5
Needs PyTorch 2.x (pip install torch); prints why and leaves with 0 where it is absent."""
import argparse
import json
import os
import resource
import sys
import time

for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)
try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(0)

SHAPES = {  # dim, hidden, layers, heads, kv heads, vocabulary
    "stories260K": (64, 172, 5, 8, 4, 512),
    "stories15M": (288, 768, 6, 6, 6, 32000),
    "smollm2": (576, 1536, 30, 9, 3, 49152),
}


class Fake(torch.autograd.Function):
    """decode(encode(x)) with one symmetric scale per last dimension; straight-through."""

    @staticmethod
    def forward(ctx, x, bits):
        top = 2 ** (bits - 1) - 1
        scale = x.abs().amax(-1, keepdim=True).float() / top + 1e-9
        return (torch.round(x / scale).clamp(-top, top) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        return g, None


def fake(x, bits):
    return Fake.apply(x, bits) if bits else x


class Linear(nn.Module):
    def __init__(self, n_in, n_out, bits):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) * 0.02)
        self.bits = bits

    def forward(self, x):
        return F.linear(x, fake(self.weight, self.bits).to(x.dtype))


class Norm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x):
        f = x.float()
        return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * self.weight.to(x.dtype)


def rotate(x, cos, sin):
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Block(nn.Module):
    def __init__(self, dim, hidden, heads, kv, quantize):
        super().__init__()
        self.heads, self.kv, self.size = heads, kv, dim // heads
        w, self.a, self.c = (4, 8, 8) if quantize else (0, 0, 0)
        self.n1, self.n2 = Norm(dim), Norm(dim)
        self.q, self.o = Linear(dim, dim, w), Linear(dim, dim, w)
        self.k, self.v = Linear(dim, kv * self.size, w), Linear(dim, kv * self.size, w)
        self.gate, self.up, self.down = Linear(dim, hidden, w), Linear(dim, hidden, w), Linear(hidden, dim, w)

    def forward(self, x, cos, sin):
        B, T, C = x.shape
        h = fake(self.n1(x), self.a)
        q, k, v = self.q(h), fake(self.k(h), self.c), fake(self.v(h), self.c)
        q = rotate(q.view(B, T, self.heads, -1).transpose(1, 2), cos, sin)
        k = rotate(k.view(B, T, self.kv, -1).transpose(1, 2), cos, sin)
        v = v.view(B, T, self.kv, -1).transpose(1, 2)
        if self.kv != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        x = x + self.o(fake(y, self.a))
        h = fake(self.n2(x), self.a)
        return x + self.down(fake(F.silu(self.gate(h)) * self.up(h), self.a))


class Model(nn.Module):
    def __init__(self, shape, ctx, quantize):
        super().__init__()
        dim, hidden, layers, heads, kv, vocab = SHAPES[shape]
        self.embed = nn.Parameter(torch.randn(vocab, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, hidden, heads, kv, quantize) for _ in range(layers))
        self.norm = Norm(dim)
        self.quantize = quantize
        angle = torch.outer(torch.arange(ctx).float(), 10000.0 ** (-torch.arange(0, dim // heads, 2).float() / (dim // heads)))
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, ids):
        w = fake(self.embed, 8 if self.quantize else 0)
        x = F.embedding(ids, w)
        if torch.is_autocast_enabled("cpu"):
            x = x.bfloat16()
        for block in self.blocks:
            x = block(x, self.cos.to(x.dtype), self.sin.to(x.dtype))
        return F.linear(fake(self.norm(x), 8 if self.quantize else 0), w.to(x.dtype))


def measure(shape, batch, ctx, mode, steps):
    torch.manual_seed(1)
    teacher, student = Model(shape, ctx, False), Model(shape, ctx, True)
    ids = torch.randint(0, SHAPES[shape][5], (batch, ctx))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
    bf16 = mode.endswith("bf16")

    def loss_of():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                t = teacher(ids)
            s = student(ids)
        return F.kl_div(F.log_softmax(s.float(), -1).flatten(0, 1), F.log_softmax(t.float(), -1).flatten(0, 1), reduction="batchmean", log_target=True)

    run = torch.compile(loss_of) if mode.startswith("compile") else loss_of
    times = []
    for i in range(steps + 2):
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        run().backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        if i >= 2:
            times.append(time.perf_counter() - begin)
    times.sort()
    median = times[len(times) // 2]
    return {"peer": "PyTorch " + torch.__version__, "mode": mode, "shape": shape, "batch": batch, "ctx": ctx, "tok_s": batch * ctx / median,
            "seconds": median, "seconds_min": times[0], "seconds_max": times[-1],
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=SHAPES, default="stories15M")
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--ctx", type=int, default=256)
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--modes", default="compile-bf16")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    for mode in a.modes.split(","):
        print(json.dumps(measure(a.shape, a.batch, a.ctx, mode, a.steps)), flush=True)


main()
