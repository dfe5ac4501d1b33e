#!/usr/bin/env python3
"""Exact match of the demo model with half of its experts: every task, every method, as the table of docs/demo.md.

Usage: demo_methods.py [--keep 0.5] [--count all|prompt|response]
"""
import argparse
import json
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
METHODS = ["easy-ep", "reap", "tcess", "soft-frequency", "ean", "frequency", "random"]


def moetrim(*arguments):
    done = subprocess.run([ROOT / "build/moetrim", *map(str, arguments), "--json", "--quiet"], capture_output=True, text=True,
                          check=True)
    return json.loads(done.stdout)


def measure(task, keep, count, folder):
    """Exact match of the whole model and under every method's plan."""
    statistics = Path(folder, f"{task}.stats")
    moetrim("calibrate", ROOT / "demo/model", "--task", ROOT / f"calibration/{task}.jsonl", "--count", count, "-o", statistics)
    plans = []
    for method in METHODS:
        plan = Path(folder, f"{task}-{method}.json")
        moetrim("plan", statistics, "--method", method, "--keep", keep, "-o", plan)
        plans += ["--plan", plan]
    result = moetrim("evaluate", ROOT / "demo/model", *plans, "--task", ROOT / f"calibration/{task}.test.jsonl", "--exact-match",
                     "--max-new-tokens", 128)
    return [result["exact_match"], *(plan["exact_match"] for plan in result["plans"])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", default="0.5")
    parser.add_argument("--count", default="all", choices=["all", "prompt", "response"])
    arguments = parser.parse_args()
    tasks = sorted(f.name.removesuffix(".test.jsonl") for f in (ROOT / "calibration").glob("*.test.jsonl"))
    print("| task | whole model | " + " | ".join(METHODS) + " |\n|" + "---|" * (len(METHODS) + 2))
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            row = measure(task, arguments.keep, arguments.count, folder)
            print(f"| {task} | " + " | ".join(f"{100 * value:.0f}" for value in row) + " |", flush=True)


if __name__ == "__main__":
    main()
