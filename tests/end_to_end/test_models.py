"""The harness itself, without moetrim: hooks see what is executed, masked equals pruned by hand."""
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import models
import reference

IDS = models.sequences(13, [25, 40, 7, 33])


@pytest.mark.parametrize("family", models.FAMILIES)
def test_hooks_see_what_is_executed(family, tmp_path):
    model = models.make(tmp_path / "m", family, seed=2)
    executed = {}

    def keep(i):
        return lambda module, args, out: executed.setdefault(i, []).append(routed_of(module, args, out))

    for i, layer in enumerate(models.layers_of(model)):
        if reference.moe_of(layer):
            reference.moe_of(layer)[0].register_forward_hook(keep(i))
    collected = reference.collect(model, IDS)
    assert list(collected) == list(executed)
    for i, layer in collected.items():
        routed = (layer["gates"][:, :, None] * layer["outputs"]).sum(1)
        np.testing.assert_allclose(routed, np.concatenate(executed[i]), rtol=1e-4, atol=1e-5)
        assert np.isfinite(layer["logits"]).all()


def routed_of(block, args, out):
    """The block's output without what the shared expert adds."""
    x = args[0].reshape(-1, args[0].shape[-1])
    out = (out[0] if isinstance(out, tuple) else out).reshape(x.shape)
    for name in ("shared_expert", "shared_experts", "shared_mlp"):
        if getattr(block, name, None) is not None:
            shared = getattr(block, name)(x)
            gate = getattr(block, "shared_expert_gate", None)
            out = out - (shared if gate is None else torch.sigmoid(gate(x)) * shared)
    return out.double().numpy()


@pytest.mark.parametrize("family", models.FAMILIES)
def test_pruned_by_hand_equals_masked(family, tmp_path):
    model = models.make(tmp_path / "m", family, seed=4)
    plan = random_plan(model, 5)
    prune(tmp_path / "m", plan)
    pruned, info = models.load(tmp_path / "m", model)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    whole = models.logits_of(model, IDS)
    reference.mask_router(model, plan)
    masked = models.logits_of(model, IDS)
    assert not masked.isnan().any() and (masked - whole).abs().max() > 0.1
    assert (models.logits_of(pruned, IDS) - masked).abs().max() <= 1e-5


def random_plan(model, seed):
    """Two thirds of the experts of every layer, as many in every group."""
    generator = np.random.default_rng(seed)
    experts, groups = models.groups_of(model.config)
    size, kept = experts // groups, models.two_thirds(model.config) // groups
    entries = []
    for i, layer in enumerate(models.layers_of(model)):
        if reference.moe_of(layer):
            keep = [g * size + int(e) for g in range(groups) for e in sorted(generator.permutation(size)[:kept])]
            entries.append(dict(layer=i, keep=keep))
    return dict(experts=experts, layers=entries)


def prune(folder, plan):
    keep = {entry["layer"]: entry["keep"] for entry in plan["layers"]}
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        layer = re.search(r"layers\.(\d+)\.", name)
        kept = keep.get(int(layer[1])) if layer and "visual" not in name and "vision" not in name else None
        expert = re.search(r"\.experts\.(\d+)\.", name)
        if kept and expert:
            if int(expert[1]) not in kept:
                continue
            name = name.replace(expert[0], f".experts.{kept.index(int(expert[1]))}.")
        elif kept and name.endswith(("e_score_correction_bias", "router_scale")):
            tensor = tensor[..., kept]
        elif kept and re.search(r"\.(experts|gate|router|input_linear|output_linear)\.", name):
            tensor = tensor[kept]
        tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    text.update({key: len(plan["layers"][0]["keep"]) for key in models.EXPERT_COUNTS if key in text})
    (folder / "config.json").write_text(json.dumps(config))
