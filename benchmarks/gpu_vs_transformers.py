#!/usr/bin/env python3
"""Tokens per second of `moetrim calibrate --device cuda:0` beside the transformers forward on the same GPU.

Usage: gpu_vs_transformers.py [--model FOLDER] [--sequences 64] [--length 512] [--units 3] [--batches 8 32]

--model names a folder; where it has no checkpoint yet, its last part says which model of make_model.py is made there. Each unit
runs every contender once, in turn; medians of wall seconds are printed, with tokens per second and the share of the bf16 matrix
product's measured peak that the model's operations are. transformers holds the model on the GPU and is timed on its forward
passes alone, with grouped_mm, the best of the batch sizes. moetrim streams the weights through the device a layer at a time and
is timed as a whole process, and once more less a run over one short sequence: what is left is what tokens cost, without start and
reading. With a checkpoint in the page cache that is the device at work; drop the cache before a run to see a disk.
"""
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import measure
from calibrate_vs_transformers import ROOT, operations_per_token
from measure import ENVIRONMENT

TRANSFORMERS = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM
model, task, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, experts_implementation="grouped_mm").eval().to("cuda")
ids = torch.tensor([json.loads(line)["input_ids"] for line in open(task)], device="cuda")
with torch.no_grad():
    for first in range(0, min(len(ids), 2 * batch), batch): loaded.model(ids[first:first + batch])
    torch.cuda.synchronize()
    start = time.perf_counter()
    for first in range(0, len(ids), batch): loaded.model(ids[first:first + batch])
    torch.cuda.synchronize()
print(time.perf_counter() - start)
"""

PEAK = """
import time, torch
x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
y = torch.empty_like(x)
best = 0
for _ in range(5):
    torch.cuda.synchronize(); start = time.perf_counter()
    for _ in range(10): torch.mm(x, x, out=y)
    torch.cuda.synchronize()
    best = max(best, 10 * 2 * 8192**3 / (time.perf_counter() - start))
print(torch.cuda.get_device_name(0)); print(best)
"""


def python(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode != 0:
        sys.exit(f"{done.stderr.strip().splitlines()[-1]}; this benchmark needs a GPU")
    return done.stdout.splitlines()


def moetrim_seconds(model, task):
    return measure.run([ROOT / "build/moetrim", "calibrate", model, "--task", task, "--dtype", "bf16", "--device", "cuda:0", "--quiet",
                        "--statistics", "none"]).seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "build/benchmark/qwen3-moe"))
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--units", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    arguments = parser.parse_args()
    name, peak = python(PEAK)
    print(f"{name}: bf16 matrix product {float(peak) / 1e12:.0f} TFLOP/s", flush=True)
    if not Path(arguments.model, "config.json").exists():
        subprocess.run([sys.executable, ROOT / "benchmarks/make_model.py", Path(arguments.model).name, arguments.model], check=True,
                       env=ENVIRONMENT)
    folder = Path(arguments.model).parent
    task, short = folder / f"random-{arguments.sequences}x{arguments.length}.jsonl", folder / "random-1x8.jsonl"
    measure.write_task(task, arguments.sequences, arguments.length)
    measure.write_task(short, 1, 8)

    fixed, whole = [], []
    theirs = {batch: [] for batch in arguments.batches}
    for _ in range(arguments.units):
        for batch in arguments.batches:
            theirs[batch].append(float(python(TRANSFORMERS, arguments.model, task, batch)[-1]))
        fixed.append(moetrim_seconds(arguments.model, short))
        whole.append(moetrim_seconds(arguments.model, task))
    tokens = arguments.sequences * arguments.length
    operations = operations_per_token(arguments.model, arguments.length) * tokens
    best = min(arguments.batches, key=lambda batch: statistics.median(theirs[batch]))
    rows = {f"transformers, resident, batch {best}": statistics.median(theirs[best]),
            "moetrim, streamed, the whole process": statistics.median(whole),
            "moetrim, streamed, less a run over 8 tokens": statistics.median(whole) - statistics.median(fixed)}
    bar = next(iter(rows.values()))
    print(f"\n| {tokens} tokens | seconds | tokens/s | of the peak | against transformers |\n|---|---|---|---|---|")
    for name, seconds in rows.items():
        print(f"| {name} | {seconds:.2f} | {tokens / seconds:.0f} | {100 * operations / seconds / float(peak):.1f}% | {bar / seconds:.2f}x |")
    print(json.dumps({"tokens": tokens, "transformers": theirs, "moetrim": whole, "moetrim_8_tokens": fixed}))


if __name__ == "__main__":
    main()
