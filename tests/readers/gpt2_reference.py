"""Reference logits of test_gpt2.c, by transformers: a GPT-2 whose weights follow from a formula; prints the logits of the last of 12
positions as a C table, then the sum of squares of all positions'."""
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

C, F, L, H, T, V = 16, 40, 2, 2, 12, 23
SHAPES = [("wte.weight", (V, C)), ("wpe.weight", (T, C))]
for i in range(L):
    p = f"h.{i}."
    SHAPES += [(p + "ln_1.weight", (C,)), (p + "ln_1.bias", (C,)), (p + "attn.c_attn.weight", (C, 3 * C)),
               (p + "attn.c_attn.bias", (3 * C,)), (p + "attn.c_proj.weight", (C, C)), (p + "attn.c_proj.bias", (C,)),
               (p + "ln_2.weight", (C,)), (p + "ln_2.bias", (C,)), (p + "mlp.c_fc.weight", (C, F)), (p + "mlp.c_fc.bias", (F,)),
               (p + "mlp.c_proj.weight", (F, C)), (p + "mlp.c_proj.bias", (C,))]
SHAPES += [("ln_f.weight", (C,)), ("ln_f.bias", (C,))]


def values(k, shape):
    u = np.arange(np.prod(shape), dtype=np.uint32) * np.uint32(2654435761) + np.uint32(40503) * np.uint32(k)
    u ^= u >> np.uint32(15)
    u *= np.uint32(2246822519)
    u ^= u >> np.uint32(13)
    return (u.astype(np.float64) / 2**32 - 0.5).astype(np.float32).reshape(shape)


model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=T, n_embd=C, n_layer=L, n_head=H, n_inner=F)).eval()
state = {"transformer." + name: torch.from_numpy(values(k, shape)) for k, (name, shape) in enumerate(SHAPES)}
state["lm_head.weight"] = state["transformer.wte.weight"]
model.load_state_dict(state)
ids = torch.tensor([[i * i % V for i in range(T)]])
with torch.no_grad():
    z = model(ids).logits[0].double()
print(", ".join(f"{x:.7f}f" for x in z[-1]))
print(f"{(z * z).sum():.6f}")
