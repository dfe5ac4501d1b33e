#!/usr/bin/env python3
"""What every method leaves of the demo model: the tables of docs/quality.md.

For each task the demo model is calibrated once; every method plans from those statistics, keeping three quarters, half and a
quarter of the routed experts' weights. Measured on unseen samples: loss and exact match on the task itself, and both on the
other tasks. The tables have means over the tasks.

Usage: quality.py [--tasks arithmetic,…] [--samples 100] [--other-samples 20] [--json FILE]
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
    """Loss and exact match on a task and on the others."""

    def __init__(self, task, tasks, samples, other_samples):
        self.parts = [([task], samples), ([other for other in tasks if other != task], other_samples)]

    def run(self, checkpoint, plans):
        """[(own loss, own match, other loss, other match)] of the plans, or of the checkpoint itself where there are none."""
        columns = []
        for tasks, samples in self.parts:
            files = [argument for task in tasks for argument in ("--task", ROOT / f"calibration/{task}.test.jsonl")]
            named = [argument for plan in plans for argument in ("--plan", plan)]
            result = moetrim("evaluate", checkpoint, *files, *named, "--count", "response", "--samples", samples, "--exact-match", "--max-new-tokens", 128)
            rows = result["plans"] if plans else [result]
            columns.append([(row["loss"], row["exact_match"]) for row in rows])
        return [own + other for own, other in zip(*columns)]


def measure(task, evaluation, folder):
    """{method: {share: (own loss, own match, other loss, other match)}}"""
    statistics_folder = Path(folder, f"{task}.stats")
    moetrim("calibrate", MODEL, "--task", ROOT / f"calibration/{task}.jsonl", "--statistics", "second-order,all-experts",
            "-o", statistics_folder)
    found = {"whole model": {1.0: evaluation.run(MODEL, [])[0]}}
    masked = []
    for method, options in METHODS.items():
        found[method] = {}
        for share in SHARES:
            plan = Path(folder, f"{task}-{len(found)}-{share}.json")
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


def table(rows, column, digits, scale=1.0):
    lines = ["| | 75 % | 50 % | 25 % |", "|---|---:|---:|---:|"]
    whole = rows["whole model"][1.0][column]
    lines.append(f"| whole model | {scale * whole:.{digits}f} | | |")
    for name, values in rows.items():
        if name != "whole model":
            lines.append(f"| {name} | " + " | ".join(f"{scale * values[share][column]:.{digits}f}" for share in SHARES) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="", help="calibrate on these; default: all six")
    parser.add_argument("--samples", type=int, default=100, help="of the task itself")
    parser.add_argument("--other-samples", type=int, default=20, help="of every other task")
    parser.add_argument("--json", type=Path, help="also write every number there")
    arguments = parser.parse_args()
    tasks = sorted(f.name.removesuffix(".test.jsonl") for f in (ROOT / "calibration").glob("*.test.jsonl"))
    chosen = arguments.tasks.split(",") if arguments.tasks else tasks
    by_task = {}
    with tempfile.TemporaryDirectory() as folder:
        for task in chosen:
            by_task[task] = measure(task, Evaluation(task, tasks, arguments.samples, arguments.other_samples), folder)
            print(f"<!-- {task} done -->", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(by_task, indent=1))
    pooled = {}
    for task in chosen:
        for method, values in by_task[task].items():
            for share, row in values.items():
                pooled.setdefault(method, {}).setdefault(share, []).append(row)
    rows = joined({method: {share: [statistics.fmean(column) for column in zip(*rows)] for share, rows in values.items()}
                   for method, values in pooled.items()})
    print(f"Means over {len(chosen)} tasks.\n")
    for title, column, digits, scale in [("Exact match on the task, %", 1, 0, 100), ("Loss on the task, nats per token", 0, 3, 1),
                                         ("Exact match on the other tasks, %", 3, 0, 100),
                                         ("Loss on the other tasks, nats per token", 2, 3, 1)]:
        print(f"### {title}\n\n{table(rows, column, digits, scale)}\n")


if __name__ == "__main__":
    main()
