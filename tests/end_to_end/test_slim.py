"""Slimmer experts in transformers: keys, and logits against the original with the dropped atomic experts zeroed."""
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import models
import reference
from program import moetrim, moetrim_json, write_task

IDS = models.sequences(9, [25, 40, 7])
# One number of config.json serves the experts and a shared expert that keeps its width.
TIED = ("llama4", "llama4_text", "hunyuan_v1_moe")


def width_of(config) -> int:
    text = config.get_text_config()
    return getattr(text, "moe_intermediate_size", None) or text.intermediate_size


def ranges_of(kept):
    """Ascending numbers as [begin, end) pairs that do not touch."""
    out = []
    for k in sorted(int(k) for k in kept):
        if out and out[-1][1] == k:
            out[-1][1] = k + 1
        else:
            out.append([k, k + 1])
    return out


def make(folder, family, layout, keep=None, **changes):
    """A checkpoint, and a plan that keeps whole experts."""
    model = models.make(folder / "m", family, layout, **changes)
    write_task(folder / "t.jsonl", IDS)
    moetrim("calibrate", folder / "m", "--task", folder / "t.jsonl", "--dtype", "fp32", "-o", folder / "s.stats")
    moetrim("plan", folder / "s.stats", "--method", "random", "--keep", keep or models.groups_of(model.config)[0], "-o",
            folder / "plan.json")
    return model


def slim(folder, model, widths, seed=0):
    """Gives the plan random atomic experts; widths(layer, place) is how many an expert keeps. Returns the plan."""
    generator = np.random.default_rng(seed)
    plan = json.loads((folder / "plan.json").read_text())
    plan["width"] = width_of(model.config)
    for entry in plan["layers"]:
        entry["atoms"] = [ranges_of(generator.permutation(plan["width"])[:widths(entry["layer"], i)])
                          for i in range(len(entry["keep"]))]
    (folder / "plan.json").write_text(json.dumps(plan))
    return plan


def zero_atoms(model, plan):
    """Makes the original compute what the plan leaves of it."""
    reference.mask_router(model, plan)
    for entry in plan["layers"]:
        experts = reference.moe_of(models.layers_of(model)[entry["layer"]])[2]
        for expert, ranges in zip(entry["keep"], entry["atoms"]):
            kept = torch.zeros(plan["width"])
            for begin, end in ranges:
                kept[begin:end] = 1
            down = experts.down_proj.data[expert]
            down *= kept if down.shape[-1] == plan["width"] and down.shape[0] != plan["width"] else kept[:, None]


def check(folder, model, plan, loaded, info):
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    whole = models.logits_of(model, IDS)
    zero_atoms(model, plan)
    masked = models.logits_of(model, IDS)
    assert (masked - whole).abs().max() > 0.05
    assert (models.logits_of(loaded, IDS) - masked).abs().max() <= 1e-5
    assert moetrim_json("verify", folder / "out")["errors"] == 0


@pytest.mark.parametrize("family, layout", [case for case in models.CASES if case[0] not in TIED])
def test_equal_widths_load_in_plain_transformers(family, layout, tmp_path):
    model = make(tmp_path, family, layout)
    width = width_of(model.config) * 2 // 3
    plan = slim(tmp_path, model, lambda layer, expert: width)
    moetrim("rewrite", tmp_path / "m", "--plan", tmp_path / "plan.json", "-o", tmp_path / "out")
    loaded, info = models.load(tmp_path / "out", model)
    assert width_of(loaded.config) == width
    check(tmp_path, model, plan, loaded, info)
