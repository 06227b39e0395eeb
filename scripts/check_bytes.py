#!/usr/bin/env python3
"""Compares the engine's own account of memory traffic (decode/account.h) with what the GPU's counters saw.

    scripts/check_bytes.py --model gpt2-large.blob                 (ncu of Nsight Compute; a GPU whose counters may be read)

Runs a short generation in each mode under ncu, adds up dram__bytes_read and dram__bytes_write of its kernels (but those
that prepare the weights once, when the model is loaded), and ends with 1 if the account is off by more than the
tolerance. Clocks and caches are left as they are: a flush before each kernel would add bytes that no run moves. Models
that fit into the L2 cache (the demo) move less than accounted.
"""
import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile

from report import fail

METRICS = {"read": "dram__bytes_read.sum", "written": "dram__bytes_write.sum"}
UNITS = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "Tbyte": 1e12}
LOADING = "fold_"  # how the names of the kernels begin that run when the model is loaded (kernels/fold.cuh)
PROMPT = "def read_table(path):\n    rows = []\n    with open(path) as file:\n"


def counted_bytes(path):
    """Bytes by metric, and (launches, bytes) by kernel, from ncu's raw page: a row of names, a row of units, kernels."""
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        lines = [line for line in file if not line.startswith("==")]
    if not lines:
        fail("ncu wrote no table; run it by hand to see why")
    rows = csv.DictReader(lines)
    missing = [name for name in ("Kernel Name", *METRICS.values()) if name not in (rows.fieldnames or [])]
    if missing:
        fail(f"ncu's table has no column {missing[0]}; found {', '.join(rows.fieldnames or [])[:300]}")
    totals, kernels, units = dict.fromkeys(METRICS, 0.0), {}, None
    for row in rows:
        if units is None:
            units = {name: UNITS.get(row[METRICS[name]]) for name in METRICS}
            if None in units.values():
                fail(f"ncu gives bytes in a unit that is not known here: {[row[m] for m in METRICS.values()]}")
            continue
        try:
            counted = {name: float(row[METRICS[name]].replace(",", "")) * units[name] for name in METRICS}
        except ValueError:
            fail(f"ncu could not count {row['Kernel Name']}: {[row[m] for m in METRICS.values()]}")
        launches, so_far = kernels.get(row["Kernel Name"], (0, 0.0))
        kernels[row["Kernel Name"]] = (launches + 1, so_far + sum(counted.values()))
        if row["Kernel Name"].startswith(LOADING):
            continue
        for name, value in counted.items():
            totals[name] += value
    if not kernels:
        fail("ncu saw no kernels; was the run on a GPU?")
    return totals, kernels


def run(arguments, mode, folder):
    log = os.path.join(folder, f"{mode}.csv")
    command = [arguments.ncu, "--clock-control", "none", "--cache-control", "none", "--page", "raw", "--csv",
               "--print-units", "base", "--metrics", ",".join(METRICS.values()), "--log-file", log,
               arguments.program, "--jsonl", "--device", arguments.device, "--mode", mode, "--ignore-eos",
               "--max-tokens", str(arguments.max_tokens)]
    if arguments.model:
        command += ["--model", arguments.model]
    line = {"ids": arguments.ids} if arguments.ids else {"prompt": PROMPT}
    done = subprocess.run(command, input=json.dumps(line) + "\n", capture_output=True, text=True)
    text = open(log, encoding="utf-8", errors="replace").read() if os.path.exists(log) else ""
    if "ERR_NVGPUCTRPERM" in text + done.stdout + done.stderr:
        fail("the driver keeps the GPU's counters for administrators; run this as root")
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or len(answers) != 1:
        said = [line for line in (done.stdout + done.stderr + text).splitlines() if line.strip()]
        fail(f"the run under ncu failed ({mode}, exit code {done.returncode}): " + " | ".join(said[-3:]))
    return json.loads(answers[0]), *counted_bytes(log)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the model file; without it, the one linked in")
    parser.add_argument("--program", default="build/staged-gpt2")
    parser.add_argument("--ncu", default="ncu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--modes", nargs="+", default=["baseline", "speculative", "staged"])
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--ids", type=int, nargs="+", help="the prompt as token ids, for models without a tokenizer")
    parser.add_argument("--tolerance", type=float, default=5, help="percent")
    arguments = parser.parse_args()
    for program in (arguments.ncu, arguments.program):
        if not shutil.which(program):
            fail(f"{program} was not found; name it with --{'ncu' if program == arguments.ncu else 'program'}")

    good = True
    with tempfile.TemporaryDirectory() as folder:
        for mode in arguments.modes:
            answer, totals, kernels = run(arguments, mode, folder)
            account, counted = sum(answer["bytes"].values()), sum(totals.values())
            off = 100 * (account / counted - 1) if counted else float("inf")
            good = good and abs(off) <= arguments.tolerance
            print(f"{mode}: {answer['tokens']} tokens; account {account / 1e6:.1f} MB (prefill "
                  f"{answer['bytes']['prefill'] / 1e6:.1f}), counted {counted / 1e6:.1f} MB (read "
                  f"{totals['read'] / 1e6:.1f}, written {totals['written'] / 1e6:.1f}): the account is {off:+.1f} % off")
            for kernel, (launches, moved) in sorted(kernels.items(), key=lambda item: -item[1][1]):
                print(f"    {moved / 1e6:10.1f} MB in {launches:5d} launches of {kernel[:80]}")
    print("within" if good else "not within", f"{arguments.tolerance:g} %")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
