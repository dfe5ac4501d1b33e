#!/usr/bin/env python3
"""Sequential calibration against one-shot: what both leave of the demo model, the tables of docs/sequential.md, and what it costs.

For each task, method and number of experts one plan is made of one-shot statistics and one of sequential statistics, and both are
measured on unseen samples in one pass: loss and KL per answer token, exact match. With --together there is one calibration on all
tasks, measured on all of them. With --cost CHECKPOINT: time and memory of a calibration on random tokens, one-shot and sequential.

Usage: sequential.py [--tasks arithmetic,…] [--together] [--methods easy-ep,reap] [--keep 16,12,10,8] [--samples 100] [--json FILE]
       sequential.py --cost CHECKPOINT [--tokens 8192] [--keep 32]
"""
import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

import measure

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "demo/model"
TASKS = ["arithmetic", "brackets", "calendar", "lookup", "sorting", "text"]
WAYS = ["one-shot", "sequential"]


def moetrim(*arguments):
    done = subprocess.run([ROOT / "build/moetrim", *map(str, arguments), "--json", "--quiet"], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"moetrim {' '.join(map(str, arguments))}\n{done.stderr}")
    return json.loads(done.stdout)


def files_of(tasks, kind):
    return [argument for task in tasks for argument in ("--task", ROOT / f"calibration/{task}.{kind}")]


def measure_tasks(tasks, methods, keeps, samples, folder):
    """{(method, keep, way): [loss, KL, exact match]} and how many experts of all layers the two ways choose alike."""
    name = "+".join(tasks)
    once = folder / f"{name}.stats"
    moetrim("calibrate", MODEL, *files_of(tasks, "jsonl"), "-o", once)
    plans, alike = {}, {}
    for method in methods:
        for keep in keeps:
            choice = ["--method", method, "--keep", keep]
            sequential = folder / f"{name}-{method}-{keep}.stats"
            moetrim("calibrate", MODEL, *files_of(tasks, "jsonl"), "--sequential", *choice, "-o", sequential)
            kept = []
            for way, source in zip(WAYS, [once, sequential]):
                plan = folder / f"{name}-{method}-{keep}-{way}.json"
                layers = moetrim("plan", source, *choice, "-o", plan)["layers"]
                kept.append([set(layer["keep"]) for layer in layers])
                plans[method, keep, way] = plan
            alike[method, keep] = statistics.fmean(len(a & b) / keep for a, b in zip(*kept))
    named = [argument for plan in plans.values() for argument in ("--plan", plan)]
    result = moetrim("evaluate", MODEL, *files_of(tasks, "test.jsonl"), *named, "--count", "response", "--samples",
                     samples, "--exact-match", "--max-new-tokens", 128)
    print(f"{name}: {result['loss']:.4f} nats, {result['exact_match']:.1%} without pruning", flush=True)
    return {key: [row["loss"], row["kl"], row["exact_match"]] for key, row in zip(plans, result["plans"])}, alike


def table(found, alike, methods, keeps):
    """Means over the tasks, and in how many of them sequential is better."""
    lines = ["| method | keep | same experts | loss, one-shot | sequential | KL, one-shot | sequential | better in | exact match, one-shot | sequential |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for method in methods:
        for keep in keeps:
            rows = [[of_task[method, keep, way] for way in WAYS] for of_task in found.values()]
            mean = [[statistics.fmean(row[way][column] for row in rows) for way in range(2)] for column in range(3)]
            better = sum(row[1][1] < row[0][1] for row in rows)
            same = statistics.fmean(of_task[method, keep] for of_task in alike.values())
            lines.append(f"| `{method}` | {keep} | {same:.0%} | {mean[0][0]:.3f} | {mean[0][1]:.3f} | {mean[1][0]:.3f} | {mean[1][1]:.3f} | "
                         f"{better} of {len(rows)} | {mean[2][0]:.1%} | {mean[2][1]:.1%} |")
    return "\n".join(lines)


def details(found, methods, keeps):
    lines = ["| task | method | keep | KL, one-shot | sequential | exact match, one-shot | sequential |", "|---|---|---|---|---|---|---|"]
    for task, of_task in found.items():
        for method in methods:
            for keep in keeps:
                once, sequential = (of_task[method, keep, way] for way in WAYS)
                lines.append(f"| {task} | `{method}` | {keep} | {once[1]:.3f} | {sequential[1]:.3f} | {once[2]:.0%} | {sequential[2]:.0%} |")
    return "\n".join(lines)


def cost(checkpoint, tokens, keep, folder):
    task = folder / "random.jsonl"
    measure.write_task(task, tokens // 512, 512)
    command = [ROOT / "build/moetrim", "calibrate", checkpoint, "--task", task, "--threads", 2, "--quiet"]
    options = {"one-shot": [], "sequential": ["--sequential", "--method", "easy-ep", "--keep", keep]}
    costs = {way: [measure.run([*command, *options[way], "-o", folder / f"{i}-{way}.stats"]) for i in range(2)] for way in WAYS}
    for way, runs in costs.items():
        best = min(runs, key=lambda run: run.cpu_seconds)
        print(f"{way}: {best.cpu_seconds:.1f} s CPU, {best.seconds:.1f} s, peak {best.peak_bytes / 2**20:.0f} MiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--methods", default="easy-ep,reap")
    parser.add_argument("--keep", default=None)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cost", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if given.cost:
            return cost(given.cost, given.tokens, int(given.keep or 32), folder)
        methods, keeps = given.methods.split(","), [int(k) for k in (given.keep or "16,12,10,8").split(",")]
        found, alike = {}, {}
        tasks = given.tasks.split(",")
        for group in [tasks] if given.together else [[task] for task in tasks]:
            name = "+".join(group)
            found[name], alike[name] = measure_tasks(group, methods, keeps, given.samples, folder)
        print(table(found, alike, methods, keeps), "\n", details(found, methods, keeps), sep="\n")
        if given.json:
            rows = [{"task": task, "method": m, "keep": k, "way": w, "loss": v[0], "kl": v[1], "exact_match": v[2]}
                    for task, of_task in found.items() for (m, k, w), v in of_task.items()]
            given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
