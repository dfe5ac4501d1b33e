"""Checkpoints with merged experts: against the original with merged experts put in its place in Python, in all three forms of the
router, and bit for bit where nothing changes."""
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment

import models
import quantise
import reference
from program import folder_bytes, moetrim, moetrim_json, write_task
from test_memory import peak_bytes
from test_slim import SIZES, load_listed, ranges_of, zero_atoms

IDS = models.sequences(11, [25, 40, 7])
GROUPS = [dict(into=1, members=[1, 4], weights=[0.25, 0.75]), dict(into=2, members=[0, 2, 5], weights=[0.2, 0.5, 0.3])]
# One tensor an expert, groups of the router and shared experts, fused, fused and transposed, gate and up in turns with biases.
CASES = [("qwen3_moe", None), ("qwen2_moe", None), ("deepseek_v3", None), ("qwen3_moe", "fused"), ("qwen3_vl_moe", "fused"),
         ("llama4_text", None), ("granitemoe", "fused"), ("gpt_oss", None)]


def write_plan(folder, model, router, groups=GROUPS, dropped=(), widths=None, **more):
    """Merges the same groups in every MoE layer. Returns the plan."""
    is_a = moetrim_json("inspect", folder / "m")
    rows = [e for e in range(is_a["experts"]) if e not in dropped]
    merged_away = {m for group in groups for m in group["members"] if m != group["into"]}
    slots = rows if router == "duplicate" else [e for e in rows if e not in merged_away]
    plan = dict(format="moetrim-plan", version=1, method="by hand", variant="executed", checkpoint_fingerprint=is_a["fingerprint"],
                family=is_a["family"], experts=is_a["experts"], keep=len(slots if router == "centroid" else rows),
                experts_per_token=is_a["experts_per_token"], router=router, layers=[], protect=[], source={}, **{"align": "none", **more})
    if is_a["groups"] > 1:
        plan["groups"] = dict(count=is_a["groups"], chosen=is_a["groups_per_token"], rule="top2")
    if widths:
        plan["width"] = is_a["expert_width"]
    for layer in moe_layers(model):
        entry = dict(layer=layer, keep=slots, merge=groups, unseen=0, unseen_kept=0)
        if widths:
            entry["atoms"] = [ranges_of(widths(layer, place)) for place in range(len(slots))]
        plan["layers"].append(entry)
    (folder / "plan.json").write_text(json.dumps(plan))
    return plan


def moe_layers(model):
    return [i for i, module in enumerate(models.layers_of(model)) if reference.moe_of(module)]


def rewrite(folder, out, *options, code=0):
    return moetrim("rewrite", folder / "m", "--plan", folder / "plan.json", "-o", folder / out, *options, code=code)


def experts_of(model, layer):
    return reference.moe_of(models.layers_of(model)[layer])[2]


def merge_in_place(model, groups=GROUPS):
    with torch.no_grad():
        for layer in moe_layers(model):
            for tensor in experts_of(model, layer).parameters():
                for group in groups:
                    mean = sum(w * tensor[m].double() for m, w in zip(group["members"], group["weights"]))
                    tensor[group["members"]] = mean.to(tensor.dtype)


def loads_whole(info):
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def same_logits(one, other, limit=1e-5):
    assert (models.logits_of(one, IDS) - models.logits_of(other, IDS)).abs().max() <= limit


@pytest.mark.parametrize("family, layout", CASES)
def test_map_and_duplicate_are_the_merged_model(family, layout, tmp_path):
    model = models.make(tmp_path / "m", family, layout)
    whole = models.logits_of(model, IDS)
    experts, groups = models.groups_of(model.config)
    dropped = [experts - 1] if groups == 1 else []
    forms = {}
    for router in ("map", "duplicate"):
        plan = write_plan(tmp_path, model, router, dropped=dropped)
        rewrite(tmp_path, router)
        assert moetrim_json("verify", tmp_path / router)["errors"] == 0
        forms[router], info = load_listed(tmp_path / router) if router == "map" else models.load(tmp_path / router, model)
        loads_whole(info)
    merge_in_place(model)
    reference.mask_router(model, dict(plan, layers=[dict(entry, keep=[e for e in range(experts) if e not in dropped])
                                                    for entry in plan["layers"]]))
    assert (models.logits_of(model, IDS) - whole).abs().max() > 0.02
    for form in forms.values():
        same_logits(form, model)
    rows_of_map = forms["map"].config.moetrim_slim["map"]
    assert all(rows[1] == rows[4] and rows[0] == rows[2] == rows[5] != rows[3] for rows in rows_of_map.values())
    assert "rows of the router" in moetrim("calibrate", tmp_path / "map", "--task", tmp_path / "none", "-o", tmp_path / "s", code=3).stderr


@pytest.mark.parametrize("family, layout", [("qwen3_moe", None), ("gpt_oss", None)])
def test_centroid_is_a_plain_checkpoint_with_the_rows_of_into(family, layout, tmp_path):
    model = models.make(tmp_path / "m", family, layout)
    plan = write_plan(tmp_path, model, "centroid", dropped=[3])
    result = rewrite(tmp_path, "out")
    assert "keeps one row" in result.stderr and "merged" in (tmp_path / "out/README.md").read_text()
    task = write_task(tmp_path / "t.jsonl", IDS)
    refused = moetrim("evaluate", tmp_path / "m", "--plan", tmp_path / "plan.json", "--task", task, code=3).stderr
    assert "write it with moetrim rewrite" in refused
    loaded, info = models.load(tmp_path / "out", model)
    loads_whole(info)
    assert moetrim_json("verify", tmp_path / "out")["errors"] == 0
    merge_in_place(model)
    reference.mask_router(model, plan)
    same_logits(loaded, model)


def permute_neurons(model, copies):
    """Makes experts copies of others with their neurons in another order."""
    generator = torch.Generator().manual_seed(3)
    for layer in moe_layers(model):
        experts = experts_of(model, layer)
        transposed = type(experts).__name__ in ("GptOssExperts", "Llama4TextExperts")
        width = experts.down_proj.shape[1 if transposed else 2]
        for copy, original in copies.items():
            order = torch.randperm(width, generator=generator)
            interleaved = type(experts).__name__ == "GptOssExperts"
            both = torch.stack([2 * order, 2 * order + 1], 1).flatten() if interleaved else torch.cat([order, width + order])
            for name, tensor in experts.named_parameters():
                values = tensor.data[original]
                if name == "gate_up_proj":
                    values = values[:, both] if transposed else values[both]
                elif name == "gate_up_proj_bias":
                    values = values[both]
                elif name == "down_proj":
                    values = values[order] if transposed else values[:, order]
                tensor.data[copy] = values


@pytest.mark.parametrize("family, layout", [("qwen3_moe", None), ("llama4_text", None), ("granitemoe", "fused"), ("gpt_oss", None)])
def test_permuted_copies_are_aligned(family, layout, tmp_path, monkeypatch):
    perturb = models.perturb
    monkeypatch.setattr(models, "perturb", lambda model, family: (perturb(model, family), permute_neurons(model, {4: 1, 0: 2, 5: 2})))
    model = models.make(tmp_path / "m", family, layout)
    for align in ("weights", "none"):
        write_plan(tmp_path, model, "duplicate", align=align)
        rewrite(tmp_path, align)
    same_logits(models.load(tmp_path / "weights", model)[0], model)
    off = models.logits_of(models.load(tmp_path / "none", model)[0], IDS) - models.logits_of(model, IDS)
    assert off.abs().max() > 0.01


def test_identical_experts_and_their_neighbours_keep_their_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "perturb", lambda model, family: permute_to_itself(model))
    for family, layout in (("qwen3_moe", None), ("qwen3_moe", "fused")):
        folder = tmp_path / str(layout)
        model = models.make(folder / "m", family, layout, dtype=torch.bfloat16)
        write_plan(folder, model, "duplicate")
        rewrite(folder, "out")
        assert (folder / "out/model.safetensors").read_bytes() != b""
        before, after = load_file(folder / "m/model.safetensors"), load_file(folder / "out/model.safetensors")
        assert all(torch.equal(before[name].view(torch.int16), after[name].view(torch.int16)) for name in before)


def permute_to_itself(model):
    for layer in moe_layers(model):
        for tensor in experts_of(model, layer).parameters():
            tensor.data[4], tensor.data[0], tensor.data[5] = tensor.data[1], tensor.data[2], tensor.data[2]


@pytest.mark.parametrize("family, layout", [("deepseek_v3", None), ("qwen3_vl_moe", "fused"), ("gpt_oss", None)])
def test_merged_experts_lose_atoms_too(family, layout, tmp_path):
    model = models.make(tmp_path / "m", family, layout)
    generator = np.random.default_rng(1)
    width = moetrim_json("inspect", tmp_path / "m")["expert_width"]
    plan = write_plan(tmp_path, model, "map", widths=lambda layer, place: generator.permutation(width)[:3 + (layer + place) % (width - 2)])
    rewrite(tmp_path, "out")
    loaded, info = load_listed(tmp_path / "out")
    loads_whole(info)
    assert moetrim_json("verify", tmp_path / "out")["errors"] == 0
    merge_in_place(model)
    by_row = []
    for entry in plan["layers"]:
        ranges = dict(zip(entry["keep"], entry["atoms"]))
        ranges |= {m: ranges[group["into"]] for group in GROUPS for m in group["members"]}
        rows = sorted(ranges)
        by_row.append(dict(layer=entry["layer"], keep=rows, atoms=[ranges[row] for row in rows]))
    zero_atoms(model, dict(plan, layers=by_row))
    same_logits(loaded, model)


def test_the_worked_example_of_the_card(tmp_path):
    """M-SMoE's permutation and frequency-weighted mean, with a gate of zeros that takes no part."""
    model = models.make(tmp_path / "m", "qwen3_moe", None, hidden_size=2, moe_intermediate_size=3, num_experts=7)
    file = tmp_path / "m/model.safetensors"
    tensors = load_file(file)
    layer = moe_layers(model)[0]
    name = f"model.layers.{layer}.mlp.experts.{{}}.{{}}_proj.weight".format
    weights = {1: ([[1, 0], [0, 1], [1, 1]], [[1, 0, 2], [0, 1, 1]]), 4: ([[1.1, 1], [1, -0.1], [0, 1.1]], [[2, 1, 0], [1, 0, 1]])}
    for expert, (up, down) in weights.items():
        tensors[name(expert, "up")], tensors[name(expert, "down")] = torch.tensor(up).float(), torch.tensor(down).float()
        tensors[name(expert, "gate")] = torch.zeros(3, 2)
    save_file(tensors, file, metadata={"format": "pt"})
    group = dict(into=1, members=[1, 4], weights=[0.75, 0.25])  # 0.6 and 0.2
    for align, expected in (("weights", [[1, -0.025], [0, 1.025], [1.025, 1]]), ("none", [[1.025, 0.25], [0.25, 0.725], [0.75, 1.025]])):
        write_plan(tmp_path, model, "centroid", groups=[group], align=align)
        rewrite(tmp_path, align)
        merged = load_file(tmp_path / align / "model.safetensors")
        assert torch.allclose(merged[name(1, "up")], torch.tensor(expected), atol=1e-6)
        if align == "weights":
            assert torch.equal(merged[name(1, "down")], torch.tensor(weights[1][1]).float())


def test_threads_and_shares_give_the_same_bytes(tmp_path):
    model = models.make(tmp_path / "m", "gpt_oss", None, dtype=torch.bfloat16)
    write_plan(tmp_path, model, "map", align="weights")
    small = ("--shard-size", "20kB")
    rewrite(tmp_path, "one", "--writers", "1", *small)
    rewrite(tmp_path, "four", "--writers", "4", *small)
    for share in ("2/2", "1/2"):
        rewrite(tmp_path, "shares", "--slice", share, *small)
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "four") == folder_bytes(tmp_path / "shares")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) > 3


def test_fp8_blocks_are_quantised_once(tmp_path):
    """The twin has the mean of the values that the codes stand for; the codes are as near to it as codes come."""
    model = models.make(tmp_path / "m", "deepseek_v3", None, initializer_range=0.1, **SIZES["deepseek_v3"])
    quantise.quantise(tmp_path / "m", "fp8 blocks", model)
    before = load_file(tmp_path / "m/model.safetensors")
    write_plan(tmp_path, model, "duplicate")
    rewrite(tmp_path, "out", "--also-dtype", "bf16")
    after, twin = load_file(tmp_path / "out/model.safetensors"), load_file(tmp_path / "out-bf16/model.safetensors")

    def values(tensors, name):
        scale = tensors[name + "_scale_inv"].double().repeat_interleave(128, 0).repeat_interleave(128, 1)
        codes = tensors[name].double()
        return codes * scale[:codes.shape[0], :codes.shape[1]]

    layer = moe_layers(model)[0]
    for part in ("gate", "up", "down"):
        name = f"model.layers.{layer}.mlp.experts.{{}}.{part}_proj.weight".format
        mean = 0.2 * values(before, name(0)) + 0.5 * values(before, name(2)) + 0.3 * values(before, name(5))
        assert (twin[name(5)].double() - mean).abs().max() <= mean.abs().max() * 2 ** -8
        assert (values(after, name(5)) - mean).abs().max() <= mean.abs().max() * 2 ** -4
        assert torch.equal(after[name(5)].view(torch.uint8), after[name(0)].view(torch.uint8))
        for kept in (name(3), name(3) + "_scale_inv"):
            assert torch.equal(after[kept].view(torch.uint8), before[kept].view(torch.uint8))


@pytest.mark.parametrize("method, family", [("gptq", "qwen3_moe"), ("mxfp4", "gpt_oss")])
def test_codes_that_cannot_be_merged_are_refused_first(method, family, tmp_path):
    model = models.make(tmp_path / "m", family, None, initializer_range=0.1, **SIZES[family])
    quantise.mxfp4(tmp_path / "m", model) if method == "mxfp4" else quantise.quantise(tmp_path / "m", method, model)
    write_plan(tmp_path, model, "centroid")
    refused = rewrite(tmp_path, "out", code=3).stderr
    assert "experts" in refused and "--also-dtype bf16" in refused
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_alignment_by_activations_is_scipys_on_the_sampled_tokens(tmp_path):
    model = models.make(tmp_path / "m", "gpt_oss", None)
    task = write_task(tmp_path / "t.jsonl", IDS)
    moetrim("calibrate", tmp_path / "m", "--task", task, "-o", tmp_path / "s", "--statistics", "all-experts", "--activation-samples", "20",
            "--dtype", "fp32")
    group = dict(into=2, members=[2, 5], weights=[0.5, 0.5])
    write_plan(tmp_path, model, "centroid", groups=[group], align="activations")
    assert "--statistics" in rewrite(tmp_path, "out", code=3).stderr
    rewrite(tmp_path, "out", "--statistics", tmp_path / "s")
    before, after = load_file(tmp_path / "m/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    for layer in moe_layers(model):
        samples = load_file(tmp_path / f"s/vectors-{layer:05}.safetensors")["sample_activations"].double().numpy()
        width = samples.shape[2]
        with np.errstate(invalid="ignore"):
            correlation = np.corrcoef(samples[2].T, samples[5].T)[:width, width:]
        order = linear_sum_assignment(np.nan_to_num(correlation), maximize=True)[1]
        assert (order != np.arange(width)).any()
        name = f"model.layers.{layer}.mlp.experts.{{}}".format
        both = np.stack([2 * order, 2 * order + 1], 1).flatten()
        for tensor, index in (("gate_up_proj", (slice(None), both)), ("gate_up_proj_bias", both), ("down_proj", order),
                              ("down_proj_bias", slice(None))):
            experts = before[name(tensor)].double()
            mean = (experts[2] + experts[5][index]) / 2
            slot = 2
            assert torch.equal(after[name(tensor)][slot], mean.float())


def nearest_of_rank(matrix, rank):
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ v[:rank]


@pytest.mark.parametrize("family, layout", [("qwen3_moe", None), ("gpt_oss", None)])
def test_low_rank_and_sparse_rows_are_numpys(family, layout, tmp_path):
    """MC-SMoE's compression of merged experts, with rows chosen by what the factors miss."""
    model = models.make(tmp_path / "m", family, layout)
    write_plan(tmp_path, model, "duplicate")
    assert "below both sides" in rewrite(tmp_path, "out", "--low-rank", "99", code=2).stderr
    rewrite(tmp_path, "out", "--low-rank", "3", "--sparse-rows", "0.3")
    assert json.loads((tmp_path / "out/moetrim.json").read_text())["low_rank"] == dict(rank=3, sparse_rows=0.3, merged_only=True)
    loaded, info = models.load(tmp_path / "out", model)
    loads_whole(info)
    untouched = {layer: [p.detach().clone() for p in experts_of(model, layer).parameters()] for layer in moe_layers(model)}
    merge_in_place(model)

    def matrices(model):
        """Every matrix of a merged expert, outputs first."""
        for layer in moe_layers(model):
            experts = experts_of(model, layer)
            for expert in (e for group in GROUPS for e in group["members"]):
                gate_up, down = (w[expert].detach().double().numpy() for w in (experts.gate_up_proj, experts.down_proj))
                if family == "gpt_oss":
                    yield from (gate_up.T[0::2], gate_up.T[1::2], down.T)
                else:
                    yield from (*np.split(gate_up, 2), down)

    merged = list(matrices(model))
    factors = [nearest_of_rank(m, 3) for m in merged]
    importance = [np.abs(m - f).mean(1).astype(np.float32) for m, f in zip(merged, factors)]
    entries = np.sort(np.concatenate([np.repeat(i, m.shape[1]) for i, m in zip(importance, merged)]))
    threshold = entries[len(entries) * 7 // 10 - 1] - 1e-6
    kept = 0
    for matrix, product, rows, found in zip(merged, factors, importance, matrices(loaded)):
        expected = np.where((rows >= threshold)[:, None], matrix, product)
        kept += (rows >= threshold).sum() * matrix.shape[1]
        assert np.abs(found - expected).max() < 1e-5
    assert 0.3 <= kept / len(entries) < 0.4
    for layer, before in untouched.items():  # expert 3 is in no group
        assert all(torch.equal(a[3], b[3]) for a, b in zip(before, experts_of(loaded, layer).parameters()))


def test_memory_does_not_grow_with_the_layers(tmp_path):
    peaks = []
    for layers in (3, 12):
        folder = tmp_path / str(layers)
        model = models.make(folder / "m", "qwen3_moe", None, dtype=torch.bfloat16, hidden_size=512, num_hidden_layers=layers,
                            num_experts=16, moe_intermediate_size=256, mlp_only_layers=[], head_dim=64, vocab_size=1000)
        write_plan(folder, model, "centroid", align="weights")
        arguments = ("rewrite", folder / "m", "--plan", folder / "plan.json", "-o", folder / "out")
        estimate = moetrim_json(*arguments, "--dry-run")["peak_memory_bytes"]
        peaks.append(peak_bytes(*arguments))
        assert estimate > peaks[-1] - peak_bytes("inspect", folder / "m")
    assert peaks[1] - peaks[0] < 8 * 2 ** 20


@pytest.mark.parametrize("damage, expected", [
    (lambda slim: slim["map"]["0"].append(0), "lists 8 rows of the router for layer 0"),
    (lambda slim: slim["map"]["0"].__setitem__(3, 9), "maps a row of layer 0 to expert 9 of 4"),
    (lambda slim: slim["map"]["0"].__setitem__(3, 0), "maps no row of layer 0 to some of its 4 experts"),
    (lambda slim: slim["map"].pop("0"), "maps no rows of layer 0"),
    (lambda slim: slim["map"].__setitem__("0", [-1]), "-1 is no expert"),
])
def test_a_damaged_map_is_found(damage, expected, tmp_path):
    model = models.make(tmp_path / "m", "granitemoe", "fused", num_local_experts=7, num_hidden_layers=2)
    write_plan(tmp_path, model, "map")
    rewrite(tmp_path, "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    damage(config["moetrim_slim"])
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    found = moetrim("verify", tmp_path / "out", code=3)
    assert expected in found.stdout + found.stderr
