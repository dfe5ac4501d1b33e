#!/usr/bin/env python3
"""Peak memory of calibrating a DeepSeek-V3-shaped FP8 checkpoint under --max-memory, at N and at 2 N layers.

Usage: deepseek_v3_memory.py MOETRIM FOLDER [--layers 6] [--memory 4GiB] [--tokens 16384]
                             [--statistics default] [--hard]
Makes the checkpoints in FOLDER one after the other and removes them. With --hard the run lies in a control group whose limit is
the same figure (Linux, as root).
"""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

MAKE = Path(__file__).with_name("make_deepseek_v3_fp8.py")
GROUP = Path("/sys/fs/cgroup/memory/moetrim-benchmark")
MEASURE = """
import os, sys
group = sys.argv[1]
if group: open(group + "/cgroup.procs", "w").write(str(os.getpid()))
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
print(status, usage.ru_maxrss, usage.ru_utime + usage.ru_stime)
"""


def bytes_of(text):
    return int(text.removesuffix("GiB")) << 30


def run(arguments, layers, folder):
    subprocess.run([sys.executable, MAKE, folder / "m", "--layers", str(layers)], check=True, stdout=subprocess.DEVNULL)
    generator = random.Random(1)
    lines = [json.dumps({"input_ids": [generator.randrange(8192) for _ in range(512)]}) for _ in range(arguments.tokens // 512)]
    (folder / "t.jsonl").write_text("\n".join(lines) + "\n")
    group = ""
    if arguments.hard:
        GROUP.mkdir(exist_ok=True)
        (GROUP / "memory.limit_in_bytes").write_text(str(bytes_of(arguments.memory)))
        group = str(GROUP)
    begin = time.time()
    command = [arguments.moetrim, "calibrate", folder / "m", "--task", folder / "t.jsonl", "--max-memory", arguments.memory, "--quiet",
               "--statistics", arguments.statistics, "-o", folder / "s.stats"]
    done = subprocess.run([sys.executable, "-S", "-c", MEASURE, group, *map(str, command)], capture_output=True, text=True,
                          env=os.environ | {"OMP_WAIT_POLICY": "passive"})
    status, kib, cpu = done.stdout.split()[-3:]
    if int(status) != 0:
        sys.exit(f"calibrate failed: {done.stdout}{done.stderr}")
    size = sum(f.stat().st_size for f in (folder / "m").iterdir())
    print(f"{layers:3} layers  {size / 1e9:5.1f} GB  peak {int(kib) / 2**20:.2f} GiB  {time.time() - begin:.0f} s wall  "
          f"{float(cpu):.0f} s CPU", flush=True)
    for name in ("m", "s.stats"):
        shutil.rmtree(folder / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("moetrim")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--statistics", default="default", choices=["default", "second-order"])
    parser.add_argument("--hard", action="store_true")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for layers in (arguments.layers, 2 * arguments.layers):
        run(arguments, layers, arguments.folder)


if __name__ == "__main__":
    main()
