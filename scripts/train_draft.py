#!/usr/bin/env python3
"""Trains a small GPT-2 that guesses what a larger one will write: the draft of speculative decoding.

    scripts/train_draft.py --target gpt2-large --text corpus/ --minutes 20 -o draft            (torch, safetensors, numpy)
    scripts/train_draft.py --target gpt2-large --ids samples.ids --distill 1 --minutes 60 -o draft
    build/weights_tool convert --target gpt2-large --draft draft -o pair.blob

The target is a folder in Hugging Face's layout. The draft takes its vocabulary, end token and context, and learns from
text like that which the target will write (--text: files or folders of UTF-8), or from what the target wrote itself
(--ids: token ids, a document a line, as staged-gpt2 --samples writes them). With p the target's distribution and q the
draft's, the loss of a position is

    (1 - W) * -log q(next token)  +  W * KL(p || q)          W: --distill

W = 0 needs only the target's vocabulary. W > 0 runs the target beside the draft: slower a step, but the draft learns
what the target would choose rather than what the text says.

The blocks' matrices learn by Muon, which a draft of this size gains most from; embeddings, biases and LayerNorms by
AdamW. A GPU computes in bfloat16 with torch.compile, the CPU in float32 (for trials of small sizes). Training ends by
the clock, which starts once the first step has compiled; the learning rates warm up, stay, and fall to 0 over the last
half. Control-C ends early and keeps the draft.
Output: config.json, model.safetensors in float16, and the target's tokenizer files. Exit codes: 0 done, 1 failed, 2
wrong usage or input.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
import warnings

try:
    import numpy as np
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save as safetensors_bytes
    from torch.utils.checkpoint import checkpoint
except ImportError as error:
    sys.exit(
        f"train_draft.py: {error.name} is missing; install what it needs with: pip install torch safetensors numpy"
    )

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json")
CHUNK_BYTES = 16 << 20  # text given to the tokenizer at a time
LOSS_ROWS = 4096  # positions whose logits are in memory at a time


class UsageError(Exception):
    """Bad input, told in one sentence."""


# ---- Text to tokens --------------------------------------------------------------------------------------------------


def text_files(paths):
    files = []
    for path in paths:
        if os.path.isdir(path):
            for folder, _, names in os.walk(path):
                files += [os.path.join(folder, name) for name in names]
        elif os.path.isfile(path):
            files.append(path)
        else:
            raise UsageError(f"--text {path} is neither a file nor a folder")
    return sorted(set(files))


def tokenize(tool, folder, text):
    """bytes -> (n) int32, by the tokenizer that the model will run with."""
    try:
        run = subprocess.run([tool, "tokenize", "--vocab", folder], input=text, capture_output=True)
    except OSError as error:
        raise UsageError(f"{tool} cannot be run ({error.strerror}); build it with make, or name it with --weights-tool")
    if run.returncode:
        raise UsageError(f"{tool} tokenize failed: {run.stderr.decode(errors='replace').strip()}")
    return np.array(run.stdout.split(), dtype=np.int32)


def end_token_of(tool, folder):
    ids = tokenize(tool, folder, END_OF_TEXT.encode())
    if len(ids) != 1:
        raise UsageError(f"the tokenizer in {folder} does not know {END_OF_TEXT}, which parts documents; give --ids")
    return int(ids[0])


def tokens_of_text(files, tool, folder, rng):
    """All files in random order, the end token after each: (n) int32."""
    end_token_of(tool, folder)
    parts, chunk, size, skipped = [], [], 0, 0
    order = rng.permutation(len(files))
    for position, i in enumerate(order):
        try:
            with open(files[i], "rb") as file:
                text = file.read()
            text.decode("utf-8")
        except UnicodeDecodeError:
            skipped += 1
            text = b""
        except OSError as error:
            raise UsageError(f"{files[i]} cannot be read: {error.strerror}")
        if text:
            chunk.append(text)
            size += len(text)
        if chunk and (size >= CHUNK_BYTES or position + 1 == len(order)):
            end = END_OF_TEXT.encode()
            parts.append(tokenize(tool, folder, end.join(chunk) + end))
            chunk, size = [], 0
            print(f"tokenized {position + 1} of {len(order)} files", flush=True)
    if skipped:
        print(f"{skipped} of {len(files)} files are not UTF-8 and were left out", flush=True)
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def tokens_of_ids(paths, n_vocab, end_token, rng):
    """Lines of token ids in random order, the end token after each: (n) int32."""
    documents = []
    for path in paths:
        try:
            with open(path) as file:
                lines = file.readlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--ids {path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}")
        for number, line in enumerate(lines, 1):
            try:
                ids = np.array(line.split(), dtype=np.int64)
            except (ValueError, OverflowError):
                raise UsageError(
                    f"--ids {path}: line {number} holds something else than token ids; text goes to --text"
                )
            if len(ids) and not (0 <= ids.min() and ids.max() < n_vocab):
                raise UsageError(f"--ids {path}: line {number} names a token outside the vocabulary of {n_vocab}")
            if len(ids):
                documents.append(np.append(ids, end_token).astype(np.int32))
    return (
        np.concatenate([documents[i] for i in rng.permutation(len(documents))]) if documents else np.zeros(0, np.int32)
    )


# ---- The target's folder ---------------------------------------------------------------------------------------------


def read_config(folder):
    path = os.path.join(folder, "config.json")
    try:
        with open(path) as file:
            config = json.load(file)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}); --target takes a folder as Hugging Face publishes it"
        )
    except ValueError:
        raise UsageError(f"{path} is not JSON; fetch the checkpoint again")
    if not isinstance(config, dict) or config.get("model_type") != "gpt2":
        raise UsageError(f"{path} is not the config of a GPT-2 (model_type gpt2)")
    defaults = dict(
        vocab_size=50257,
        n_positions=1024,
        n_embd=768,
        n_layer=12,
        n_head=12,
        eos_token_id=50256,
        layer_norm_epsilon=1e-5,
    )
    config = {**defaults, **{key: value for key, value in config.items() if value is not None}}
    for key, default in defaults.items():
        if not isinstance(config[key], (int, type(default))):
            raise UsageError(f"{path}: {key} is {config[key]!r}, not a number")
    if not 0 <= config["eos_token_id"] < config["vocab_size"]:
        raise UsageError(
            f"{path}: eos_token_id {config['eos_token_id']} lies outside the vocab_size of {config['vocab_size']}"
        )
    return config


def load_target(folder, config, device, dtype):
    """The target with its weights, for its logits alone."""
    index = os.path.join(folder, "model.safetensors.index.json")
    names = ["model.safetensors"]
    if os.path.exists(index):
        with open(index) as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
    weights = {}
    for name in names:
        path = os.path.join(folder, name)
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():
                    weights[key.removeprefix("transformer.")] = file.get_tensor(key).to(dtype)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{path} cannot be read ({error}); --distill above 0 needs the target's weights")
    with torch.device("meta"):
        model = GPT2(
            config["vocab_size"],
            config["n_positions"],
            config["n_embd"],
            config["n_layer"],
            config["n_head"],
            config["layer_norm_epsilon"],
        )
    head = weights.pop("lm_head.weight", weights.get("wte.weight"))
    missing = [name for name in model.state_dict() if name not in weights]
    if missing:
        raise UsageError(f"the checkpoint in {folder} has no {missing[0]}; it is not that of a GPT-2")
    try:
        model.load_state_dict({name: weights[name] for name in model.state_dict()}, assign=True)
    except RuntimeError as error:
        raise UsageError(f"the weights in {folder} do not fit its config.json: {str(error).splitlines()[-1].strip()}")
    return model.to(device).requires_grad_(False).eval(), head.to(device)


# ---- The model -------------------------------------------------------------------------------------------------------


class Projection(nn.Module):
    """x W + b with W (n_in, n_out), as GPT-2's checkpoints hold it."""

    def __init__(self, n_in, n_out, spread):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out) * spread)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return F.linear(x, self.weight.t(), self.bias)


class Attention(nn.Module):
    def __init__(self, width, n_head, residual):
        super().__init__()
        self.n_head = n_head
        self.c_attn = Projection(width, 3 * width, 0.02)
        self.c_proj = Projection(width, width, residual)

    def forward(self, x):  # (batch, positions, width)
        heads = [part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1)]
        return self.c_proj(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width, residual):
        super().__init__()
        self.c_fc = Projection(width, 4 * width, 0.02)
        self.c_proj = Projection(4 * width, width, residual)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width, n_layer, n_head, epsilon):
        super().__init__()
        residual = 0.02 / math.sqrt(2 * n_layer)
        self.ln_1, self.ln_2 = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)
        self.attn, self.mlp = Attention(width, n_head, residual), FeedForward(width, residual)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """Token ids (batch, positions) to the vectors (batch, positions, width) that the head, wte, is applied to.
    Parameters bear the names and shapes of Hugging Face's checkpoints."""

    def __init__(self, n_vocab, n_positions, width, n_layer, n_head, epsilon=1e-5):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(n_vocab, width), nn.Embedding(n_positions, width)
        self.h = nn.ModuleList(Block(width, n_layer, n_head, epsilon) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(width, epsilon)
        for table in self.wte, self.wpe:
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


def token_loss(x, next_ids, head):
    """Sum over rows of -log q(next). x (rows, width), next_ids (rows), head (n_vocab, width)."""
    return F.cross_entropy(F.linear(x, head).float(), next_ids, reduction="sum")


def divergence(x, target_x, head, target_head):
    """Sum over rows of KL(p || q). x (rows, width), target_x (rows, the target's width), heads (n_vocab, width)."""
    log_q = F.linear(x, head).float().log_softmax(-1)
    log_p = F.linear(target_x, target_head).float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum()


def over_rows(loss, by_row, heads):
    """Mean of a loss over all rows, a few rows' logits in memory at a time (they are computed again backward)."""
    total, n_rows = 0.0, len(by_row[0])
    for first in range(0, n_rows, LOSS_ROWS):
        part = [rows[first : first + LOSS_ROWS] for rows in by_row]
        total = total + checkpoint(loss, *part, *heads, use_reentrant=False)
    return total / n_rows


# ---- Training --------------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Steps along the momentum of each matrix made orthogonal, so that it moves equally far in all directions in which
    the text pulls, not mostly in the few that pull hardest (Jordan et al., Muon, 2024)."""

    def __init__(self, matrices, lr, momentum=0.95):
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix not in self.state:
                    self.state[matrix]["average"] = torch.zeros_like(matrix)
                average = self.state[matrix]["average"]
                average.lerp_(matrix.grad, 1 - group["momentum"])
                ahead = matrix.grad.lerp(average, group["momentum"])
                longer = max(1.0, matrix.shape[1] / matrix.shape[0]) ** 0.5  # outputs over inputs
                matrix.sub_(orthogonal(ahead), alpha=group["lr"] * longer)


def orthogonal(matrix):
    """Nearly U V' of the matrix' singular value decomposition: five steps of a polynomial of odd powers that drives all
    singular values towards 1, to between 0.7 and 1.2 (Newton-Schulz with Jordan's coefficients)."""
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return (x.mT if tall else x).to(matrix.dtype)


class Batches:
    """Random stretches of a token stream, on the device."""

    def __init__(self, tokens, length, device, seed):
        self.tokens = torch.from_numpy(tokens).to(device)
        self.offsets = torch.arange(length + 1, device=device)
        self.random = torch.Generator().manual_seed(seed)

    def draw(self, n):
        """(n, length) ids and the ids that follow them."""
        starts = torch.randint(len(self.tokens) - len(self.offsets) + 1, (n,), generator=self.random)
        ids = self.tokens[starts.to(self.offsets.device)[:, None] + self.offsets].long()
        return ids[:, :-1], ids[:, 1:]


def train(args, config, tokens, held_out):
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_gpu = device.type == "cuda"
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    model = GPT2(config["vocab_size"], args.context, args.width, args.layers, args.heads).to(device)
    target = target_head = None
    if args.distill > 0:
        target, target_head = load_target(args.target, config, device, torch.bfloat16 if on_gpu else torch.float32)
    compiled = lambda function: torch.compile(function) if on_gpu and not args.no_compile else function
    forward, token, kl = compiled(model), compiled(token_loss), compiled(divergence)
    matrices = [p for p in model.h.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizers = [
        Muon(matrices, args.matrix_rate),
        torch.optim.AdamW(
            [
                {"params": [model.wte.weight, model.wpe.weight], "weight_decay": 0.05},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=args.learning_rate,
            betas=(0.9, 0.95),
            fused=on_gpu,
        ),
    ]
    training = Batches(tokens, args.context, device, args.seed)
    micro = min(args.micro, args.batch)
    n_micro = -(-args.batch // micro)
    print(
        f"draft: {args.layers} layers x {args.width}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M "
        f"parameters, on {torch.cuda.get_device_name(device) if on_gpu else 'the CPU'}; "
        f"{n_micro * micro * args.context} tokens a step",
        flush=True,
    )

    def loss_of(ids, next_ids):
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            x, loss = forward(ids).flatten(0, 1), 0.0
            if args.distill < 1:
                loss = (1 - args.distill) * over_rows(token, [x, next_ids.flatten()], [model.wte.weight])
            if args.distill > 0:
                with torch.no_grad():
                    target_x = target(ids).flatten(0, 1)
                loss = loss + args.distill * over_rows(kl, [x, target_x], [model.wte.weight, target_head])
        return loss

    @torch.no_grad()
    def held_out_loss():
        """Nats a token of -log q(next), whatever is trained for; the same stretches every time."""
        stretches = Batches(held_out, args.context, device, 1)
        total, n = 0.0, 8
        for _ in range(n):
            ids, next_ids = stretches.draw(micro)
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                by_row = [forward(ids).flatten(0, 1), next_ids.flatten()]
                total += float(over_rows(token, by_row, [model.wte.weight]))
        return total / n

    budget, start, step = args.minutes * 60, time.time(), 0
    told = measured = start
    told_step = 0
    try:
        while True:
            done = max((time.time() - start) / budget, step / args.steps if args.steps else 0)
            if done >= 1:
                break
            share = min(1, (step + 1) / args.warm_up) * min(1, 2 * (1 - done))
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = optimizer.defaults["lr"] * share
            total = 0.0
            for _ in range(n_micro):
                loss = loss_of(*training.draw(micro)) / n_micro
                loss.backward()
                total += loss.detach()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad(set_to_none=True)
            step += 1
            now = time.time()
            if step == 1:
                start = now
            if step == 1 or now - told >= 5:
                total = float(total)
                if not math.isfinite(total):
                    raise RuntimeError(f"the loss is no longer finite at step {step}; lower --learning-rate")
                now = time.time()
                rate = (step - told_step) * n_micro * micro * args.context / (now - told)
                left = (now - start) * (1 - done) / done if done else budget
                line = f"step {step}  loss {total:.3f}  {rate:,.0f} tokens/s  {min(left, budget - (now - start)) / 60:.1f} min left"
                if now - measured >= max(30, budget / 10):
                    line += f"  held-out {held_out_loss():.3f}"
                    measured = time.time()
                print(line, flush=True)
                told, told_step = time.time(), step
    except KeyboardInterrupt:
        print("interrupted: keeping the draft as it is", flush=True)
    seconds = time.time() - start
    final = held_out_loss()
    if not math.isfinite(final):
        raise RuntimeError("the held-out loss is not finite; lower --learning-rate")
    print(
        f"{step} steps, {step * n_micro * micro * args.context / 1e6:.1f} M tokens in {seconds:.0f} s; "
        f"held-out loss {final:.3f} nats a token",
        flush=True,
    )
    return model


# ---- Output ----------------------------------------------------------------------------------------------------------


def put(folder, name, data):
    """Writes the file beside its place, then puts it there."""
    path = os.path.join(folder, name)
    with open(path + ".new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def save(model, args, config):
    weights = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in model.state_dict().items()}
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise RuntimeError("a weight is too large for float16; lower --learning-rate")
    about = dict(
        architectures=["GPT2LMHeadModel"],
        model_type="gpt2",
        activation_function="gelu_new",
        n_layer=args.layers,
        n_head=args.heads,
        n_embd=args.width,
        n_positions=args.context,
        n_ctx=args.context,
        vocab_size=config["vocab_size"],
        layer_norm_epsilon=1e-5,
        tie_word_embeddings=True,
        bos_token_id=config.get("bos_token_id", config["eos_token_id"]),
        eos_token_id=config["eos_token_id"],
        torch_dtype="float16",
    )

    put(args.out, "model.safetensors", safetensors_bytes(weights, metadata={"format": "pt"}))
    for name in TOKENIZER_FILES:
        source = os.path.join(args.target, name)
        if os.path.exists(source):
            with open(source, "rb") as file:
                put(args.out, name, file.read())
    put(args.out, "config.json", (json.dumps(about, indent=2) + "\n").encode())


def parse():
    def above_zero(kind):
        def value(text):
            number = kind(text)
            if not (0 < number < float("inf")):
                raise ValueError
            return number

        value.__name__ = "number above 0"
        return value

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option, count, amount = parser.add_argument, above_zero(int), above_zero(float)
    option("--target", required=True, metavar="DIR", help="the target's folder")
    option("--text", nargs="+", default=[], metavar="PATH", help="files or folders of text")
    option("--ids", nargs="+", default=[], metavar="FILE", help="token ids, a document a line")
    option("-o", "--out", required=True, metavar="DIR", help="the folder to write")
    option("--distill", type=float, default=0.0, metavar="W", help="weight of the target's distribution, 0 to 1 [0]")
    option("--minutes", type=amount, default=20.0, help="training time, after the first step [20]")
    option("--steps", type=count, help="end after so many steps if that is earlier")
    option("--layers", type=count, default=4, help="[4]")
    option("--width", type=count, default=512, help="[512]")
    option("--heads", type=count, help="[heads of 64 columns, which the GPU engine needs]")
    option("--context", type=count, help="positions, [the target's]")
    option("--batch", type=count, default=48, help="stretches of text a step [48]")
    option("--micro", type=count, default=16, help="of them, at a time; fewer take less memory [16]")
    option("--matrix-rate", type=amount, default=0.02, help="learning rate of the blocks' matrices [0.02]")
    option("--learning-rate", type=amount, default=2e-3, help="that of all else [0.002]")
    option("--warm-up", type=count, default=50, help="steps until the full learning rate [50]")
    option("--seed", type=int, default=0)
    option("--device", help="cpu, cuda or cuda:N [a GPU, else the CPU]")
    option("--no-compile", action="store_true", help="without torch.compile, for GPUs where it does not work")
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    option(
        "--weights-tool",
        default=os.path.join(here, "build", "weights_tool"),
        metavar="FILE",
        help="the tokenizer of --text [build/weights_tool]",
    )
    return parser.parse_args()


def main():
    args = parse()
    if not args.text and not args.ids:
        raise UsageError("nothing to learn from; give --text or --ids")
    if not 0 <= args.distill <= 1:
        raise UsageError(f"--distill is {args.distill:g}; it is a weight from 0 to 1")
    config = read_config(args.target)
    if not any(os.path.exists(os.path.join(args.target, name)) for name in TOKENIZER_FILES):
        raise UsageError(
            f"{args.target} holds none of {', '.join(TOKENIZER_FILES)}; the draft needs the target's vocabulary"
        )
    args.context = args.context or config["n_positions"]
    if args.context > config["n_positions"]:
        raise UsageError(f"--context {args.context} is longer than the target's {config['n_positions']}")
    args.heads = args.heads or max(1, args.width // 64)
    if args.width % args.heads:
        raise UsageError(f"--width {args.width} does not divide into {args.heads} heads")
    if args.device and args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {args.device}: PyTorch finds no GPU; use --device cpu")
    if os.path.exists(args.out) and os.path.isdir(args.target) and os.path.samefile(args.out, args.target):
        raise UsageError("-o is the target's own folder; name another")
    try:
        os.makedirs(args.out, exist_ok=True)
    except OSError as error:
        raise UsageError(f"-o {args.out} cannot be made: {error.strerror}")

    rng = np.random.default_rng(args.seed)
    parts = []
    if args.text:
        parts.append(tokens_of_text(text_files(args.text), args.weights_tool, args.target, rng))
    if args.ids:
        parts.append(tokens_of_ids(args.ids, config["vocab_size"], config["eos_token_id"], rng))
    tokens = np.concatenate(parts)
    n_held_out = max(len(tokens) // 100, args.context + 1)
    if len(tokens) - n_held_out < args.context + 1:
        raise UsageError(
            f"the text holds {len(tokens)} tokens, too few to learn from; "
            f"{2 * (args.context + 1)} are the least for a context of {args.context}, millions are of use"
        )
    if tokens.max() >= config["vocab_size"]:
        raise UsageError(
            f"the tokenizer gives token {tokens.max()}, but config.json says vocab_size {config['vocab_size']}"
        )
    print(f"{len(tokens) - n_held_out:,} tokens to learn from, {n_held_out:,} held out", flush=True)
    save(train(args, config, tokens[:-n_held_out], tokens[-n_held_out:]), args, config)
    print(f"wrote {args.out}", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    try:
        main()
    except UsageError as error:
        print(f"train_draft.py: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, OSError) as error:
        print(f"train_draft.py: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
