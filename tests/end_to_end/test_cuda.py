"""Runs on a CUDA device against runs on the CPU: logits, statistics, the reverse sweep. Skipped where there is no device, but
for what is said then."""
import json
import subprocess

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import models
import quantise
from program import BUILD, moetrim, write_task
from test_quantised import SIZES

on_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
IDS = models.sequences(7, [5, 33, 64, 1, 70])


def logits(folder, precision, device, tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps(IDS))
    out = tmp_path / f"{precision}-{device.replace(':', '')}.safetensors"
    done = subprocess.run([BUILD / "tests/forward_probe", folder, tmp_path / "ids.json", precision, out, "0", device],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(out)["logits"]


def statistics(folder, tmp_path, device, dtype, *options):
    write_task(tmp_path / "task.jsonl", IDS)
    out = tmp_path / f"{device.replace(':', '')}.stats"
    moetrim("calibrate", folder, "--task", tmp_path / "task.jsonl", "--dtype", dtype, "--device", device, *options, "-o", out)
    return {file.name: load_file(file) for file in sorted(out.glob("*.safetensors"))}


def check_close(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys() and ours
    for file in theirs:
        for name, expected in theirs[file].items():
            np.testing.assert_allclose(ours[file][name], expected, rtol=tolerance, atol=tolerance * np.abs(expected).max(initial=0),
                                       err_msg=f"{file} {name}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_missing_device_is_an_error(tmp_path):
    models.make(tmp_path / "m", "qwen3_moe")
    write_task(tmp_path / "task.jsonl", IDS)
    done = moetrim("calibrate", tmp_path / "m", "--task", tmp_path / "task.jsonl", "--device", "cuda:0", "-o", tmp_path / "s", code=3)
    assert "cuda" in done.stderr.lower() and len(done.stderr.splitlines()) == 1
    moetrim("calibrate", tmp_path / "m", "--task", tmp_path / "task.jsonl", "--device", "gpu", "-o", tmp_path / "s", code=2)


@on_device
@pytest.mark.parametrize("family, layout", models.CASES)
def test_logits(family, layout, tmp_path):
    models.make(tmp_path / "m", family, layout)
    for precision, tolerance in (("fp32", 1e-3), ("bf16", 0.06)):
        theirs = logits(tmp_path / "m", precision, "cpu", tmp_path)
        ours = logits(tmp_path / "m", precision, "cuda:0", tmp_path)
        # A near tie of the router may send a token elsewhere in bf16; most logits must agree.
        error = np.quantile(np.abs(ours - theirs), 1.0 if precision == "fp32" else 0.98)
        assert error <= tolerance * max(1.0, np.abs(theirs).max())


@on_device
@pytest.mark.parametrize("family, method", [("qwen3_moe", method) for method in quantise.METHODS] +
                         [("deepseek_v3", "fp8 blocks"), ("gpt_oss", "mxfp4")])
def test_packed_weights(family, method, tmp_path):
    model = models.make(tmp_path / "m", family, initializer_range=0.1, **SIZES[family])
    quantise.mxfp4(tmp_path / "m", model) if method == "mxfp4" else quantise.quantise(tmp_path / "m", method, model)
    theirs, ours = (logits(tmp_path / "m", "bf16", device, tmp_path) for device in ("cpu", "cuda:0"))
    assert np.quantile(np.abs(ours - theirs), 0.98) <= 0.06 * max(1.0, np.abs(theirs).max())


@on_device
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss", "llama4_text"])
def test_statistics(family, tmp_path):
    models.make(tmp_path / "m", family, seed=1)
    check_close(statistics(tmp_path / "m", tmp_path, "cuda:0", "fp32"), statistics(tmp_path / "m", tmp_path, "cpu", "fp32"), 2e-3)


@on_device
@pytest.mark.parametrize("dtype, tolerance", [("fp64", 1e-6), ("fp32", 5e-3)])
def test_reverse_sweep(dtype, tolerance, tmp_path):
    models.make(tmp_path / "m", "deepseek_v3", seed=3)
    runs = [statistics(tmp_path / "m", tmp_path, device, dtype, "--statistics", "second-order") for device in ("cuda:0", "cpu")]
    check_close(*runs, tolerance)
