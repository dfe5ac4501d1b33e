#!/usr/bin/env python3
"""Patterns of the demo model's tasks, as in docs/patterns.md: how single unseen prompts find theirs, what fits none, and what the
checkpoint of the pattern that was found still does, against those of the others.

Usage: patterns.py retrieval | checkpoints | deltas | library [--size 1000]
"""
import argparse
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "demo/model"
TASKS = sorted(f.name.removesuffix(".test.jsonl") for f in (ROOT / "calibration").glob("*.test.jsonl"))
MOETRIM = ROOT / "build/moetrim"


def moetrim(*arguments):
    done = subprocess.run([MOETRIM, *map(str, arguments), "--json", "--quiet"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def demonstrations(task):
    return ROOT / f"calibration/{task}.jsonl"


def calibrate(folder, count):
    for task in TASKS:
        moetrim("calibrate", MODEL, "--task", demonstrations(task), "--count", count, "-o", folder / f"{task}.{count}.stats")


def make_library(folder, source):
    """A library whose signatures come from `source`: the task's own tokens, its prompts as a whole, or single prompts."""
    library = folder / source
    for task in TASKS:
        more = {"task": [], "statistics": ["--signature", folder / f"{task}.prompt.stats"],
                "prompts": ["--prompts", demonstrations(task), "--checkpoint", MODEL]}[source]
        moetrim("patterns", "add", library, folder / f"{task}.all.stats", *more)
    return library


def retrieve(library, task, *more):
    """Of every unseen prompt: the nearest pattern, and whether it fits."""
    found = moetrim("patterns", "retrieve", library, "--checkpoint", MODEL, "--queries", ROOT / f"calibration/{task}.test.jsonl", *more)
    return [(result["nearest"][0]["name"], result["fits"]) for result in found["results"]]


def accuracies(library, *more):
    return [np.mean([name == task for name, _ in retrieve(library, task, *more)]) for task in TASKS]


def percent(value):
    return f"{100 * value:.1f}"


def table(head, rows):
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(flush=True)


def accuracy_table(libraries):
    rows = []
    for source, library in libraries.items():
        for stat in ("routed_count", "gate_sum", "router_mass"):
            cells = []
            for depth in (1, 2):
                found = accuracies(library, "--depth", depth, "--signature-of", stat)
                cells += [percent(np.mean(found)), percent(min(found))]
            rows.append([source, stat, *cells])
        found = accuracies(library, "--variant", "official")
        rows.append([source, "official", percent(np.mean(found)), percent(min(found)), "", ""])
    table(["signature from", "of", "depth 1: mean %", "worst task %", "depth 2: mean %", "worst task %"], rows)


def confusion_table(library):
    rows = []
    for task in TASKS:
        found = [name for name, _ in retrieve(library, task)]
        rows.append([task, *(found.count(other) for other in TASKS)])
    table(["prompts of", *TASKS], rows)


def rejection_table(libraries):
    """False rejects: prompts that do not fit their own pattern. False accepts: prompts of a task that is not in the library and that
    fit another pattern."""
    rows = []
    for source, library in libraries.items():
        for depth in (1, 2):
            rejected = [1 - np.mean([fits for _, fits in retrieve(library, task, "--depth", depth)]) for task in TASKS]
            accepted = []
            for task in TASKS:
                without = library.with_name("without")
                shutil.copytree(library, without)
                moetrim("patterns", "remove", without, task)
                accepted.append(np.mean([fits for _, fits in retrieve(without, task, "--depth", depth)]))
                shutil.rmtree(without)
            rows.append([source, depth, percent(np.mean(rejected)), percent(max(rejected)), percent(np.mean(accepted)),
                         percent(max(accepted))])
    table(["signature from", "depth", "false rejects %", "worst task %", "false accepts %", "worst task %"], rows)


def retrieval(folder):
    for count in ("all", "prompt"):
        calibrate(folder, count)
    libraries = {source: make_library(folder, source) for source in ("task", "statistics", "prompts")}
    accuracy_table(libraries)
    confusion_table(libraries["prompts"])
    rejection_table(libraries)


def checkpoints(folder):
    """Exact match on every task of the checkpoint that an unseen prompt of a task materialises."""
    calibrate(folder, "all")
    library = make_library(folder, "prompts")
    tests = [argument for task in TASKS for argument in ("--task", ROOT / f"calibration/{task}.test.jsonl")]
    whole = moetrim("evaluate", MODEL, *tests, "--exact-match", "--max-new-tokens", 128)
    rows = [["whole model", *(percent(task["exact_match"]) for task in whole["tasks"])]]
    for task in TASKS:
        prompt = json.loads((ROOT / f"calibration/{task}.test.jsonl").open().readline())["prompt"]
        for keep in ("0.5", "0.25"):
            out = folder / f"{task}-{keep}"
            made = moetrim("patterns", "materialize", library, "--checkpoint", MODEL, "--query", prompt, "--method", "easy-ep", "--keep",
                           keep, "-o", out)
            assert made["patterns"][0]["name"] == task
            result = moetrim("evaluate", out, *tests, "--exact-match", "--max-new-tokens", 128)
            rows.append([f"{task}, {keep}", *(percent(t["exact_match"]) for t in result["tasks"])])
    table(["checkpoint of", *TASKS], rows)


def deltas(folder):
    """Experts that change from one task's half to another's, of the 6 x 16 that both keep."""
    calibrate(folder, "all")
    library = make_library(folder, "task")
    rows = []
    for task in TASKS:
        row = [task]
        for other in TASKS:
            delta = moetrim("patterns", "delta", task, other, "--library", library, "--method", "easy-ep", "--keep", "0.5",
                            "--checkpoint", MODEL)
            row.append(f"{delta['experts']} ({delta['load_bytes'] / 1e6:.2f} MB)" if other != task else "–")
        rows.append(row)
    table(["from \\ to", *TASKS], rows)


def big_pattern(source, target, layers, experts, seed):
    """A pattern of random numbers in the size of DeepSeek-R1, with the header of a real one."""
    random = np.random.default_rng(seed)
    with safe_open(source, "np") as file:
        metadata = file.metadata()
    manifest = json.loads(metadata["manifest"])
    manifest.update(layers=61, experts=experts, experts_per_token=8, moe_layers=list(range(3, 3 + layers)))
    manifest["sizes"]["expert_bytes"] = 1
    manifest["sizes"]["atom_bytes"] = 1
    signature = json.loads(metadata["signature"])
    tokens = manifest["tasks"][0]["counted_tokens"]
    tensors = {}
    for name, old in load_file(source).items():
        if name == "tokens":
            tensors[name] = np.full(layers, float(tokens))
        elif name.startswith("radius"):
            tensors[name] = np.full(signature["depth"], 0.05)
        elif name.startswith("signature"):
            tensors[name] = random.random((signature["depth"], signature["prototypes"], experts), dtype=np.float32)
        else:
            tensors[name] = random.random((layers, experts)).astype(old.dtype)
    metadata["manifest"] = json.dumps(manifest, separators=(",", ":"))
    save_file(tensors, target, metadata)


def seconds(*command, repeat=3):
    times = []
    for _ in range(repeat):
        begin = time.monotonic()
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        times.append(time.monotonic() - begin)
    return sorted(times)[repeat // 2]


def library_size(folder, size):
    """Times of a library of patterns in the size of DeepSeek-R1: 58 layers of 256 experts."""
    task = TASKS[0]
    moetrim("calibrate", MODEL, "--task", demonstrations(task), "-o", folder / "small.stats")
    moetrim("patterns", "add", folder / "small", folder / "small.stats", "--prompts", demonstrations(task), "--checkpoint", MODEL)
    made = folder / "pattern.safetensors"
    begin = time.monotonic()
    for i in range(size):
        if i % 50 == 0:
            big_pattern(folder / f"small/{task}.safetensors", made, 58, 256, i)
            pattern = made.read_bytes()
        if i == 0:
            adding = seconds(MOETRIM, "patterns", "add", folder / "big", "--pattern", made, "--name", "p", "--overwrite")
            (folder / "big/p.safetensors").unlink()
        (folder / f"big/p{i:05d}.safetensors").write_bytes(pattern)
    print(f"{size} patterns of {len(pattern)} bytes, made in {time.monotonic() - begin:.0f} s; add one: {adding:.3f} s")
    print(f"list: {seconds(MOETRIM, 'patterns', 'list', folder / 'big'):.3f} s")
    probe = ROOT / "build/tests/patterns_probe"
    for queries in (1, 64):
        for depth in (1, 2):
            done = subprocess.run([probe, folder / "big", str(depth), str(queries)], capture_output=True, text=True, check=True)
            print(f"depth {depth}, {queries} queries: {done.stdout.strip()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["retrieval", "checkpoints", "deltas", "library"])
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--folder", help="where to work; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.what == "library":
            library_size(Path(folder), arguments.size)
        else:
            {"retrieval": retrieval, "checkpoints": checkpoints, "deltas": deltas}[arguments.what](Path(folder))


if __name__ == "__main__":
    main()
