#!/usr/bin/env python3
"""CPU time and peak memory of `moetrim calibrate --statistics second-order` beside its own forward sweep, and beside the same
sums by transformers and autograd with the whole model in memory.

Usage: second_order_vs_transformers.py [--model FOLDER] [--sequences 16] [--length 512] [--units 3] [--dtype float32] [--batch 2]

Each unit runs every contender once, in turn, so that a machine whose speed drifts treats them alike; the medians of CPU time
and their ratios are printed. transformers' time is that of the forward and backward passes and the sums alone; moetrim's is the
whole process, reading and hidden states on disk included. Weights need no gradients in either. At the end the two sets of sums
are held against each other.
"""
import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from calibrate_vs_transformers import ROOT, run_moetrim
from measure import ENVIRONMENT, write_task


def transformers_unit(model, task, dtype, batch, sums_file):
    """Runs in a process of its own. Prints CPU seconds and the peak memory; writes A, B and J of every layer to a file."""
    import torch
    from safetensors.torch import save_file
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), experts_implementation="eager").eval()
    loaded.requires_grad_(False)
    layers = [Sums(layer.mlp.experts) for layer in loaded.model.layers]
    ids = torch.tensor([json.loads(line)["input_ids"] for line in open(task)])
    with torch.no_grad():
        loaded.model(ids[:1, :64])
    for layer in layers:
        layer.clear()
    start = time.process_time()
    for first in range(0, len(ids), batch):
        rows = ids[first:first + batch]
        embedded = loaded.model.embed_tokens(rows).requires_grad_()
        logits = loaded(inputs_embeds=embedded).logits[:, :-1].float()
        cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").backward(inputs=[embedded])
    seconds = time.process_time() - start
    if sums_file:
        save_file({f"{i}.{name}": tensor for i, layer in enumerate(layers) for name, tensor in layer.sums.items()}, sums_file)
    print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


class Sums:
    """Replaces the forward pass of a layer's experts by the same loop with a hook on the input of down_proj, the only place where
    autograd has the gradient of an atom's value."""

    def __init__(self, experts):
        self.experts = experts
        self.clear()
        experts.forward = self.forward

    def clear(self):
        import torch

        experts, _, width = self.experts.down_proj.shape
        self.sums = {name: torch.zeros(experts, width, dtype=torch.float64) for name in ("activation", "gradient", "joint")}

    def forward(self, x, chosen, gates):
        import torch

        out = torch.zeros_like(x)
        for e in chosen.unique():
            token, slot = torch.where(chosen == e)
            gate, up = torch.nn.functional.linear(x[token], self.experts.gate_up_proj[e]).chunk(2, dim=-1)
            values = torch.nn.functional.silu(gate) * up
            self.watch(int(e), values)
            output = torch.nn.functional.linear(values, self.experts.down_proj[e]) * gates[token, slot, None]
            out = out.index_add(0, token, output)
        return out

    def watch(self, e, values):
        if not values.requires_grad:
            return
        squares = values.detach().float() ** 2
        self.sums["activation"][e] += squares.sum(0)

        def gradient(c):
            c = c.float() ** 2
            self.sums["gradient"][e] += c.sum(0)
            self.sums["joint"][e] += (squares * c).sum(0)

        values.register_hook(gradient)


def run_transformers(arguments, task, sums_file=""):
    done = subprocess.run([sys.executable, __file__, "--unit", str(task), str(sums_file), "--model", arguments.model, "--dtype",
                           arguments.dtype, "--batch", str(arguments.batch)], capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare_sums(arguments, task):
    """Largest difference of a sum in units of the layer's largest, and the correlation of J over all atoms, both dtypes fp32."""
    import numpy
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder, "few.jsonl")
        few.write_text("".join(open(task).readlines()[:2]))
        run_transformers(argparse.Namespace(**{**vars(arguments), "dtype": "float32"}), few, Path(folder, "sums.safetensors"))
        subprocess.run([ROOT / "build/moetrim", "calibrate", arguments.model, "--task", few, "--dtype", "fp32", "--statistics",
                        "second-order", "--quiet", "-o", f"{folder}/x.stats"], check=True, stdout=subprocess.DEVNULL)
        theirs = load_file(Path(folder, "sums.safetensors"))
        for name in ("activation", "gradient", "joint"):
            differences = []
            for file in sorted(Path(folder, "x.stats").glob("atoms-*")):
                expected = theirs[f"{int(file.stem.split('-')[1])}.{name}"]
                differences.append(numpy.abs(load_file(file)[name][0] - expected).max() / expected.max())
            print(f"{name}: largest difference {max(differences):.1e} of the layer's largest")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "build/benchmark/qwen3-moe"))
    parser.add_argument("--program", default=str(ROOT / "build/moetrim"))
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--units", type=int, default=3)
    parser.add_argument("--dtype", default="float32", help="of transformers; moetrim runs in bf16")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--unit", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.unit:
        return transformers_unit(arguments.model, arguments.unit[0], arguments.dtype, arguments.batch, arguments.unit[1])
    if not Path(arguments.model, "config.json").exists():
        subprocess.run([sys.executable, ROOT / "benchmarks/make_model.py", "qwen3-moe", arguments.model], check=True, env=ENVIRONMENT)
    task = Path(arguments.model).parent / f"random-{arguments.sequences}x{arguments.length}.jsonl"
    write_task(task, arguments.sequences, arguments.length)

    second = "moetrim calibrate --statistics second-order"
    contenders = {"moetrim calibrate --statistics none": lambda: run_moetrim(arguments, task, ["--statistics", "none"]),
                  second: lambda: run_moetrim(arguments, task, ["--statistics", "second-order"]),
                  f"transformers and autograd, {arguments.dtype}, batch {arguments.batch}": lambda: run_transformers(arguments, task)}
    results = {name: [] for name in contenders}
    for _ in range(arguments.units):
        for name, run in contenders.items():
            results[name].append(run())
            print(f"{name}: {results[name][-1]['seconds']:.1f} CPU s", flush=True)
    print_table(results, arguments.sequences * arguments.length)
    compare_sums(arguments, task)


def print_table(results, tokens):
    medians = {name: statistics.median(run["seconds"] for run in runs) for name, runs in results.items()}
    forward, second, _ = medians.values()
    print(f"\n| {tokens} tokens | CPU ms/token | of the forward sweep | of moetrim's second order | peak memory |\n|---|---|---|---|---|")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds / tokens * 1e3:.2f} | {seconds / forward:.2f}x | {seconds / second:.2f}x | "
              f"{max(run['peak'] for run in results[name]) / 2**30:.2f} GiB |")
    print()


if __name__ == "__main__":
    main()
