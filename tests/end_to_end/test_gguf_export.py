"""export --format gguf: the tensors and keys of llama.cpp's own converter, and logits of llama.cpp that are transformers'."""
import json
import signal
import subprocess
import time

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import llama_cpp
import models
import quantise
from program import MOETRIM, moetrim, moetrim_json
from test_mtp import Mtp
from test_quantised import SIZES

IDS = models.sequences(11, [40, 25, 33])
YARN = models.rope(kind="yarn", factor=4.0, original_max_position_embeddings=32)
DTYPES = ("f16", "bf16", "q8_0")
LONG = [1.0, 1.5, 2.5, 4.0, 6.0, 9.0]
LLAMA4 = dict(attention_chunk_size=8192, floor_scale=8192, attn_scale=0.1)
# Layers are listed; the converter adds 4 for whom the list is not enough.
INTERVAL = ["qwen3next.full_attention_interval", "qwen35moe.full_attention_interval"]


class Case:
    """A checkpoint, keys that we write otherwise than the converter, and the published name of a class that transformers renamed.
    `mtp`: with a multi-token-prediction block; `unread`: a key of published configs at which the converter stops."""

    def __init__(self, family, layout=None, other_keys=(), published=None, transposed=False, mtp=False, unread=None, more=(),
                 options=(), **changes):
        self.family, self.layout, self.other_keys, self.changes = family, layout, set(other_keys), changes
        self.published, self.transposed, self.mtp, self.unread = published, transposed, mtp, unread
        self.more, self.options = list(more), options

    def make(self, folder, **more):
        if self.mtp:
            model = Mtp(folder, self.family, **self.changes, **more).model
            for file in (folder / "m").iterdir():
                file.rename(folder / file.name)
            return model
        model = models.make(folder, self.family, self.layout, **self.changes, **more)
        if self.unread:
            config = json.loads((folder / "config.json").read_text())
            config.pop(self.unread)
            (folder / "config.json").write_text(json.dumps(config))
        if self.published:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "architectures": [self.published]}))
        if self.transposed:  # experts as they are published, and as the converter expects them
            tensors = {name: tensor.transpose(1, 2).contiguous() if ".experts." in name else tensor
                       for name, tensor in load_file(folder / "model.safetensors").items()}
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return model


# What a checkpoint must not have is refused, see REFUSED.
CASES = {
    "qwen3_moe": Case("qwen3_moe", mlp_only_layers=[]),
    "qwen3_moe yarn": Case("qwen3_moe", "fused", mlp_only_layers=[], rope_parameters=YARN),
    "qwen2_moe": Case("qwen2_moe"),
    "olmoe": Case("olmoe", clip_qkv=None, num_key_value_heads=4, rms_norm_eps=1e-5),
    "mixtral": Case("mixtral"),
    "granitemoe": Case("granitemoe"),
    # The converter derives the factor from the lengths, whatever the config says.
    "phimoe": Case("phimoe", published="PhiMoEForCausalLM", sliding_window=None, max_position_embeddings=1024, other_keys=["phimoe.rope.scaling.attn_factor"],
                   rope_parameters=models.rope(kind="longrope", short_factor=LONG, long_factor=LONG, short_mscale=1.25,
                                               long_mscale=1.25, original_max_position_embeddings=512)),
    "qwen3_vl_moe": Case("qwen3_vl_moe", "saved", transposed=True, mlp_only_layers=[]),
    "deepseek_v3": Case("deepseek_v3", mtp=True, options=["--mtp", "drop"], rope_parameters=models.yarn(mscale=0.9, mscale_all_dim=0.9)),
    "kimi_k2": Case("kimi_k2"),
    # Without the key llama.cpp loads models of 26 or 27 layers alone.
    "moonlight": Case("moonlight", other_keys=["deepseek2.attention.q_lora_rank"]),
    # mscale is not mscale_all_dim, which the converter passes over.
    "deepseek_v2": Case("deepseek_v2", topk_method="greedy", other_keys=[
        "deepseek2.rope.scaling.attn_factor", "deepseek2.rope.scaling.yarn_log_multiplier", "deepseek2.expert_weights_norm",
        "deepseek2.expert_group_count", "deepseek2.expert_group_used_count"]),
    "gpt_oss": Case("gpt_oss", swiglu_limit=7.0),
    "glm4_moe": Case("glm4_moe", mtp=True),
    # It has no such block although the config that transformers saves counts one.
    "glm4_moe_qk_norm": Case("glm4_moe_qk_norm", other_keys=["glm4moe.block_count", "glm4moe.nextn_predict_layers"]),
    "minimax_m2": Case("minimax_m2"),
    "ernie4_5_moe": Case("ernie4_5_moe", moe_layer_interval=1, intermediate_size=44),
    "hunyuan_v1_moe": Case("hunyuan_v1_moe", hidden_size=256, num_attention_heads=2, num_key_value_heads=1, head_dim=128,
                           max_position_embeddings=32768, rope_parameters=models.rope(10000.0, "dynamic", alpha=1000, factor=1.0)),
    "dots1": Case("dots1", unread="scoring_func", num_key_value_heads=4, sliding_window=None, other_keys=["dots1.expert_gating_func"]),
    "llama4_text": Case("llama4_text", **LLAMA4, no_rope_layer_interval=4),
    "llama4": Case("llama4", **LLAMA4, use_qk_norm=True),
    "qwen3_next": Case("qwen3_next", mtp=True, rms_norm_eps=1e-6, linear_value_head_dim=7, mlp_only_layers=[], other_keys=INTERVAL),
    "qwen3_5_moe": Case("qwen3_5_moe", more=["--no-mtp"], rms_norm_eps=1e-6, linear_value_head_dim=7, other_keys=INTERVAL),
}
# Ours alone, and what the converter leaves to llama.cpp, which then assumes the same.
OURS = {"moetrim.source_fingerprint", "tokenizer.ggml.model"}
DEFAULTS = ("vocab_size", "attention.key_length", "attention.value_length", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow")
# Guessed from a folder's name; here it is taken as it is.
NAMES = ("general.name", "general.basename", "general.finetune", "general.version")


class File:
    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        self.tensors = {t.name: t for t in reader.tensors}

    def differences(self, other, but=()):
        names = sorted(self.tensors.keys() ^ other.tensors.keys())
        return names + [name for name in self.tensors.keys() & other.tensors.keys()
                        if name not in but and not self.same(self.tensors[name], other.tensors[name])]

    @staticmethod
    def same(a, b):
        def shape(tensor):  # [E, 1], of Ernie's selection bias, is [E]
            extents = list(tensor.shape)
            return extents[:-1] if extents[-1] == 1 and tensor.name.endswith(".bias") else extents
        return a.tensor_type == b.tensor_type and shape(a) == shape(b) and a.data.tobytes() == b.data.tobytes()


def export(folder, out, *more, dtype="f32"):
    return moetrim_json("export", folder, "--format", "gguf", "--dtype", dtype, "--no-tokenizer", "-o", out, *more)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The models, with both files of each: the converter takes longer to start than to convert all of them."""
    root = tmp_path_factory.mktemp("gguf")
    folders = {name: root / name.replace(" ", "-") for name in CASES}
    made = {name: case.make(folders[name]) for name, case in CASES.items()}
    # Rows of 48 are no whole blocks of q8_0 and stay f16; bf16 values are what most checkpoints have.
    models.make(root / "bf16", "qwen3_moe", dtype=torch.bfloat16, mlp_only_layers=[], hidden_size=64, moe_intermediate_size=48, head_dim=16)
    jobs = [(folders[name], "f32", case.more, case.options) for name, case in CASES.items()]
    jobs += [(root / "bf16", dtype, [], []) for dtype in DTYPES]
    llama_cpp.convert(*[dict(folder=folder, out=folder / f"theirs-{dtype}.gguf", outtype=dtype, vocabulary="none", more=more)
                        for folder, dtype, more, _ in jobs])
    for folder, dtype, _, options in jobs:
        export(folder, folder / f"ours-{dtype}.gguf", *options, dtype=dtype)
    return {"bf16": (None, root / "bf16"), **{name: (model, folders[name]) for name, model in made.items()}}


@pytest.mark.parametrize("name", CASES)
def test_tensors_and_keys_are_those_of_the_converter(files, name):
    folder = files[name][1]
    ours, theirs = File(folder / "ours-f32.gguf"), File(folder / "theirs-f32.gguf")
    assert not ours.differences(theirs)
    other = CASES[name].other_keys
    for key in theirs.keys.keys() - set(NAMES) - other:
        assert ours.keys.get(key) == theirs.keys[key], key
    architecture = ours.keys["general.architecture"]
    extra = ours.keys.keys() - theirs.keys.keys() - OURS - set(NAMES) - other
    assert extra <= {f"{architecture}.{key}" for key in DEFAULTS}


def as_llama_cpp_has_phimoe(monkeypatch):
    """Softmax instead of SparseMixer, and norms that do not take the mean off: with these in transformers the rest must agree."""
    def softmax_top_k(scores, *_, top_k=2, **__):
        gates, chosen = scores.float().softmax(-1).topk(top_k)
        return (gates / gates.sum(-1, keepdim=True)).to(scores.dtype), chosen

    def rms_norm(x, shape, weight, bias, epsilon):
        return torch.nn.functional.rms_norm(x, shape, weight, epsilon) + bias
    monkeypatch.setattr("transformers.models.phimoe.modeling_phimoe.sparsemixer", softmax_top_k)
    monkeypatch.setattr(torch.nn.functional, "layer_norm", rms_norm)


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_what_transformers_computes(files, name, monkeypatch):
    model, folder = files[name]
    if name == "phimoe":
        as_llama_cpp_has_phimoe(monkeypatch)
    with llama_cpp.Model(folder / "ours-f32.gguf") as llama:
        logits = np.concatenate([llama.logits(ids) for ids in IDS])
    wanted = models.logits_of(model, IDS).numpy()
    assert llama_cpp.agreement(logits, wanted) >= 0.99
    assert llama_cpp.divergence(logits, wanted) <= 1e-6


# What the converter leaves out or has no say in: a head where llama.cpp needs one, factors of frequencies, and of cosine and sine.
VARIANTS = {
    "tied": ("qwen2_moe", dict(tie_word_embeddings=True)),
    "llama3": ("mixtral", dict(rope_parameters=models.rope(kind="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                           original_max_position_embeddings=32))),
    "yarn's factor": ("qwen3_moe", dict(mlp_only_layers=[], rope_parameters=dict(YARN, attention_factor=1.7))),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_other_configs_are_computed_as_well(name, tmp_path):
    family, changes = VARIANTS[name]
    model = models.make(tmp_path / "m", family, **changes)
    export(tmp_path / "m", tmp_path / "out.gguf")
    with llama_cpp.Model(tmp_path / "out.gguf") as llama:
        logits = np.concatenate([llama.logits(ids) for ids in IDS])
    assert llama_cpp.divergence(logits, models.logits_of(model, IDS).numpy()) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_are_those_of_the_converter(files, dtype):
    folder = files["bf16"][1]
    ours, theirs = File(folder / f"ours-{dtype}.gguf"), File(folder / f"theirs-{dtype}.gguf")
    assert not ours.differences(theirs)
    assert ours.keys["general.file_type"] == theirs.keys["general.file_type"]
    assert ours.tensors["blk.0.ffn_down_exps.weight"].tensor_type.name == ("BF16" if dtype == "bf16" else "F16")


def hand_plan(folder, keep, dense=0, **more):
    """The same slots in every layer, but for `dense` ones at the beginning."""
    is_a = moetrim_json("inspect", folder / "m")
    config = json.loads((folder / "m/config.json").read_text())
    plan = dict(format="moetrim-plan", version=1, method="by hand", variant="executed", checkpoint_fingerprint=is_a["fingerprint"],
                family=is_a["family"], experts=is_a["experts"], keep=len(keep), experts_per_token=is_a["experts_per_token"],
                layers=[dict(layer=layer, keep=keep, unseen=0, unseen_kept=0) for layer in range(dense, config["num_hidden_layers"])],
                protect=[], source={}, **more)
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder / "plan.json"


def test_pruning_on_the_way_is_rewriting_before(tmp_path):
    """Also with slots in any order; and experts one by one, fused, with few or many threads, in one file or several."""
    for layout in ("per-expert", "fused"):
        folder = tmp_path / layout
        models.make(folder / "m", "qwen3_moe", layout, mlp_only_layers=[])
        plan = hand_plan(folder, [5, 0, 3, 0, 6], order="free")
        moetrim("rewrite", folder / "m", "--plan", plan, "-o", folder / "pruned")
        export(folder / "pruned", folder / "after.gguf", "--writers", 1)
        export(folder / "m", folder / "on-the-way.gguf", "--plan", plan, "--writers", 5)
        after, on_the_way = File(folder / "after.gguf"), File(folder / "on-the-way.gguf")
        assert not after.differences(on_the_way)
        named = {"general.name", "moetrim.source_fingerprint", "moetrim.plan"}
        assert {k: v for k, v in after.keys.items() if k not in named} == \
            {k: v for k, v in on_the_way.keys.items() if k not in named and not k.startswith("general.base_model")}
        assert on_the_way.keys["qwen3moe.expert_count"] == 5 and "moetrim.source_fingerprint" not in on_the_way.keys
        assert len(on_the_way.keys["moetrim.plan"]) == 32
        assert after.keys["moetrim.source_fingerprint"] == moetrim_json("inspect", folder / "pruned")["fingerprint"]
    assert not on_the_way.differences(File(tmp_path / "per-expert/on-the-way.gguf"))
    printed = export(folder / "m", folder / "split.gguf", "--plan", plan, "--shard-size", "20KB")
    assert printed["files"][0].endswith("split-00001-of-%05d.gguf" % len(printed["files"])) and len(printed["files"]) > 3
    for file in (printed["files"][0], folder / "on-the-way.gguf"):
        assert moetrim_json("verify", file)["errors"] == 0
    with llama_cpp.Model(printed["files"][0]) as split, llama_cpp.Model(folder / "on-the-way.gguf") as whole:
        assert np.array_equal(split.logits(IDS[0]), whole.logits(IDS[0]))


@pytest.mark.parametrize("family, keep, dense", [("deepseek_v3", [0, 3, 4, 6, 7, 9, 10, 12, 14], 1), ("gpt_oss", [7, 0, 2, 5], 0)])
def test_pruning_on_the_way_takes_biases_and_groups_along(family, keep, dense, tmp_path):
    models.make(tmp_path / "m", family, **(dict(swiglu_limit=7.0) if family == "gpt_oss" else {}))
    plan = hand_plan(tmp_path, keep, dense, **(dict(order="free") if family == "gpt_oss" else
                                               dict(groups=dict(count=3, chosen=2, rule="top2"))))
    moetrim("rewrite", tmp_path / "m", "--plan", plan, "-o", tmp_path / "pruned")
    export(tmp_path / "pruned", tmp_path / "after.gguf")
    export(tmp_path / "m", tmp_path / "on-the-way.gguf", "--plan", plan)
    after, on_the_way = File(tmp_path / "after.gguf"), File(tmp_path / "on-the-way.gguf")
    assert not after.differences(on_the_way)
    sizes = {key for key in after.keys if key.split(".")[0] == after.keys["general.architecture"]}
    assert len(sizes) > 15 and all(after.keys[key] == on_the_way.keys[key] for key in sizes)


@pytest.mark.parametrize("family, method", [("qwen3_moe", "fp8 blocks"), ("qwen3_moe", "awq"), ("deepseek_v3", "fp8 blocks")])
def test_quantised_weights_are_dequantised(family, method, tmp_path):
    changes = dict(mlp_only_layers=[]) if family == "qwen3_moe" else {}
    model = models.make(tmp_path / "m", family, initializer_range=0.1, **changes, **SIZES[family])
    quantise.quantise(tmp_path / "m", method, model)
    export(tmp_path / "m", tmp_path / "codes.gguf")
    model.save_pretrained(tmp_path / "values")
    export(tmp_path / "values", tmp_path / "values.gguf")
    codes, values = File(tmp_path / "codes.gguf"), File(tmp_path / "values.gguf")
    assert codes.tensors.keys() == values.tensors.keys()
    for name, tensor in values.tensors.items():
        assert np.array_equal(codes.tensors[name].data, tensor.data), name  # but for the sign of zeros


def test_mxfp4_stays_mxfp4(tmp_path):
    """Which llama.cpp multiplies with states rounded to 8 bits."""
    model = models.make(tmp_path / "m", "gpt_oss", initializer_range=0.1, swiglu_limit=7.0, **SIZES["gpt_oss"])
    quantise.mxfp4(tmp_path / "m", model)
    llama_cpp.convert(dict(folder=tmp_path / "m", out=tmp_path / "theirs.gguf", outtype="bf16", vocabulary="none"))
    export(tmp_path / "m", tmp_path / "ours.gguf", dtype="bf16")
    ours, theirs = File(tmp_path / "ours.gguf"), File(tmp_path / "theirs.gguf")
    assert not ours.differences(theirs)
    assert ours.keys["general.file_type"] == theirs.keys["general.file_type"]
    assert ours.tensors["blk.3.ffn_up_exps.weight"].tensor_type.name == "MXFP4"
    with llama_cpp.Model(tmp_path / "ours.gguf") as llama:
        logits = np.concatenate([llama.logits(ids) for ids in IDS])
    assert llama_cpp.divergence(logits, models.logits_of(model, IDS).numpy()) <= 1e-3


REFUSED = {
    "dense layers": ("qwen3_moe", {}, ["layers.1.mlp.gate_proj", "qwen3moe"]),
    "gates": ("qwen3_moe", dict(mlp_only_layers=[], norm_topk_prob=False), ["norm_topk_prob"]),
    "clamp": ("olmoe", dict(num_key_value_heads=4), ["clip_qkv", "1.5"]),
    "window": ("mixtral", dict(sliding_window=9), ["layer 0", "9 tokens"]),
    "rope": ("mixtral", dict(rope_parameters=models.rope(kind="dynamic", factor=2.0)), ["rope scaling", "llama"]),
    "bias": ("qwen3_moe", dict(mlp_only_layers=[], attention_bias=True), ["o_proj.bias"]),
    "groups": ("deepseek_v2", {}, ["group_limited_greedy"]),
    "scaled attention": ("deepseek_v3", dict(rope_parameters=models.rope(kind="linear", factor=2.0, mscale_all_dim=1.0)),
                         ["mscale_all_dim", "yarn alone"]),
    "layers that say what they are": ("deepseek_v3", dict(num_hidden_layers=27), ["q_lora_rank is 14", "27 layers"]),
    "clamped activation": ("gpt_oss", {}, ["swiglu_limit is 2"]),
    "layers with windows": ("gpt_oss", dict(swiglu_limit=7.0, layer_types=["sliding_attention"] * 4), ["layer 1 looks back 9"]),
    "key heads": ("dots1", dict(sliding_window=None), ["num_key_value_heads is 2"]),
    "dense layers between": ("ernie4_5_moe", {}, ["layer 2 has no experts"]),
    "delta net's heads": ("qwen3_next", dict(mlp_only_layers=[]), ["linear_key_head_dim is 7", "linear_value_head_dim 9"]),
    "delta net's norm": ("qwen3_5_moe", dict(linear_value_head_dim=7), ["rms_norm_eps is 0.001"]),
    "chunks": ("llama4", {}, ["attention_chunk_size", "chunks of 16"]),
    "norm by number of experts": ("llama4", dict(LLAMA4, no_rope_layer_interval=4), ["use_qk_norm is false", "128", "here are 7"]),
    "context": ("mixtral", dict(max_position_embeddings=1 << 32), ["llama.context_length: 4294967296"]),
    "no architecture": ("pangu_pro_moe", {}, ["llama.cpp does not have", "qwen3_moe"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_cannot_compute_is_refused(name, tmp_path):
    family, changes, words = REFUSED[name]
    models.make(tmp_path / "m", family, **changes)
    done = moetrim("export", tmp_path / "m", "--format", "gguf", "--no-tokenizer", "-o", tmp_path / "out.gguf", code=3)
    assert all(word in done.stderr for word in words), done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


def test_what_llama_cpp_must_be_told(tmp_path):
    model = models.make(tmp_path / "m", "mixtral", rope_parameters=dict(YARN, beta_fast=2, beta_slow=1.5))
    notes = export(tmp_path / "m", tmp_path / "out.gguf")["notes"]
    assert len(notes) == 1 and "--yarn-beta-fast 2 --yarn-beta-slow 1.5" in notes[0]
    with llama_cpp.Model(tmp_path / "out.gguf", threads=1, yarn_beta_fast=2, yarn_beta_slow=1.5) as llama:
        logits = np.concatenate([llama.logits(ids) for ids in IDS])
    assert llama_cpp.divergence(logits, models.logits_of(model, IDS).numpy()) <= 1e-6


def test_blocks_that_llama_cpp_has_no_place_for(tmp_path):
    Mtp(tmp_path, "deepseek_v3")
    refused = moetrim("export", tmp_path / "m", "--format", "gguf", "--no-tokenizer", "-o", tmp_path / "out.gguf", code=3)
    assert "--mtp drop" in refused.stderr


def test_values_that_no_file_should_have(tmp_path):
    def broken(value, *more):
        model = models.make(tmp_path / "m", "mixtral")
        with torch.no_grad():
            model.state_dict()["model.layers.1.self_attn.v_proj.weight"][3, 5] = value
        model.save_pretrained(tmp_path / "m")
        done = moetrim("export", tmp_path / "m", "--format", "gguf", "--no-tokenizer", "-o", tmp_path / "out.gguf", *more, code=3)
        assert "blk.1.attn_v.weight" in done.stderr and not list(tmp_path.glob("*.gguf*"))
        return done.stderr
    assert "NaN" in broken(float("nan"))
    assert "infinite" in broken(float("-inf"), "--dtype", "f32")
    assert "70000" in broken(70000.0, "--dtype", "f16")


def test_existing_files_and_dry_runs(tmp_path):
    models.make(tmp_path / "m", "mixtral")
    estimate = export(tmp_path / "m", tmp_path / "out.gguf", "--dry-run")
    assert not (tmp_path / "out.gguf").exists()
    export(tmp_path / "m", tmp_path / "out.gguf")
    size = (tmp_path / "out.gguf").stat().st_size
    assert estimate["bytes"] < size <= estimate["disk_bytes"] <= size + 16384
    arguments = ["export", tmp_path / "m", "--format", "gguf", "--no-tokenizer", "-o"]
    assert "--overwrite" in moetrim(*arguments, tmp_path / "out.gguf", code=2).stderr
    (tmp_path / "other.gguf").write_text("a letter")
    assert "no GGUF" in moetrim(*arguments, tmp_path / "other.gguf", "--overwrite", code=2).stderr
    assert ".gguf" in moetrim(*arguments, tmp_path / "out", code=2).stderr
    assert "--no-tokenizer" in moetrim("export", tmp_path / "m", "--format", "gguf", "-o", tmp_path / "two.gguf", code=3).stderr


def test_a_signal_leaves_nothing(tmp_path):
    models.make(tmp_path / "m", "qwen3_moe", mlp_only_layers=[], hidden_size=64, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "m/model.safetensors")
    tensors["model.embed_tokens.weight"] = torch.zeros(1 << 20, 64)  # large enough to be caught at
    save_file(tensors, tmp_path / "m/model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps({**config, "vocab_size": 1 << 20}))
    command = [MOETRIM, "export", tmp_path / "m", "--format", "gguf", "--no-tokenizer", "--dtype", "q8_0", "-o", tmp_path / "out.gguf"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while run.poll() is None and not list(tmp_path.glob("*out.gguf*")):
        time.sleep(0.001)
    run.send_signal(signal.SIGTERM)
    assert "stopped" in run.communicate()[1]
    assert run.returncode == 5 and list(tmp_path.iterdir()) == [tmp_path / "m"]
