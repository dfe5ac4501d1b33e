"""Second-order statistics and scores against transformers with autograd in memory, and what the reverse sweep promises."""
import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import models
import second_order
from program import folder_bytes, moetrim, moetrim_json, write_task
from test_kill import kill_when
from test_memory import MIB, peak_bytes

IDS = models.sequences(5, [17, 41, 9, 30, 23, 8, 12, 19, 1, 35, 6])  # ten of one task: two of them share a slice
PROMPT = 6
TASKS = {"a": IDS[:10], "b": IDS[10:]}
METHODS = ["heapr", "heapr-sum", "heapr-joint", "magnitude", "wanda", "heapr-expert", "heapr-sum-expert", "heapr-joint-expert",
           "taylor", "fisher"]
# Its reference has a rotary table in the model's precision, where transformers rounds to float32.
IN_FP64 = [family for family in models.FAMILIES if family != "pangu_pro_moe"]
IN_FP32 = ["qwen3_moe", "deepseek_v3", "gpt_oss", "qwen3_next", "pangu_pro_moe"]


def calibrate(model, task_files, out, *options, dtype="fp64"):
    moetrim("calibrate", model, *(f"--task={file}" for file in task_files), "--dtype", dtype, "--statistics", "second-order",
            *options, "-o", out)
    return read(out)


def read(folder):
    """The manifest, and per layer what its atoms file holds."""
    layers = {int(file.stem.split("-")[1]): load_file(file) for file in sorted(folder.glob("atoms-*.safetensors"))}
    return json.loads((folder / "manifest.json").read_text()), layers


def check_equal(ours, theirs, tolerance):
    """Relative to each value, and for tiny ones to a thousandth of the tensor's largest."""
    assert list(ours) == list(theirs)
    for layer in theirs:
        for name in (*second_order.SUMS, "down_squares", "gate_up_squares"):
            expected = theirs[layer][name]
            assert ours[layer][name].dtype == np.float64 and ours[layer][name].shape == expected.shape
            np.testing.assert_allclose(ours[layer][name], expected, rtol=tolerance, atol=1e-3 * tolerance * np.abs(expected).max(),
                                       err_msg=f"layer {layer}, {name}")


def check_facts(manifest, facts, tolerance):
    for ours, theirs in zip(manifest["tasks"], facts, strict=True):
        assert ours["predicted_tokens"] == theirs["predicted_tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerance)


# The clamps of gpt_oss have kinks, which a longer step meets.
@pytest.mark.parametrize("family, step", [("deepseek_v3", 1e-4), ("llama4_text", 1e-4), ("gpt_oss", 1e-6)])
def test_the_reference_runs_what_transformers_runs(family, step, tmp_path):
    """Recording changes no logit, gradients are right to differences of the loss, and the matrix form has a short one."""
    model = models.make(tmp_path / "m", family, seed=3).double()
    sample = second_order.sample(IDS[1])
    with second_order.in_double():
        stock = models.logits_of(model, [sample.ids])
        with second_order.recording(model) as recorders:
            assert (models.logits_of(model, [sample.ids]) - stock).abs().max() < 1e-12
            facts, layers = second_order.run_task(model, recorders, [sample])
            recorder = next(iter(recorders.values()))
            direction = torch.randn_like(recorder.experts.down_proj)
            along = second_order.is_transposed(recorder.experts)
            expected = sum((visit.output_gradient.T @ visit.values * (d.T if along else d)).sum().item()
                           for visit, d in zip(recorder.visits, direction))
            assert difference(model, sample, recorder.experts.down_proj, direction, step) == pytest.approx(expected, rel=1e-8)
    for layer in layers.values():
        n = np.maximum(layer["tokens"], 1)[:, None]
        np.testing.assert_allclose(layer["score"], layer["activation"] * layer["gradient"] / n ** 2, rtol=1e-9, atol=1e-25)


def difference(model, sample, parameter, direction, step):
    """Derivative of the loss along a direction, to the fourth order of the step."""
    with torch.no_grad():
        losses = {}
        for times in (-2, -1, 1, 2):
            parameter += times * step * direction
            losses[times] = second_order.loss_of(model, sample).item()
            parameter -= times * step * direction
    return (8 * (losses[1] - losses[-1]) - (losses[2] - losses[-2])) / (12 * step)


@pytest.mark.parametrize("family", IN_FP64)
def test_statistics_equal_autograd_in_fp64(family, tmp_path):
    model = models.make(tmp_path / "m", family, seed=1)
    files = [write_task(tmp_path / f"{name}.jsonl", ids) for name, ids in TASKS.items()]
    manifest, ours = calibrate(tmp_path / "m", files, tmp_path / "s.stats")
    theirs, facts = second_order.collect(model, [[second_order.sample(s) for s in ids] for ids in TASKS.values()], double=True)
    check_facts(manifest, facts, 1e-12)
    check_equal(ours, theirs, 1e-8)


@pytest.fixture(scope="module", params=IN_FP32)
def run(request, tmp_path_factory):
    """One task in fp32, response tokens alone; and the same by autograd in float64."""
    folder = tmp_path_factory.mktemp(request.param)
    model = models.make(folder / "m", request.param, seed=2)
    (folder / "t.jsonl").write_text("".join(json.dumps({"input_ids": s, "prompt_tokens": min(PROMPT, len(s))}) + "\n" for s in IDS))
    ours = calibrate(folder / "m", [folder / "t.jsonl"], folder / "s.stats", "--count", "response", dtype="fp32")
    samples = [second_order.sample(s, "response", PROMPT) for s in IDS]
    return folder, ours, second_order.collect(model, [samples], double=request.param in IN_FP64)


def test_statistics_equal_autograd_in_fp32(run):
    _, (manifest, ours), (theirs, facts) = run
    check_facts(manifest, facts, 1e-6)
    for layer in theirs:
        for name in second_order.SUMS:
            largest = np.abs(theirs[layer][name]).max()
            np.testing.assert_allclose(ours[layer][name], theirs[layer][name], rtol=1e-4, atol=1e-4 * largest)


@pytest.mark.parametrize("method", METHODS)
def test_scores_equal_the_matrix_form(run, method):
    folder, _, (theirs, facts) = run
    ours = moetrim_json("score", folder / "s.stats", "--method", method)["layers"]
    assert [entry["layer"] for entry in ours] == list(theirs)
    for entry in ours:
        expected = second_order.scores(theirs[entry["layer"]], facts[0]["predicted_tokens"])[method]
        np.testing.assert_allclose(entry["scores"], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
