"""Layers that keep different numbers of experts, in transformers: keys, logits against the masked original, generation; and what
verify says of a folder that is not what its list says."""
import json

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import models
import reference
from program import ROOT, moetrim, moetrim_json, write_task
from test_merged_checkpoints import moe_layers, rewrite, same_logits
from test_run import recipe
from test_slim import ranges_of, zero_atoms

IDS = models.sequences(5, [25, 40, 7])
# Groups and a selection bias; blocks that are told their layer; fused, with gate and up in turns and biases; a text model inside of
# another; a share of the input for every expert.
CASES = [("deepseek_v3", None), ("hunyuan_v1_moe", None), ("gpt_oss", None), ("qwen3_vl_moe", None), ("llama4_text", None)]


def write_plan(folder, model, widths=None):
    """All experts in the first MoE layer, as few as the router can work with in the second, and then again."""
    is_a = moetrim_json("inspect", folder / "m")
    generator = np.random.default_rng(2)
    groups = is_a["groups"]
    size = is_a["experts"] // groups
    rule = {"PanguProMoE": "each"}.get(is_a["family"], "top2")
    least = groups * max(2 if rule == "top2" else 1, -(-is_a["experts_per_token"] // is_a["groups_per_token"])) if groups > 1 \
        else is_a["experts_per_token"]
    plan = dict(format="moetrim-plan", version=1, method="by hand", variant="executed", checkpoint_fingerprint=is_a["fingerprint"],
                family=is_a["family"], experts=is_a["experts"], keep=is_a["experts"], counts="by-layer",
                experts_per_token=is_a["experts_per_token"], layers=[], protect=[], source={})
    if groups > 1:
        plan["groups"] = dict(count=groups, chosen=is_a["groups_per_token"], rule=rule)
    if widths:
        plan["width"] = is_a["expert_width"]
    for place, layer in enumerate(moe_layers(model)):
        count = is_a["experts"] if place % 2 == 0 else least
        keep = [group * size + int(e) for group in range(groups) for e in sorted(generator.permutation(size)[:count // groups])]
        entry = dict(layer=layer, keep=keep, unseen=0, unseen_kept=0)
        if widths:
            entry["atoms"] = [ranges_of(generator.permutation(plan["width"])[:widths(place)]) for _ in keep]
        plan["layers"].append(entry)
    (folder / "plan.json").write_text(json.dumps(plan))
    return plan


def check(folder, model, plan):
    loaded, info = AutoModelForCausalLM.from_pretrained(folder / "out", trust_remote_code=True, output_loading_info=True, dtype=torch.float32,
                                                        attn_implementation="eager", experts_implementation="eager")
    loaded.eval()
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    counts = {str(entry["layer"]): len(entry["keep"]) for entry in plan["layers"]}
    assert loaded.config.moetrim_slim["experts"] == counts
    assert moetrim_json("inspect", folder / "out")["experts_by_layer"] == counts
    assert moetrim_json("verify", folder / "out")["errors"] == 0
    whole = models.logits_of(model, IDS)
    masking = zero_atoms if "width" in plan else reference.mask_router
    masking(model, plan)
    assert (models.logits_of(model, IDS) - whole).abs().max() > 0.02
    same_logits(loaded, model)
    tokens = torch.tensor([IDS[0]])
    one, other = (m.generate(tokens, max_new_tokens=4, do_sample=False, eos_token_id=None) for m in (loaded, model))
    assert torch.equal(one, other)
    return loaded


@pytest.mark.parametrize("family, layout", CASES)
def test_layers_with_their_own_number_of_experts(family, layout, tmp_path):
    model = models.make(tmp_path / "m", family, layout)
    plan = write_plan(tmp_path, model)
    jsonschema.validate(plan, json.loads((ROOT / "recipes/plan.schema.json").read_text()))
    result = rewrite(tmp_path, "out")
    assert "layers keep different numbers of experts" in result.stderr
    loaded = check(tmp_path, model, plan)
    assert "widths" not in loaded.config.moetrim_slim


def test_experts_of_other_widths_too(tmp_path):
    model = models.make(tmp_path / "m", "qwen3_moe", None)
    plan = write_plan(tmp_path, model, widths=lambda place: 5 - place)
    rewrite(tmp_path, "out")
    loaded = check(tmp_path, model, plan)
    assert {len(widths) for widths in loaded.config.moetrim_slim["widths"].values()} == {len(e["keep"]) for e in plan["layers"]}


def test_verify_compares_the_list_with_the_tensors(tmp_path):
    model = models.make(tmp_path / "m", "qwen3_moe", None)
    plan = write_plan(tmp_path, model)
    rewrite(tmp_path, "out")
    task = write_task(tmp_path / "t.jsonl", IDS)
    assert "in number by layer" in moetrim("evaluate", tmp_path / "out", "--task", task, code=3).stderr
    first, second = (entry["layer"] for entry in plan["layers"])
    file, config_file = tmp_path / "out/model.safetensors", tmp_path / "out/config.json"
    tensors, config = load_file(file), json.loads(config_file.read_text())

    def errors(tensors=tensors, **listed):
        save_file(tensors, file, metadata={"format": "pt"})
        config_file.write_text(json.dumps(config | {"moetrim_slim": config["moetrim_slim"] | listed}))
        return moetrim("verify", tmp_path / "out", code=3).stdout

    counts = config["moetrim_slim"]["experts"]
    assert f"layer {second}" in errors(experts=counts | {str(second): counts[str(second)] + 1})
    assert "num_experts" in errors(experts=counts | {str(first): counts[str(first)] - 1})
    router = f"model.layers.{second}.mlp.gate.weight"
    assert router in errors({**tensors, router: tensors[router][1:].contiguous()})
    assert "experts" in errors(experts={str(first): 0})
    assert "has no router" in errors({name: tensor for name, tensor in tensors.items() if name != router})


def test_a_family_without_a_class_is_refused_and_its_plan_evaluated(tmp_path):
    model = models.make(tmp_path / "m", "pangu_pro_moe", None)
    plan = write_plan(tmp_path, model)
    assert "same number in every layer" in rewrite(tmp_path, "out", code=3).stderr
    task = write_task(tmp_path / "t.jsonl", IDS)
    report = moetrim_json("evaluate", tmp_path / "m", "--plan", tmp_path / "plan.json", "--task", task, "--dtype", "fp32")
    reference.mask_router(model, plan)
    with torch.no_grad():
        losses = torch.cat([torch.nn.functional.cross_entropy(model(torch.tensor([ids])).logits[0, :-1].double(), torch.tensor(ids[1:]),
                                                              reduction="none") for ids in IDS])
    assert abs(report["plans"][0]["loss"] - float(losses.mean())) < 1e-5


def test_a_recipe_with_numbers_by_layer(tmp_path):
    """Its checkpoint is one that only transformers computes: the figures after pruning are those of the plan."""
    layers = [{"layer": layer, "keep": keep} for layer, keep in enumerate([12, 20, 16, 24, 12, 20])]
    (tmp_path / "counts.json").write_text(json.dumps({"layers": layers}))
    file = recipe(tmp_path, calibrate={"samples": 8}, evaluate={"samples": 2})
    data = json.loads(file.read_text().split("\n", 1)[1])
    del data["plan"]["keep"]
    data["plan"]["keep-by-layer"] = "counts.json"
    file.write_text(json.dumps(data))
    result = moetrim_json("run", file)
    assert "exact_match" in result["evaluation"][0]["after"]
    assert moetrim_json("inspect", tmp_path / "run/checkpoint")["experts_by_layer"] == {str(e["layer"]): e["keep"] for e in layers}
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    assert plan["keep"] == 24 and [len(layer["keep"]) for layer in plan["layers"]] == [e["keep"] for e in layers]
