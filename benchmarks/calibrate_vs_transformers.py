#!/usr/bin/env python3
"""Tokens per CPU second of `moetrim calibrate` beside the plain transformers forward at its fastest setting.

Usage: calibrate_vs_transformers.py [--model FOLDER] [--sequences 64] [--length 512] [--units 3] [--search 4] [--program build/moetrim]
                                    [--setting float32 eager 2]

--model names a folder; where it has no checkpoint yet, its last part says which model of make_model.py is made there.
Each unit runs every contender once, in turn, so that a machine whose speed drifts treats them alike; the medians of CPU time
and their ratios are printed, with the peak memory and the matrix product's own speed as the limit. transformers is first
tried over dtype, experts implementation and batch size on --search sequences; its fastest setting is then the bar. Its time
is that of the forward passes alone; moetrim's is the whole process, reading included. The share of the peak is the operations of the
model's matrices and attention over CPU time, beside the product's speed at its best size.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
from measure import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]


def transformers_unit(model, task, dtype, experts, batch, limit):
    """Runs in a process of its own. Prints CPU seconds of the forward passes and the peak memory."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), experts_implementation=experts).eval()
    ids = torch.tensor([json.loads(line)["input_ids"] for line in open(task)][:limit])
    with torch.no_grad():
        loaded.model(ids[:1, :64])
        start = time.process_time()
        for first in range(0, len(ids), batch):
            loaded.model(ids[first:first + batch])
        seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def run_transformers(arguments, task, setting, limit):
    dtype, experts, batch = setting
    done = subprocess.run([sys.executable, __file__, "--unit", dtype, experts, str(batch), str(limit), str(task),
                           "--model", arguments.model], capture_output=True, text=True, env=ENVIRONMENT)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def run_moetrim(arguments, task, extra):
    with tempfile.TemporaryDirectory() as folder:
        command = [arguments.program, "calibrate", arguments.model, "--task", task, "--dtype", "bf16", "--quiet", *extra]
        if "none" not in extra:
            command += ["-o", f"{folder}/x.stats"]
        cost = measure.run(command)
    return {"seconds": cost.cpu_seconds, "peak": cost.peak_bytes}


def operations_per_token(model, length):
    """Multiplications and additions of the layers' matrices, and of attention over what a token may see on average."""
    config = json.loads(Path(model, "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    expert = 3 * hidden * config["moe_intermediate_size"]
    experts = next(config[key] for key in ("n_routed_experts", "num_local_experts", "num_experts") if key in config)
    sparse = expert * (config["num_experts_per_tok"] + config.get("n_shared_experts", 0)) + hidden * experts
    if "kv_lora_rank" in config:
        query, value = config["qk_nope_head_dim"] + config["qk_rope_head_dim"], config["v_head_dim"]
        low, rank = config["q_lora_rank"], config["kv_lora_rank"]
        attention = (hidden * (low + rank + config["qk_rope_head_dim"]) + low * heads * query +
                     rank * heads * (config["qk_nope_head_dim"] + value) + heads * value * hidden)
    else:
        query = value = config["head_dim"]
        attention = hidden * query * 2 * (heads + config["num_key_value_heads"])
    seen = heads * (query + value) * (length + 1) / 2
    dense = config.get("first_k_dense_replace", 0)
    layers = config["num_hidden_layers"]
    return 2 * (layers * (attention + seen) + (layers - dense) * sparse + dense * 3 * hidden * config["intermediate_size"])



def gemm_speed(dtype, rows):
    """GFLOP/s of rows x 1024 x 512 on one core."""
    code = f"""
import time, torch
torch.set_num_threads(1)
x = torch.randn({rows}, 1024).to(torch.{dtype}); w = torch.randn(512, 1024).to(torch.{dtype})
best = 0
for _ in range(5):
    start = time.process_time()
    for _ in range(20): torch.mm(x, w.t())
    best = max(best, 20 * 2 * {rows} * 1024 * 512 / (time.process_time() - start) / 1e9)
print(best)"""
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT).stdout)


def search_fastest(arguments, task):
    """Tries dtype, experts implementation and batch size; prints every figure."""
    tried = {}
    for setting in [(dtype, experts, batch) for dtype in ("bfloat16", "float32") for experts in ("eager", "grouped_mm")
                    for batch in (2, 4)]:
        result = run_transformers(arguments, task, setting, arguments.search)
        if result:
            tried[setting] = result["seconds"] / (arguments.search * arguments.length) * 1e3
            print(f"transformers {setting}: {tried[setting]:.2f} CPU ms/token", flush=True)
    fastest = min(tried, key=tried.get)
    print(f"fastest transformers setting: {fastest}", flush=True)
    return fastest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "build/benchmark/qwen3-moe"))
    parser.add_argument("--program", default=str(ROOT / "build/moetrim"))
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--units", type=int, default=3)
    parser.add_argument("--search", type=int, default=4)
    parser.add_argument("--setting", nargs=3, metavar=("DTYPE", "EXPERTS", "BATCH"), help="skip the search and take this one")
    parser.add_argument("--unit", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.unit:
        dtype, experts, batch, limit, task = arguments.unit
        return transformers_unit(arguments.model, task, dtype, experts, int(batch), int(limit))
    if not Path(arguments.model, "config.json").exists():
        subprocess.run([sys.executable, ROOT / "benchmarks/make_model.py", Path(arguments.model).name, arguments.model], check=True,
                       env=ENVIRONMENT)
    task = Path(arguments.model).parent / f"random-{arguments.sequences}x{arguments.length}.jsonl"
    measure.write_task(task, arguments.sequences, arguments.length)

    peaks = {dtype: max(gemm_speed(dtype, rows) for rows in (256, 1024)) for dtype in ("bfloat16", "float32")}
    print("matrix product, one core: " + ", ".join(f"{d} {p:.0f} GFLOP/s" for d, p in peaks.items()), flush=True)

    fastest = tuple(arguments.setting) if arguments.setting else search_fastest(arguments, task)
    contenders = {f"transformers {' '.join(map(str, fastest))}": lambda: run_transformers(arguments, task, fastest, arguments.sequences),
                  "moetrim calibrate, default statistics": lambda: run_moetrim(arguments, task, []),
                  "moetrim calibrate --statistics none": lambda: run_moetrim(arguments, task, ["--statistics", "none"])}
    results = {name: [] for name in contenders}
    for _ in range(arguments.units):
        for name, run in contenders.items():
            results[name].append(run())
    tokens = arguments.sequences * arguments.length
    bar = statistics.median(r["seconds"] for r in results[next(iter(results))])
    print(f"\n| {tokens} tokens | CPU ms/token | tokens per CPU second | against transformers | peak memory |\n|---|---|---|---|---|")
    for name, runs in results.items():
        seconds = statistics.median(r["seconds"] for r in runs)
        print(f"| {name} | {seconds / tokens * 1e3:.2f} | {tokens / seconds:.0f} | {bar / seconds:.2f}x | "
              f"{max(r['peak'] for r in runs) / 2**30:.2f} GiB |")
    both = [statistics.median(r["seconds"] for r in results[n]) for n in list(results)[1:]]
    speed = operations_per_token(arguments.model, arguments.length) * tokens / both[0] / 1e9
    print(f"\nwith statistics {speed:.1f} GFLOP/s, {100 * speed / max(peaks.values()):.0f}% of the product's peak")
    print(f"statistics cost {100 * (both[0] / both[1] - 1):.1f}% over --statistics none")


if __name__ == "__main__":
    main()
