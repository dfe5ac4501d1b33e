#!/usr/bin/env python3
"""Reading: the reader beside dd and fio on the same file, cold; and how much of reading hides behind computing.

Usage: reading.py [--build build] [--checkpoint build/benchmark/qwen3-moe] [--task FILE.jsonl] [--runs 5] [--skip-overlap]

Cold: before every run the file's own pages are dropped from the page cache. Contenders take turns; medians count. fio takes part
where it is installed (scripts/setup.sh does not install it). The overlap is that of `calibrate`, read cold, within a memory
budget that has it read around the page cache: (read alone + compute alone - both) / the shorter. "Compute alone" is the same command
with the file in the page cache, less what it says it waited for reading. The overlap is a small difference of large times and needs an
idle machine; the share of reading that computing did not wait for is the program's own count. Nothing is asserted: the tables are for
reading.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def drop(file):
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(file):
    with open(file, "rb", buffering=0) as opened:
        while opened.read(1 << 24):
            pass


def timed(command, **environment):
    """Wall and CPU seconds, and what it printed."""
    before = os.times()
    begin = time.monotonic()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ | environment)
    wall = time.monotonic() - begin
    after = os.times()
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr}")
    return wall, after.children_user + after.children_system - before.children_user - before.children_system, done.stdout


def contenders(build, folder, file):
    dd = ["dd", f"if={file}", "of=/dev/null", "bs=8M"]
    probe = build / "tests/reading_probe"
    found = {
        "dd bs=8M": (dd, {}),
        "dd bs=8M iflag=direct": (dd + ["iflag=direct"], {}),
        "reader, io_uring, around the cache": ([probe, folder, "bypass"], {"MOETRIM_READER": "uring"}),
        "reader, pread, around the cache": ([probe, folder, "bypass"], {"MOETRIM_READER": "pread"}),
        "reader, io_uring, through the cache": ([probe, folder, "use"], {"MOETRIM_READER": "uring"}),
        "reader, pread, through the cache": ([probe, folder, "use"], {"MOETRIM_READER": "pread"}),
    }
    if shutil.which("fio"):
        fio = ["fio", "--name=r", f"--filename={file}", "--readonly", "--rw=read", "--bs=4M", "--ioengine=io_uring",
               "--iodepth=8", "--direct=1"]
        found["fio io_uring, direct, iodepth 8"] = (fio, {})
    return found


def compare_reading(build, folder, file, runs):
    size = file.stat().st_size
    taken = {}
    for _ in range(runs):
        for name, (command, environment) in contenders(build, folder, file).items():
            drop(file)
            wall, cpu, _ = timed(command, **environment)
            taken.setdefault(name, []).append((wall, cpu))
    rates = {name: size / statistics.median(wall for wall, _ in times) / 1e9 for name, times in taken.items()}
    best = max(rates.values())
    print(f"\n{size / 1e9:.2f} GB, cold, median of {runs}\n\n| | GB/s | of the best | CPU s |\n|---|---|---|---|")
    for name, times in taken.items():
        print(f"| {name} | {rates[name]:.2f} | {100 * rates[name] / best:.0f}% | {statistics.median(c for _, c in times):.2f} |")


def calibrate(build, folder, task, out, *more):
    shutil.rmtree(out, ignore_errors=True)
    wall, _, printed = timed([build / "moetrim", "calibrate", folder, "--task", task, "-o", out, "--json", "--quiet", *more],
                             OMP_WAIT_POLICY="passive")
    return wall, json.loads(printed)["reading"]


def compare_overlap(build, folder, file, task, runs):
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "s.stats"
        for _ in range(runs):
            drop(file)
            read_alone = float(timed([build / "tests/reading_probe", folder, "bypass"])[2].split()[1])
            warm(file)
            wall, reading = calibrate(build, folder, task, out)
            compute_alone = wall - reading["waited_seconds"]
            drop(file)
            both, reading = calibrate(build, folder, task, out, "--max-memory", "2GiB")
            overlap = (read_alone + compute_alone - both) / min(read_alone, compute_alone)
            rows.append((read_alone, compute_alone, both, reading["seconds"], reading["waited_seconds"], overlap))
    print(f"\nOverlap, {task.name}, median of {runs}\n\n"
          "| read alone | compute alone | both | in it reading | waited for | not waited for | overlap |\n|---|---|---|---|---|---|---|")
    middle = [statistics.median(column) for column in zip(*rows)]
    print("| " + " | ".join(f"{value:.2f} s" for value in middle[:5]) +
          f" | {100 * (1 - middle[4] / middle[3]):.0f}% | {100 * middle[5]:.0f}% |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "build/benchmark/qwen3-moe")
    parser.add_argument("--task", type=Path, default=ROOT / "build/benchmark/random-8x512.jsonl")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--skip-overlap", action="store_true")
    arguments = parser.parse_args()
    file = arguments.checkpoint / "model.safetensors"
    compare_reading(arguments.build, arguments.checkpoint, file, arguments.runs)
    if not arguments.skip_overlap:
        compare_overlap(arguments.build, arguments.checkpoint, file, arguments.task, arguments.runs)


if __name__ == "__main__":
    main()
