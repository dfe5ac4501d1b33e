"""rewrite MODEL.gguf: the same bytes as if the checkpoint had been pruned first, and exported or quantised then."""
import json
import random

import gguf
import numpy as np
import pytest

import llama_cpp
import models
from program import moetrim, moetrim_json
from test_mtp import Mtp

IDS = models.sequences(9, [40, 25, 33])
# K-quants take rows of 256 elements, so that hidden size and expert width are multiples of it.
WIDE = dict(hidden_size=256, moe_intermediate_size=256, num_experts=6, num_experts_per_tok=2, num_hidden_layers=2, head_dim=64,
            mlp_only_layers=[])
CASES = {  # what differs from models.py, or None for one more block of multi-token prediction; MoE layers
    "qwen3_moe": (WIDE, [0, 1]),
    "deepseek_v3": (dict(num_attention_heads=4, num_key_value_heads=4), [1, 2]),
    "gpt_oss": (dict(swiglu_limit=7.0), [0, 1, 2, 3]),
    "ernie4_5_moe": (dict(moe_layer_interval=1, intermediate_size=44), [1, 2, 3]),
    "glm4_moe": (None, [1, 2, 3]),
}
QUANTS = ("q4_0", "q8_0", "q3_k_m", "q4_k_m", "q6_k", "iq4_xs", "mxfp4")
# The name of the folder, and where the file comes from.
NAMES = ("general.name", "moetrim.plan", "moetrim.source_fingerprint")


def write_plan(folder, layers, keep):
    """Two thirds of every group, drawn by chance."""
    model = moetrim_json("inspect", folder / "m")
    experts, groups = model["experts"], model["groups"]
    random.seed(experts)
    size = experts // groups
    plan = dict(format="moetrim-plan", version=1, method="random", variant="executed", checkpoint_fingerprint=model["fingerprint"],
                family=model["family"], experts=experts, keep=keep, experts_per_token=model["experts_per_token"], protect=[], source={},
                layers=[dict(layer=layer, unseen=0, unseen_kept=0, keep=sorted(
                    group * size + e for group in range(groups) for e in random.sample(range(size), keep // groups))) for layer in layers])
    if groups > 1:
        plan["groups"] = dict(count=groups, chosen=model["groups_per_token"], rule="top2")
    (folder / "plan.json").write_text(json.dumps(plan))


def plan_and_prune(folder, family, changes, layers):
    if changes is None:
        Mtp(folder, family)
    else:
        models.make(folder / "m", family, **changes)
    write_plan(folder, layers, models.two_thirds(models.config_of(family, **changes or {})))
    moetrim("rewrite", folder / "m", "--plan", folder / "plan.json", "-o", folder / "pruned")


def export(folder, out, *options):
    moetrim("export", folder, "--format", "gguf", "--dtype", "f32", "--no-tokenizer", "-o", out, *options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By family: whole.gguf and pruned.gguf, of the checkpoint and of the pruned one, and the plan."""
    root = tmp_path_factory.mktemp("gguf")
    for family, (changes, layers) in CASES.items():
        plan_and_prune(root / family, family, changes, layers)
        export(root / family / "m", root / family / "whole.gguf")
        export(root / family / "pruned", root / family / "pruned.gguf")
    return root


def contents(file):
    """Keys and their values, and tensors: type, shape and bytes."""
    reader = gguf.GGUFReader(file)
    keys = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return keys, {t.name: (t.tensor_type.name, t.shape.tolist(), t.data.tobytes()) for t in reader.tensors}


def assert_same(ours, theirs, other_keys=frozenset()):
    (keys, tensors), (their_keys, their_tensors) = contents(ours), contents(theirs)
    for key in {*NAMES, *other_keys}:
        keys.pop(key, None), their_keys.pop(key, None)
    assert keys == their_keys
    assert list(tensors) == list(their_tensors)
    for name, tensor in tensors.items():
        assert tensor == their_tensors[name], name


def rewrite(source, plan, out, *options):
    result = moetrim_json("rewrite", source, "--plan", plan, "-o", out, *options)
    assert moetrim_json("verify", result["checkpoint"], "--deep")["errors"] == 0
    return result


@pytest.mark.parametrize("family", CASES)
def test_pruning_commutes_with_conversion(family, folders, tmp_path):
    folder = folders / family
    result = rewrite(folder / "whole.gguf", folder / "plan.json", tmp_path / "out.gguf", "--writers", 3)
    assert_same(tmp_path / "out.gguf", folder / "pruned.gguf")
    assert result["notes"] == []
    ours, theirs = (llama_cpp.Model(file).logits(IDS[0]) for file in (tmp_path / "out.gguf", folder / "pruned.gguf"))
    assert np.isfinite(ours).all() and np.array_equal(ours, theirs)


def test_dropped_mtp_block(folders, tmp_path):
    folder = folders / "glm4_moe"
    moetrim("rewrite", folder / "m", "--plan", folder / "plan.json", "--mtp", "drop", "-o", tmp_path / "dropped")
    export(tmp_path / "dropped", tmp_path / "dropped.gguf")
    rewrite(folder / "whole.gguf", folder / "plan.json", tmp_path / "out.gguf", "--mtp", "drop")
    assert_same(tmp_path / "out.gguf", tmp_path / "dropped.gguf", {"glm4moe.nextn_predict_layers"})
    ours, theirs = (llama_cpp.Model(file).logits(IDS[0]) for file in (tmp_path / "out.gguf", tmp_path / "dropped.gguf"))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("kind", QUANTS)
def test_pruning_commutes_with_quantisation(kind, folders, tmp_path):
    folder = folders / "qwen3_moe"
    for name in ("whole", "pruned"):
        llama_cpp.quantize(folder / f"{name}.gguf", tmp_path / f"{name}.gguf", kind, pure=True)
    rewrite(tmp_path / "whole.gguf", folder / "plan.json", tmp_path / "out.gguf")
    assert_same(tmp_path / "out.gguf", tmp_path / "pruned.gguf")
    ours, theirs = (llama_cpp.Model(tmp_path / file).logits(IDS[0]) for file in ("out.gguf", "pruned.gguf"))
    assert np.isfinite(ours).all() and np.array_equal(ours, theirs)


def test_split_model(folders, tmp_path):
    folder = folders / "qwen3_moe"
    export(folder / "m", tmp_path / "whole.gguf", "--shard-size", "5MB")
    first, plan = next(tmp_path.glob("whole-00001-of-*.gguf")), folder / "plan.json"
    files = rewrite(first, plan, tmp_path / "out.gguf")["files"]
    assert len(files) == len(list(tmp_path.glob("whole-*.gguf"))) > 2
    assert np.array_equal(llama_cpp.Model(files[0]).logits(IDS[0]), llama_cpp.Model(folder / "pruned.gguf").logits(IDS[0]))


def test_options_that_do_not_apply_are_refused(folders, tmp_path):
    folder, out = folders / "qwen3_moe", tmp_path / "out.gguf"
    for option, value in [("--shard-size", "5GB"), ("--also-dtype", "bf16"), ("--slice", "1/2"), ("--low-rank", 2)]:
        done = moetrim("rewrite", folder / "whole.gguf", "--plan", folder / "plan.json", "-o", out, option, value, code=2)
        assert f"{option} does not apply to" in done.stderr
    estimate = moetrim_json("rewrite", folder / "whole.gguf", "--plan", folder / "plan.json", "-o", out, "--dry-run")
    assert not out.exists() and estimate["files"] == [str(out)]
    rewrite(folder / "whole.gguf", folder / "plan.json", out)
    assert estimate["disk_bytes"] - 10_000 < out.stat().st_size <= estimate["disk_bytes"]
    info = moetrim_json("inspect", out)
    plan = json.loads((folder / "plan.json").read_text())
    assert (info["family"], info["layers"], info["moe_layers"], info["experts"], info["experts_per_token"]) == ("qwen3_moe", 2, 2, plan["keep"], 2)
    assert (info["hidden"], info["expert_width"], info["vocabulary"]) == (256, 256, 101)
    assert sum(info["bytes"].values()) == info["total_bytes"] == sum(info["bytes_by_type"].values()) == estimate["after_bytes"]
