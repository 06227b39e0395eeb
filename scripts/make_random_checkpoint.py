#!/usr/bin/env python3
"""Makes a GPT-2 checkpoint of random weights in Hugging Face's layout, for tests and measurements. Needs numpy alone.

    make_random_checkpoint.py OUT --n-layer 36 --n-head 20 --n-embd 1280 --n-positions 1024 --n-vocab 50257 --shards 2
                                                          (GPT2-L: 3.1 GB of F32 in two shards)

Weights are normal with the spread of GPT-2's initialization (0.02; residual projections smaller), LayerNorm gains lie near 1,
so that logits and activations are of ordinary size. One seed and shape give the same bytes everywhere.
"""
import argparse
import json
import os
import struct

import numpy as np


def to_bytes(values, dtype):
    if dtype == "F32":
        return values.astype("<f4").tobytes()
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    bits = values.astype("<f4").view("<u4")  # BF16: round to nearest, ties to even
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def tensors(args):
    """Yields (name, values) one at a time."""
    rng = np.random.default_rng(args.seed)
    n, prefix = args.n_embd, "transformer." if args.prefix else ""

    def normal(*shape, spread=0.02):
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(spread * args.scale)

    def linear(name, n_in, n_out, spread=0.02):
        yield f"{name}.weight", normal(n_in, n_out, spread=spread)
        yield f"{name}.bias", normal(n_out)

    def norm(name):
        yield f"{name}.weight", 1 + normal(n, spread=0.1)
        yield f"{name}.bias", normal(n)

    wte = normal(args.n_vocab, n)
    yield prefix + "wte.weight", wte
    if args.untied:
        yield "lm_head.weight", normal(args.n_vocab, n)
    elif args.explicit_head:
        yield "lm_head.weight", wte
    del wte
    yield prefix + "wpe.weight", normal(args.n_positions, n)
    residual = 0.02 / np.sqrt(2 * args.n_layer)
    for layer in range(args.n_layer):
        h = f"{prefix}h.{layer}"
        yield from norm(f"{h}.ln_1")
        yield from linear(f"{h}.attn.c_attn", n, 3 * n)
        yield from linear(f"{h}.attn.c_proj", n, n, residual)
        yield from norm(f"{h}.ln_2")
        yield from linear(f"{h}.mlp.c_fc", n, 4 * n)
        yield from linear(f"{h}.mlp.c_proj", 4 * n, n, residual)
        if args.masks:
            mask = np.tril(np.ones((args.n_positions, args.n_positions), np.float32))
            yield f"{h}.attn.bias", mask[None, None]
            yield f"{h}.attn.masked_bias", np.array(-1e4, np.float32)
    yield from norm(f"{prefix}ln_f")


def write_shard(path, entries):
    """entries: (name, dtype, shape, bytes)"""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape, data in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for *_, data in entries:
            f.write(data)
    return offset


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder to make")
    for name, value in ("layer", 2), ("head", 2), ("embd", 32), ("positions", 64), ("vocab", 100):
        parser.add_argument(f"--n-{name}", type=int, default=value)
    parser.add_argument("--dtypes", default="F32", help="F32, F16 or BF16; several, as F32,BF16, take turns")
    parser.add_argument("--untied", action="store_true", help="a head of its own")
    parser.add_argument("--explicit-head", action="store_true", help="tied, but lm_head.weight is written too")
    parser.add_argument("--prefix", action="store_true", help='names start with "transformer."')
    parser.add_argument("--masks", action="store_true", help="with attn.bias and attn.masked_bias, as old checkpoints")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the spread of the weights")
    parser.add_argument("--eos", type=int, help="end token (default: the last of the vocabulary)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    os.makedirs(args.out, exist_ok=True)
    eos = args.n_vocab - 1 if args.eos is None else args.eos
    config = dict(architectures=["GPT2LMHeadModel"], model_type="gpt2", activation_function="gelu_new",
                  n_layer=args.n_layer, n_head=args.n_head, n_embd=args.n_embd, n_positions=args.n_positions,
                  n_ctx=args.n_positions, vocab_size=args.n_vocab, layer_norm_epsilon=1e-5, bos_token_id=eos,
                  eos_token_id=eos, tie_word_embeddings=not args.untied)
    with open(os.path.join(args.out, "config.json"), "w") as f:
        json.dump(config, f, indent=1)

    dtypes = args.dtypes.split(",")
    assert set(dtypes) <= {"F32", "F16", "BF16"}, "--dtypes takes F32, F16 and BF16"
    n, layers = args.n_embd, args.n_layer
    total = args.n_vocab * n * (2 if args.untied or args.explicit_head else 1) + 12 * layers * n * n  # elements, about
    weight_map, entries, elements, shard, size = {}, [], 0, 1, 0
    name_of = lambda k: "model.safetensors" if args.shards == 1 else f"model-{k:05}-of-{args.shards:05}.safetensors"
    for i, (name, values) in enumerate(tensors(args)):
        if elements > total * shard / args.shards and shard < args.shards:
            size += write_shard(os.path.join(args.out, name_of(shard)), entries)
            entries, shard = [], shard + 1
        dtype = dtypes[i % len(dtypes)]
        if name == "lm_head.weight" and not args.untied:
            dtype = dtypes[0]  # wte's
        entries.append((name, dtype, list(values.shape), to_bytes(values, dtype)))
        weight_map[name] = name_of(shard)
        elements += values.size
    size += write_shard(os.path.join(args.out, name_of(shard)), entries)
    if args.shards > 1:
        assert shard == args.shards, "too few tensors for so many shards"
        with open(os.path.join(args.out, "model.safetensors.index.json"), "w") as f:
            json.dump({"metadata": {"total_size": size}, "weight_map": weight_map}, f, indent=1)


if __name__ == "__main__":
    main()
