"""MC-SMoE's importance of rows on a merged checkpoint: against autograd by the matrices, and the rows that stay by it."""
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import models
import second_order
from program import moetrim, write_task
from test_merged_checkpoints import experts_of, moe_layers, nearest_of_rank, rewrite, write_plan

RANK = 3
TASKS = {"a": models.sequences(5, [17, 41, 9, 30]), "b": models.sequences(6, [23, 8])}  # a batch each: below 512 tokens
NAMES = ("gate", "up", "down")


def matrices(experts, gate_up, down, e):
    """Gate, up and down of an expert, outputs first."""
    if not second_order.is_transposed(experts):
        return (*gate_up[e].chunk(2), down[e])
    both = gate_up[e].T
    return (*((both[0::2], both[1::2]) if second_order.interleaves(experts) else both.chunk(2)), down[e].T)


def importance(model, sequences):
    """Per MoE layer and matrix [E, rows], of the loss summed over the sequences."""
    model = second_order.doubled(model)
    with second_order.in_double(), second_order.recording(model):
        sum(second_order.loss_of(model, second_order.sample(ids)) for ids in sequences).backward()
    out = {}
    for layer in moe_layers(model):
        experts = experts_of(model, layer)
        weights, gradients = ([getattr(p, what) for p in (experts.gate_up_proj, experts.down_proj)] for what in ("data", "grad"))
        rows = []
        for e in range(len(weights[0])):
            both = zip(matrices(experts, *weights, e), matrices(experts, *gradients, e))
            rows.append([np.abs((w.numpy() - nearest_of_rank(w.numpy(), RANK)) * g.numpy()).mean(1) for w, g in both])
        out[layer] = {name: np.stack([of_expert[i] for of_expert in rows]) for i, name in enumerate(NAMES)}
    return out


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_importance_is_autograds_and_chooses_the_rows_that_stay(family, tmp_path):
    original = models.make(tmp_path / "m", family)
    write_plan(tmp_path, original, "centroid")
    rewrite(tmp_path, "merged")
    merged, _ = models.load(tmp_path / "merged", original)
    files = {name: write_task(tmp_path / f"{name}.jsonl", ids) for name, ids in TASKS.items()}

    def calibrate(out, *names, code=0, options=("--low-rank", RANK)):
        return moetrim("calibrate", tmp_path / "merged", *(f"--task={files[name]}" for name in names), "--statistics", "row-importance",
                       *options, "--dtype", "fp64", "-o", tmp_path / out, code=code)

    assert "--low-rank" in calibrate("s", "a", code=2, options=()).stderr
    assert "below both sides" in calibrate("s", "a", code=2, options=("--low-rank", 99)).stderr
    calibrate("s", *TASKS)
    expected = [importance(merged, ids) for ids in TASKS.values()]
    measured = {layer: load_file(tmp_path / f"s/rows-{layer:05}.safetensors") for layer in moe_layers(merged)}
    for layer, ours in measured.items():
        for name in NAMES:
            theirs = np.stack([of_task[layer][name] for of_task in expected])
            assert ours[name].shape == theirs.shape and theirs.max() > 0
            np.testing.assert_allclose(ours[name], theirs, rtol=1e-7, atol=1e-9 * theirs.max())

    for name in TASKS:
        calibrate(f"{name}.stats", name)
    moetrim("merge-statistics", *(tmp_path / f"{name}.stats" for name in TASKS), "-o", tmp_path / "both")
    for layer, ours in measured.items():
        for name, values in load_file(tmp_path / f"both/rows-{layer:05}.safetensors").items():
            np.testing.assert_allclose(values, ours[name], rtol=1e-12)

    moetrim("plan", tmp_path / "s", "--keep", "1.0", "--method", "reap", "-o", tmp_path / "whole.json")

    def factor(out, rank=RANK, plan="whole.json", checkpoint="merged", statistics="s", code=0):
        return moetrim("rewrite", tmp_path / checkpoint, "--plan", tmp_path / plan, "--low-rank", rank, "--sparse-rows", "0.3",
                       "--row-importance", tmp_path / statistics, "-o", tmp_path / out, code=code)

    assert f"rank {RANK}" in factor("out", rank=2, code=3).stderr
    assert "measured on the experts as they are" in factor("out", plan="plan.json", checkpoint="m", code=2).stderr
    factor("out")
    record = json.loads((tmp_path / "out/moetrim.json").read_text())["low_rank"]
    assert [task["name"] for task in record["row_importance"]] == list(TASKS)
    check_rows(merged, models.load(tmp_path / "out", merged)[0], measured)

    layer = moe_layers(merged)[0]
    damaged = tmp_path / f"both/rows-{layer:05}.safetensors"
    values = load_file(damaged)
    values["up"][0, 0, 0] = np.nan
    save_file(values, damaged, metadata={"moetrim_format": "statistics-rows-1", "moetrim_layer": str(layer)})
    assert "tensor up, element 0" in factor("other", statistics="both", code=3).stderr


def check_rows(before, after, measured):
    """30 % of the entries, and the rows that tie with the last of them, are the merged checkpoint's; the others the factors'."""
    rows = []
    for layer, sums in measured.items():
        old, new = ((experts, experts.gate_up_proj.detach(), experts.down_proj.detach())
                    for experts in (experts_of(before, layer), experts_of(after, layer)))
        for e in range(sums["gate"].shape[1]):
            of_rows = (sums[name].sum(0)[e].astype(np.float32) for name in NAMES)
            rows += zip(matrices(*old, e), matrices(*new, e), of_rows)
    entries = np.sort(np.concatenate([np.repeat(of_matrix, w.shape[1]) for w, _, of_matrix in rows]))
    threshold = entries[len(entries) * 7 // 10 - 1]
    assert threshold > 0
    for w, found, of_matrix in rows:
        stays = torch.from_numpy(of_matrix >= threshold)
        assert torch.equal((found == w).all(1), stays)
        factors = torch.from_numpy(nearest_of_rank(w.double().numpy(), RANK))
        assert torch.allclose(found[~stays].double(), factors[~stays], rtol=0, atol=1e-5)
