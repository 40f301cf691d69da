"""A GPT-2 of random weights with a byte-level tokenizer, made by transformers: transformers_gpt2.py FOLDER TEXTS IDS.

FOLDER: config.json, model.safetensors, vocab.json, merges.txt (no tokenizer.json). TEXTS: a text a line; IDS: for each int32 n
and n ids as transformers' tokenizer finds them. Exit status 77: transformers, tokenizers or torch is not installed.
"""
import json
import os
import struct
import sys

try:
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
except ImportError as e:
    print(e)
    sys.exit(77)

folder, texts_path, ids_path = sys.argv[1:]
torch.set_num_threads(1)
torch.manual_seed(1)
texts = open(texts_path, encoding="utf-8").read().split("\n")
os.makedirs(folder, exist_ok=True)
tokenizer = ByteLevelBPETokenizer()
tokenizer.train_from_iterator(texts * 4, vocab_size=330, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False)
tokenizer.save_model(folder)
n = tokenizer.get_vocab_size()
config = GPT2Config(vocab_size=n, n_positions=96, n_embd=48, n_layer=3, n_head=4, initializer_range=0.3,
                    bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config).eval()
with torch.no_grad():  # nothing stays at 0 or 1
    for name, p in model.named_parameters():
        if p.dim() == 1:
            p.add_(0.3 * torch.randn_like(p))
model.save_pretrained(folder)
with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
    json.dump({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "bos_token": "<|endoftext|>",
               "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "model_max_length": 96}, f)
read = AutoTokenizer.from_pretrained(folder)
with open(ids_path, "wb") as out:
    for text in texts:
        ids = read(text)["input_ids"][:96]
        out.write(struct.pack(f"<i{len(ids)}i", len(ids), *ids))
