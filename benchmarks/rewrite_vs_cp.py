#!/usr/bin/env python3
"""Compares `moetrim rewrite` with `cp` of as many bytes: medians of several runs, with a cold and a warm page cache.

Usage: rewrite_vs_cp.py [--program build/moetrim] [--gigabytes 2] [--runs 5] [--folder DIR] [--keep 0.5]

Makes a random qwen3_moe checkpoint of that size in DIR (a temporary folder by default), plans by hand to keep the even
experts, and times both until the data is on disk: `cp` copies a folder with exactly the bytes that rewrite wrote and is
followed by `sync -f`, since rewrite flushes its files. Rewrite picks its bytes out of a larger file. The most memory that a
rewrite had is its largest resident set, which counts the program itself. Nothing is asserted: the table is for reading.
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

HIDDEN, WIDTH, EXPERTS, VOCABULARY = 2048, 768, 64, 1024
EXPERT_BYTES = 3 * HIDDEN * WIDTH * 2


def tensors(layer_count):
    """Names and shapes, all bf16, in the order of the file."""
    yield "model.embed_tokens.weight", [VOCABULARY, HIDDEN]
    yield "lm_head.weight", [VOCABULARY, HIDDEN]
    yield "model.norm.weight", [HIDDEN]
    for layer in range(layer_count):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", [HIDDEN]
        yield at + "post_attention_layernorm.weight", [HIDDEN]
        for name, shape in {"q_proj": [512, HIDDEN], "k_proj": [128, HIDDEN], "v_proj": [128, HIDDEN],
                            "o_proj": [HIDDEN, 512]}.items():
            yield f"{at}self_attn.{name}.weight", shape
        yield at + "self_attn.q_norm.weight", [128]
        yield at + "self_attn.k_norm.weight", [128]
        yield at + "mlp.gate.weight", [EXPERTS, HIDDEN]
        for expert in range(EXPERTS):
            for name, shape in {"gate_proj": [WIDTH, HIDDEN], "up_proj": [WIDTH, HIDDEN],
                                "down_proj": [HIDDEN, WIDTH]}.items():
                yield f"{at}mlp.experts.{expert}.{name}.weight", shape


def make_checkpoint(folder, layer_count):
    folder.mkdir(parents=True)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors(layer_count):
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    block = os.urandom(1 << 24)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for begin in range(0, offset, len(block)):
            file.write(block[:min(len(block), offset - begin)])
    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_hidden_layers": layer_count,
              "hidden_size": HIDDEN, "vocab_size": VOCABULARY, "num_attention_heads": 4, "num_key_value_heads": 1,
              "head_dim": 128, "num_experts": EXPERTS, "num_experts_per_tok": 8, "moe_intermediate_size": WIDTH,
              "intermediate_size": WIDTH, "norm_topk_prob": True, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
              "max_position_embeddings": 4096,
              "mlp_only_layers": [], "decoder_sparse_step": 1, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))


def write_plan(file, layer_count, keep):
    layers = [{"layer": layer, "keep": keep, "unseen": 0, "unseen_kept": 0} for layer in range(layer_count)]
    file.write_text(json.dumps({
        "format": "moetrim-plan", "version": 1, "method": "by-hand", "variant": "executed",
        "checkpoint_fingerprint": "of another checkpoint", "family": "qwen3_moe", "experts": EXPERTS, "keep": len(keep),
        "experts_per_token": 8, "layers": layers, "protect": [], "source": {}}))


def cool(folder):
    """Drops the folder's files from the page cache, and nobody else's; the kernel may decline on some file systems."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(folder):
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with open(file, "rb", buffering=0) as stream:
                while stream.read(1 << 24):
                    pass


def timed(command, out, source, cold):
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    cool(source) if cold else warm(source)
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(command)}: failed")
    subprocess.run(["sync", "-f", str(out)], check=True)
    return time.monotonic() - begin, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/moetrim")
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--rewrite-options", default="--allow-other-checkpoint", help="passed to rewrite")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="moetrim-benchmark-", dir=options.folder))
    try:
        layer_count = max(1, round(options.gigabytes * 1e9 / (EXPERTS * EXPERT_BYTES)))
        make_checkpoint(work / "in", layer_count)
        keep = sorted(range(EXPERTS), key=lambda e: (e % 2, e))[:max(8, int(options.keep * EXPERTS + 0.5))]
        write_plan(work / "plan.json", layer_count, sorted(keep))
        rewrite = [options.program, "rewrite", str(work / "in"), "--plan", str(work / "plan.json"), "-o", str(work / "out"), "--quiet",
                   *options.rewrite_options.split()]
        subprocess.run(rewrite, check=True, stdout=subprocess.DEVNULL)
        shutil.copytree(work / "out", work / "same")
        copied = sum(file.stat().st_size for file in (work / "same").rglob("*") if file.is_file())
        copy = ["cp", "-r", str(work / "same"), str(work / "out")]
        print(f"{copied / 1e9:.2f} GB written of {options.gigabytes:.2f} GB, median (least-most) of {options.runs} runs\n")
        print(f"{'page cache':12}{'rewrite s':>24}{'cp s':>24}{'rewrite / cp':>14}")
        memory = 0
        for name, cold in [("cold", True), ("warm", False)]:
            # Taken in turns, so that a slow moment of the disk does not fall on one of the two alone.
            times = [(timed(rewrite, work / "out", work / "in", cold), timed(copy, work / "out", work / "same", cold))
                     for _ in range(options.runs)]
            memory = max(memory, *(mebibytes for (_, mebibytes), _ in times))
            cells, medians = [], []
            for column in zip(*times):
                column = [seconds for seconds, _ in column]
                medians.append(statistics.median(column))
                cells.append(f"{medians[-1]:.2f} ({min(column):.2f}-{max(column):.2f})")
            print(f"{name:12}{cells[0]:>24}{cells[1]:>24}{medians[0] / medians[1]:>14.2f}")
        print(f"\nrewrite had at most {memory:.0f} MiB")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
