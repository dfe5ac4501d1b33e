#!/usr/bin/env python3
"""The whole way of a checkpoint that is several times as large as the memory it may take: calibrate, second order, plan, rewrite,
evaluate, each in a control group whose limit is --max-memory itself.

Usage: memory_limit.py FOLDER [--program build/moetrim] [--layers 6] [--max-memory 1536MiB] [--tokens 4096] [--no-limit]
Makes a random FP8 checkpoint in the shape of DeepSeek-V3 (1.2 GB a layer) in FOLDER, kept for the next run. A second run with twice
the layers shows what grows with depth. The limit needs Linux with a version 1 memory controller, and root; --no-limit goes without.
"""
import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import measure

MAKE = Path(__file__).with_name("make_deepseek_v3_fp8.py")
UNITS = {"MiB": 20, "GiB": 30}


def bytes_of(text):
    return int(text[:-3]) << UNITS[text[-3:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--program", default="build/moetrim")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--max-memory", default="1536MiB")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--no-limit", action="store_true")
    arguments = parser.parse_args()
    folder, program = arguments.folder, arguments.program
    model, task, stats, atoms, plan, out = (folder / name for name in (f"deepseek-{arguments.layers}", "limit.jsonl", "limit.stats",
                                                                        "limit-atoms.stats", "limit-plan.json", "limit-out"))
    if not (model / "config.json").exists():
        subprocess.run([sys.executable, MAKE, model, "--layers", str(arguments.layers)], check=True)
    measure.write_task(task, arguments.tokens // 512, 512)
    for left in (stats, atoms, out):
        shutil.rmtree(left, ignore_errors=True)
    memory = ["--max-memory", arguments.max_memory, "--quiet"]
    steps = {"calibrate": ["calibrate", model, "--task", task, *memory, "-o", stats],
             "calibrate, second order": ["calibrate", model, "--task", task, "--statistics", "second-order", *memory, "-o", atoms],
             "plan": ["plan", stats, "--method", "easy-ep", "--keep", "0.5", "-o", plan],
             "rewrite": ["rewrite", model, "--plan", plan, "-o", out],
             "evaluate": ["evaluate", model, "--plan", plan, "--task", task, *memory]}
    limit = 0 if arguments.no_limit else bytes_of(arguments.max_memory)
    size = measure.folder_bytes(model)
    print(f"{arguments.layers} layers, {size / 1e9:.1f} GB, {size / bytes_of(arguments.max_memory):.1f} times the limit, "
          f"{arguments.tokens} tokens\n\n| | peak memory MiB | wall s | CPU s |\n|---|---|---|---|")
    for name, step in steps.items():
        cost = measure.run([program, *step], limit)
        print(f"| {name} | {cost.peak_bytes / 2**20:.0f} | {cost.seconds:.0f} | {cost.cpu_seconds:.0f} |", flush=True)
    for left in (stats, atoms, out):
        shutil.rmtree(left)


if __name__ == "__main__":
    main()
