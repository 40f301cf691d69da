"""GPTQ as Frantar et al. (2023) run it (their gptq.py), in NumPy and in doubles, beside nibble's: gptq_reference.py IN OUT.

IN: int32 rows, cols, group (0: a row is one), bits, zero (points), half (scales as binary16), act_order, static_groups, given; float32 w [rows, cols],
H [cols, cols]; where given, float32 scales [rows, groups] and int32 zeros [rows, groups]. Where not, ranges are the largest magnitude or the extremes.
OUT: int32 codes [rows, cols] by GPTQ, the same by rounding; float64 sums (w - v) H (w - v)' [rows] of both; float64 [rows, cols]: how far the number
that GPTQ rounded was from the middle of two codes, in steps."""
import sys

import numpy as np

raw = np.fromfile(sys.argv[1], "<i4")
rows, cols, group, bits, zero, half, act_order, static_groups, given = (int(v) for v in raw[:9])
floats = raw[9:].view("<f4")
w = floats[: rows * cols].reshape(rows, cols).astype(np.float64)
H = floats[rows * cols : rows * cols + cols * cols].reshape(cols, cols).astype(np.float64)
rest = raw[9 + rows * cols + cols * cols :]
group = group or cols
groups = -(-cols // group)
lo, hi = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def store(scale):
    scale = scale.astype(np.float32)
    return scale.astype(np.float16).astype(np.float32) if half else scale


def inverse(scale):
    return np.float32(1) / np.where(scale == 0, np.float32(np.inf), scale)


def find_params(x):
    """Scale and zero of each row of x."""
    x = x.astype(np.float32)
    if not zero:
        return store(np.abs(x).max(1) / np.float32(hi)), np.zeros(len(x))
    low, top = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
    scale = store((top - low) / np.float32(hi - lo))
    return scale, np.clip(np.rint(lo - low * inverse(scale)), lo, hi)


def quantize(x, scale, z):
    t = x.astype(np.float32) * inverse(scale)
    q = np.clip(np.rint(t) + z, lo, hi)
    return q, (q - z) * scale.astype(np.float64), np.abs(t - np.floor(t) - 0.5)


if given:
    scales = rest[: rows * groups].view("<f4").reshape(rows, groups)
    zeros = rest[rows * groups :].reshape(rows, groups).astype(np.float64)
    ranges = [(scales[:, g], zeros[:, g]) for g in range(groups)]
else:
    ranges = [find_params(w[:, g * group : (g + 1) * group]) for g in range(groups)]
fixed = given or static_groups or groups == 1


def cost(values):
    e = w - values
    return ((e @ H) * e).sum(1)


nearest, nearest_values = np.zeros((rows, cols)), np.zeros((rows, cols))
for j in range(cols):
    nearest[:, j], nearest_values[:, j], _ = quantize(w[:, j], *ranges[j // group])

order = np.argsort(-np.diag(H), kind="stable") if act_order else np.arange(cols)
W, A = w[:, order].copy(), H[np.ix_(order, order)].copy()
A[np.diag_indices(cols)] += 0.01 * np.mean(np.diag(A))
Hinv = np.linalg.cholesky(np.linalg.inv(A)).T  # upper: inverse(A) = Hinv' Hinv
codes, values, margin = np.zeros((rows, cols)), np.zeros((rows, cols)), np.zeros((rows, cols))
block = group if not fixed else 128  # within a block of theirs a group would be seen without the errors of the block
for i1 in range(0, cols, block):
    i2 = min(i1 + block, cols)
    W1, Err1, Hinv1 = W[:, i1:i2].copy(), np.zeros((rows, i2 - i1)), Hinv[i1:i2, i1:i2]
    for i in range(i2 - i1):
        column = order[i1 + i]
        if not fixed and (i1 + i) % group == 0:
            ranges[column // group] = find_params(W[:, i1 : i1 + group])
        q, v, m = quantize(W1[:, i], *ranges[column // group])
        codes[:, column], values[:, column], margin[:, column] = q, v, m
        err1 = (W1[:, i] - v) / Hinv1[i, i]
        W1[:, i:] -= np.outer(err1, Hinv1[i, i:])
        Err1[:, i] = err1
    W[:, i2:] -= Err1 @ Hinv[i1:i2, i2:]

with open(sys.argv[2], "wb") as out:
    codes.astype("<i4").tofile(out)
    nearest.astype("<i4").tofile(out)
    cost(values).astype("<f8").tofile(out)
    cost(nearest_values).astype("<f8").tofile(out)
    margin.astype("<f8").tofile(out)
