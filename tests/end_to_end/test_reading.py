"""What is read of a checkpoint: nothing of experts that no token chose, and what --dry-run says of it."""
import os
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import models
from program import folder_bytes, moetrim, moetrim_json, write_task
from test_memory import peak_bytes

EXPERTS, HIDDEN, WIDTH = 24, 192, 128
EXPERT_BYTES = 3 * HIDDEN * WIDTH * 4


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Four tokens, two experts each: at most eight of 24 experts are chosen in a layer."""
    folder = tmp_path_factory.mktemp("reading")
    models.make(folder / "m", "qwen3_moe", hidden_size=HIDDEN, moe_intermediate_size=WIDTH, num_experts=EXPERTS, num_experts_per_tok=2,
                num_hidden_layers=3, mlp_only_layers=[], head_dim=16)
    write_task(folder / "t.jsonl", models.sequences(2, [4]))
    return folder


def layer_bytes(given):
    """Of all layers, without their experts."""
    total = 0
    with safe_open(given / "m/model.safetensors", "np") as file:
        for name in file.keys():
            if ".layers." in name and ".experts." not in name:
                total += file.get_tensor(name).nbytes
    return total


@pytest.mark.parametrize("way", ["uring", "pread", None])
def test_experts_that_no_token_chose_are_not_read(given, tmp_path, monkeypatch, way):
    if way == "uring" and moetrim_reader_missing():
        pytest.skip("this kernel or container offers no io_uring")
    monkeypatch.delenv("MOETRIM_READER", raising=False)
    if way:
        monkeypatch.setenv("MOETRIM_READER", way)
    ran = moetrim_json("calibrate", given / "m", "--task", given / "t.jsonl", "--dtype", "fp32", "--trace", 4, "-o", tmp_path / "s.stats")
    chosen = sum(len(set(load_file(file)["ids"].ravel())) for file in (tmp_path / "s.stats/trace").glob("layer-*"))
    assert 3 * 2 <= chosen <= 3 * 8
    needed = chosen * EXPERT_BYTES + layer_bytes(given)
    read = ran["reading"]["bytes"]
    assert needed <= read < needed + EXPERT_BYTES, "whole pages may come with them, but no expert more"


def moetrim_reader_missing():
    try:
        return Path("/proc/sys/kernel/io_uring_disabled").read_text().strip() != "0"
    except OSError:
        return True


def test_the_reverse_sweep_reads_every_expert_once(given, tmp_path):
    """The weights of all are measured, whoever chose them."""
    ran = moetrim_json("calibrate", given / "m", "--task", given / "t.jsonl", "--dtype", "fp32", "--statistics", "second-order",
                       "-o", tmp_path / "s.stats")
    read = ran["reading"]["bytes"]
    assert 3 * EXPERTS * EXPERT_BYTES < read < 3 * (EXPERTS + 9) * EXPERT_BYTES + 2 * layer_bytes(given)


def test_an_unknown_reader_is_refused(given, tmp_path, monkeypatch):
    monkeypatch.setenv("MOETRIM_READER", "mmap")
    assert "uring or pread" in moetrim("calibrate", given / "m", "--task", given / "t.jsonl", "-o", tmp_path / "s.stats", code=2).stderr


def test_dry_run_holds(given, tmp_path):
    """What it says is the most that a run takes."""
    arguments = ["calibrate", given / "m", "--task", given / "t.jsonl", "-o", tmp_path / "s.stats"]
    said = moetrim_json(*arguments, "--dry-run")
    assert not (tmp_path / "s.stats").exists()
    assert said["operations_per_second"] > 1e8 and said["read_bytes_per_second"] > 1e6 and 0 < said["seconds"] < 60
    assert peak_bytes(*arguments) <= said["peak_memory_bytes"]
    assert sum(len(bytes_) for bytes_ in folder_bytes(tmp_path / "s.stats").values()) <= said["disk_bytes"]
    evaluate = ["evaluate", given / "m", "--task", given / "t.jsonl"]
    said = moetrim_json(*evaluate, "--dry-run")
    assert peak_bytes(*evaluate) <= said["peak_memory_bytes"]
    assert said["read_bytes"] >= os.path.getsize(given / "m/model.safetensors") * 0.9 and said["passes"] == 1
