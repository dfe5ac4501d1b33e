"""Tags, contrasts, switching and placement, from a checkpoint to logits."""
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import models
import reference
from program import ROOT, moetrim, moetrim_json, write_task

IDS = models.sequences(21, [23, 31, 12, 40, 9, 17, 28, 33, 14, 26])
TAGGED = [{"input_ids": ids, "tag": "ab"[i % 2]} for i, ids in enumerate(IDS)]


def calibrate(folder, family, *options, rows=None):
    model = models.make(folder / "m", family, seed=3)
    if rows is None:
        write_task(folder / "t.jsonl", IDS)
    else:
        (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    moetrim("calibrate", folder / "m", "--task", folder / "t.jsonl", "--dtype", "fp32", *options, "-o", folder / "s.stats")
    return model


def rewritten(folder, model):
    moetrim("rewrite", folder / "m", "--plan", folder / "plan.json", "-o", folder / "out")
    loaded, info = models.load(folder / "out", model)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return models.logits_of(loaded, IDS)


def test_contrast_of_tags_equals_hooks(tmp_path):
    """fTRI of two tags of one file, from the routing that hooks on transformers see."""
    rows = TAGGED[:9] + [{"input_ids": IDS[9]}]
    model = calibrate(tmp_path, "qwen3_moe", "--split-by-tag", rows=rows)
    manifest = json.loads((tmp_path / "s.stats/manifest.json").read_text())
    assert [task["name"] for task in manifest["tasks"]] == ["t", "t/a", "t/b"]
    evaluated = moetrim_json("evaluate", tmp_path / "m", "--task", tmp_path / "t.jsonl", "--split-by-tag")
    assert [task["task"] for task in evaluated["tasks"]] == ["t", "t/a", "t/b"]
    ranked = moetrim_json("contrast", tmp_path / "s.stats", "--task", "t/a", "--against", "t/b", "--least-count", 0)
    ranked = ranked["ranked"]
    rates = []
    for half in (IDS[0:9:2], IDS[1:9:2]):
        layers = reference.collect(model, half)
        rates.append({i: np.bincount(layer["ids"].ravel(), minlength=7) / len(layer["ids"]) for i, layer in layers.items()})
    expected = sorted((-(rates[0][layer][e] - rates[1][layer][e]), layer, e) for layer in rates[0] for e in range(7))
    assert [(entry["layer"], entry["expert"]) for entry in ranked] == [(layer, e) for _, layer, e in expected]
    np.testing.assert_allclose([entry["score"] for entry in ranked], [-score for score, _, _ in expected], atol=1e-12)


def test_contrast_of_a_marker_equals_the_definition(tmp_path):
    """nPMI of the second of two markers in one of two tasks, from the counts in the files."""
    moetrim("calibrate", ROOT / "demo/model", "--task", ROOT / "calibration/sorting.jsonl",
            "--task", ROOT / "calibration/arithmetic.jsonl", "--samples", 6, "--statistics", "vectors", "--marker", ",", "--marker", "=", "-o", tmp_path / "s.stats")
    ranked = moetrim_json("contrast", tmp_path / "s.stats", "--marker", "=", "--task", "arithmetic")["ranked"]
    expected = {}
    for layer in range(6):
        counts = load_file(tmp_path / f"s.stats/layer-{layer:05}.safetensors")
        vectors = load_file(tmp_path / f"s.stats/vectors-{layer:05}.safetensors")
        tokens, routed = counts["token_count"][1].sum(), counts["routed_count"][1].sum(0)
        for expert in np.flatnonzero(routed):
            both, marked = vectors["marker_count"][1, 1, expert], vectors["marker_tokens"][1, 1]
            pmi = np.log2((both / marked) / (routed[expert] / tokens)) if both else None
            expected[layer, expert] = -1 if pmi is None else pmi / -np.log2(both / tokens)
    assert {(entry["layer"], entry["expert"]): entry["score"] for entry in ranked} == pytest.approx(expected)
    assert ranked[0]["score"] > 0.3 and ranked[-1]["score"] == -1


@pytest.mark.parametrize("family, devices", [("qwen3_moe", 7), ("deepseek_v3", 3), ("deepseek_v3", 15), ("gpt_oss", 4)])
def test_placed_experts_compute_the_same(family, devices, tmp_path):
    """Softmax; selection bias with groups, whole and on several devices each; fused with biases."""
    model = calibrate(tmp_path, family)
    plan = moetrim_json("place", tmp_path / "s.stats", "--devices", devices, "--objective", "traffic",
                        "-o", tmp_path / "plan.json")
    cost = plan["source"]["placement"]
    assert cost["after"]["mean_cost"] <= cost["before"]["mean_cost"]
    assert any(layer["keep"] != sorted(layer["keep"]) for layer in plan["layers"])
    assert (rewritten(tmp_path, model) - models.logits_of(model, IDS)).abs().max() <= 1e-5


def test_predicted_traffic_is_what_the_new_checkpoint_does(tmp_path):
    """Calibrated again, the placed checkpoint costs in order what was predicted for it."""
    calibrate(tmp_path, "olmoe")
    first = moetrim_json("place", tmp_path / "s.stats", "--devices", 3, "-o", tmp_path / "plan.json")["source"]["placement"]
    moetrim("rewrite", tmp_path / "m", "--plan", tmp_path / "plan.json", "-o", tmp_path / "out")
    moetrim("calibrate", tmp_path / "out", "--task", tmp_path / "t.jsonl", "--dtype", "fp32", "-o", tmp_path / "again.stats")
    again = moetrim_json("place", tmp_path / "again.stats", "--devices", 3, "-o", tmp_path / "again.json")["source"]["placement"]
    assert again["before"] == pytest.approx(first["after"], rel=1e-9)
    transitions = load_file(tmp_path / "s.stats/layer-00000.safetensors")["transitions"][0]
    crossing = sum(transitions[i, j] for i in range(9) for j in range(9) if i // 3 != j // 3)
    others = load_file(tmp_path / "s.stats/layer-00001.safetensors")["transitions"][0]
    crossing += sum(others[i, j] for i in range(9) for j in range(9) if i // 3 != j // 3)
    assert first["before"]["transitions_crossing"] == pytest.approx(crossing / (transitions.sum() + others.sum()))


def test_strengthened_experts_are_scaled(tmp_path):
    """A factor on an expert's output is a factor on its down projection."""
    model = calibrate(tmp_path, "qwen3_moe", "--split-by-tag", rows=TAGGED)
    moetrim("contrast", tmp_path / "s.stats", "--task", "t/a", "--against", "t/b", "-o", tmp_path / "ranked.json")
    plan = moetrim_json("switch", tmp_path / "s.stats", "--experts", tmp_path / "ranked.json", "--top", 4, "--strengthen", 1.5,
                        "-o", tmp_path / "plan.json")
    ours = rewritten(tmp_path, model)
    with torch.no_grad():
        for layer in plan["layers"]:
            for scaled in layer.get("scale", []):
                model.model.layers[layer["layer"]].mlp.experts.down_proj[scaled["expert"]] *= scaled["factor"]
    assert (ours - models.logits_of(model, IDS)).abs().max() <= 1e-5


def test_silenced_experts_are_never_chosen(tmp_path):
    """A selection bias of minus a lot equals a router logit of minus infinity for selection: the others share the tokens."""
    model = calibrate(tmp_path, "deepseek_v3", "--split-by-tag", rows=TAGGED)
    moetrim("contrast", tmp_path / "s.stats", "--task", "t/a", "--against", "t/b", "-o", tmp_path / "ranked.json")
    plan = moetrim_json("switch", tmp_path / "s.stats", "--experts", tmp_path / "ranked.json", "--top", 3, "--off", "bias",
                        "-o", tmp_path / "plan.json")
    ours = rewritten(tmp_path, model)
    moetrim("calibrate", tmp_path / "out", "--task", tmp_path / "t.jsonl", "--dtype", "fp32", "-o", tmp_path / "again.stats")
    silenced = 0
    for layer in plan["layers"]:
        counts = load_file(tmp_path / f"again.stats/layer-{layer['layer']:05}.safetensors")["routed_count"].sum((0, 1))
        assert not counts[layer.get("silence", [])].any()
        silenced += len(layer.get("silence", []))
    assert silenced == 3 and not torch.equal(ours, models.logits_of(model, IDS))
    refused = moetrim("switch", tmp_path / "s.stats", "--experts", tmp_path / "ranked.json", "--top", 3, "--off", "drop",
                      "-o", tmp_path / "x.json", code=3)
    assert "--per-layer" in refused.stderr
