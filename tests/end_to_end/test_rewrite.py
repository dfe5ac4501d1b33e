"""Pruned checkpoints in transformers: keys, logits against the masked original, bytes."""
import json
import random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import models
import reference
from program import folder_bytes, moetrim, moetrim_json, write_task

IDS = models.sequences(9, [25, 40, 7])


def prune(folder, family, layout, keep, seed=0, shard="5GB", **changes):
    model = models.make(folder / "m", family, layout, seed=seed, **changes)
    write_task(folder / "t.jsonl", IDS)
    moetrim("calibrate", folder / "m", "--task", folder / "t.jsonl", "--dtype", "fp32", "-o", folder / "s.stats")
    moetrim("plan", folder / "s.stats", "--method", "random", "--seed", seed, "--keep", keep, "-o", folder / "plan.json")
    moetrim("rewrite", folder / "m", "--plan", folder / "plan.json", "--shard-size", shard, "-o", folder / "out")
    return model, json.loads((folder / "plan.json").read_text())


@pytest.mark.parametrize("family, layout", models.CASES)
def test_pruned_equals_masked(family, layout, tmp_path):
    model, plan = prune(tmp_path, family, layout, models.two_thirds(models.config_of(family)))
    pruned, info = models.load(tmp_path / "out", model)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    reference.mask_router(model, plan)
    difference = (models.logits_of(pruned, IDS) - models.logits_of(model, IDS)).abs().max()
    assert difference <= 1e-5
    assert moetrim_json("verify", tmp_path / "out")["errors"] == 0


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "llama4", "phimoe", "qwen3_next"])
def test_plan_evaluated_as_a_mask_equals_the_written_checkpoint(family, tmp_path):
    prune(tmp_path, family, None, models.two_thirds(models.config_of(family)))
    arguments = ["--task", tmp_path / "t.jsonl", "--dtype", "fp32"]
    masked = moetrim_json("evaluate", tmp_path / "m", "--plan", tmp_path / "plan.json", *arguments)["plans"][0]
    written = moetrim_json("evaluate", tmp_path / "out", "--against", tmp_path / "m", *arguments)
    for key in ("loss", "kl", "top1_agreement"):
        assert masked[key] == pytest.approx(written[key], rel=1e-5)


def test_identity_plan_keeps_every_byte(tmp_path):
    prune(tmp_path, "qwen3_moe", "per-expert", 7, dtype=torch.bfloat16)
    with safe_open(tmp_path / "m/model.safetensors", "pt") as before, safe_open(tmp_path / "out/model.safetensors", "pt") as after:
        assert set(before.keys()) == set(after.keys())
        for name in before.keys():
            a, b = before.get_tensor(name), after.get_tensor(name)
            assert a.dtype == b.dtype and torch.equal(a.view(torch.int16), b.view(torch.int16))


def test_every_alias_follows(tmp_path):
    models.make(tmp_path / "m", "qwen3_moe")
    file = tmp_path / "m/config.json"
    config = json.loads(file.read_text())
    config["num_local_experts"] = config["num_experts"]
    file.write_text(json.dumps(config))
    write_task(tmp_path / "t.jsonl", IDS)
    moetrim("calibrate", tmp_path / "m", "--task", tmp_path / "t.jsonl", "-o", tmp_path / "s.stats")
    moetrim("plan", tmp_path / "s.stats", "--method", "reap", "--keep", 4, "-o", tmp_path / "plan.json")
    moetrim("rewrite", tmp_path / "m", "--plan", tmp_path / "plan.json", "-o", tmp_path / "out")
    new = json.loads((tmp_path / "out/config.json").read_text())
    assert new["num_experts"] == new["num_local_experts"] == 4
    assert list(new) == list(config)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_shards_hold_what_the_index_says(tmp_path):
    prune(tmp_path, "mixtral", "per-expert", 3, shard="20KB")
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    total = 0
    for file in set(index["weight_map"].values()):
        with safe_open(tmp_path / "out" / file, "np") as shard:
            assert {n for n, f in index["weight_map"].items() if f == file} == set(shard.keys())
            total += sum(shard.get_tensor(n).nbytes for n in shard.keys())
    assert total == index["metadata"]["total_size"]
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_an_occupied_target_is_refused(tmp_path):
    prune(tmp_path, "olmoe", "per-expert", 5)
    before = folder_bytes(tmp_path / "out")
    done = moetrim("rewrite", tmp_path / "m", "--plan", tmp_path / "plan.json", "-o", tmp_path / "out", code=2)
    assert str(tmp_path / "out") in done.stderr
    assert folder_bytes(tmp_path / "out") == before
