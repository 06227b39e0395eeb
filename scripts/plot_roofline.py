#!/usr/bin/env python3
"""Draws a roofline report: performance over arithmetic intensity, and where decoding stands below the roof.

    staged-gpt2 roofline --model gpt2-large.blob --json R.json
    scripts/plot_roofline.py R.json -o roofline.png            (or .svg; needs matplotlib)

A filled point counts all FLOPs executed; the ring beside the staged one counts those alone that baseline would have
spent on the same text, over the same bytes. On a GPU the values of the paper (RTX 4090) are drawn too, paler.
"""
import math

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import report as reports

# The paper's points follow from its tables: tokens/s, and bandwidth relative to baseline, GPT2-L, greedy. One token of
# baseline reads every matrix once in fp16, 2 bytes a weight, and spends 2 FLOPs on it: intensity 1. Staged decoding
# emits a token for 0.23 of the bytes, so its useful intensity is 1 / 0.23. The roof is the RTX 4090's by its data
# sheet: fp16 tensor cores with fp32 sums, without sparsity.
PAPER_WEIGHTS = 36 * 12 * 1280**2 + 50257 * 1280
PAPER_TOKENS = {"baseline": 150, "staged": 475}
PAPER_BANDWIDTH = {"baseline": 1.0, "staged": 0.23}
RTX_4090 = {"bytes_per_s": 1008e9, "flops_per_s": 165.2e12}


def roof(axes, bytes_per_s, flops_per_s, **style):
    low, high = axes.get_xlim()
    ridge = flops_per_s / bytes_per_s
    axes.plot([low, ridge, high], [low * bytes_per_s, flops_per_s, flops_per_s], **style)


def whole_decades(values):
    return 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))


def main():
    report, out = reports.options(__doc__, "roofline")
    ceilings, device = report["ceilings"], report["device"]
    modes = {mode["mode"]: mode for mode in report["modes"] if mode["tokens"] > 0}
    drawn = [mode for mode in ("baseline", "staged") if mode in modes]
    if not drawn:
        reports.fail("the report holds no tokens; measure again with other prompts")
    model, gpu = reports.model_name(report), device["kind"] == "cuda"

    x = [modes[m][key] for m in drawn for key in ("intensity", "useful_intensity")]
    y = [modes[m][key] for m in drawn for key in ("flops_per_s", "useful_flops_per_s")] + [1.5 * ceilings["flops_per_s"]]
    x += [0.1, 1000]
    if gpu:
        y += [1e11, 1e14]
    else:
        y += [modes[drawn[0]]["intensity"] * ceilings["read_bytes_per_s"] / 10]

    figure, axes = plt.subplots(figsize=(8, 5.6), layout="constrained")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*whole_decades(x))
    axes.set_ylim(*whole_decades(y))
    roof(axes, ceilings["read_bytes_per_s"], ceilings["flops_per_s"], color="tab:blue", linewidth=2, zorder=3,
         label=f"roofline as measured: {ceilings['read_bytes_per_s'] / 1e9:,.0f} GB/s, "
               f"{ceilings['flops_per_s'] / 1e12:,.3g} TFLOP/s")
    names = {"baseline": f"baseline {model}", "staged": f"staged speculative {model}"}
    for mode in drawn:
        point, colour = modes[mode], reports.COLOURS[mode]
        axes.plot(point["intensity"], point["flops_per_s"], "o", color=colour, markersize=9, zorder=5,
                  label=f"{names[mode]}, {point['tokens_per_s']:,.0f} tokens/s")
    if "staged" in modes:
        axes.plot(modes["staged"]["useful_intensity"], modes["staged"]["useful_flops_per_s"], "o", markersize=9, zorder=4,
                  markerfacecolor="none", markeredgecolor="red", label="the same, useful FLOPs alone")
    if gpu:
        pale = {"color": "0.72", "zorder": 1}
        roof(axes, RTX_4090["bytes_per_s"], RTX_4090["flops_per_s"], linestyle="--", linewidth=1,
             label="RTX 4090 by its data sheet", **pale)
        for mode, colour in (("baseline", "0.6"), ("staged", "#f2a5a5")):
            axes.plot(1 / PAPER_BANDWIDTH[mode], 2 * PAPER_WEIGHTS * PAPER_TOKENS[mode], "o", color=colour, markersize=6,
                      zorder=2, label=f"the paper on it: {mode}, {PAPER_TOKENS[mode]} tokens/s")
    axes.set_xlabel("arithmetic intensity (FLOP/byte)")
    axes.set_ylabel("performance (FLOP/s)")
    axes.set_title(f"{model} on {device['name']}")
    axes.grid(True, which="major", color="0.9")
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", fontsize=8, framealpha=1)
    sampling = "greedy" if report["sampling"]["temperature"] == 0 else f"temperature {report['sampling']['temperature']:g}"
    figure.supxlabel(f"{sampling}, {reports.origin_line(report)}", fontsize=7, color="0.4")
    reports.save(figure, out)


if __name__ == "__main__":
    main()
