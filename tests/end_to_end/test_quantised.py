"""Quantised checkpoints: computed like the values they stand for, pruned without touching a byte of what stays."""
import json

import pytest
from safetensors.torch import load_file

import models
import quantise
import reference
from program import moetrim, moetrim_json, write_task
from test_forward import our_logits

IDS = models.sequences(9, [25, 40, 7])
SIZES = {  # groups of 16 or 32 inputs; expert matrices that end inside a block of 128
    "qwen3_moe": dict(hidden_size=160, head_dim=16, moe_intermediate_size=64, intermediate_size=96),
    "deepseek_v3": dict(hidden_size=160, moe_intermediate_size=48, intermediate_size=64, kv_lora_rank=16, q_lora_rank=32,
                        qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16),
    "gpt_oss": dict(hidden_size=64, intermediate_size=32),
}
CASES = [("qwen3_moe", method) for method in quantise.METHODS] + [("deepseek_v3", "fp8 blocks"), ("gpt_oss", "mxfp4")]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def quantised(request, tmp_path):
    family, method = request.param
    model = models.make(tmp_path / "m", family, initializer_range=0.1, **SIZES[family])
    if method == "mxfp4":
        quantise.mxfp4(tmp_path / "m", model)
    else:
        quantise.quantise(tmp_path / "m", method, model)
    return tmp_path, model


def prune(folder, keep):
    write_task(folder / "t.jsonl", IDS)
    moetrim("calibrate", folder / "m", "--task", folder / "t.jsonl", "--dtype", "fp32", "-o", folder / "s.stats")
    moetrim("plan", folder / "s.stats", "--method", "reap", "--keep", keep, "-o", folder / "plan.json")
    moetrim("rewrite", folder / "m", "--plan", folder / "plan.json", "-o", folder / "out")
    return json.loads((folder / "plan.json").read_text())


def test_computed_like_its_values_and_moved_as_bytes(quantised):
    folder, model = quantised
    assert (our_logits(folder / "m", IDS, "fp32", folder) - models.logits_of(model, IDS)).abs().max() <= 1e-4
    plan = prune(folder, models.two_thirds(model.config))
    before, after = load_file(folder / "m/model.safetensors"), load_file(folder / "out/model.safetensors")
    kept = {entry["layer"]: entry["keep"] for entry in plan["layers"]}
    seen = set()
    for name, tensor in after.items():
        expected = source_of(name, kept, before)
        assert tensor.dtype == expected.dtype and same_bytes(tensor, expected), name
        seen.add(name)
    assert len(seen) == len(after)
    assert moetrim_json("verify", folder / "out")["errors"] == 0
    reference.mask_router(model, plan)
    assert (our_logits(folder / "out", IDS, "fp32", folder) - models.logits_of(model, IDS)).abs().max() <= 1e-4


def source_of(name, kept, before):
    """The bytes that a tensor of the pruned checkpoint must have."""
    parts = name.split(".")
    layer = int(parts[parts.index("layers") + 1]) if "layers" in parts else None
    if layer not in kept:
        return before[name]
    if "experts" in parts and parts[parts.index("experts") + 1].isdigit():
        at = parts.index("experts") + 1
        parts[at] = str(kept[layer][int(parts[at])])
        return before[".".join(parts)]
    per_expert = any(part in name for part in ("mlp.experts.", "mlp.gate.", "mlp.router."))
    return before[name][kept[layer]] if per_expert else before[name]


def same_bytes(a, b):
    return a.shape == b.shape and bytes(a.contiguous().untyped_storage()) == bytes(b.contiguous().untyped_storage())


def test_module_lists_follow_the_experts(tmp_path):
    model = models.make(tmp_path / "m", "qwen3_moe", initializer_range=0.1, **SIZES["qwen3_moe"])
    quantise.quantise(tmp_path / "m", "fp8 per channel", model)
    config = json.loads((tmp_path / "m/config.json").read_text())
    layer = 2
    name = f"model.layers.{layer}.mlp.experts"
    config["quantization_config"]["ignore"] = ["lm_head", "re:.*gate$", f"{name}.1.down_proj", f"{name}.6.down_proj"]
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    plan = prune(tmp_path, 4)
    keep = next(entry["keep"] for entry in plan["layers"] if entry["layer"] == layer)
    expected = ["lm_head", "re:.*gate$"] + [f"{name}.{keep.index(e)}.down_proj" for e in (1, 6) if e in keep]
    assert json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["ignore"] == expected


def test_an_orphan_scale_is_refused(tmp_path):
    from safetensors.torch import save_file

    model = models.make(tmp_path / "m", "qwen3_moe", initializer_range=0.1, **SIZES["qwen3_moe"])
    quantise.quantise(tmp_path / "m", "fp8 blocks", model)
    tensors = load_file(tmp_path / "m/model.safetensors")
    gone = "model.layers.0.mlp.experts.3.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != f"{gone}_scale_inv"}, tmp_path / "m/model.safetensors", {"format": "pt"})
    assert gone in moetrim("inspect", tmp_path / "m", code=3).stderr
    save_file({k: v for k, v in tensors.items() if k != gone}, tmp_path / "m/model.safetensors", {"format": "pt"})
    assert gone in moetrim("inspect", tmp_path / "m", code=3).stderr
