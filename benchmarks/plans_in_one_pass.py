#!/usr/bin/env python3
"""Time of `moetrim evaluate` with 1, 4 and 16 plans in one pass, against as many evaluations of one plan each.

Usage: plans_in_one_pass.py FOLDER [--program build/moetrim] [--runs 3] [--tokens 32,512]

FOLDER/qwen3-moe is the random bf16 model of make_model.py, made if it is not there. Two kinds of plans: random halves of every layer, which
differ from the first MoE layer on, and plans that prune one layer alone, as curves of layer sensitivity do, which share the layers
before it with the model. A plan's own evaluation runs the model too, which KL needs. Medians; n separate evaluations are taken as n
times the median of single ones, over plans dealt out evenly.
"""
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import measure

HERE = Path(__file__).parent
COUNTS = (1, 4, 16)


def write_plans(program, folder, model):
    """Sixteen plans of each kind."""
    config = json.loads((model / "config.json").read_text())
    experts = config.get("num_experts") or config["num_local_experts"]
    layers = config["num_hidden_layers"]
    task, stats = folder / "plans.jsonl", folder / "plans.stats"
    measure.write_task(task, 1, 32)
    if not stats.exists():
        subprocess.run([program, "calibrate", model, "--task", task, "--quiet", "-o", stats], check=True, stdout=subprocess.DEVNULL)
    kinds = {"every layer": [], "one layer": []}
    for number in range(max(COUNTS)):
        pruned = number * layers // max(COUNTS)
        counts = folder / "counts.json"
        counts.write_text(json.dumps({"layers": [{"layer": layer, "keep": experts // 2 if layer == pruned else experts}
                                                 for layer in range(layers)]}))
        for kind, how in (("every layer", ["--keep", experts // 2]), ("one layer", ["--keep-by-layer", counts])):
            plan = folder / f"{kind.replace(' ', '-')}-{number}.json"
            subprocess.run([program, "plan", stats, "--method", "random", "--seed", str(number), *map(str, how), "-o", plan],
                           check=True, stdout=subprocess.DEVNULL)
            kinds[kind].append(plan)
    return kinds


def evenly(plans, count):
    return [plans[(2 * i + 1) * len(plans) // (2 * count)] for i in range(count)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--program", default="build/moetrim")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", default="32,512")
    arguments = parser.parse_args()
    model = arguments.folder / "qwen3-moe"
    if not (model / "config.json").exists():
        subprocess.run([sys.executable, HERE / "make_model.py", "qwen3-moe", model], check=True, stdout=subprocess.DEVNULL)
    work = arguments.folder / "plans-in-one-pass"
    work.mkdir(exist_ok=True)
    kinds = write_plans(arguments.program, work, model)

    def evaluate(task, plans):
        named = [option for plan in plans for option in ("--plan", plan)]
        return measure.run([arguments.program, "evaluate", model, "--task", task, *named, "--quiet"])

    print("| pruned | tokens | plans | CPU s | of as many alone | wall s | of as many alone | peak memory GiB |\n|---|---|---|---|---|---|---|---|")
    for tokens in map(int, arguments.tokens.split(",")):
        task = work / f"{tokens}.jsonl"
        measure.write_task(task, 1, tokens)
        evaluate(task, [])  # the page cache is warm from here on
        for kind, plans in kinds.items():
            alone = [evaluate(task, [plan]) for plan in evenly(plans, 4)]
            single = [statistics.median(cost[i] for cost in alone) for i in range(2)]
            for count in COUNTS:
                costs = [evaluate(task, evenly(plans, count)) for _ in range(arguments.runs)]
                wall, cpu, peak = (statistics.median(cost[i] for cost in costs) for i in range(3))
                print(f"| {kind} | {tokens} | {count} | {cpu:.1f} | {cpu / count / single[1]:.2f} | {wall:.1f} | "
                      f"{wall / count / single[0]:.2f} | {peak / 2**30:.2f} |", flush=True)


if __name__ == "__main__":
    main()
