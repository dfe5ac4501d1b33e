#!/usr/bin/env python3
"""Compares `moetrim rewrite` of a GGUF file with `cp` of as many bytes: medians of pairs, with a cold and a warm page cache.

Usage: gguf_rewrite_vs_cp.py [--program build/moetrim] [--layers 12] [--runs 7] [--folder DIR] [--keep 0.5]

Makes a qwen3moe file with random bytes in Q4_K tensors (64 experts, 170 MB a layer) in DIR (a temporary folder by default), plans by
hand to keep the even experts, so that no two kept ones are neighbours, and times both until the data is on disk: `cp` copies the file
that rewrite wrote and is followed by `sync`, since rewrite flushes its file. The most memory that a rewrite had is its largest
resident set, which counts the program itself; it is taken again with a quarter of the layers. Nothing is asserted: the table is for
reading.
"""
import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HIDDEN, WIDTH, EXPERTS, CHOSEN, VOCABULARY = 2048, 768, 64, 8, 1024
F32, Q4_K = 0, 12


def tensors(layers):
    """Names, types and extents in ggml's order."""
    yield "token_embd.weight", F32, [HIDDEN, VOCABULARY]
    yield "output_norm.weight", F32, [HIDDEN]
    for layer in range(layers):
        at = f"blk.{layer}."
        for name, outputs in {"attn_q": 512, "attn_k": 256, "attn_v": 256}.items():
            yield f"{at}{name}.weight", Q4_K, [HIDDEN, outputs]
        yield at + "attn_output.weight", Q4_K, [512, HIDDEN]
        yield at + "attn_norm.weight", F32, [HIDDEN]
        yield at + "ffn_norm.weight", F32, [HIDDEN]
        yield at + "ffn_gate_inp.weight", F32, [HIDDEN, EXPERTS]
        yield at + "ffn_gate_exps.weight", Q4_K, [HIDDEN, WIDTH, EXPERTS]
        yield at + "ffn_down_exps.weight", Q4_K, [WIDTH, HIDDEN, EXPERTS]
        yield at + "ffn_up_exps.weight", Q4_K, [HIDDEN, WIDTH, EXPERTS]


def size_of(kind, extents):
    elements = 1
    for extent in extents:
        elements *= extent
    return elements * 4 if kind == F32 else elements // 256 * 144


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def make_file(path, layers):
    numbers = {"block_count": layers, "expert_count": EXPERTS, "expert_used_count": CHOSEN, "embedding_length": HIDDEN}
    header = text("general.architecture") + struct.pack("<I", 8) + text("qwen3moe")
    for key, value in numbers.items():
        header += text(f"qwen3moe.{key}") + struct.pack("<II", 4, value)
    offset, count = 0, 0
    for name, kind, extents in tensors(layers):
        header += text(name) + struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, kind, offset)
        offset += size_of(kind, extents)  # all of them multiples of 32, the alignment
        count += 1
    header = b"GGUF" + struct.pack("<IQQ", 3, count, 1 + len(numbers)) + header
    block = os.urandom(1 << 24)
    with open(path, "wb") as file:
        file.write(header + bytes(-len(header) % 32))
        for begin in range(0, offset, len(block)):
            file.write(block[:min(len(block), offset - begin)])


def write_plan(file, layers, keep):
    file.write_text(json.dumps({
        "format": "moetrim-plan", "version": 1, "method": "by-hand", "variant": "executed", "checkpoint_fingerprint": "unknown",
        "family": "qwen3_moe", "experts": EXPERTS, "keep": len(keep), "experts_per_token": CHOSEN, "protect": [], "source": {},
        "layers": [{"layer": layer, "keep": keep, "unseen": 0, "unseen_kept": 0} for layer in range(layers)]}))


def prepare_cache(path, cold):
    """In the page cache, or not: of this file alone; the kernel may decline on some file systems."""
    with open(path, "rb", buffering=0) as file:
        if cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while file.read(1 << 24):
                pass


def run(command):
    """CPU seconds and MiB of a process."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(command)}: failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def timed(command, source, out, cold):
    """Seconds on the clock until all is on disk, CPU seconds, that of `sync` included, and MiB."""
    out.unlink(missing_ok=True)
    os.sync()
    prepare_cache(source, cold)
    begin = time.monotonic()
    cpu, memory = run(command)
    flushing, _ = run(["sync", str(out)])
    return time.monotonic() - begin, cpu + flushing, memory


class Work:
    def __init__(self, folder, layers, options):
        folder.mkdir()
        self.source, self.out, self.same, plan = (folder / name for name in ("in.gguf", "out.gguf", "same.gguf", "plan.json"))
        make_file(self.source, layers)
        kept = sorted(sorted(range(EXPERTS), key=lambda e: (e % 2, e))[:max(CHOSEN, int(options.keep * EXPERTS + 0.5))])
        write_plan(plan, layers, kept)
        self.rewrite = [options.program, "rewrite", str(self.source), "--plan", str(plan), "-o", str(self.out), "--quiet",
                        "--writers", str(options.writers)]
        self.copy = ["cp", str(self.same), str(self.out)]

    def measure_rewrite(self, cold):
        return timed(self.rewrite, self.source, self.out, cold)

    def measure_copy(self, cold):
        return timed(self.copy, self.same, self.out, cold)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/moetrim")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--folder")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--writers", type=int, default=1)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="moetrim-benchmark-", dir=options.folder))
    try:
        model = Work(work / "whole", options.layers, options)
        _, _, memory = model.measure_rewrite(cold=True)
        shutil.copyfile(model.out, model.same)
        print(f"{model.same.stat().st_size / 1e9:.2f} GB written of {model.source.stat().st_size / 1e9:.2f} GB, {options.writers} writers, medians "
              f"(least-most) of {options.runs} pairs\n")
        print(f"{'page cache':12}{'of':8}{'rewrite s':>22}{'cp s':>22}{'cp / rewrite':>22}")
        for name, cold in [("cold", True), ("warm", False)]:
            # Taken in turns, so that a slow moment of the machine does not fall on one of the two alone.
            pairs = [(model.measure_rewrite(cold), model.measure_copy(cold)) for _ in range(options.runs)]
            memory = max(memory, *(ours[2] for ours, _ in pairs))
            for index, what in enumerate(("clock", "CPU")):
                columns = [[ours[index] for ours, _ in pairs], [theirs[index] for _, theirs in pairs],
                           [theirs[index] / ours[index] for ours, theirs in pairs]]
                cells = [f"{statistics.median(c):.2f} ({min(c):.2f}-{max(c):.2f})" for c in columns]
                print(f"{name:12}{what:8}" + "".join(f"{cell:>22}" for cell in cells))
        shutil.rmtree(work / "whole")
        quarter = Work(work / "quarter", max(1, options.layers // 4), options)
        print(f"\nrewrite had at most {memory:.1f} MiB; {quarter.measure_rewrite(cold=True)[2]:.1f} MiB with {max(1, options.layers // 4)} layers")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
