#!/usr/bin/env python3
"""Draws a bench report: tokens/s of every prompt in each mode, and who guessed the tokens.

    staged-gpt2 bench --model gpt2-large.blob --prompts HumanEval.jsonl.gz --json B.json
    scripts/plot_bench.py B.json -o bench.png                  (or .svg; needs matplotlib)

Prompts are sorted by the last mode's speed, in each panel on its own; a line marks each mode's median.
"""
import statistics

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

import report as reports


def draw_speeds(axes, setting):
    prompts = [prompt["modes"] for prompt in setting["prompts"] if prompt["tokens"] > 0]
    prompts.sort(key=lambda modes: modes[-1]["tokens_per_s"])
    if not prompts:
        reports.fail(f"the report holds no tokens ({setting['name']}); measure again with other prompts")
    for i, mode in enumerate(setting["modes"]):
        name, colour = mode["mode"], reports.COLOURS[mode["mode"]]
        speeds = [modes[i]["tokens_per_s"] for modes in prompts]
        label = f"{name}: median {statistics.median(speeds):,.0f} tokens/s"
        if name != "baseline":
            label += f", {mode['prompt_speedup']['median']:.2f}×"
        axes.plot(range(1, len(speeds) + 1), speeds, "o", color=colour, markersize=3.5, label=label)
        axes.axhline(statistics.median(speeds), color=colour, linewidth=0.7, alpha=0.6)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("prompts, sorted")
    axes.set_ylabel("tokens/s")
    axes.set_title(f"{setting['name']} ({100 * setting['looping_share']:.0f} % of the texts loop)", fontsize=10)
    axes.legend(loc="upper left", fontsize=7.5)
    axes.grid(True, axis="y", color="0.9")
    axes.set_axisbelow(True)


def draw_origins(axes, settings):
    bars = [(f"{setting['name']}\n{mode['mode']}", mode["by_origin"]) for setting in settings for mode in setting["modes"]
            if mode["mode"] != "baseline" or len(setting["modes"]) == 1]
    bottom = [0.0] * len(bars)
    for origin, colour in reports.ORIGINS.items():
        shares = [100 * counts[origin] / max(1, sum(counts.values())) for _, counts in bars]
        drawn = axes.bar(range(len(bars)), shares, 0.7, bottom, color=colour,
                         label={"ngram": "n-gram"}.get(origin, origin))
        axes.bar_label(drawn, [f"{share:.0f} %" if share >= 4 else "" for share in shares], label_type="center",
                       color="white", fontsize=8)
        bottom = [low + share for low, share in zip(bottom, shares)]
    axes.set_xticks(range(len(bars)), [name for name, _ in bars], fontsize=7.5)
    axes.set_ylim(0, 118)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("tokens by who guessed them (%)")
    axes.legend(loc="upper center", ncols=3, fontsize=7.5)
    axes.set_title("origin of the tokens", fontsize=10)


def main():
    report, out = reports.options(__doc__, "bench")
    settings = report["settings"]
    figure, axes = plt.subplots(1, len(settings) + 1, figsize=(5 * len(settings) + 4, 4.6), layout="constrained")
    for panel, setting in zip(axes, settings):
        draw_speeds(panel, setting)
    draw_origins(axes[-1], settings)
    figure.suptitle(f"{reports.model_name(report)} on {report['device']['name']}")
    figure.supxlabel(reports.origin_line(report), fontsize=7, color="0.4")
    reports.save(figure, out)


if __name__ == "__main__":
    main()
