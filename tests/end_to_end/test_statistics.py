"""Statistics and scores against an independent computation with transformers hooks."""
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import models
import reference
from program import folder_bytes, moetrim, moetrim_json, write_task

IDS = models.sequences(5, [17, 41, 9, 30, 23, 8, 12, 19, 27, 35, 6])
METHODS = ["frequency", "soft-frequency", "ean", "reap", "easy-ep", "tcess"]


@pytest.fixture(scope="module", params=models.FAMILIES)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = models.make(folder / "m", request.param, seed=1)
    write_task(folder / "task.jsonl", IDS)
    moetrim("calibrate", folder / "m", "--task", folder / "task.jsonl", "--dtype", "fp32", "--trace", 100, "-o", folder / "s.stats")
    return folder, model, reference.collect(model, IDS)


def expert_count(run):
    return json.loads((run[0] / "s.stats/manifest.json").read_text())["experts"]


@pytest.mark.parametrize("method", METHODS)
def test_scores_equal_hooks(run, method):
    folder, _, layers = run
    experts = expert_count(run)
    ours = moetrim_json("score", folder / "s.stats", "--method", method)
    assert [entry["layer"] for entry in ours["layers"]] == list(layers)
    for entry in ours["layers"]:
        layer = layers[entry["layer"]]
        theirs = reference.scores(layer, experts, -1)[method]
        np.testing.assert_allclose(entry["scores"], theirs, rtol=1e-4, atol=1e-6)


def test_tcess_threshold(run, tmp_path):
    """With r only shares of at least r count."""
    folder, _, layers = run
    moetrim("calibrate", folder / "m", "--task", folder / "task.jsonl", "--dtype", "fp32", "--tcess-threshold", 0.41,
            "-o", tmp_path / "s.stats")
    ours = moetrim_json("score", tmp_path / "s.stats", "--method", "tcess")
    for entry in ours["layers"]:
        theirs = reference.scores(layers[entry["layer"]], expert_count(run), 0.41)["tcess"]
        np.testing.assert_allclose(entry["scores"], theirs, rtol=1e-4, atol=1e-6)


def test_official_tcess_equals_hooks(run):
    folder, _, layers = run
    ours = moetrim_json("score", folder / "s.stats", "--method", "tcess", "--variant", "official")
    for entry in ours["layers"]:
        theirs = reference.scores(layers[entry["layer"]], expert_count(run), 0)["tcess official"]
        np.testing.assert_allclose(entry["scores"], theirs, rtol=1e-4, atol=1e-5)


def test_layer_file_holds_what_hooks_see(run):
    folder, _, layers = run
    experts = expert_count(run)
    order = sorted(layers)
    for position, index in enumerate(order):
        layer, stats = layers[index], load_file(folder / f"s.stats/layer-{index:05}.safetensors")
        total = {name: values.sum(1)[0] for name, values in stats.items() if values.ndim == 3 and values.shape[1] == 8}
        np.testing.assert_allclose(total["router_mass"], reference.probabilities(layer).sum(0), rtol=1e-4)
        routed = np.zeros((len(layer["ids"]), experts))
        np.put_along_axis(routed, layer["ids"], 1, 1)
        np.testing.assert_array_equal(stats["coactivation"][0], routed.T @ routed)
        if position + 1 < len(order):
            following = np.zeros_like(routed)
            np.put_along_axis(following, layers[order[position + 1]]["ids"], 1, 1)
            np.testing.assert_array_equal(stats["transitions"][0], routed.T @ following)
        largest = np.abs(layer["outputs"]).max(2)
        expected = [largest[layer["ids"] == e].max(initial=0) for e in range(experts)]
        np.testing.assert_allclose(stats["max_abs"][0].max(0), expected, rtol=1e-4)
        assert stats["token_count"].sum() == sum(map(len, IDS))
        assert ("prompt_routing" in stats) == (position == 0)


def test_prompts_are_told_apart_by_the_expert_they_use_most(run):
    """Kinds of prompts in the first MoE layer; without a prompt all tokens of a demonstration are one."""
    folder, _, layers = run
    first = min(layers)
    experts = expert_count(run)
    routing, counts = np.zeros((experts, experts)), np.zeros(experts)
    for ids in np.split(layers[first]["ids"], np.cumsum([len(ids) for ids in IDS])[:-1]):
        used = np.bincount(ids.ravel(), minlength=experts)
        routing[used.argmax()] += np.round(used / np.linalg.norm(used) * 2**20)
        counts[used.argmax()] += 1
    stats = load_file(folder / f"s.stats/layer-{first:05}.safetensors")
    np.testing.assert_array_equal(stats["prompt_count"][0], counts)
    np.testing.assert_allclose(stats["prompt_routing"][0], routing, atol=len(IDS))


def test_trace_holds_every_token(run):
    folder, _, layers = run
    for index, layer in layers.items():
        trace = load_file(folder / f"s.stats/trace/layer-{index:05}.safetensors")
        assert len(trace["ids"]) == 100
        np.testing.assert_allclose(trace["logits"], layer["logits"][:100], rtol=1e-3, atol=1e-4)
        # Some routers leave the chosen experts of a token unsorted.
        ours, theirs = np.argsort(trace["ids"], 1), np.argsort(layer["ids"][:100], 1)

        def check(values, expected, **tolerance):
            np.testing.assert_allclose(np.take_along_axis(values, ours, 1),
                                       np.take_along_axis(expected[:100], theirs, 1), **tolerance)

        check(trace["ids"], layer["ids"], rtol=0)
        check(trace["gates"], layer["gates"], rtol=1e-3, atol=1e-5)
        check(trace["norms"], np.linalg.norm(layer["outputs"], axis=2), rtol=1e-3, atol=1e-4)


def test_tasks_and_slices_are_kept_apart(run, tmp_path):
    folder, _, _ = run
    write_task(tmp_path / "a.jsonl", IDS[:4])
    write_task(tmp_path / "b.jsonl", IDS[4:])
    moetrim("calibrate", folder / "m", "--task", tmp_path / "a.jsonl", "--task", tmp_path / "b.jsonl", "--dtype", "fp32",
            "-o", tmp_path / "ab.stats")
    moetrim("calibrate", folder / "m", "--task", tmp_path / "b.jsonl", "--dtype", "fp32", "-o", tmp_path / "b.stats")
    for file in sorted((tmp_path / "b.stats").glob("layer-*.safetensors")):
        both, alone = load_file(tmp_path / "ab.stats" / file.name), load_file(file)
        for name in alone:
            # A matrix product may round differently when a row lies elsewhere in the batch.
            np.testing.assert_allclose(both[name][1], alone[name][0], rtol=1e-4, atol=1e-6)
        assert (alone["token_count"][0] > 0).sum() == 7  # seven demonstrations, one a slice


def test_merged_parts_equal_one_run(run, tmp_path):
    folder, _, _ = run
    write_task(tmp_path / "a.jsonl", IDS[:4])
    write_task(tmp_path / "b.jsonl", IDS[4:])
    parts = []
    for name in "ab":
        parts.append(tmp_path / f"{name}.stats")
        moetrim("calibrate", folder / "m", "--task", tmp_path / f"{name}.jsonl", "--dtype", "fp32", "-o", parts[-1])
    moetrim("merge-statistics", *parts, "-o", tmp_path / "merged.stats")
    moetrim("calibrate", folder / "m", "--task", tmp_path / "a.jsonl", "--task", tmp_path / "b.jsonl", "--dtype", "fp32",
            "-o", tmp_path / "ab.stats")
    merged, whole = tmp_path / "merged.stats", tmp_path / "ab.stats"
    assert (merged / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    for file in whole.glob("layer-*"):
        for name, values in load_file(file).items():
            np.testing.assert_allclose(load_file(merged / file.name)[name], values, rtol=1e-4, atol=1e-6)
    moetrim("merge-statistics", parts[0], parts[0], "-o", tmp_path / "twice.stats", code=3)


def test_little_memory_gives_the_same_bytes(tmp_path):
    """Several passes over token groups add up to what one pass gives."""
    models.make(tmp_path / "m", "qwen3_moe", hidden_size=512, num_hidden_layers=2, mlp_only_layers=[])
    ids = models.sequences(3, [4000] * 6, 101)
    write_task(tmp_path / "t.jsonl", ids)
    arguments = ["calibrate", tmp_path / "m", "--task", tmp_path / "t.jsonl", "--threads", 1]
    plan = moetrim_json(*arguments, "--dry-run", "--max-memory", "440MiB")
    assert plan["passes"] > 1
    moetrim(*arguments, "--max-memory", "440MiB", "-o", tmp_path / "few.stats")
    moetrim(*arguments, "-o", tmp_path / "one.stats")
    assert folder_bytes(tmp_path / "few.stats") == folder_bytes(tmp_path / "one.stats")
    assert "--max-memory" in moetrim(*arguments, "--max-memory", "300MiB", "-o", tmp_path / "x.stats", code=4).stderr
