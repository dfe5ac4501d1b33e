#!/usr/bin/env python3
"""What every method leaves of the demo model: the tables of docs/quality.md.

For each task the demo model is calibrated once; every method plans from those statistics, keeping three quarters, half and a
quarter of the routed experts' weights. Measured on unseen samples: exact match and loss on the task itself, and both on the
other tasks. The tables have means over the tasks. With --together there is one calibration, on all tasks, and one table.

Usage: quality.py [--tasks arithmetic,…] [--together] [--samples 100] [--other-samples 20] [--json FILE]
"""
import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "demo/model"
EXPERTS = 32
SHARES = [0.75, 0.5, 0.25]
RANDOM_SEEDS = [0, 1, 2]


def moetrim(*arguments):
    done = subprocess.run([ROOT / "build/moetrim", *map(str, arguments), "--json", "--quiet"], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"moetrim {' '.join(map(str, arguments))}\n{done.stderr}")
    return json.loads(done.stdout)


def drop(method, *more):
    return lambda share: ["--method", method, "--keep", round(EXPERTS * share), *more]


def merge(method, router, *more):
    return lambda share: ["--merge", method, "--merge-to", round(EXPERTS * share), "--router", router, *more]


def atoms(method):
    return lambda share: ["--method", method, "--keep-atoms", share]


def both(share):
    """Half of what goes, goes as whole experts, the rest as atomic experts of those that stay: (kept experts, share of atoms)."""
    experts = round(EXPERTS * (1 + share) / 2)
    return experts, round(EXPERTS * share / experts, 6)


def drop_and_slim(share):
    experts, slim = both(share)
    return ["--method", "heapr", "--keep", experts, "--expert-method", "easy-ep", "--keep-atoms", slim]


def merge_and_slim(share):
    experts, slim = both(share)
    return ["--merge", "hc-smoe", "--merge-to", experts, "--router", "centroid", "--method", "heapr", "--keep-atoms", slim,
            "--scope", "expert"]  # equal widths, which moetrim computes once they are written


# What a row of the table is called, and the options of `moetrim plan` for a share that stays.
METHODS = {
    **{f"drop: {name}": drop(name) for name in ["frequency", "soft-frequency", "ean", "reap", "tcess", "easy-ep", "fisher"]},
    **{f"merge: {name}": merge(name, "centroid") for name in ["m-smoe", "hc-smoe", "ream", "uncurl"]},
    **{f"merge, exact routing: {name}": merge(name, "duplicate") for name in ["m-smoe", "hc-smoe", "ream", "uncurl"]},
    "merge: hc-smoe, aligned": merge("hc-smoe", "centroid", "--merge-align", "weights"),
    "atoms: heapr": atoms("heapr"),
    "combined: easy-ep + heapr": drop_and_slim,
    "combined: hc-smoe + heapr": merge_and_slim,
    **{f"random experts {seed}": drop("random", "--seed", seed) for seed in RANDOM_SEEDS},
    **{f"random atoms {seed}": lambda share, seed=seed: [*atoms("random-atoms")(share), "--seed", seed] for seed in RANDOM_SEEDS},
}


def is_written(method):
    """Merged experts have values that no mask of the original can stand for."""
    return "merge" in method or "hc-smoe" in method


class Evaluation:
    """Exact match and loss on the tasks of a calibration, and on others."""

    def __init__(self, own, others, samples, other_samples):
        self.parts = [part for part in [(own, samples), (others, other_samples)] if part[0]]

    def run(self, checkpoint, plans):
        """[[match, loss] of each part] of every plan, or of the checkpoint itself where there are none."""
        columns = []
        for tasks, samples in self.parts:
            files = [argument for task in tasks for argument in ("--task", ROOT / f"calibration/{task}.test.jsonl")]
            named = [argument for plan in plans for argument in ("--plan", plan)]
            result = moetrim("evaluate", checkpoint, *files, *named, "--count", "response", "--samples", samples, "--exact-match",
                             "--max-new-tokens", 128)
            columns.append([(row["exact_match"], row["loss"]) for row in (result["plans"] if plans else [result])])
        return [[value for part in row for value in part] for row in zip(*columns)]


def measure(tasks, evaluation, folder):
    """{method: {share: [match, loss, …]}} of plans from one calibration."""
    name = "-".join(tasks)
    statistics_folder = Path(folder, f"{name}.stats")
    files = [argument for task in tasks for argument in ("--task", ROOT / f"calibration/{task}.jsonl")]
    moetrim("calibrate", MODEL, *files, "--statistics", "second-order,all-experts", "-o", statistics_folder)
    found = {"whole model": {1.0: evaluation.run(MODEL, [])[0]}}
    masked = []
    for method, options in METHODS.items():
        found[method] = {}
        for share in SHARES:
            plan = Path(folder, f"{name}-{len(found)}-{share}.json")
            moetrim("plan", statistics_folder, *options(share), "-o", plan)
            if not is_written(method):
                masked.append((method, share, plan))
                continue
            written = Path(folder, "written")
            moetrim("rewrite", MODEL, "--plan", plan, "-o", written)
            found[method][share] = evaluation.run(written, [])[0]
            shutil.rmtree(written)
    for (method, share, _), values in zip(masked, evaluation.run(MODEL, [plan for *_, plan in masked])):
        found[method][share] = values
    return found


def joined(found):
    """Random seeds become one row."""
    out = {}
    for method, values in found.items():
        name = method.rsplit(" ", 1)[0] if method.startswith("random") else method
        for share, row in values.items():
            out.setdefault(name, {}).setdefault(share, []).append(row)
    return {name: {share: [statistics.fmean(column) for column in zip(*rows)] for share, rows in values.items()}
            for name, values in out.items()}


def table(rows, part):
    """Exact match in per cent and loss in nats per token, of one part of the evaluation."""
    def cell(values):
        return f"{100 * values[2 * part]:.0f} ({values[2 * part + 1]:.3f})"

    lines = ["| | 75 % | 50 % | 25 % |", "|---|---:|---:|---:|", f"| whole model | {cell(rows['whole model'][1.0])} | | |"]
    for name, values in rows.items():
        if name != "whole model":
            lines.append(f"| {name} | " + " | ".join(cell(values[share]) for share in SHARES) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="", help="calibrate on these; default: all six")
    parser.add_argument("--together", action="store_true", help="one calibration on all of them")
    parser.add_argument("--samples", type=int, default=100, help="of a task that is calibrated on")
    parser.add_argument("--other-samples", type=int, default=20, help="of every other task")
    parser.add_argument("--json", type=Path, help="also write every number there")
    arguments = parser.parse_args()
    tasks = sorted(f.name.removesuffix(".test.jsonl") for f in (ROOT / "calibration").glob("*.test.jsonl"))
    chosen = arguments.tasks.split(",") if arguments.tasks else tasks
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for own in [chosen] if arguments.together else [[task] for task in chosen]:
            others = [task for task in tasks if task not in own]
            found.append(measure(own, Evaluation(own, others, arguments.samples, arguments.other_samples), folder))
            print(f"<!-- {', '.join(own)} done -->", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    pooled = {}
    for one in found:
        for method, values in one.items():
            for share, row in values.items():
                pooled.setdefault(method, {}).setdefault(share, []).append(row)
    rows = joined({method: {share: [statistics.fmean(column) for column in zip(*rows)] for share, rows in values.items()}
                   for method, values in pooled.items()})
    for part in range(len(rows["whole model"][1.0]) // 2):
        print(f"### {'On the task' if part == 0 else 'On the other tasks'}\n\n{table(rows, part)}\n")


if __name__ == "__main__":
    main()
