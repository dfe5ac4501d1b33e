"""Slimmer experts in transformers: keys, and logits against the original with the dropped atomic experts zeroed."""
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import models
import quantise
import reference
from program import moetrim, moetrim_json, write_task
from test_forward import our_logits
from test_memory import peak_bytes
from test_mtp import Mtp

IDS = models.sequences(9, [25, 40, 7])
# One number of config.json serves the experts and a shared expert that keeps its width.
TIED = ("llama4", "llama4_text", "hunyuan_v1_moe")
# They differ from another entry in attention or router alone.
AGAIN = ("deepseek_v2_lite", "kimi_k2", "moonlight", "glm4_moe_qk_norm")
CASES = [case for case in models.CASES if case[0] not in AGAIN]


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


def make(folder, family, layout, **changes):
    return models.make(folder / "m", family, layout, **changes)


def slim(folder, model, widths, kept=None, seed=0):
    """Writes a plan that keeps random experts and atomic experts: `kept` experts of a layer, all unless it says otherwise,
    and widths(layer, place) atomic experts of each. Returns the plan."""
    generator = np.random.default_rng(seed)
    is_a = moetrim_json("inspect", folder / "m")
    experts, groups = is_a["experts"], is_a["groups"]
    plan = dict(format="moetrim-plan", version=1, method="by hand", variant="executed",
                checkpoint_fingerprint=is_a["fingerprint"], family=is_a["family"], experts=experts,
                keep=kept or experts, experts_per_token=is_a["experts_per_token"],
                width=is_a["expert_width"], layers=[], protect=[], source={})
    if groups > 1:
        rule = {"deepseek_v2": "max", "PanguProMoE": "each"}.get(is_a["family"], "top2")
        plan["groups"] = dict(count=groups, chosen=is_a["groups_per_token"], rule=rule)
    size = experts // groups
    for layer in (i for i, module in enumerate(models.layers_of(model)) if reference.moe_of(module)):
        chosen = [sorted(generator.permutation(size)[:plan["keep"] // groups]) for _ in range(groups)]
        keep = [group * size + int(e) for group, experts in enumerate(chosen) for e in experts]
        atoms = [ranges_of(generator.permutation(plan["width"])[:widths(layer, place)]) for place in range(len(keep))]
        plan["layers"].append(dict(layer=layer, keep=keep, atoms=atoms, unseen=0, unseen_kept=0))
    (folder / "plan.json").write_text(json.dumps(plan))
    return plan


def rewrite(folder, *options, code=0):
    return moetrim("rewrite", folder / "m", "--plan", folder / "plan.json", "-o", folder / "out", *options, code=code)


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


@pytest.mark.parametrize("family, layout", [case for case in CASES if case[0] not in TIED])
def test_equal_widths_load_in_plain_transformers(family, layout, tmp_path):
    model = make(tmp_path, family, layout)
    width = width_of(model.config) * 2 // 3
    plan = slim(tmp_path, model, lambda layer, place: width)
    rewrite(tmp_path)
    loaded, info = models.load(tmp_path / "out", model)
    assert width_of(loaded.config) == width
    check(tmp_path, model, plan, loaded, info)


def load_listed(folder, loader=AutoModelForCausalLM):
    loaded, info = loader.from_pretrained(folder, trust_remote_code=True, output_loading_info=True, dtype=torch.float32,
                                          attn_implementation="eager")
    return loaded.eval(), info


# As published, and a few that were saved another way. Pangu has no class in transformers.
LISTED = [case for case in CASES if case[1] == models.FAMILIES[case[0]].layouts[0] and case[0] != "pangu_pro_moe"]
LISTED += [("qwen3_moe", "fused"), ("mixtral", "fused"), ("granitemoe", "saved"), ("qwen3_vl_moe", "saved")]


@pytest.mark.parametrize("family, layout", LISTED)
def test_widths_that_differ_load_with_our_class(family, layout, tmp_path):
    model = make(tmp_path, family, layout)
    full = width_of(model.config)
    layers = sorted(i for i, module in enumerate(models.layers_of(model)) if reference.moe_of(module))
    # Whole experts, none of an expert, and everything between, another in every layer; fewer experts too.
    plan = slim(tmp_path, model, lambda layer, place: (full, 0, 1, full - 3)[(place + layers.index(layer)) % 4],
                kept=models.two_thirds(model.config))
    rewrite(tmp_path)
    loaded, info = load_listed(tmp_path / "out")
    widths = {str(entry["layer"]): [sum(end - begin for begin, end in ranges) for ranges in entry["atoms"]]
              for entry in plan["layers"]}
    assert loaded.config.moetrim_slim["widths"] == widths
    for entry in plan["layers"]:
        experts = reference.moe_of(models.layers_of(loaded)[entry["layer"]])[2]
        numbers = 3 * model.config.get_text_config().hidden_size * sum(widths[str(entry["layer"])])
        assert sum(p.numel() for name, p in experts.named_parameters() if "bias" not in name) == numbers
    check(tmp_path, model, plan, loaded, info)
    assert moetrim_json("inspect", tmp_path / "out")["expert_widths"] == widths


@pytest.mark.parametrize("family", TIED)
def test_one_number_for_two_widths_is_listed(family, tmp_path):
    model = make(tmp_path, family, None)
    width = width_of(model.config) - 4
    plan = slim(tmp_path, model, lambda layer, place: width)
    assert "intermediate_size" in rewrite(tmp_path).stderr
    loaded, info = load_listed(tmp_path / "out")
    check(tmp_path, model, plan, loaded, info)


@pytest.mark.parametrize("count, width, shared", [(2, 6, 3), (2, 5, 4)])
def test_a_shared_expert_is_counted_anew(count, width, shared, tmp_path):
    """Twice 9: three times 6, or four times 5 with zeros."""
    model = make(tmp_path, "deepseek_v2", None, n_shared_experts=count)
    plan = slim(tmp_path, model, lambda layer, place: width)
    rewrite(tmp_path)
    loaded, info = models.load(tmp_path / "out", model)
    assert loaded.config.n_shared_experts == shared
    check(tmp_path, model, plan, loaded, info)


@pytest.mark.parametrize("family", ["mixtral", "llama4_text"])
def test_what_our_class_loads_can_be_saved_and_trained(family, tmp_path):
    model = make(tmp_path, family, None)
    slim(tmp_path, model, lambda layer, place: place + 2)
    rewrite(tmp_path)
    loaded, _ = load_listed(tmp_path / "out")
    loaded.save_pretrained(tmp_path / "again")
    again, info = load_listed(tmp_path / "again")
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(models.logits_of(again, IDS), models.logits_of(loaded, IDS))
    loaded(torch.tensor([IDS[0]]), labels=torch.tensor([IDS[0]])).loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for name, p in loaded.named_parameters() if ".slim_" in name)


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_a_plan_evaluated_as_a_mask_equals_the_written_checkpoint(family, tmp_path):
    model = make(tmp_path, family, None)
    slim(tmp_path, model, lambda layer, place: 7, kept=models.two_thirds(model.config))
    rewrite(tmp_path)
    arguments = ["--task", write_task(tmp_path / "t.jsonl", IDS), "--dtype", "fp32"]
    masked = moetrim_json("evaluate", tmp_path / "m", "--plan", tmp_path / "plan.json", *arguments)["plans"][0]
    written = moetrim_json("evaluate", tmp_path / "out", "--against", tmp_path / "m", *arguments)
    for key in ("loss", "kl", "top1_agreement"):
        assert masked[key] == pytest.approx(written[key], rel=1e-5)


def test_memory_does_not_grow_with_the_layers(tmp_path):
    peaks = []
    for layers in (3, 12):
        folder = tmp_path / str(layers)
        folder.mkdir()
        model = make(folder, "qwen3_moe", None, dtype=torch.bfloat16, hidden_size=512, num_hidden_layers=layers,
                     num_experts=32, moe_intermediate_size=256, mlp_only_layers=[], head_dim=64, vocab_size=1000)
        slim(folder, model, lambda layer, place: 180)
        peaks.append(peak_bytes("rewrite", folder / "m", "--plan", folder / "plan.json", "-o", folder / "out"))
    assert peaks[1] - peaks[0] < 24 * 2 ** 20


SIZES = {
    "qwen3_moe": dict(hidden_size=160, head_dim=16, moe_intermediate_size=64, intermediate_size=96),
    "blocks": dict(hidden_size=160, head_dim=16, moe_intermediate_size=384, intermediate_size=96),
    "deepseek_v3": dict(hidden_size=160, moe_intermediate_size=256, intermediate_size=64, kv_lora_rank=16, q_lora_rank=32,
                        qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16),
    "gpt_oss": dict(hidden_size=64, intermediate_size=96),
}


def quantised(folder, family, method, sizes=None):
    model = make(folder, family, None, initializer_range=0.1, **SIZES[sizes or family])
    if method == "mxfp4":
        quantise.mxfp4(folder / "m", model)
    else:
        quantise.quantise(folder / "m", method, model)
    return model


def slim_in_blocks(folder, model, blocks, kept, experts=None):
    """As slim(), with `kept` of the blocks of every expert, and that many experts."""
    plan = slim(folder, model, lambda layer, place: 1, kept=experts)
    generator = np.random.default_rng(5)
    size = plan["width"] // blocks
    for entry in plan["layers"]:
        chosen = [generator.permutation(blocks)[:kept] for _ in entry["keep"]]
        entry["atoms"] = [ranges_of(b * size + i for b in some for i in range(size)) for some in chosen]
    (folder / "plan.json").write_text(json.dumps(plan))
    return plan


def check_twin(folder, model):
    """The dequantised twin is the model, its weights rounded."""
    assert moetrim_json("verify", folder / "out")["errors"] == moetrim_json("verify", folder / "out-bf16")["errors"] == 0
    loaded, info = models.load(folder / "out-bf16", model)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for name, parameter in model.named_parameters():
        if "proj" in name and model.config.model_type != "gpt_oss":  # whose values are bf16 as they are
            parameter.data = parameter.data.bfloat16().float()
    assert (models.logits_of(loaded, IDS) - models.logits_of(model, IDS)).abs().max() <= 1e-5


# How many blocks an expert has that no code word, scale or zero point reaches over.
CUT = [("qwen3_moe", "blocks", "fp8 blocks", 3), ("qwen3_moe", None, "fp8 per tensor", 64),
       ("qwen3_moe", None, "fp8 per channel", 64), ("qwen3_moe", None, "gptq", 2), ("qwen3_moe", None, "awq", 4),
       ("qwen3_moe", None, "int4", 4), ("qwen3_moe", None, "nvfp4", 4),
       ("deepseek_v3", None, "fp8 blocks", 2), ("gpt_oss", None, "mxfp4", 3)]


@pytest.mark.parametrize("family, sizes, method, blocks", CUT)
def test_codes_are_cut_on_their_borders(family, sizes, method, blocks, tmp_path):
    model = quantised(tmp_path, family, method, sizes)
    kept = {2: 1, 3: 2, 4: 3, 64: 41}[blocks]
    plan = slim_in_blocks(tmp_path, model, blocks, kept, experts=models.two_thirds(model.config))
    done = json.loads(rewrite(tmp_path, "--also-dtype", "bf16", "--json").stdout)
    assert not [w for w in done["warnings"] if "quantised again" in w]
    before, after = load_file(tmp_path / "m/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert all(tensor.dtype == before[name].dtype for name, tensor in after.items())
    zero_atoms(model, plan)
    assert (our_logits(tmp_path / "out", IDS, "fp32", tmp_path) - models.logits_of(model, IDS)).abs().max() <= 1e-4
    check_twin(tmp_path, model)


@pytest.mark.parametrize("family, sizes", [("qwen3_moe", "blocks"), ("deepseek_v3", None)])
def test_fp8_blocks_that_are_parted_are_quantised_again(family, sizes, tmp_path):
    model = quantised(tmp_path, family, "fp8 blocks", sizes)
    plan = slim(tmp_path, model, lambda layer, place: 200)
    done = json.loads(rewrite(tmp_path, "--also-dtype", "bf16", "--json").stdout)
    assert any("quantised again" in w and "--atom-blocks 128" in w for w in done["warnings"])
    assert "quantised again" in (tmp_path / "out/README.md").read_text()
    zero_atoms(model, plan)
    check_twin(tmp_path, model)
    twin, out = load_file(tmp_path / "out-bf16/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    checked = 0
    for name, codes in out.items():
        if ".mlp.experts." not in name or codes.dtype != torch.float8_e4m3fn:
            continue
        scale = out[name + "_scale_inv"]
        assert scale.shape == tuple(-(-n // 128) for n in codes.shape)
        wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:codes.shape[0], :codes.shape[1]]
        # Half a step of E4M3, of the block's largest value at most.
        assert ((codes.float() * wide - twin[name].float()).abs() <= twin[name].float().abs() / 16 + wide / 512).all()
        assert torch.equal(codes.float().abs().amax(), torch.tensor(448.0))
        checked += 1
    assert checked > 10


@pytest.mark.parametrize("method, block", [("gptq", 16), ("awq", 16), ("int4", 16), ("nvfp4", 16), ("mxfp4", 32)])
def test_codes_that_would_be_parted_are_refused(method, block, tmp_path):
    model = quantised(tmp_path, "gpt_oss" if method == "mxfp4" else "qwen3_moe", method)
    slim(tmp_path, model, lambda layer, place: 32)
    done = rewrite(tmp_path, code=3)
    assert f"--atom-blocks {block} " in done.stderr and not (tmp_path / "out").exists()
    slim_in_blocks(tmp_path, model, 96 // 32 if method == "mxfp4" else 4, 1)
    entry = json.loads((tmp_path / "plan.json").read_text())
    entry["layers"][0]["atoms"][0] = []
    (tmp_path / "plan.json").write_text(json.dumps(entry))
    assert "--scope expert" in rewrite(tmp_path, code=3).stderr


def test_columns_in_another_order_are_refused(tmp_path):
    model = quantised(tmp_path, "qwen3_moe", "gptq")
    slim_in_blocks(tmp_path, model, 4, 3)
    assert "48 columns are not a multiple of 32" in rewrite(tmp_path, code=3).stderr
    slim_in_blocks(tmp_path, model, 4, 2)
    rewrite(tmp_path)
    groups = load_file(tmp_path / "out/model.safetensors")["model.layers.0.mlp.experts.0.down_proj.g_idx"]
    assert groups.tolist() == [k // 16 for k in range(32)]
    tensors = load_file(tmp_path / "m/model.safetensors")
    name = "model.layers.2.mlp.experts.3.down_proj.g_idx"
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, tmp_path / "m/model.safetensors", {"format": "pt"})
    done = moetrim("rewrite", tmp_path / "m", "--plan", tmp_path / "plan.json", "--allow-other-checkpoint", "-o",
                   tmp_path / "other", code=3)
    assert name in done.stderr and "desc_act" in done.stderr


def test_moetrim_itself_sends_listed_widths_back(tmp_path):
    model = make(tmp_path, "qwen3_moe", None)
    slim(tmp_path, model, lambda layer, place: place + 1)
    rewrite(tmp_path)
    write_task(tmp_path / "t.jsonl", IDS)
    done = moetrim("calibrate", tmp_path / "out", "--task", tmp_path / "t.jsonl", "-o", tmp_path / "s.stats", code=3)
    assert "different widths" in done.stderr and "--plan" in done.stderr
    tensors = load_file(tmp_path / "out/model.safetensors")
    name = "model.layers.0.mlp.experts.slim_up.3"
    save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "out/model.safetensors", {"format": "pt"})
    (tmp_path / "out/modeling_moetrim.py").unlink()
    found = json.loads(moetrim("verify", tmp_path / "out", "--json", code=3).stdout)["findings"]
    assert {"layer 0", "modeling_moetrim.py"} <= {f["where"] for f in found if f["severity"] == "error"}


def test_blocks_for_further_tokens_follow_the_plan_or_go(tmp_path):
    mtp = Mtp(tmp_path, "deepseek_v3")
    plan = slim(tmp_path, mtp.model, lambda layer, place: 6)
    assert "does not cover" in rewrite(tmp_path, code=3).stderr
    assert "--mtp drop" in rewrite(tmp_path, "--mtp", "keep", code=3).stderr
    rewrite(tmp_path, "--mtp", "drop")
    loaded, info = models.load(tmp_path / "out", mtp.model)
    check(tmp_path, mtp.model, plan, loaded, info)
    block = dict(plan["layers"][-1], layer=mtp.index)
    plan["layers"].append(block)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    moetrim("rewrite", tmp_path / "m", "--plan", tmp_path / "plan.json", "-o", tmp_path / "pruned")
    assert moetrim_json("verify", tmp_path / "pruned")["errors"] == 0
    before, after = load_file(tmp_path / "m/model.safetensors"), load_file(tmp_path / "pruned/model.safetensors")
    kept = [k for begin, end in block["atoms"][3] for k in range(begin, end)]
    name = f"model.layers.{mtp.index}.mlp.experts.3.down_proj.weight"
    assert torch.equal(after[name], before[name][:, kept])
    plan["layers"][-1] = dict(block, atoms=[[[0, 1 + place % 3]] for place in range(len(block["keep"]))])
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    moetrim("rewrite", tmp_path / "m", "--plan", tmp_path / "plan.json", "-o", tmp_path / "listed")
    assert moetrim_json("verify", tmp_path / "listed")["errors"] == 0
    _, info = load_listed(tmp_path / "listed")
    assert not info["missing_keys"]
