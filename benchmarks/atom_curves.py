#!/usr/bin/env python3
"""Loss of the demo model against the atomic experts that are removed, for every atom method and scope, and against whole experts
removed by the methods that rate experts: the tables and the plot of docs/atoms.md.

Usage: atom_curves.py [--sets 3] [--demonstrations 360] [--tasks arithmetic,…] [--count response|all] [--temperature 1]
                      [--samples 50] [--svg docs/atoms.svg] [--exact-match N]

Every set is a disjoint share of the tasks' demonstrations, equally many of each task, and one calibration. The loss is that of
the response tokens of the tasks' unseen samples, in nats; a table holds medians over the sets. --temperature: see atom_truth.py.
"""
import argparse
import json
import statistics
import tempfile
from pathlib import Path

from atom_truth import ATOM_METHODS, MODEL, ROOT, TASKS, calibrate, demonstrations, losses, mixed_sets, moetrim, ranks, scores, write_rows
from curve_svg import panels_svg

REMOVED = [10, 20, 25, 30, 40, 50, 60]  # per cent of the atoms
SCOPES = ["global", "layer", "expert"]
EXPERT_METHODS = ["easy-ep", "reap", "frequency", "heapr-expert", "heapr-sum-expert", "heapr-joint-expert", "taylor", "fisher",
                  "random"]
COMBINED = {"rank sum of easy-ep and fisher": ("easy-ep", "fisher"),
            "rank sum of easy-ep and heapr-joint-expert": ("easy-ep", "heapr-joint-expert")}


def plan(stats, folder, name, *arguments):
    file = Path(folder, f"{name}.json")
    moetrim("plan", stats, *arguments, "-o", file)
    return file


def atom_plans(stats, folder, seed):
    return {(method, scope, removed): plan(stats, folder, f"atoms-{method}-{scope}-{removed}", "--method", method, "--seed", seed,
                                           "--keep-atoms", f"{100 - removed}%", "--scope", scope)
            for method in ATOM_METHODS for scope in SCOPES for removed in REMOVED}


def expert_plans(stats, folder, seed, kept_counts):
    plans = {(method, keep): plan(stats, folder, f"{method}-{keep}", "--method", method, "--seed", seed, "--keep", keep)
             for method in EXPERT_METHODS for keep in kept_counts}
    for name, parts in COMBINED.items():
        rated = [scores(stats, part) for part in parts]
        for keep in kept_counts:
            template = json.loads(plans[parts[0], keep].read_text())
            plans[name, keep] = Path(folder, f"{'-'.join(parts)}-{keep}.json")
            for layer, entry in enumerate(template["layers"]):
                entry["keep"] = best(rank_sum([part[layer] for part in rated]), keep)
            plans[name, keep].write_text(json.dumps(template))
    return plans


def rank_sum(parts):
    return [sum(places) for places in zip(*map(ranks, parts))]


def best(values, keep):
    return sorted(sorted(range(len(values)), key=lambda e: (-values[e], e))[:keep])


def measure(rows, test, arguments, seed):
    """{plan: loss} and {plan: exact match} of one calibration, and the loss of the whole model."""
    with tempfile.TemporaryDirectory() as folder:
        stats = calibrate(rows, folder, arguments, "fp32")
        experts = json.loads(Path(stats, "manifest.json").read_text())["experts"]
        plans = atom_plans(stats, folder, seed) | expert_plans(stats, folder, seed, [experts * k // 8 for k in (7, 6, 5, 4, 3)])
        whole, changed, _ = losses(plans.values(), write_rows(Path(folder, "test.jsonl"), test), "response", "fp32")
        return whole, dict(zip(plans, changed)), matches(plans, arguments, seed)


def matches(plans, arguments, seed):
    """Exact match, mean over the tasks, of the global plans of the first set."""
    if arguments.exact_match == 0 or seed > 0:
        return {}
    chosen = {key: file for key, file in plans.items() if "global" in key}
    tasks = [argument for task in arguments.tasks for argument in ("--task", ROOT / f"calibration/{task}.test.jsonl")]
    result = moetrim("evaluate", MODEL, *tasks, "--samples", arguments.exact_match, "--exact-match", "--max-new-tokens", 128,
                     *(argument for file in chosen.values() for argument in ("--plan", file)))
    return {key: entry["exact_match"] for key, entry in zip(chosen, result["plans"])}


def median_of(found, key):
    return statistics.median(changed[key] for changed in found)


def table(title, names, columns, value):
    print(f"\n| {title} | " + " | ".join(map(str, columns)) + " |\n|" + "---|" * (len(columns) + 1))
    for name in names:
        print(f"| {name} | " + " | ".join(value(name, column) for column in columns) + " |")


def where_not(found):
    """Points of the claim "every HEAPr variant <= every baseline <= random" that do not hold."""
    rounded = 1 + 1e-2  # losses closer than that are equal
    for scope in SCOPES:
        for removed in REMOVED:
            loss = {method: median_of(found, (method, scope, removed)) for method in ATOM_METHODS}
            for better, worse in [(a, b) for a in ATOM_METHODS[:3] for b in ATOM_METHODS[3:]] + \
                                 [(a, "random-atoms") for a in ATOM_METHODS[3:5]]:
                if loss[better] > rounded * loss[worse]:
                    print(f"  {scope}, {removed}%: {better} {loss[better]:.2e} > {worse} {loss[worse]:.2e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--demonstrations", type=int, default=360, help="of a set")
    parser.add_argument("--tasks", type=lambda names: names.split(","), default=TASKS)
    parser.add_argument("--count", default="response", choices=["response", "all"], help="tokens whose loss the scores are about")
    parser.add_argument("--temperature", type=float, default=1, help="of the loss that is differentiated")
    parser.add_argument("--samples", type=int, default=50, help="unseen samples of every task")
    parser.add_argument("--exact-match", type=int, default=0, metavar="N", help="also generate answers to N samples of every task")
    parser.add_argument("--svg", type=Path)
    arguments = parser.parse_args()
    test = [row for task in arguments.tasks for row in list(demonstrations(f"{task}.test"))[:arguments.samples]]
    found, matched = [], {}
    for number, rows in enumerate(mixed_sets(arguments.sets, arguments.demonstrations, arguments.tasks)):
        whole, changed, answers = measure(rows, test, arguments, number)
        found.append(changed)
        matched |= answers
    print(f"{', '.join(arguments.tasks)}: loss of the whole model {whole:.2e}")
    for scope in SCOPES:
        table(f"removed, scope {scope}", ATOM_METHODS, REMOVED, lambda m, r: f"{median_of(found, (m, scope, r)):.1e}")
    if matched:
        table("exact match, scope global", ATOM_METHODS, REMOVED, lambda m, r: f"{100 * matched[m, 'global', r]:.0f}")
    kept_counts = sorted({key[1] for key in found[0] if len(key) == 2}, reverse=True)
    table("experts kept", EXPERT_METHODS + list(COMBINED), kept_counts, lambda m, k: f"{median_of(found, (m, k)):.1e}")
    print("\nHEAPr <= baselines <= random fails at:")
    where_not(found)
    if arguments.svg:
        panels = {f"scope {scope}": {m: [(r, median_of(found, (m, scope, r))) for r in REMOVED] for m in ATOM_METHODS}
                  for scope in SCOPES}
        arguments.svg.write_text(panels_svg(panels, "atoms removed, %", "loss on unseen responses, nats a token"))


if __name__ == "__main__":
    main()
