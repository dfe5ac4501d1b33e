"""What the benchmarks share: a command's time and memory as the kernel counts them, and random demonstrations."""
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
GROUP = Path("/sys/fs/cgroup/memory/moetrim-benchmark")
# A small process starts the command: a child is charged with its parent's memory.
LAUNCHER = """
import os, sys
group = sys.argv[1]
if group: open(group + "/cgroup.procs", "w").write(str(os.getpid()))
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)])
_, status, usage = os.wait4(child, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)
"""


class Cost(NamedTuple):
    seconds: float      # wall
    cpu_seconds: float  # user and system
    peak_bytes: int     # largest resident set


def run(command, hard_limit=0):
    """Runs a command to its end. With hard_limit (bytes; Linux with a version 1 memory controller, as root) it lies in a control
    group that holds no more, page cache included."""
    group = ""
    if hard_limit:
        GROUP.mkdir(exist_ok=True)
        (GROUP / "memory.limit_in_bytes").write_text(str(hard_limit))
        group = str(GROUP)
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-S", "-c", LAUNCHER, group, *map(str, command)], capture_output=True, text=True,
                          env=ENVIRONMENT)
    seconds = time.monotonic() - begin
    code, peak, cpu = done.stdout.split()[-3:]
    if int(code) != 0:
        sys.exit(f"{' '.join(map(str, command))}\nfailed with {code}: {done.stderr}")
    return Cost(seconds, float(cpu), int(peak))


def write_task(file, sequences, length, vocabulary=8192):
    """Random token ids, one demonstration a line."""
    generator = random.Random(0)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"input_ids": [generator.randrange(vocabulary) for _ in range(length)]}) + "\n"
                            for _ in range(sequences)))


def folder_bytes(folder):
    return sum(file.stat().st_size for file in Path(folder).iterdir() if file.is_file())
