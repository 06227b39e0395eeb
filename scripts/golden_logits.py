#!/usr/bin/env python3
"""What Hugging Face transformers computes in float32, for tests/logits_match_transformers.cpp.

    scripts/golden_logits.py --demo DIR --out tests/golden        (torch, transformers, tokenizers, safetensors)

DIR is the demo's target checkpoint. Writes, below OUT:
    random/          a small random GPT-2 of odd shape (fp16 safetensors), made here from a fixed seed
    random.json      {"logits": [{"ids", "position", "offset"}], "greedy": [{"ids", "continuation"}]}
    random.f32       the logit vectors (n_vocab float32 each) at the offsets (in floats) that the JSON names
    demo.json, demo.f32   the same for the demo's target, on tests/golden/prompts.json
"""
import argparse
import json
import os

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--demo", required=True)
parser.add_argument("--out", required=True)
args = parser.parse_args()
torch.manual_seed(0)


def greedy(model, ids, n):
    """Plain argmax, one token at a time over the cache; stops at nothing."""
    ids, new, past = torch.tensor([ids]), [], None
    for _ in range(n):
        result = model(input_ids=ids, past_key_values=past, use_cache=True)
        past = result.past_key_values
        ids = result.logits[:, -1].argmax(-1, keepdim=True)
        new.append(int(ids))
    return new


@torch.no_grad()
def write(name, model, texts, positions, starts):
    """texts: id lists whose logits are kept at the positions they reach; starts: id lists that are continued."""
    model = model.float().eval()
    vectors, logits = [], []
    for ids in texts:
        rows = model(input_ids=torch.tensor([ids])).logits[0]
        for position in positions:
            if position < len(ids):
                logits.append({"ids": ids[: position + 1], "position": position, "offset": len(vectors) * rows.shape[1]})
                vectors.append(rows[position].numpy())
    room = model.config.n_positions
    continued = [{"ids": ids, "continuation": greedy(model, ids, min(200, room - len(ids)))} for ids in starts]
    np.concatenate(vectors).astype("<f4").tofile(os.path.join(args.out, name + ".f32"))
    with open(os.path.join(args.out, name + ".json"), "w") as f:
        json.dump({"logits": logits, "greedy": continued}, f, separators=(",", ":"))
        f.write("\n")


config = GPT2Config(n_layer=3, n_head=3, n_embd=48, n_positions=80, vocab_size=301, bos_token_id=300, eos_token_id=300,
                    initializer_range=0.15)
model = GPT2LMHeadModel(config)
for parameter_name, parameter in model.named_parameters():
    if parameter_name.endswith("bias"):
        torch.nn.init.normal_(parameter, std=0.1)
    elif "ln_" in parameter_name:
        torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
model = model.half()
model.save_pretrained(os.path.join(args.out, "random"), safe_serialization=True)
generator = np.random.default_rng(0)
texts = [generator.integers(0, 300, size=80).tolist() for _ in range(6)]
write("random", model, texts, range(0, 80, 3), [t[:5] for t in texts] + [t[:40] for t in texts])

prompts = json.load(open(os.path.join(args.out, "prompts.json")))
tokenizer = ByteLevelBPETokenizer(os.path.join(args.demo, "vocab.json"), os.path.join(args.demo, "merges.txt"))
prompts = [tokenizer.encode(p).ids for p in prompts]
model = GPT2LMHeadModel.from_pretrained(args.demo)
with torch.no_grad():
    long = [p + greedy(model.float().eval(), p, 512 - len(p)) for p in prompts[:2]]
joined = sum(prompts, [])[:512]
write("demo", model, [joined] + long + prompts[2:5], (0, 7, 63, 64, 65, 200, 350, 511), prompts[::3])
