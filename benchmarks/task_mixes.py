#!/usr/bin/env python3
"""Plans for one task, for several, and against one, at the same number of experts: the tables of docs/tasks.md.

Usage: task_mixes.py [--samples 20] [--keep 16 12 8] [--protect 0.1 0.2] [--drop 0.1 0.25 0.5 1] [--rows TEXT]

Calibrates the demo model on each of its tasks once. All plans of a size share one pass for the loss, on 100 unseen samples of every
task; exact match is of the first --samples of them. Cells are exact match in per cent (loss in nats per response token), means.
"""
import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOETRIM = Path(os.environ.get("MOETRIM_BUILD", ROOT / "build")) / "moetrim"
MODEL = ROOT / "demo/model"
TASKS = ["arithmetic", "brackets", "calendar", "lookup", "sorting", "text"]


def moetrim(*arguments):
    done = subprocess.run([MOETRIM, *map(str, arguments), "--json", "--quiet"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def stats(task, folder):
    return folder / f"{task}.stats"


def next_task(task, step=1):
    return TASKS[(TASKS.index(task) + step) % len(TASKS)]


def beside(tasks, folder):
    """The options that put statistics of tasks beside those of the first."""
    return [stats(tasks[0], folder), *(o for t in tasks[1:] for o in ("--with", stats(t, folder)))]


def plans_of(folder, shares, factors):
    """(row, column to tasks, options of `plan`)"""
    rows = []
    for task in TASKS:
        other = next_task(task)
        columns = {"own": [task], "next": [other], "others": [t for t in TASKS if t not in (task, other)]}
        variants = {f"one task, {method}": ["--method", method] for method in ("easy-ep", "reap", "easy-ep+reap")}
        for share in shares:
            variants[f"one task, {share} of the next protected"] = ["--method", "easy-ep", "--protect-task", f"{stats(other, folder)}:{share}"]
        for factor in factors:
            variants[f"one task, next dropped, λ = {factor}"] = ["--method", "easy-ep", "--drop-task", f"{stats(other, folder)}:{factor}"]
        rows += [(name, columns, [stats(task, folder), *options]) for name, options in variants.items()]
    for combine in ("sum", "union"):
        for group in ([[t, next_task(t)] for t in TASKS], [[t, next_task(t, 2), next_task(t, 4)] for t in TASKS[:2]], [TASKS]):
            for tasks in group:
                columns = {"own": tasks, "others": [t for t in TASKS if t not in tasks]}
                rows.append((f"{len(tasks)} tasks, {combine}", columns,
                             [*beside(tasks, folder), "--method", "easy-ep", "--combine", combine]))
    return rows


def evaluate(plans, samples, exact):
    """[plan] -> {task: value}, of the whole model too."""
    tests = [o for t in TASKS for o in ("--task", ROOT / f"calibration/{t}.test.jsonl")]
    options = ["--exact-match", "--max-new-tokens", 128, "--samples", samples] if exact else ["--count", "response"]
    result = moetrim("evaluate", MODEL, *tests, *(o for p in plans for o in ("--plan", p)), *options)
    key = "exact_match" if exact else "loss"
    return [{task: row[key] for task, row in zip(TASKS, part["tasks"])} for part in (result, *result["plans"])]


def table(rows, matches, losses):
    cells = {}
    for (name, columns, _), match, loss in zip(rows, matches, losses):
        for column, tasks in {**columns, "all six": TASKS}.items():
            found = cells.setdefault(name, {}).setdefault(column, ([], []))
            found[0].extend(match[t] for t in tasks)
            found[1].extend(loss[t] for t in tasks)
    mean = lambda values: sum(values) / len(values)
    return {name: {column: f"{100 * mean(m):.0f} ({mean(l):.3f})" if m else "" for column, (m, l) in columns.items()}
            for name, columns in cells.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--keep", type=int, nargs="+", default=[16, 12, 8])
    parser.add_argument("--protect", type=float, nargs="*", default=[0.1, 0.2])
    parser.add_argument("--drop", type=float, nargs="*", default=[0.1, 0.25, 0.5, 1])
    parser.add_argument("--rows", default="", help="only rows whose name has this text")
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for task in TASKS:
            moetrim("calibrate", MODEL, "--task", ROOT / f"calibration/{task}.jsonl", "-o", stats(task, folder))
        for keep in arguments.keep:
            rows = []
            files = []
            for name, columns, options in plans_of(folder, arguments.protect, arguments.drop):
                if arguments.rows not in name:
                    continue
                file = folder / f"{keep}-{len(rows)}.json"
                moetrim("plan", *options, "--keep", keep, "-o", file)
                rows.append((name, columns, options))
                files.append(file)
            losses = evaluate(files, 0, exact=False)
            matches = evaluate(files, arguments.samples, exact=True)
            for name, columns in table(rows, matches[1:], losses[1:]).items():
                for column, cell in columns.items():
                    found.setdefault((name, column), {})[keep] = cell
    print("| plans | on | " + " | ".join(map(str, arguments.keep)) + " |\n|---|---|" + "---:|" * len(arguments.keep))
    for (name, column), cells in found.items():
        print(f"| {name} | {column} | " + " | ".join(cells.get(keep, "–") for keep in arguments.keep) + " |")


if __name__ == "__main__":
    main()
