"""Peak memory of calibrating and rewriting does not grow with the number of layers."""
import os
import subprocess
import sys

import pytest
import torch

import models
from program import MOETRIM, moetrim, write_task

MIB = 2 ** 20


MEASURE = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)])
_, status, usage = os.wait4(child, 0)
print(status, usage.ru_maxrss)
"""


def peak_bytes(*arguments):
    """Largest resident set of the program, from the kernel. A small process starts it: a child is charged with its parent's."""
    done = subprocess.run([sys.executable, "-S", "-c", MEASURE, MOETRIM, *map(str, arguments)], capture_output=True, text=True,
                          check=True)
    status, kib = map(int, done.stdout.split())
    assert status == 0, done.stderr
    return kib * 1024


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    """{layers: (bytes of weights, peak of calibrate, peak of rewrite)}"""
    found = {}
    for layers in (3, 15):
        folder = tmp_path_factory.mktemp(f"layers{layers}")
        models.make(folder / "m", "qwen3_moe", dtype=torch.bfloat16, hidden_size=512, num_hidden_layers=layers, num_experts=32,
                    moe_intermediate_size=256, mlp_only_layers=[], head_dim=64, vocab_size=1000)
        write_task(folder / "t.jsonl", models.sequences(1, [256] * 8, 1000))
        calibrate = peak_bytes("calibrate", folder / "m", "--task", folder / "t.jsonl", "--max-memory", "1200MiB", "-o",
                               folder / "s.stats")
        moetrim("plan", folder / "s.stats", "--method", "reap", "--keep", 16, "-o", folder / "p.json")
        rewrite = peak_bytes("rewrite", folder / "m", "--plan", folder / "p.json", "-o", folder / "out")
        found[layers] = (os.path.getsize(folder / "m/model.safetensors"), calibrate, rewrite)
    return found


def test_calibrate(peaks):
    grown = peaks[15][0] - peaks[3][0]
    assert grown > 250 * MIB
    assert peaks[15][1] - peaks[3][1] < 48 * MIB
    assert peaks[15][1] < 1200 * MIB


def test_rewrite(peaks):
    assert abs(peaks[15][2] - peaks[3][2]) < 24 * MIB
