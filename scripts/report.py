"""What scripts share: the sentence that ends one; of the plots, options, reading a report, saving a picture."""
import argparse
import json
import os
import sys

COLOURS = {"baseline": "black", "speculative": "tab:blue", "staged": "red"}
ORIGINS = {"target": "#c8a415", "draft": "#1f9e9e", "ngram": "#b0399a"}  # as --trace colours them
SHAPES = {(12, 768): "GPT-2", (24, 1024): "GPT2-M", (36, 1280): "GPT2-L", (48, 1600): "GPT2-XL", (6, 768): "DistilGPT2"}


def fail(sentence, code=1):
    print(f"{os.path.basename(sys.argv[0])}: {sentence}", file=sys.stderr)
    sys.exit(code)


def options(doc, kind):
    """The report that the command line names and the picture's path."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", metavar="REPORT.json", help=f"written by staged-gpt2 {kind} --json REPORT.json")
    parser.add_argument("-o", "--out", metavar="OUT.png|.svg", required=True)
    arguments = parser.parse_args()
    if os.path.splitext(arguments.out)[1] not in (".png", ".svg"):
        fail(f"{arguments.out} must end in .png or .svg", 2)
    try:
        with open(arguments.report, encoding="utf-8") as file:
            report = json.load(file)
    except OSError as error:
        fail(f"{arguments.report} can't be read: {error.strerror}")
    except ValueError as error:
        fail(f"{arguments.report} is not JSON: {error}; write it with staged-gpt2 {kind} --json")
    if not isinstance(report, dict) or report.get("report") != kind:
        fail(f"{arguments.report} is no report of staged-gpt2 {kind}; write one with staged-gpt2 {kind} --json")
    return report, arguments.out


def model_name(report):
    target = report["model"]["target"]
    shape = target["n_layer"], target["n_embd"]
    return SHAPES.get(shape, "GPT-2 of {} layers × {}".format(*shape))


def origin_line(report):
    """Where a picture's figures come from, for its lower edge."""
    return (f"{report['n_prompts']} prompts ({os.path.basename(report['prompt_set'])}), up to {report['max_tokens']} tokens, "
            f"{report['date'][:10]}, staged-gpt2 {report['version']} ({report['commit']})")


def save(figure, path):
    temporary = f"{path}.part{os.getpid()}"
    try:
        figure.savefig(temporary, format=path[-3:], dpi=150, metadata={"Date": None} if path.endswith(".svg") else None)
        os.replace(temporary, path)
    except OSError as error:
        fail(f"{path} can't be written: {error.strerror}")
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
