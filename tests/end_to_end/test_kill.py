"""kill -9 in the middle of calibrate and of rewrite: the same command again ends with the bytes of an undisturbed run."""
import random
import shutil
import signal
import subprocess
import time

import pytest

import models
from program import MOETRIM, folder_bytes, moetrim, write_task


def kill_when(arguments, condition, stop=signal.SIGKILL):
    """Starts the program and kills it as soon as the condition holds. Returns its exit code, or None if it got through."""
    process = subprocess.Popen([MOETRIM, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not condition():
        time.sleep(0.0005)
    if process.poll() is not None:
        return None
    process.send_signal(stop)
    return process.wait()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    models.make(folder / "m", "qwen3_moe", num_hidden_layers=9, num_experts=24, moe_intermediate_size=96, hidden_size=128)
    write_task(folder / "t.jsonl", models.sequences(1, [200] * 30))
    moetrim("calibrate", folder / "m", "--task", folder / "t.jsonl", "-o", folder / "s.stats")
    moetrim("plan", folder / "s.stats", "--method", "easy-ep", "--keep", 12, "-o", folder / "plan.json")
    return folder


@pytest.mark.parametrize("layers", [1, 3, 6])
def test_calibrate(checkpoint, layers, tmp_path):
    out, partial = tmp_path / "s.stats", tmp_path / "s.stats.partial"
    arguments = ["calibrate", checkpoint / "m", "--task", checkpoint / "t.jsonl", "-o", out]
    killed = kill_when(arguments, lambda: len(list(partial.glob("group-*"))) > layers)
    assert killed == -signal.SIGKILL, "the run was over before it could be killed"
    assert not out.exists() and partial.exists()
    moetrim(*arguments)
    assert folder_bytes(out) == folder_bytes(checkpoint / "s.stats")
    assert not partial.exists()


def test_calibrate_stops_on_sigterm_and_goes_on(checkpoint, tmp_path):
    out, partial = tmp_path / "s.stats", tmp_path / "s.stats.partial"
    arguments = ["calibrate", checkpoint / "m", "--task", checkpoint / "t.jsonl", "-o", out]
    assert kill_when(arguments, lambda: len(list(partial.glob("group-*"))) > 2, signal.SIGTERM) == 5
    assert not out.exists()
    moetrim(*arguments)
    assert folder_bytes(out) == folder_bytes(checkpoint / "s.stats")


def test_a_partial_folder_of_another_run_is_refused(checkpoint, tmp_path):
    out, partial = tmp_path / "s.stats", tmp_path / "s.stats.partial"
    arguments = ["calibrate", checkpoint / "m", "--task", checkpoint / "t.jsonl", "-o", out]
    assert kill_when(arguments, lambda: len(list(partial.glob("group-*"))) > 1) == -signal.SIGKILL
    assert "unfinished" in moetrim(*arguments, "--samples", 3, code=3).stderr


@pytest.mark.parametrize("shards", [1, 4, 9])
def test_rewrite(checkpoint, shards, tmp_path):
    arguments = ["rewrite", checkpoint / "m", "--plan", checkpoint / "plan.json", "--shard-size", "200KB", "-o"]
    moetrim(*arguments, tmp_path / "undisturbed/out")
    target = tmp_path / "killed/out"
    target.parent.mkdir()
    killed = kill_when([*arguments, target],
                       lambda: len([f for f in target.parent.rglob("*.safetensors")]) >= shards)
    assert not target.exists() or killed is None
    assert killed == -signal.SIGKILL, "the run was over before it could be killed"
    moetrim(*arguments, target)
    assert folder_bytes(target) == folder_bytes(tmp_path / "undisturbed/out")
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_rewrite_slices_killed_and_stopped(checkpoint, tmp_path):
    arguments = ["rewrite", checkpoint / "m", "--plan", checkpoint / "plan.json", "--shard-size", "200KB", "-o"]
    moetrim(*arguments, tmp_path / "undisturbed/out")
    target = tmp_path / "sliced/out"
    target.parent.mkdir()
    slices = [[*arguments, target, "--slice", f"{i}/3", "--writers", 3] for i in (1, 2, 3)]

    def files():
        return len(list(target.parent.rglob("*.safetensors")))

    assert kill_when(slices[0], lambda: files() >= 4) == -signal.SIGKILL
    before = files()
    assert kill_when(slices[1], lambda: files() >= before + 4, signal.SIGTERM) == 5
    assert not target.exists()
    together = [subprocess.Popen([MOETRIM, *map(str, one)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for one in slices]
    assert [process.wait() for process in together] == [0, 0, 0]
    assert folder_bytes(target) == folder_bytes(tmp_path / "undisturbed/out")
    assert [p.name for p in target.parent.iterdir()] == ["out"]
    moetrim(*slices[1])  # once more, late
    moetrim("plan", checkpoint / "s.stats", "--method", "easy-ep", "--keep", 11, "-o", tmp_path / "other.json")
    other = ["rewrite", checkpoint / "m", "--plan", tmp_path / "other.json", "--slice", "1/3", "-o"]
    moetrim(*slices[0][:-5], tmp_path / "mixed", *slices[0][-4:])
    assert "another request" in moetrim(*other, tmp_path / "mixed", code=3).stderr
