#!/usr/bin/env python3
"""Samples text from a small GPT-2, the source of the demo's n-gram table (the paper samples its table from the draft too).

    scripts/sample_draft.py --model DIR --tokens 4000000 --temperature 1 -o ids.txt.gz      (torch, transformers; a GPU)

Writes token ids, one document a line, as `weights_tool ngram --ids` reads them after gunzip.
"""
import argparse
import gzip

import torch
from transformers import GPT2LMHeadModel

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True)
parser.add_argument("--tokens", type=int, default=4_000_000)
parser.add_argument("--temperature", type=float, default=1.0)
parser.add_argument("--batch", type=int, default=1024)
parser.add_argument("-o", "--out", required=True)
args = parser.parse_args()

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = GPT2LMHeadModel.from_pretrained(args.model).to(device).eval()
end = model.config.eos_token_id
start = torch.full((args.batch, 1), end, device=device)
left = args.tokens
with gzip.open(args.out, "wt") as out:
    while left > 0:
        length = model.config.n_positions
        rows = model.generate(start, attention_mask=torch.ones_like(start), do_sample=True, temperature=args.temperature, top_k=0,
                              max_length=length, pad_token_id=end)
        for row in rows[:, 1:].tolist():
            row = row[: row.index(end)] if end in row else row
            if row:
                out.write(" ".join(map(str, row)) + "\n")
                left -= len(row)
