"""Every error a user can cause: one clear sentence that names the place, the right exit code, nothing left behind."""
import json
import os
import shutil
import struct
import subprocess

import pytest
import torch

import models
from program import MOETRIM, folder_bytes, moetrim, write_task


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    models.make(folder / "m", "qwen3_moe")
    write_task(folder / "t.jsonl", models.sequences(1, [20, 30]))
    moetrim("calibrate", folder / "m", "--task", folder / "t.jsonl", "-o", folder / "s.stats")
    moetrim("plan", folder / "s.stats", "--method", "reap", "--keep", "4", "-o", folder / "plan.json")
    return folder


def edit_config(folder, **changes):
    config = json.loads((folder / "m/config.json").read_text())
    config.update(changes)
    (folder / "m/config.json").write_text(json.dumps(config))


def edit_plan(folder, change):
    plan = json.loads((folder / "plan.json").read_text())
    change(plan)
    (folder / "plan.json").write_text(json.dumps(plan))


def truncate(file, missing):
    with open(file, "r+b") as f:
        f.truncate(os.path.getsize(file) - missing)


def rename_tensor(file, old, new):
    """Renames in the header; both names have the same length, so that offsets stay."""
    data = file.read_bytes()
    assert len(old) == len(new) and old.encode() in data
    file.write_bytes(data.replace(old.encode(), new.encode(), 1))


def poison(file, name):
    """Sets one value of an fp32 tensor to NaN."""
    data = bytearray(file.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    begin = json.loads(data[8:8 + length])[name]["data_offsets"][0]
    data[8 + length + begin:8 + length + begin + 4] = struct.pack("<f", float("nan"))
    file.write_bytes(data)


CALIBRATE = ["calibrate", "m", "--task", "t.jsonl", "-o", "x.stats"]
PLAN = ["plan", "s.stats", "--method", "reap", "--keep", "4", "-o", "x.json"]
SECOND = [*CALIBRATE, "--statistics", "second-order"]
REWRITE = ["rewrite", "m", "--plan", "plan.json", "-o", "x"]

# name: (what is broken, arguments, exit code, what the message must contain)
CASES = {
    "no such checkpoint": (None, ["inspect", "nowhere"], 3, ["nowhere"]),
    "no config": (lambda f: (f / "m/config.json").unlink(), ["inspect", "m"], 3, ["config.json"]),
    "config is not JSON": (lambda f: (f / "m/config.json").write_text("{\n  nope"), ["inspect", "m"], 3, ["config.json", "line 2"]),
    "unknown family": (lambda f: edit_config(f, model_type="gpt2"), CALIBRATE, 3, ["gpt2", "qwen3_moe"]),
    "missing size": (lambda f: edit_config(f, hidden_size=None), CALIBRATE, 3, ["config.json", "hidden_size"]),
    "wrong size": (lambda f: edit_config(f, moe_intermediate_size=14), CALIBRATE, 3, ["experts.0.", "[13, 44]", "[14, 44]"]),
    "aliases disagree": (lambda f: edit_config(f, num_local_experts=9), CALIBRATE, 3, ["num_experts", "num_local_experts"]),
    "unknown activation": (lambda f: edit_config(f, hidden_act="gelu"), CALIBRATE, 3, ["hidden_act", "gelu"]),
    "unknown rope": (lambda f: edit_config(f, rope_parameters={"rope_type": "spiral", "factor": 2.0}), CALIBRATE, 3, ["spiral"]),
    "truncated shard": (lambda f: truncate(f / "m/model.safetensors", 10), CALIBRATE, 3, ["model.safetensors"]),
    "header cut": (lambda f: (f / "m/model.safetensors").write_bytes(b"\x00\x01"), CALIBRATE, 3, ["model.safetensors"]),
    "missing tensor": (lambda f: rename_tensor(f / "m/model.safetensors", "model.norm.weight", "model.morn.weight"), CALIBRATE, 3,
                       ["model.norm.weight"]),
    "unknown expert tensor": (lambda f: rename_tensor(f / "m/model.safetensors", "mlp.experts.0.up_proj.weight",
                                                      "mlp.experts.0.up_proj.wieght"), CALIBRATE, 3, ["up_proj.wieght"]),
    "NaN weight": (lambda f: poison(f / "m/model.safetensors", "model.layers.0.input_layernorm.weight"), CALIBRATE, 3, ["layer 0"]),
    "no such task": (lambda f: (f / "t.jsonl").unlink(), CALIBRATE, 3, ["t.jsonl"]),
    "empty task": (lambda f: (f / "t.jsonl").write_text("\n\n"), CALIBRATE, 3, ["t.jsonl"]),
    "task line not UTF-8": (lambda f: (f / "t.jsonl").write_bytes(b'{"input_ids": [5]}\n{"text": "\xff"}\n'), CALIBRATE, 3,
                            ["t.jsonl", "2"]),
    "task line not JSON": (lambda f: (f / "t.jsonl").write_text('{"input_ids": [5]}\n{oops}\n'), CALIBRATE, 3, ["t.jsonl", "2"]),
    "unknown row form": (lambda f: (f / "t.jsonl").write_text('{"input": "x"}\n'), CALIBRATE, 3, ["t.jsonl", "1", "input_ids"]),
    "text without tokenizer": (lambda f: (f / "t.jsonl").write_text('{"text": "x"}\n'), CALIBRATE, 3, ["tokenizer"]),
    "id outside vocabulary": (lambda f: (f / "t.jsonl").write_text('{"input_ids": [500]}\n'), CALIBRATE, 3, ["500", "101"]),
    "nothing counts": (None, [*CALIBRATE, "--count", "prompt"], 3, ["t.jsonl", "--count"]),
    "same task twice": (None, [*CALIBRATE, "--task", "t.jsonl"], 2, ["t"]),
    "output exists": (None, ["calibrate", "m", "--task", "t.jsonl", "-o", "s.stats"], 3, ["s.stats"]),
    "no output": (None, ["calibrate", "m", "--task", "t.jsonl"], 2, ["-o"]),
    "unknown count": (None, [*CALIBRATE, "--count", "some"], 2, ["--count"]),
    "unknown dtype": (None, [*CALIBRATE, "--dtype", "fp8"], 2, ["--dtype"]),
    "unknown device": (None, [*CALIBRATE, "--device", "tpu"], 2, ["tpu"]),
    "too little memory": (None, [*CALIBRATE, "--max-memory", "1MB"], 4, ["--max-memory"]),
    "bad memory size": (None, [*CALIBRATE, "--max-memory", "lots"], 2, ["lots"]),
    "unknown option": (None, ["calibrate", "m", "--tsak", "t.jsonl"], 2, ["--tsak", "--task"]),
    "no command": (None, [], 2, ["subcommand"]),
    "unknown method": (None, ["score", "s.stats", "--method", "reep"], 2, ["reep", "reap"]),
    "unknown task in score": (None, ["score", "s.stats", "--method", "reap", "--task", "math"], 3, ["math"]),
    "bad weight": (None, ["score", "s.stats", "--method", "reap", "--task", "t=x"], 2, ["x"]),
    "no statistics": (None, ["score", "nowhere", "--method", "reap"], 3, ["nowhere"]),
    "layer file missing": (lambda f: (f / "s.stats/layer-00000.safetensors").unlink(), ["score", "s.stats", "--method", "reap"], 3,
                           ["layer-00000.safetensors"]),
    "manifest damaged": (lambda f: (f / "s.stats/manifest.json").write_text("{}"), ["score", "s.stats", "--method", "reap"], 3,
                         ["manifest.json"]),
    "keep below top-k": (None, ["plan", "s.stats", "--method", "reap", "--keep", "2", "-o", "x.json"],
                         3, ["3"]),
    "keep is not a number": (None, ["plan", "s.stats", "--method", "reap", "--keep", "half", "-o", "x.json"], 2, ["half"]),
    "keep too many": (None, ["plan", "s.stats", "--method", "reap", "--keep", "70", "-o", "x.json"], 3, ["7"]),
    "protect nonsense": (None, [*PLAN, "--protect", "everything"], 2, ["everything"]),
    "protect out of range": (None, [*PLAN, "--protect", "0:99"], 3, ["99"]),
    "plan missing": (lambda f: (f / "plan.json").unlink(), REWRITE, 3, ["plan.json"]),
    "plan with unknown field": (lambda f: edit_plan(f, lambda p: p.update(kept=3)), REWRITE, 3, ["plan.json", "kept"]),
    "plan id out of range": (lambda f: edit_plan(f, lambda p: p["layers"][0]["keep"].__setitem__(-1, 99)), REWRITE, 3, ["plan.json", "99"]),
    "plan for another checkpoint": (lambda f: edit_plan(f, lambda p: p.update(checkpoint_fingerprint="0" * 32)), REWRITE, 3,
                                    ["fingerprint"]),
    "disk for nothing": (None, [*CALIBRATE, "--max-disk", "1GB"], 2, ["--max-disk", "second-order"]),
    "bad disk size": (None, [*SECOND, "--max-disk", "lots"], 2, ["lots"]),
    "too little disk": (None, [*SECOND, "--max-disk", "1000"], 4, ["30 tokens", "--max-disk"]),
    "nothing to differentiate": (lambda f: (f / "t.jsonl").write_text('{"input_ids": [5]}\n'), SECOND, 3, ["t.jsonl", "before it"]),
    "no second order in the statistics": (None, ["score", "s.stats", "--method", "heapr"], 3, ["s.stats", "second-order"]),
    "atoms of an expert method": (None, [*PLAN, "--keep-atoms", "0.5"], 2, ["keep-atoms", "reap"]),
    "no limit": (None, ["plan", "s.stats", "--method", "reap", "-o", "x.json"], 2, ["--keep"]),
    "bad shard size": (None, [*REWRITE, "--shard-size", "0"], 2, ["0"]),
    "recipe missing": (None, ["run", "r.json"], 3, ["r.json"]),
    "recipe with unknown field": (lambda f: (f / "r.json").write_text('{"checkpoint": "m", "output": "o", "calibrate": '
                                  '{"task": ["t.jsonl"], "max-tokns": 3}, "plan": {"method": "reap", "keep": 4}}'),
                                  ["run", "r.json"], 3, ["r.json", "max-tokns", "max-tokens"]),
    "recipe with keep below top-k": (lambda f: (f / "r.json").write_text('{"checkpoint": "m", "output": "o", "calibrate": '
                                     '{"task": ["t.jsonl"]}, "plan": {"method": "reap", "keep": 1}}'), ["run", "r.json"], 3, ["3"]),
    "exact match without tokenizer": (None, ["evaluate", "m", "--task", "t.jsonl", "--exact-match"], 3, ["tokenizer"]),
}


@pytest.mark.parametrize("name", CASES)
def test_error(name, good, tmp_path):
    spoil, arguments, code, words = CASES[name]
    folder = tmp_path / "w"
    shutil.copytree(good, folder)
    if spoil:
        spoil(folder)
    before = folder_bytes(folder)
    done = moetrim(*arguments, code=code, cwd=folder)
    for word in words:
        assert word in done.stderr, done.stderr
    assert done.stdout == ""
    if code != 2:
        assert done.stderr.startswith("moetrim: ") and done.stderr.count("\n") == 1, done.stderr
    left = {f for f in folder_bytes(folder) if ".partial" not in f and "partial" not in f and not f.startswith("o/")}
    assert left == set(before), "a failed command left files that look finished"


def test_full_disk(good, tmp_path):
    """A file system of 16 KiB: the rewrite says what it needs and leaves nothing."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", small], capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        done = moetrim("rewrite", good / "m", "--plan", good / "plan.json", "-o", small / "out", code=4)
        assert "disk" in done.stderr or "space" in done.stderr
        assert not (small / "out").exists()
        done = moetrim("calibrate", good / "m", "--task", good / "t.jsonl", "-o", small / "s.stats", code=4)
        assert "small" in done.stderr
        assert not (small / "s.stats").exists()
    finally:
        subprocess.run(["umount", small])


@pytest.mark.parametrize("command", ["inspect", "calibrate", "score", "plan", "rewrite", "evaluate", "run", "merge-statistics",
                                     "verify", "list"])
def test_help_shows_an_example(command):
    text = moetrim(command, "--help").stdout
    assert f"moetrim {command}" in text.split("Example:")[1]
    assert "--json" in text
