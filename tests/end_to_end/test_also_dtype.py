"""rewrite --also-dtype bf16: a dequantised twin that transformers loads, with exactly the values that the codes stand for."""
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

import models
import quantise
import reference
from program import folder_bytes, moetrim, moetrim_json, write_task
from test_quantised import SIZES

IDS = models.sequences(9, [25, 40])
CASES = [("qwen3_moe", "fp8 blocks"), ("qwen3_moe", "int4"), ("qwen3_moe", "gptq"), ("qwen3_moe", "awq"), ("qwen3_moe", "nvfp4"),
         ("deepseek_v3", "fp8 blocks"), ("gpt_oss", "mxfp4")]


def make(folder, family, method):
    """A quantised checkpoint, a plan for it, and the model with the values that the codes stand for."""
    model = models.make(folder / "m", family, initializer_range=0.1, **SIZES[family])
    if method == "mxfp4":
        quantise.mxfp4(folder / "m", model)
    else:
        quantise.quantise(folder / "m", method, model)
    write_task(folder / "t.jsonl", IDS)
    moetrim("calibrate", folder / "m", "--task", folder / "t.jsonl", "--dtype", "fp32", "-o", folder / "s.stats")
    moetrim("plan", folder / "s.stats", "--method", "reap", "--keep", models.two_thirds(model.config), "-o", folder / "plan.json")
    return model, json.loads((folder / "plan.json").read_text())


def rewrite(folder, *more, out="out"):
    return moetrim_json("rewrite", folder / "m", "--plan", folder / "plan.json", "-o", folder / out, "--also-dtype", "bf16", *more)


@pytest.mark.parametrize("family, method", CASES, ids=lambda x: x)
def test_the_twin_is_the_model_that_the_codes_stand_for(family, method, tmp_path):
    model, plan = make(tmp_path, family, method)
    printed = rewrite(tmp_path, "--shard-size", "200KB")
    twin = tmp_path / "out-bf16"
    index = json.loads((twin / "model.safetensors.index.json").read_text())
    assert printed["also"] == {"checkpoint": str(twin), "bytes": index["metadata"]["total_size"],
                               "shards": len(set(index["weight_map"].values()))}
    assert moetrim_json("verify", twin)["errors"] == 0 and moetrim_json("verify", tmp_path / "out")["errors"] == 0
    loaded, info = models.load(twin, model)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    kept = {entry["layer"]: entry["keep"] for entry in plan["layers"]}
    codes = coded_modules(tmp_path / "m")
    wanted = dict(model.named_parameters())
    for name, value in loaded.named_parameters():
        expected = wanted[name]
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else None
        if layer in kept and any(part in name for part in (".experts.", "mlp.gate.", "mlp.router.")) and "shared" not in name:
            expected = expected[kept[layer]]
        if is_coded(name, codes):
            expected = expected.to(torch.bfloat16).float()
        assert torch.equal(value, expected), name


def coded_modules(folder):
    """Modules that are quantised, with the number of an expert cut out."""
    ends = ("_scale_inv", ".weight_scale", ".scales", "_scales")
    names = [name for name in load_file(folder / "model.safetensors") if name.endswith(ends)]
    return {name.replace(".weight_scale_inv", "").replace(".weight_scale", "").replace(".scales", "").replace("_scales", "")
            for name in names}


def is_coded(name, codes):
    module = name.removesuffix(".weight")
    if ".experts." in module:  # fused in memory
        return not name.endswith("bias") and any(code.startswith(module.split(".experts.")[0] + ".experts.") for code in codes)
    return module in codes


def test_the_twin_computes_like_the_pruned_model(tmp_path):
    model, plan = make(tmp_path, "gpt_oss", "mxfp4")
    rewrite(tmp_path)
    loaded, _ = models.load(tmp_path / "out-bf16", model)
    reference.mask_router(model, plan)
    assert (models.logits_of(loaded, IDS) - models.logits_of(model, IDS)).abs().max() <= 1e-5  # bf16 holds these values exactly


def test_folders_config_and_refusals(tmp_path):
    make(tmp_path, "qwen3_moe", "fp8 blocks")
    dry = rewrite(tmp_path, "--dry-run")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out-bf16").exists()
    done = rewrite(tmp_path)
    assert dry["also"] == done["also"] and dry["after_bytes"] == done["bytes"]
    written = sum(len(b) for name in ("out", "out-bf16") for b in folder_bytes(tmp_path / name).values())
    assert dry["disk_bytes"] >= written
    config = json.loads((tmp_path / "out/config.json").read_text())
    del config["quantization_config"]
    assert json.loads((tmp_path / "out-bf16/config.json").read_text()) == config
    assert not list(tmp_path.glob(".*"))
    arguments = ["rewrite", tmp_path / "m", "--plan", tmp_path / "plan.json", "--also-dtype"]
    assert "bf16" in moetrim(*arguments, "fp16", "-o", tmp_path / "other", code=2).stderr
    (tmp_path / "out").rename(tmp_path / "moved")
    assert "out-bf16" in moetrim(*arguments, "bf16", "-o", tmp_path / "out", code=2).stderr
    assert not (tmp_path / "out").exists()
    rewrite(tmp_path, "--overwrite")
    assert folder_bytes(tmp_path / "moved") == folder_bytes(tmp_path / "out")


def test_what_is_not_quantised_has_no_twin(tmp_path):
    models.make(tmp_path / "m", "qwen3_moe", dtype=torch.bfloat16)
    write_task(tmp_path / "t.jsonl", IDS)
    moetrim("calibrate", tmp_path / "m", "--task", tmp_path / "t.jsonl", "-o", tmp_path / "s.stats")
    moetrim("plan", tmp_path / "s.stats", "--method", "reap", "--keep", 4, "-o", tmp_path / "plan.json")
    arguments = ["rewrite", tmp_path / "m", "--plan", tmp_path / "plan.json", "-o", tmp_path / "out", "--also-dtype", "bf16"]
    assert "nothing to dequantise" in moetrim(*arguments, code=2).stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "out-bf16").exists()


def test_plain_transformers_loads_the_twin_in_bf16(tmp_path):
    make(tmp_path, "qwen3_moe", "int4")
    rewrite(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out-bf16", dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
