#!/usr/bin/env python3
"""The tables of docs/search.md, on the demo model: the search against measuring everything, and numbers of experts by layer
against the same number in every layer.

For each task the model is calibrated once. The search judges candidates on the calibration's text; by layer against uniform is
measured on unseen samples.

Usage: search.py [--tasks arithmetic,…] [--samples 100] [--json FILE]
"""
import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "demo/model"
MOETRIM = ROOT / "build/moetrim"
METHODS = ["easy-ep", "reap", "easy-ep+reap"]
LIMITS = [0.05, 0.5]
KEEPS = [6, 8, 10, 12]


def moetrim(*arguments):
    """The object that --json prints, and the processor's seconds."""
    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    done = subprocess.run([MOETRIM, *map(str, arguments), "--json", "--quiet"], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"moetrim {' '.join(map(str, arguments))}\n{done.stderr}")
    return json.loads(done.stdout), used() - before


def write_recipe(folder, task, **search):
    recipe = {"checkpoint": str(MODEL), "output": "run", "calibrate": {"task": [str(ROOT / f"calibration/{task}.jsonl")]},
              "search": {"method": METHODS, **search},
              "evaluate": {"task": [str(ROOT / f"calibration/{task}.jsonl")], "count": "response", "samples": 48}}
    folder.mkdir()
    (folder / "r.json").write_text(json.dumps(recipe))
    return folder / "r.json"


def same(a, b):
    return a["arm"] == b["arm"] and a["bytes"] == b["bytes"]


def against_everything(task, folder):
    """Rows: a search in a folder of its own, so that it remembers nothing; and everything, once."""
    counts = {"counts": ["uniform", "by-layer"]}
    everything, everything_cpu = moetrim("search", write_recipe(folder / "all", task, **counts), "--all", "--max-kl", LIMITS[0])
    rows = []
    for limit in LIMITS:
        found, cpu = moetrim("search", write_recipe(folder / f"kl-{limit}", task, **counts), "--max-kl", limit)
        best = min((c for c in everything["candidates"] if c["kl"] <= limit), key=lambda c: (c["bytes"], c["kl"]))
        rows.append({"task": task, "limit": limit, "pick": found["pick"], "same": same(found["pick"], best), "best": best,
                     "candidates": len(found["candidates"]), "plans": found["plans_measured"], "passes": found["passes"], "cpu": cpu})
    single, single_cpu = moetrim("search", write_recipe(folder / "one", task, **counts), "--max-kl", LIMITS[0], "--plans-per-pass", 1)
    return {"rows": rows, "one_by_one": {"plans": single["plans_measured"], "passes": single["passes"], "cpu": single_cpu},
            "all": {"grid": everything["grid"], "plans": everything["plans_measured"], "passes": everything["passes"],
                    "cpu": everything_cpu}, "candidates": everything["candidates"]}


def by_layer(task, folder, candidates, samples):
    """Uniform and by layer at equal bytes on unseen samples; exact match too."""
    uniform_bytes = {c["keep"]: c["bytes"] for c in candidates if "keep" in c}
    stats = folder / "all/run/calibration.stats"
    rows, arguments = [], []
    for keep in KEEPS:
        for c in candidates:
            if c["bytes"] != uniform_bytes[keep] or "+" in c["method"]:
                continue
            size = ["--keep", keep]
            if "keep_by_layer" in c:
                counts = folder / "counts.json"
                counts.write_text(json.dumps({"layers": [{"layer": i, "keep": k} for i, k in enumerate(c["keep_by_layer"])]}))
                size = ["--keep-by-layer", counts]
            plan = folder / f"plan-{len(rows)}.json"
            moetrim("plan", stats, "--method", c["method"], *size, "-o", plan)
            rows.append({"task": task, "keep": keep, "method": c["method"], "by_layer": c.get("keep_by_layer")})
            arguments += ["--plan", plan]
    results, _ = moetrim("evaluate", MODEL, *arguments, "--task", ROOT / f"calibration/{task}.test.jsonl", "--count", "response",
                         "--samples", samples, "--exact-match", "--max-new-tokens", 128)
    for row, result in zip(rows, results["plans"]):
        row.update(kl=result["kl"], loss_increase=result["loss"] - results["loss"], exact_match=result["exact_match"])
    return rows


def print_against(results):
    """Plans, passes and CPU seconds of the search, of measuring everything, and of the search with one plan in each pass."""
    def cost(one):
        return f"{one['plans']} / {one['passes']} / {one['cpu']:.0f} s"

    print("| task | KL at most | pick | same as of everything | search | everything | search, one plan a pass |\n|---|---|---|---|---|---|---|")
    for result in results:
        for row in result["rows"]:
            first = row["limit"] == LIMITS[0]
            print(f"| {row['task']} | {row['limit']} | {row['pick']['arm']}, {row['pick']['keeps']} | {'yes' if row['same'] else 'no'} | "
                  f"{cost(row)} | {cost(result['all']) if first else ''} | {cost(result['one_by_one']) if first else ''} |")


def print_by_layer(rows):
    print("\n| experts | method | counts | KL | loss increase | exact match | tasks with less KL | tasks with more right |\n"
          "|---|---|---|---|---|---|---|---|")
    for keep in KEEPS:
        for method in METHODS[:2]:
            here = [r for r in rows if r["keep"] == keep and r["method"] == method]
            pairs = [(next(r for r in here if r["task"] == task and not r["by_layer"]),
                      next(r for r in here if r["task"] == task and r["by_layer"]))
                     for task in sorted({r["task"] for r in here if r["by_layer"]})]
            for side, name in enumerate(["uniform", "by layer"]):
                mean = {k: statistics.mean(p[side][k] for p in pairs) for k in ("kl", "loss_increase", "exact_match")}
                wins = [sum(p[side]["kl"] < p[1 - side]["kl"] for p in pairs),
                        sum(p[side]["exact_match"] > p[1 - side]["exact_match"] for p in pairs)]
                print(f"| {keep} | {method} | {name} | {mean['kl']:.3f} | {mean['loss_increase']:.3f} | {100 * mean['exact_match']:.1f} % | "
                      f"{wins[0]} of {len(pairs)} | {wins[1]} of {len(pairs)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", default="arithmetic,brackets,calendar,lookup,sorting,text")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    against, rows = [], []
    for task in arguments.tasks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            against.append(against_everything(task, Path(folder)))
            rows += by_layer(task, Path(folder), against[-1]["candidates"], arguments.samples)
        print(task, file=sys.stderr)
    print_against(against)
    print_by_layer(rows)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"search": against, "by_layer": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
