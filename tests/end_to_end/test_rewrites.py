"""Rewrites that change values: smoothing, upcycling, scaled, silenced and constant experts, in transformers; and what is computed
from statistics and weights alone: bit widths and factorisation, against numpy and regular expressions."""
import json
import re

import numpy as np
import pytest
import torch
import yaml
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.utils.match import match_name
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import models
import reference
from program import moetrim, moetrim_json, write_task

IDS = models.sequences(9, [25, 40, 7])


def prepare(folder, family, kind="vectors", dtype=torch.float32, **changes):
    model = models.make(folder / "m", family, dtype=dtype, **changes)
    write_task(folder / "task.jsonl", IDS)
    if kind:
        moetrim("calibrate", folder / "m", "--task", folder / "task.jsonl", "--statistics", kind, "--dtype", "fp32", "-o",
                folder / "run.stats")
    return model


def rewritten(folder, model, plan="plan.json", *options):
    moetrim("rewrite", folder / "m", "--plan", folder / plan, "-o", folder / "out", *options)
    assert moetrim_json("verify", folder / "out")["errors"] == 0
    loaded, info = models.load(folder / "out", model)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return loaded


def whole_plan(folder, **of_layer):
    """A plan that keeps everything, with one more field in every layer: a function of the experts."""
    moetrim("plan", folder / "run.stats", "--method", "reap", "--keep", "100%", "-o", folder / "plan.json")
    plan = json.loads((folder / "plan.json").read_text())
    for layer in plan["layers"]:
        layer.update(of_layer)
    (folder / "plan.json").write_text(json.dumps(plan))
    return plan


# Shared experts and their router, norms that store weight - 1; LayerNorm with a bias; the gate on the input; biases.
@pytest.mark.parametrize("family", ["qwen3_next", "phimoe", "llama4_text", "gpt_oss"])
def test_smoothing_leaves_the_function(family, tmp_path):
    model = prepare(tmp_path, family)
    moetrim("smooth", tmp_path / "run.stats", "--rounding", "none", "-o", tmp_path / "plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text())
    factors = np.array([layer["smooth"] for layer in plan["layers"]])
    assert factors.max() / factors.min() > 1.5
    loaded = rewritten(tmp_path, model)
    norms = [layer.post_attention_layernorm.weight for layer in (models.layers_of(m)[plan["layers"][0]["layer"]] for m in (model, loaded))]
    assert (norms[0] - norms[1]).abs().max() > 0.05
    assert (models.logits_of(loaded, IDS) - models.logits_of(model, IDS)).abs().max() <= 1e-5


def test_powers_of_two_keep_every_bit_of_bf16(tmp_path):
    model = prepare(tmp_path, "qwen3_moe", dtype=torch.bfloat16)
    moetrim("smooth", tmp_path / "run.stats", "-o", tmp_path / "plan.json")
    factors = np.array([layer["smooth"] for layer in json.loads((tmp_path / "plan.json").read_text())["layers"]])
    assert (np.log2(factors) % 1 == 0).all() and len(np.unique(factors)) > 1
    loaded = rewritten(tmp_path, model).to(torch.bfloat16)
    assert torch.equal(models.logits_of(loaded, IDS), models.logits_of(model, IDS))


def test_smoothing_factors_are_those_of_the_inputs_and_weights(tmp_path):
    model = prepare(tmp_path, "qwen2_moe")
    moetrim("smooth", tmp_path / "run.stats", "--alpha", "0.6", "--rounding", "none", "-o", tmp_path / "plan.json")
    for entry in json.loads((tmp_path / "plan.json").read_text())["layers"]:
        block, router, experts = reference.moe_of(models.layers_of(model)[entry["layer"]])
        inputs = []
        handle = router.register_forward_pre_hook(lambda module, args: inputs.append(args[0].reshape(-1, args[0].shape[-1])))
        models.logits_of(model, IDS)
        handle.remove()
        shared = block.shared_expert
        weights = torch.cat([w.data.reshape(-1, w.shape[-1]) for w in (router.weight, experts.gate_up_proj, shared.gate_proj.weight,
                                                                       shared.up_proj.weight, block.shared_expert_gate.weight)])
        expected = torch.cat(inputs).abs().amax(0) ** 0.6 / weights.abs().amax(0) ** 0.4
        np.testing.assert_allclose(entry["smooth"], expected.numpy(), rtol=1e-4)


# Softmax over the chosen, over all, sigmoid with a selection bias, groups by their best.
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "glm4_moe", "deepseek_v2"])
def test_upcycling_with_as_many_more_per_token_leaves_the_function(family, tmp_path):
    model = prepare(tmp_path, family, kind="default")
    moetrim("upcycle", tmp_path / "run.stats", "--to", "2x", "--uniform", "--top-k", "scale", "-o", tmp_path / "plan.json")
    whole = models.logits_of(model, IDS)
    assert (models.logits_of(rewritten(tmp_path, model), IDS) - whole).abs().max() <= 1e-5


def test_upcycling_by_utility(tmp_path):
    model = prepare(tmp_path, "qwen3_moe", kind="default")
    stats, plan_file = tmp_path / "run.stats", tmp_path / "plan.json"
    moetrim("upcycle", stats, "--to", "12", "--method", "reap", "--noise", "0.01", "--seed", "3", "-o", plan_file)
    plan = json.loads(plan_file.read_text())
    scores = {entry["layer"]: np.array(entry["scores"]) for entry in moetrim_json("score", stats, "--method", "reap")["layers"]}
    for entry in plan["layers"]:
        copies = np.bincount(entry["keep"], minlength=7)
        share = 5 * scores[entry["layer"]] / scores[entry["layer"]].sum()
        extra = np.floor(share)
        for expert in np.argsort(-(share - extra), kind="stable")[:5 - int(extra.sum())]:
            extra[expert] += 1
        assert (copies == 1 + extra).all() and entry["keep"] == sorted(entry["keep"])
    loaded = rewritten(tmp_path, model)
    assert (models.logits_of(loaded, IDS) - models.logits_of(model, IDS)).abs().max() > 1e-3
    keep = plan["layers"][0]["keep"]
    old, new = (reference.moe_of(models.layers_of(m)[plan["layers"][0]["layer"]])[2].gate_up_proj.data for m in (model, loaded))
    for slot, expert in enumerate(keep):
        noise = (new[slot] - old[expert]).square().mean().sqrt() / old[expert].square().mean().sqrt()
        assert noise == 0 if expert not in keep[:slot] else 0.007 < noise < 0.013


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_moe"])
def test_scaled_experts(family, tmp_path):
    model = prepare(tmp_path, family, kind="default")
    whole_plan(tmp_path, scale=[{"expert": 1, "factor": 1.5}, {"expert": 4, "factor": -0.25}])
    loaded = rewritten(tmp_path, model)
    for layer in models.layers_of(model):
        if moe := reference.moe_of(layer):
            for expert, factor in ((1, 1.5), (4, -0.25)):
                moe[2].down_proj.data[expert] *= factor
                if hasattr(moe[2], "down_proj_bias"):
                    moe[2].down_proj_bias.data[expert] *= factor
    assert (models.logits_of(loaded, IDS) - models.logits_of(model, IDS)).abs().max() <= 1e-5


@pytest.mark.parametrize("family", ["deepseek_v3", "ernie4_5_moe"])
def test_silenced_experts(family, tmp_path):
    model = prepare(tmp_path, family, kind="default")
    plan = whole_plan(tmp_path, silence=[0, 5])
    loaded = rewritten(tmp_path, model)
    for entry in plan["layers"]:
        entry["keep"] = [e for e in entry["keep"] if e not in (0, 5)]
    seen = reference.collect(loaded, IDS)
    assert not any(np.isin(layer["ids"], [0, 5]).any() for layer in seen.values())
    assert any(np.isin(layer["ids"], [0, 5]).any() for layer in reference.collect(model, IDS).values())
    if family == "ernie4_5_moe":
        return  # its softmax goes over silenced experts too, so that only the choice is that of dropped ones
    reference.mask_router(model, plan)
    assert (models.logits_of(loaded, IDS) - models.logits_of(model, IDS)).abs().max() <= 1e-5


def test_what_has_no_selection_bias_or_room_is_refused(tmp_path):
    prepare(tmp_path, "mixtral", kind="default")
    whole_plan(tmp_path, silence=[1])
    assert "selection bias" in moetrim("rewrite", tmp_path / "m", "--plan", tmp_path / "plan.json", "-o", tmp_path / "out", code=3).stderr
    assert "mixtral" in moetrim("replace", tmp_path / "run.stats", "--keep", "3", "-o", tmp_path / "c.json", code=3).stderr


def test_constant_experts_put_out_their_mean(tmp_path):
    model = prepare(tmp_path, "gpt_oss")
    moetrim("replace", tmp_path / "run.stats", "--keep", "5", "-o", tmp_path / "plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert "--statistics" in moetrim("rewrite", tmp_path / "m", "--plan", tmp_path / "plan.json", "-o", tmp_path / "out", code=3).stderr
    loaded = rewritten(tmp_path, model, "plan.json", "--statistics", tmp_path / "run.stats")
    seen = reference.collect(model, IDS)
    for entry in plan["layers"]:
        layer = seen[entry["layer"]]
        gates, outputs = layer["gates"], layer["outputs"]
        scores = np.zeros(8)
        for expert in range(8):
            chosen = layer["ids"] == expert
            if chosen.sum() > 1:
                scores[expert] = np.sqrt(outputs[chosen].var(0, ddof=1).sum()) * gates[chosen].sum() / len(gates)
        assert entry["keep"] == list(range(8)) and entry["constant"] == sorted(np.argsort(scores, kind="stable")[:3].tolist())
        experts = reference.moe_of(models.layers_of(model)[entry["layer"]])[2]
        for expert in entry["constant"]:
            chosen = layer["ids"] == expert
            mean = outputs[chosen].mean(0) if chosen.any() else np.zeros(40)
            experts.down_proj.data[expert] = 0
            experts.down_proj_bias.data[expert] = torch.tensor(mean, dtype=torch.float32)
    expected = models.logits_of(model, IDS)
    assert (models.logits_of(loaded, IDS) - expected).abs().max() <= 1e-4
    moetrim("replace", tmp_path / "run.stats", "--keep", "5", "--slim", "-o", tmp_path / "slim.json")
    moetrim("rewrite", tmp_path / "m", "--plan", tmp_path / "slim.json", "-o", tmp_path / "slim", "--statistics", tmp_path / "run.stats")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "slim", trust_remote_code=True, dtype=torch.float32, attn_implementation="eager")
    assert (models.logits_of(small.eval(), IDS) - expected).abs().max() <= 1e-4
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("slim", "out")]
    assert sizes[0] < 0.9 * sizes[1]


def test_bit_widths_in_the_languages_of_quantisers(tmp_path):
    prepare(tmp_path, "mixtral", kind="quantisation")
    files = {name: tmp_path / name for name in ("bits.json", "recipe.yaml", "gptq.json", "types.txt")}
    moetrim("precision", tmp_path / "run.stats", "--bits", "2.9", "--levels", "2,3,4", "-o", files["bits.json"], "--llm-compressor",
            files["recipe.yaml"], "--gptqmodel", files["gptq.json"])
    plan = json.loads(files["bits.json"].read_text())
    assert plan["average_bits"] <= 2.9 and all(set(layer["bits"]) == {2, 3, 4} for layer in plan["layers"])
    groups = yaml.safe_load(files["recipe.yaml"].read_text())["quant_stage"]["quant_modifiers"]["GPTQModifier"]["config_groups"]
    dynamic = json.loads(files["gptq.json"].read_text())["dynamic"]
    names = [name.removesuffix(".weight") for name in load_file(tmp_path / "m" / "model.safetensors")]
    experts = [name for name in names if ".experts." in name]
    assert len(experts) == 3 * 5 * 3
    for name in names:
        found = [QuantizationScheme(**group).weights.num_bits for group in groups.values() for target in group["targets"]
                 if match_name(name, target)]
        assert found == [value["bits"] for pattern, value in dynamic.items() if re.match(pattern.removeprefix("+:"), name)]
        layer, expert = (re.search(rf"\.{word}\.(\d+)\.", name) for word in ("layers", "experts"))
        assert found == ([plan["layers"][int(layer[1])]["bits"][int(expert[1])]] if name in experts else [])
    moetrim("precision", tmp_path / "run.stats", "--bits", "2.4", "--width-per", "layer", "--scope", "global", "-o", files["bits.json"],
            "--llama-quantize", files["types.txt"])
    lines = [line.split("=") for line in files["types.txt"].read_text().split()]
    assert [bool(re.search(pattern, f"blk.{i}.ffn_down_exps.weight")) for i, (pattern, _) in enumerate(lines)] == [True] * 3
    assert {kind for _, kind in lines} <= {"iq1_s", "q2_K", "q3_K", "q4_K"}
    assert "--statistics quantisation" in moetrim("precision", make_plain(tmp_path), "--bits", "2", "-o", files["bits.json"], code=3).stderr


def make_plain(folder):
    moetrim("calibrate", folder / "m", "--task", folder / "task.jsonl", "-o", folder / "plain.stats")
    return folder / "plain.stats"


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_factors_leave_what_singular_values_say(family, tmp_path):
    model = prepare(tmp_path, family, kind=None)
    for entry in moetrim_json("factorise", tmp_path / "m")["layers"]:
        experts = reference.moe_of(models.layers_of(model)[entry["layer"]])[2]
        gate_up, down = experts.gate_up_proj.data.double().numpy(), experts.down_proj.data.double().numpy()
        if family == "gpt_oss":
            gate_up, down = gate_up.transpose(0, 2, 1), down.transpose(0, 2, 1)
        gate, up = (gate_up[:, ::2], gate_up[:, 1::2]) if family == "gpt_oss" else np.split(gate_up, 2, axis=1)
        for name, matrices in (("gate", gate), ("up", up), ("down", down.transpose(0, 2, 1))):
            joint = np.linalg.svd(np.concatenate(matrices), compute_uv=False) ** 2
            alone = np.linalg.svd(matrices, compute_uv=False) ** 2
            for found in entry[name]["joint"]:
                assert abs(found["residual"] - joint[found["rank"]:].sum() / joint.sum()) < 1e-9
            for found in entry[name]["alone"]:
                left = alone[:, found["rank"]:].sum(1) / alone.sum(1)
                assert abs(found["residual"] - left.mean()) < 1e-9 and abs(found["largest"] - left.max()) < 1e-9
        hidden = gate.shape[2]
        assert [found["rank"] for found in entry["gate"]["joint"]] == [hidden // 16, hidden // 8, hidden // 4, hidden // 2]
