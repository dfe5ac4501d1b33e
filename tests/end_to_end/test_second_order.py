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
from test_mtp import Mtp

IDS = models.sequences(5, [17, 41, 9, 30, 23, 8, 12, 19, 1, 35, 6])  # ten of one task: two of them share a slice
PROMPT = 6
TASKS = {"a": IDS[:10], "b": IDS[10:]}
METHODS = ["heapr", "heapr-sum", "heapr-joint", "magnitude", "wanda", "heapr-expert", "heapr-sum-expert", "heapr-joint-expert",
           "taylor", "fisher"]
# Its reference has a rotary table in the model's precision, where transformers rounds to float32.
IN_FP64 = [family for family in models.FAMILIES if family != "pangu_pro_moe"]
IN_FP32 = ["qwen3_moe", "deepseek_v3", "gpt_oss", "pangu_pro_moe"]


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
    model = second_order.doubled(models.make(tmp_path / "m", family, seed=3))
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


def test_experts_that_no_token_reached_are_zeros(tmp_path):
    models.make(tmp_path / "m", "deepseek_v3", seed=1)  # four of 15 experts a token
    task = write_task(tmp_path / "t.jsonl", [IDS[0][:3]])
    _, layers = calibrate(tmp_path / "m", [task], tmp_path / "s.stats")
    for layer, stats in layers.items():
        unseen = stats["tokens"][0] == 0
        assert unseen.any() and stats["tokens"].sum() == 12
        assert not any(stats[name][..., unseen, :].any() for name in ("activation", "gradient", "joint"))
        assert not any(stats[name][..., unseen].any() for name in ("taylor", "fisher"))
    for entry in moetrim_json("score", tmp_path / "s.stats", "--method", "heapr")["layers"]:
        scores = np.array(entry["scores"])
        unseen = layers[entry["layer"]]["tokens"][0] == 0
        assert not scores[unseen].any() and (scores[~unseen] > 0).any()


def test_bf16_weights(tmp_path):
    """They are widened exactly, whatever the precision of the run."""
    made = models.make(tmp_path / "m", "qwen2_moe", dtype=torch.bfloat16)
    task = write_task(tmp_path / "t.jsonl", IDS)
    _, ours = calibrate(tmp_path / "m", [task], tmp_path / "s.stats")
    theirs, _ = second_order.collect(models.load(tmp_path / "m", made)[0], [[second_order.sample(s) for s in IDS]], double=True)
    check_equal(ours, theirs, 1e-8)


def test_blocks_for_multi_token_prediction_have_no_loss_of_the_next_token(tmp_path):
    made = Mtp(tmp_path, "deepseek_v3")
    task = write_task(tmp_path / "t.jsonl", IDS)
    arguments = ["calibrate", tmp_path / "m", "--task", task, "--statistics", "second-order", "--dtype", "fp64", "-o"]
    assert "--mtp keep" in moetrim(*arguments, tmp_path / "x.stats", code=3).stderr
    theirs, _ = second_order.collect(made.model, [[second_order.sample(s) for s in IDS]], double=True)
    moetrim(*arguments, tmp_path / "s.stats", "--mtp", "keep")
    check_equal(read(tmp_path / "s.stats")[1], theirs, 1e-8)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model of 13 layers, the first dense, equal demonstrations, and what a run that nothing disturbs measures."""
    folder = tmp_path_factory.mktemp("small")
    models.make(folder / "m", "qwen3_moe", num_hidden_layers=13, mlp_only_layers=[0], num_experts=24, moe_intermediate_size=32)
    write_task(folder / "t.jsonl", models.sequences(1, [100] * 16))
    calibrate(folder / "m", [folder / "t.jsonl"], folder / "s.stats")
    return folder


def arguments_for(small, *options):
    return ["calibrate", small / "m", "--task", small / "t.jsonl", "--dtype", "fp64", "--statistics", "second-order", *options]


def estimate(small, *options):
    return moetrim_json(*arguments_for(small, *options), "--dry-run", "-o", "/nowhere.stats")


def little_memory(small):
    """Enough for a quarter of the tokens at once."""
    whole, half = estimate(small)["peak_memory_bytes"], estimate(small, "--samples", 8)["peak_memory_bytes"]
    return ["--max-memory", half - (whole - half) // 2]


def little_disk(small, share):
    return ["--max-disk", int(share * estimate(small)["boundary_bytes"])]


def test_little_memory_takes_several_waves(small, tmp_path):
    """Waves of tokens re-associate sums, and change no more than that."""
    options = little_memory(small)
    assert estimate(small, *options)["passes"] == 4
    moetrim(*arguments_for(small, *options), "-o", tmp_path / "s.stats")
    (_, ours), (_, theirs) = read(tmp_path / "s.stats"), read(small / "s.stats")
    check_equal(ours, theirs, 1e-10)


@pytest.mark.parametrize("share, step", [(0.75, 2), (0.66, 3)])
def test_little_disk_keeps_fewer_boundaries(small, tmp_path, share, step):
    """The layers between are computed again, from the same hidden states to the same bytes."""
    options = little_disk(small, share)
    planned = estimate(small, *options)
    assert (planned["boundary_step"], planned["passes"]) == (step, 1) and planned["boundary_bytes"] <= options[1]
    moetrim(*arguments_for(small, *options), "-o", tmp_path / "s.stats")
    assert folder_bytes(tmp_path / "s.stats") == folder_bytes(small / "s.stats")


def test_too_little_disk_is_said(small, tmp_path):
    assert "--max-disk" in moetrim(*arguments_for(small, "--max-disk", 1000), "-o", tmp_path / "s.stats", code=4).stderr


@pytest.fixture(scope="module")
def undisturbed(small):
    """Per way of cutting the run its options, and the folder it ends with."""
    waves = little_memory(small)
    moetrim(*arguments_for(small, *waves), "-o", small / "waves.stats")
    return {"whole": ([], small / "s.stats"), "every third boundary": (little_disk(small, 0.66), small / "s.stats"),
            "waves": (waves, small / "waves.stats")}


@pytest.mark.parametrize("cut, kind, count", [
    ("whole", "boundary", 2), ("whole", "atoms", 0), ("whole", "atoms", 10), ("every third boundary", "boundary", 3),
    ("every third boundary", "atoms", 4), ("waves", "atoms", 5), ("waves", "atoms", 20)])
def test_killed_runs_go_on(small, undisturbed, tmp_path, cut, kind, count):
    """SIGKILL as soon as there are more files of that kind."""
    options, expected = undisturbed[cut]
    out, partial = tmp_path / "s.stats", tmp_path / "s.stats.partial"
    arguments = [*arguments_for(small, *options), "-o", out]
    killed = kill_when(arguments, lambda: len(list(partial.glob(f"*{kind}*.safetensors"))) > count)
    assert killed == -signal.SIGKILL, "the run was over before it could be killed"
    assert not out.exists() and partial.exists()
    moetrim(*arguments)
    assert folder_bytes(out) == folder_bytes(expected)
    assert not partial.exists()


def test_sigterm_on_the_way_back(small, tmp_path):
    out, partial = tmp_path / "s.stats", tmp_path / "s.stats.partial"
    arguments = [*arguments_for(small), "-o", out]
    assert kill_when(arguments, lambda: len(list(partial.glob("*atoms*"))) > 1, signal.SIGTERM) == 5
    assert not out.exists()
    moetrim(*arguments)
    assert folder_bytes(out) == folder_bytes(small / "s.stats")


def test_peak_memory_does_not_grow_with_the_layers(tmp_path):
    peaks, weights = {}, {}
    for layers in (4, 16):
        folder = tmp_path / str(layers)
        models.make(folder / "m", "qwen3_moe", dtype=torch.bfloat16, hidden_size=512, num_hidden_layers=layers, num_experts=32,
                    moe_intermediate_size=256, mlp_only_layers=[], head_dim=64, vocab_size=1000)
        task = write_task(folder / "t.jsonl", models.sequences(1, [256] * 8, 1000))
        peaks[layers] = peak_bytes("calibrate", folder / "m", "--task", task, "--statistics", "second-order", "--max-memory",
                                   "1200MiB", "-o", folder / "s.stats")
        weights[layers] = os.path.getsize(folder / "m/model.safetensors")
    assert weights[16] - weights[4] > 250 * MIB
    assert peaks[16] - peaks[4] < 48 * MIB
    assert peaks[16] < 1200 * MIB
