#!/usr/bin/env python3
"""How well scores foretell what happens: atoms, then whole experts, are deleted one by one from the demo model.

Usage: atom_truth.py [--sets 3] [--demonstrations 72] [--atoms 50] [--count response|all] [--temperature 1] [--dtype fp64]
                     [--seed 0]

Every set is a disjoint share of the six tasks' demonstrations, equally many of each task. Per set: one calibration, scores by
every method, and the loss of the same demonstrations without the atom (its column of down_proj and its rows of gate_proj and
up_proj), for --atoms atoms per atom method, one from each of equal ranges of its ranks. Printed is Spearman's correlation of
score and change of the loss, of score and size of that change, and of score and KL to the whole model; and the same for all
atoms of each expert against the methods that rate experts, there also within a layer.

--temperature T calibrates a copy of the model whose output weights are divided by T, so that the loss that is differentiated is
the one at temperature T. What happens is always measured on the model itself.
"""
import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOETRIM = Path(os.environ.get("MOETRIM_BUILD", ROOT / "build")) / "moetrim"
MODEL = ROOT / "demo/model"
TASKS = ["arithmetic", "brackets", "calendar", "lookup", "sorting", "text"]
ATOM_METHODS = ["heapr", "heapr-sum", "heapr-joint", "wanda", "magnitude", "random-atoms"]
EXPERT_METHODS = ["frequency", "soft-frequency", "ean", "reap", "tcess", "easy-ep", "heapr-expert", "heapr-sum-expert",
                  "heapr-joint-expert", "taylor", "fisher", "random"]


def moetrim(*arguments):
    done = subprocess.run([MOETRIM, *map(str, arguments), "--json", "--quiet"], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"moetrim {arguments[0]}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def softened(temperature, folder):
    """The model, or a copy whose logits are those of the model divided by the temperature."""
    if temperature == 1:
        return MODEL
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(MODEL, Path(folder, "softened"))
    tensors = load_file(copy / "model.safetensors")
    tensors["lm_head.weight"] /= temperature
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def demonstrations(file):
    """Rows of ids that end with the response's end of turn: the template's line break after it was never trained, and would be
    nearly all of the loss."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for line in open(ROOT / f"calibration/{file}.jsonl"):
        row = json.loads(line)
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template(turns, return_dict=False)
        last = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
        yield {"input_ids": ids[:last], "prompt_tokens": len(prompt)}


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def mixed_sets(sets, size, tasks=TASKS):
    """Disjoint sets of demonstrations, equally many of each task."""
    by_task = {task: list(demonstrations(task)) for task in tasks}
    each = size // len(tasks)
    if sets * each > min(map(len, by_task.values())):
        raise SystemExit(f"{sets} sets of {size} demonstrations are more than there are")
    return [[row for task in tasks for row in by_task[task][s * each:(s + 1) * each]] for s in range(sets)]


def calibrate(rows, folder, arguments, dtype):
    out = Path(folder, "mixed.stats")
    moetrim("calibrate", softened(arguments.temperature, folder), "--task", write_rows(Path(folder, "mixed.jsonl"), rows),
            "--count", arguments.count, "--dtype", dtype, "--statistics", "second-order", "-o", out)
    return out


def scores(statistics_folder, method):
    """[layers][experts] or [layers][experts][atoms]"""
    return [entry["scores"] for entry in moetrim("score", statistics_folder, "--method", method)["layers"]]


def losses(plans, task, count, dtype):
    """Loss of the whole model; loss, and KL to the whole model, under every plan."""
    result = moetrim("evaluate", MODEL, "--task", task, "--count", count, "--dtype", dtype,
                     *(argument for plan in plans for argument in ("--plan", plan)))
    return result["loss"], [plan["loss"] for plan in result["plans"]], [plan["kl"] for plan in result["plans"]]


def whole_plan(statistics_folder, folder):
    file = Path(folder, "whole.json")
    moetrim("plan", statistics_folder, "--method", "magnitude", "--keep-atoms", "1.0", "-o", file)
    return json.loads(file.read_text())


def without(plan, layer, expert, ranges, file):
    """The plan with other atoms in one expert."""
    layers = [dict(entry) for entry in plan["layers"]]
    layers[layer]["atoms"] = [ranges if e == expert else kept for e, kept in enumerate(layers[layer]["atoms"])]
    file.write_text(json.dumps({**plan, "layers": layers}))
    return file


def all_but(atom, width):
    return [kept for kept in ([0, atom], [atom + 1, width]) if kept[0] < kept[1]]


def sample_atoms(ranked, per_method, generator):
    """Places in flattened scores: of every method one from each of `per_method` equal ranges of its ranks."""
    chosen = set()
    for values in ranked.values():
        order = sorted(range(len(values)), key=values.__getitem__)
        borders = [i * len(order) // per_method for i in range(per_method + 1)]
        chosen |= {order[generator.randrange(*border)] for border in zip(borders, borders[1:])}
    return sorted(chosen)


def ranks(values):
    """Ranks, equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    out, start = [0.0] * len(values), 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in order[start:end]:
            out[place] = (start + end - 1) / 2
        start = end
    return out


def spearman(a, b):
    try:
        return statistics.correlation(ranks(a), ranks(b))
    except statistics.StatisticsError:  # all of one rank
        return float("nan")


def flatten(nested):
    return [value for part in nested for value in (flatten(part) if isinstance(part, list) else [part])]


class Truth:
    """What deleting each of some pieces does, on the demonstrations that the scores are from."""

    def __init__(self, plans, task, arguments):
        self.base, changed, self.kl = losses(plans, task, arguments.count, arguments.dtype)
        self.change = [loss - self.base for loss in changed]

    def correlations(self, values):
        return {"change of the loss": spearman(values, self.change), "its size": spearman(values, list(map(abs, self.change))),
                "KL": spearman(values, self.kl)}

    def describe(self, what):
        rises = sum(change > 0 for change in self.change)
        print(f"  {len(self.change)} {what}; loss {self.base:.3e}, changes from {min(self.change):.1e} to {max(self.change):.1e}, "
              f"{rises} above zero", flush=True)


def atoms_of(stats, task, arguments, folder):
    nested = {method: scores(stats, method) for method in ATOM_METHODS}
    experts, width = len(nested["heapr"][0]), len(nested["heapr"][0][0])
    flat = {method: flatten(values) for method, values in nested.items()}
    chosen = sample_atoms(flat, arguments.atoms, random.Random(arguments.seed))
    whole, plans = whole_plan(stats, folder), []
    for place in chosen:
        layer, expert, atom = place // (experts * width), place // width % experts, place % width
        plans.append(without(whole, layer, expert, all_but(atom, width), Path(folder, f"atom-{place}.json")))
    truth = Truth(plans, task, arguments)
    truth.describe("atoms")
    return {method: truth.correlations([values[place] for place in chosen]) for method, values in flat.items()}


def experts_of(stats, task, arguments, folder):
    whole, plans = whole_plan(stats, folder), []
    layers, experts = len(whole["layers"]), whole["experts"]
    for place in range(layers * experts):
        plans.append(without(whole, place // experts, place % experts, [], Path(folder, f"expert-{place}.json")))
    truth = Truth(plans, task, arguments)
    truth.describe("experts")
    found = {}
    for method in EXPERT_METHODS:
        values = flatten(scores(stats, method))
        inside = [spearman(values[i:i + experts], truth.kl[i:i + experts]) for i in range(0, len(values), experts)]
        found[method] = {**truth.correlations(values), "KL, mean within a layer": statistics.mean(inside)}
    return found


def table(title, results):
    columns = list(next(iter(results[0].values())))
    print(f"\n| {title} | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for method in results[0]:
        print(f"| `{method}` | " + " | ".join(" / ".join(f"{result[method][c]:.2f}" for result in results) for c in columns) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--demonstrations", type=int, default=72)
    parser.add_argument("--atoms", type=int, default=50, help="per atom method")
    parser.add_argument("--count", default="response", choices=["response", "all"])
    parser.add_argument("--temperature", type=float, default=1, help="of the loss that is differentiated; a power of two is exact")
    parser.add_argument("--dtype", default="fp64", choices=["fp64", "fp32"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    of_atoms, of_experts = [], []
    for number, rows in enumerate(mixed_sets(arguments.sets, arguments.demonstrations)):
        print(f"set {number + 1}: {len(rows)} demonstrations", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            stats = calibrate(rows, folder, arguments, arguments.dtype)
            task = Path(folder, "mixed.jsonl")
            of_atoms.append(atoms_of(stats, task, arguments, folder))
            of_experts.append(experts_of(stats, task, arguments, folder))
    table("atoms", of_atoms)
    table("experts", of_experts)


if __name__ == "__main__":
    main()
