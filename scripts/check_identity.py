#!/usr/bin/env python3
"""Checks the promise on your own model: speculative and staged decoding write, byte for byte, what baseline writes.

    scripts/check_identity.py --model gpt2-large.blob --prompts HumanEval.jsonl.gz

Continues every prompt (JSON lines with "prompt" or "ids", plain or gzip) in each mode, greedily and with two ways of
sampling under each seed, compares tokens and text, and ends with 1 if any differ. Says how many tokens were compared.
"""
import argparse
import gzip
import json
import subprocess
import sys

from report import fail

SETTINGS = {
    "greedy": [],
    "T=1 k=50": ["--temperature", "1", "--top-k", "50"],
    "T=0.8 p=0.95": ["--temperature", "0.8", "--top-p", "0.95"],
}
MODES = ("baseline", "speculative", "staged")


def read_prompts(path, limit):
    """The first `limit` prompts as lines for --jsonl, which takes no other keys."""
    try:
        opened = gzip.open(path, "rt") if path.endswith(".gz") else open(path, encoding="utf-8")
        with opened as file:
            lines = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError) as error:
        fail(f"{path}: {error}; give JSON lines with \"prompt\" or \"ids\"")
    prompts = [{key: line[key] for key in ("prompt", "ids") if key in line} for line in lines[:limit]]
    if not prompts or not all(len(prompt) == 1 for prompt in prompts):
        fail(f"{path} holds no prompts, or a line without exactly one of \"prompt\" and \"ids\"")
    return "".join(json.dumps(prompt) + "\n" for prompt in prompts)


def continuations(a, prompts, options):
    """(ids, text) of each prompt."""
    command = [a.program, "--jsonl", "--ignore-eos", "--device", a.device, "--max-tokens", str(a.max_tokens), *options]
    if a.model:
        command += ["--model", a.model]
    try:
        run = subprocess.run(command, input=prompts, stdout=subprocess.PIPE, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        fail(f"{error}")
    return [(line["ids"], line["text"]) for line in map(json.loads, run.stdout.splitlines())]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="blob with a draft [the demo model linked in]")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--program", default="build/staged-gpt2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-tokens", type=int, default=250)
    parser.add_argument("--limit", type=int, help="take the first so many prompts [all]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    a = parser.parse_args()

    prompts = read_prompts(a.prompts, a.limit)
    compared = differing = 0
    for name, sampling in SETTINGS.items():
        for seed in a.seeds if sampling else a.seeds[:1]:  # greedy text has no seed
            options = sampling + (["--seed", str(seed)] if sampling else [])
            texts = {mode: continuations(a, prompts, ["--mode", mode, *options]) for mode in MODES}
            for mode in MODES[1:]:
                if len(texts[mode]) != len(texts["baseline"]):
                    fail(f"{name}: {mode} answered {len(texts[mode])} prompts, baseline {len(texts['baseline'])}")
                wrong = [i + 1 for i, text in enumerate(texts[mode]) if text != texts["baseline"][i]]
                tokens = sum(len(ids) for ids, _ in texts["baseline"])
                compared += tokens
                differing += len(wrong)
                found = f"prompts {wrong[:5]} differ from baseline's" if wrong else "as baseline"
                print(f"{name}, seed {seed}, {mode}: {tokens} tokens, {found}", flush=True)
    print(f"{compared} tokens compared, {differing} texts differ")
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
