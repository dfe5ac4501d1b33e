"""Matrices of merged experts stored as factors: our modelling code against the dense form of the same values."""
import json
import struct

import pytest
import torch
from transformers import AutoModelForCausalLM

import models
from program import moetrim, moetrim_json
from test_merged_checkpoints import IDS, rewrite, write_plan


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True, dtype=dtype,
                                                attn_implementation="eager", experts_implementation="eager")


def logits_of(model):
    model.eval()
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids])).logits[0] for ids in IDS]).double()


@pytest.mark.parametrize("family, router", [("qwen3_moe", "centroid"), ("qwen3_moe", "map"), ("gpt_oss", "map")])
def test_factors_compute_what_the_dense_form_does(family, router, tmp_path):
    model = models.make(tmp_path / "m", family, None)
    write_plan(tmp_path, model, router)
    options = ("--low-rank", "2", "--sparse-rows", "0.1", "--low-rank-form")
    arguments = ("rewrite", tmp_path / "m", "--plan", tmp_path / "plan.json", *options)
    estimate = moetrim_json(*arguments, "factored", "-o", tmp_path / "out", "--dry-run")
    done = moetrim_json(*arguments, "factored", "-o", tmp_path / "out")
    dense_bytes = moetrim_json(*arguments, "dense", "-o", tmp_path / "dense")["bytes"]
    assert estimate["after_bytes"] == done["bytes"]
    record = json.loads((tmp_path / "out/moetrim.json").read_text())["low_rank"]
    assert dense_bytes - done["bytes"] == record["dense_bytes"] - record["bytes"] > 0
    assert str(record["bytes"]) in (tmp_path / "out/README.md").read_text()
    moetrim("verify", tmp_path / "out", "--deep")

    expected = logits_of(load(tmp_path / "dense", torch.float32)[0])
    factored, info = load(tmp_path / "out", torch.float32)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (logits_of(factored) - expected).abs().max() < 1e-4
    of_factors, of_dense = ((logits_of(load(tmp_path / out, torch.bfloat16)[0]) - expected).norm() for out in ("out", "dense"))
    assert of_factors < 1.5 * of_dense
    kept = factored.config.moetrim_slim["low_rank"]["rows"]
    assert sum(sum(rows) for experts in kept.values() for rows in experts if rows) > 0
    assert any(rows is None for experts in kept.values() for rows in experts)  # expert 3 is in no group


@pytest.mark.parametrize("damage", ["ids", "rank", "count"])
def test_verify_refuses_rows_that_are_not_the_matrix(damage, tmp_path):
    model = models.make(tmp_path / "m", "qwen3_moe", None)
    write_plan(tmp_path, model, "centroid")
    rewrite(tmp_path, "out", "--low-rank", "2", "--sparse-rows", "0.3", "--low-rank-form", "factored")
    config = json.loads((tmp_path / "out/config.json").read_text())
    slim = config["moetrim_slim"]["low_rank"]
    layer = next(iter(slim["rows"]))
    if damage == "ids":
        file = tmp_path / "out/model.safetensors"
        data = bytearray(file.read_bytes())
        size = struct.unpack("<Q", data[:8])[0]
        name, entry = next((n, e) for n, e in json.loads(data[8:8 + size]).items() if n.endswith("_row_ids.1") and e["shape"] != [0])
        begin = 8 + size + entry["data_offsets"][0]
        data[begin:begin + 4] = struct.pack("<i", 10 ** 9)
        file.write_bytes(data)
    elif damage == "rank":
        slim["rank"] = 10 ** 6
    else:
        next(rows for rows in slim["rows"][layer] if rows)[0] += 1
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    found = moetrim("verify", tmp_path / "out", code=3)
    text = found.stdout + found.stderr
    assert {"ids": "ascending", "rank": "rank 1000000", "count": "expected"}[damage] in text


def test_factors_are_refused_by_name(tmp_path):
    model = models.make(tmp_path / "m", "pangu_pro_moe", None)
    plan = write_plan(tmp_path, model, "duplicate", groups=[dict(into=1, members=[1, 4], weights=[0.5, 0.5])])
    plan["groups"]["rule"] = "each"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    text = rewrite(tmp_path, "out", "--low-rank", "2", "--low-rank-form", "factored", code=3).stderr
    assert "factors" in text and "--low-rank-form dense" in text
