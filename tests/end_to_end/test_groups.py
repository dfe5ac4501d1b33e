"""Routers with groups of experts: what may be kept, giving the groups up, and gates that drift."""
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import models
import reference
from program import moetrim, moetrim_json, write_task

IDS = models.sequences(9, [25, 40, 7])


def calibrated(folder, family, **changes):
    model = models.make(folder / "m", family, **changes)
    write_task(folder / "t.jsonl", IDS)
    moetrim("calibrate", folder / "m", "--task", folder / "t.jsonl", "--dtype", "fp32", "-o", folder / "s.stats")
    return model


def plan(folder, *options, code=0):
    done = moetrim("plan", folder / "s.stats", "--method", "reap", *options, "-o", folder / "plan.json", code=code)
    return json.loads((folder / "plan.json").read_text()) if code == 0 else done.stderr


def evaluated(folder):
    """A plan as a mask and the written checkpoint, both against the original."""
    moetrim("rewrite", folder / "m", "--plan", folder / "plan.json", "-o", folder / "out")
    arguments = ["--task", folder / "t.jsonl", "--dtype", "fp32"]
    masked = moetrim_json("evaluate", folder / "m", "--plan", folder / "plan.json", *arguments)["plans"][0]
    written = moetrim_json("evaluate", folder / "out", "--against", folder / "m", *arguments)
    for key in ("loss", "kl", "top1_agreement"):
        assert masked[key] == pytest.approx(written[key], rel=1e-4)
    return masked


def test_ten_experts_in_four_groups_are_refused(tmp_path):
    """transformers runs them without a word, and wrong: the last two experts belong to no group."""
    model = models.make(tmp_path / "m", "deepseek_v3", n_routed_experts=10, n_group=2, topk_group=2, num_experts_per_tok=4)
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.num_group = 4
    with torch.no_grad():
        assert model(torch.tensor([[5, 6, 7, 8]])).logits.isfinite().all()
    config = json.loads((tmp_path / "m/config.json").read_text())
    config["n_group"] = 4
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    refused = moetrim("inspect", tmp_path / "m", code=3).stderr
    assert "10 experts in 4 groups" in refused


def test_an_illegal_keep_is_refused_with_the_nearest_legal_ones(tmp_path):
    calibrated(tmp_path, "deepseek_v3")  # 15 experts in 3 groups, 2 of them chosen, 4 per token
    refused = plan(tmp_path, "--keep", "10", code=3)
    assert "9" in refused and "12" in refused
    assert plan(tmp_path, "--keep", "0.5")["keep"] in (6, 9)
    recipe = {"checkpoint": "m", "output": "run", "calibrate": {"task": ["t.jsonl"]}, "plan": {"method": "reap", "keep": 10}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert "12" in moetrim("run", tmp_path / "recipe.json", code=3).stderr
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").glob("*.stats*"))


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_groups_given_up(family, tmp_path):
    model = calibrated(tmp_path, family, initializer_range=0.15)
    made = plan(tmp_path, "--keep", "7", "--regroup")
    assert made["regroup"] and evaluated(tmp_path)["kl"] > 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["n_group"] == config["topk_group"] == 1
    assert "groups" in (tmp_path / "out/README.md").read_text()
    pruned, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True, dtype=torch.float32,
                                                        experts_implementation="eager")
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.num_group = layer.mlp.gate.topk_group = 1
    reference.mask_router(model, made)
    assert (models.logits_of(pruned.eval(), IDS) - models.logits_of(model, IDS)).abs().max() <= 1e-5


def test_drift_is_measured_and_corrected(tmp_path):
    model = calibrated(tmp_path, "deepseek_v2_lite")
    layers = reference.collect(model, IDS)
    made = plan(tmp_path, "--keep", "5", "--correct-drift")
    masses = []
    for entry in made["layers"]:
        p = reference.probabilities(layers[entry["layer"]])
        masses.append(p[:, entry["keep"]].sum(1).mean())
        assert entry["kept_mass"] == pytest.approx(masses[-1], rel=1e-5)
    before = json.loads((tmp_path / "m/config.json").read_text())["routed_scaling_factor"]
    corrected = evaluated(tmp_path)
    after = json.loads((tmp_path / "out/config.json").read_text())["routed_scaling_factor"]
    assert after == pytest.approx(before * np.mean(masses), rel=1e-6)
    assert "drift" in (tmp_path / "out/README.md").read_text()
    assert corrected["kl"] > 0


def test_drift_cannot_be_corrected_where_there_is_no_place_or_no_drift(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    calibrated(tmp_path / "a", "olmoe")
    plan(tmp_path / "a", "--keep", "5", "--correct-drift")
    moetrim("rewrite", tmp_path / "a/m", "--plan", tmp_path / "a/plan.json", "-o", tmp_path / "a/out", code=3)
    calibrated(tmp_path / "b", "mixtral")
    assert "drift" in plan(tmp_path / "b", "--keep", "3", "--correct-drift", code=3)
