#!/usr/bin/env python3
"""Time and peak memory of `moetrim calibrate` against tokens, layers and experts: three points each.

Usage: growth.py FOLDER [--program build/moetrim] [--max-memory 4GiB]

Random bf16 Qwen3-MoE models of make_model.py: in FOLDER, kept for the next run. Layers and experts grow alone; the tokens a model
sees stay 8 x 512 there. CPU seconds should grow like tokens, like layers, and stay flat with experts (a token takes eight of them,
whatever their number); memory like tokens, and stay flat with layers and with experts, of which only a few are held at a time.
"""
import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import measure

HERE = Path(__file__).parent
BASE = {"layers": 6, "experts": 64, "sequences": 8}
AXES = {"sequences": [8, 16, 32], "layers": [3, 6, 12], "experts": [32, 64, 128]}


def checkpoint(folder, layers, experts):
    model = folder / f"growth-{layers}-{experts}"
    if not (model / "config.json").exists():
        subprocess.run([sys.executable, HERE / "make_model.py", "qwen3-moe", model, "--layers", str(layers), "--experts", str(experts)],
                       check=True, stdout=subprocess.DEVNULL)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--program", default="build/moetrim")
    parser.add_argument("--max-memory", default="4GiB")
    arguments = parser.parse_args()
    print("| grows | tokens | layers | experts | weights GB | CPU s | CPU ms/token/layer | peak memory GiB |\n"
          "|---|---|---|---|---|---|---|---|")
    for axis, points in AXES.items():
        for point in points:
            size = BASE | {axis: point}
            model = checkpoint(arguments.folder, size["layers"], size["experts"])
            task = arguments.folder / f"growth-{size['sequences']}.jsonl"
            measure.write_task(task, size["sequences"], 512)
            out = arguments.folder / "growth.stats"
            cost = measure.run([arguments.program, "calibrate", model, "--task", task, "--dtype", "bf16", "--max-memory",
                                arguments.max_memory, "--quiet", "-o", out])
            shutil.rmtree(out)
            tokens = 512 * size["sequences"]
            print(f"| {axis} | {tokens} | {size['layers']} | {size['experts']} | {measure.folder_bytes(model) / 1e9:.2f} | "
                  f"{cost.cpu_seconds:.1f} | {1e3 * cost.cpu_seconds / tokens / size['layers']:.3f} | "
                  f"{cost.peak_bytes / 2**30:.2f} |", flush=True)


if __name__ == "__main__":
    main()
