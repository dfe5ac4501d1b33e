"""Importance matrices: ours against what llama.cpp itself multiplies with, cut by a plan, and worth something."""
import ctypes
import json

import gguf
import numpy as np
import pytest
import torch

import llama_cpp
import models
from program import moetrim, moetrim_json, write_task
from test_gguf_export import CASES, Case

LENGTHS = [33, 40, 64, 21]
# Of widths that k-quants take.
WIDE = dict(hidden_size=256, moe_intermediate_size=256, num_hidden_layers=2, initializer_range=0.04)
# Grouped-query attention; latent attention behind a dense layer; delta nets, whose output projection is written in another order.
FAMILIES = {"qwen3_moe": Case("qwen3_moe", mlp_only_layers=[], num_experts=4, num_experts_per_tok=2, **WIDE),
            "deepseek_v3": CASES["deepseek_v3"], "qwen3_5_moe": CASES["qwen3_5_moe"]}
MUL_MAT, MUL_MAT_ID = "MUL_MAT", "MUL_MAT_ID"


class GgmlTensor(ctypes.Structure):
    pass


GgmlTensor._fields_ = [
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32), ("src", ctypes.POINTER(GgmlTensor) * 10),
    ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t), ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64)]
Callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(GgmlTensor), ctypes.c_bool, ctypes.c_void_p)


def view(tensor, dtype):
    """A tensor's values [ne3, ne2, ne1, ne0], wherever they lie."""
    size = sum((tensor.ne[i] - 1) * tensor.nb[i] for i in range(4)) + 4
    memory = np.frombuffer((ctypes.c_char * size).from_address(tensor.data), dtype)
    return np.lib.stride_tricks.as_strided(memory, tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1])


class Collector:
    """Sums of squares of what llama.cpp multiplies matrices with, as its imatrix program defines them."""

    def __init__(self, library):
        self.library, self.sums, self.counts = library, {}, {}
        self.callback = Callback(self.node)
        describe = ctypes.CDLL(str(llama_cpp.FOLDER / "lib/libggml-base.so")).ggml_op_name
        describe.restype, describe.argtypes = ctypes.c_char_p, [ctypes.c_int]
        self.describe = describe

    def __getattr__(self, name):
        return getattr(self.library, name)

    def context_default_params(self):
        parameters = self.library.context_default_params()
        parameters.cb_eval = ctypes.cast(self.callback, ctypes.c_void_p)
        return parameters

    def node(self, pointer, ask, _):
        tensor = pointer.contents
        op = self.describe(tensor.op).decode()
        if op not in (MUL_MAT, MUL_MAT_ID):
            return not ask
        name = tensor.src[0].contents.name.decode()
        if name.startswith("blk.") and not ask:
            self.add(op, name, tensor.src[0].contents, tensor.src[1].contents, tensor.src[2])
        return name.startswith("blk.") or not ask

    def add(self, op, name, weight, read, ids):
        x = view(read, np.float32).astype(np.float64)**2
        if op == MUL_MAT:  # matrices of heads lie one behind the other and share a count
            heads = weight.ne[2]
            assert x.shape[0] == 1 and x.shape[1] in (1, heads), name
            sums = x[0].sum(1).reshape(1, -1)
            counts = np.array([read.ne[1]])
        else:
            chosen = view(ids.contents, np.int32)[0, 0]  # [T, K]
            sums, counts = np.zeros((weight.ne[2], read.ne[0])), np.bincount(chosen.ravel(), minlength=weight.ne[2])
            for slot in range(chosen.shape[1]):
                np.add.at(sums, chosen[:, slot], x[0, :, slot % read.ne[1]])
        self.sums[name] = self.sums.get(name, 0) + sums
        self.counts[name] = self.counts.get(name, 0) + counts


def collected(path, sequences):
    with llama_cpp.Model(path) as model:
        model.library = Collector(model.library)
        for ids in sequences:
            model.logits(ids)
        return model.library.sums, model.library.counts


def read(path):
    """{tensor: (sums [matrices, inputs], counts)} as the gguf package reads it."""
    tensors = {t.name: t.data.astype(np.float64) for t in gguf.GGUFReader(path).tensors}
    return {name[:-8]: (sums.reshape(tensors[name[:-8] + ".counts"].size, -1), tensors[name[:-8] + ".counts"].ravel())
            for name, sums in tensors.items() if name.endswith(".in_sum2")}


def importances(path):
    """What llama-quantize makes of the file: means, and ones for experts that no token chose."""
    return {name: np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], 1.0).ravel()
            for name, (sums, counts) in read(path).items()}


def uneven(model):
    """Channels of very different size, as trained models have them."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("layernorm.weight"):
                tensor.mul_(torch.exp(1.2 * torch.randn(tensor.shape)))


def make(folder, family):
    (folder / "m").mkdir()
    model = FAMILIES[family].make(folder / "m", seed=4)
    if family == "qwen3_moe":
        uneven(model)
        config = (folder / "m/config.json").read_bytes()
        model.save_pretrained(folder / "m")
        (folder / "m/config.json").write_bytes(config)
    sequences = models.sequences(5, LENGTHS)
    write_task(folder / "t.jsonl", sequences)
    moetrim("calibrate", folder / "m", "--task", folder / "t.jsonl", "--statistics", "inputs", "--dtype", "fp32",
            "-o", folder / "s.stats")
    moetrim("export", folder / "m", "--format", "gguf", "--dtype", "f32", "--no-tokenizer", "--mtp", "drop", "-o", folder / "m.gguf")
    moetrim("imatrix", "write", folder / "s.stats", "--checkpoint", folder / "m", "--mtp", "drop", "-o", folder / "i.gguf")
    return model, sequences


@pytest.fixture(scope="module", params=FAMILIES)
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return folder, *make(folder, request.param)


def test_sums_are_those_of_llama_cpp(whole):
    """Every matrix that llama.cpp multiplies with has an entry, with its sums and counts."""
    folder, _, sequences = whole
    ours, (sums, counts) = read(folder / "i.gguf"), collected(folder / "m.gguf", sequences)
    assert set(ours) == set(sums)
    for name in sums:
        np.testing.assert_array_equal(ours[name][1], counts[name], err_msg=name)
        np.testing.assert_allclose(ours[name][0], sums[name], rtol=1e-4, atol=2e-5 * sums[name].max(), err_msg=name)
    fields = gguf.GGUFReader(folder / "i.gguf").fields
    assert fields["general.type"].contents() == "imatrix" and fields["imatrix.datasets"].contents() == ["t"]
    assert fields["imatrix.chunk_size"].contents() == 512 and fields["imatrix.chunk_count"].contents() == 1
    shown = moetrim_json("imatrix", "show", folder / "i.gguf")
    assert {entry["tensor"] for entry in shown["tensors"]} == set(sums)


@pytest.mark.parametrize("whole", ["qwen3_moe"], indirect=True)
def test_it_helps_quantisers(whole, tmp_path):
    folder, _, _ = whole
    unseen = models.sequences(77, [60, 60, 60])
    with llama_cpp.Model(folder / "m.gguf") as model:
        exact = np.concatenate([model.logits(ids) for ids in unseen])

    def divergence(kind, imatrix):
        path = llama_cpp.quantize(folder / "m.gguf", tmp_path / "q.gguf", kind, imatrix=imatrix)
        with llama_cpp.Model(path) as model:
            return llama_cpp.divergence(np.concatenate([model.logits(ids) for ids in unseen]), exact)

    ours = importances(folder / "i.gguf")
    plain, weighed = divergence("q2_k", None), divergence("q2_k", ours)
    print(f"Q2_K: KL {plain:.4f} without, {weighed:.4f} with")
    assert weighed < 0.9 * plain
    assert divergence("iq2_xxs", ours) < 3 * plain  # which llama.cpp refuses without an imatrix for every matrix
    with pytest.raises(llama_cpp.LlamaError):
        llama_cpp.quantize(folder / "m.gguf", tmp_path / "q.gguf", "iq2_xxs")


@pytest.mark.parametrize("whole", ["qwen3_moe"], indirect=True)
def test_slices_and_sums(whole, tmp_path):
    folder, _, _ = whole
    moetrim("plan", folder / "s.stats", "--method", "reap", "--keep", 3, "-o", tmp_path / "p.json")
    layers = {entry["layer"]: entry["keep"] for entry in json.loads((tmp_path / "p.json").read_text())["layers"]}
    moetrim("imatrix", "slice", folder / "i.gguf", "--plan", tmp_path / "p.json", "-o", tmp_path / "cut.gguf")
    before, after = read(folder / "i.gguf"), read(tmp_path / "cut.gguf")
    assert set(before) == set(after)
    for name, (sums, counts) in before.items():
        if name.endswith("_exps.weight"):
            keep = layers[int(name.split(".")[1])]
            sums, counts = sums[keep], counts[keep]
        np.testing.assert_array_equal(after[name][0], sums, err_msg=name)
        np.testing.assert_array_equal(after[name][1], counts, err_msg=name)
    moetrim("imatrix", "write", folder / "s.stats", "--checkpoint", folder / "m", "--plan", tmp_path / "p.json",
            "-o", tmp_path / "direct.gguf")
    assert (tmp_path / "direct.gguf").read_bytes() == (tmp_path / "cut.gguf").read_bytes()

    # Of the size that a quantiser expects for the pruned file; for the whole one it is too small.
    moetrim("rewrite", folder / "m.gguf", "--plan", tmp_path / "p.json", "-o", tmp_path / "pruned.gguf")
    llama_cpp.quantize(tmp_path / "pruned.gguf", tmp_path / "q.gguf", "q2_k", imatrix=importances(tmp_path / "cut.gguf"))
    with pytest.raises(llama_cpp.LlamaError, match="different from tensor size"):
        llama_cpp.quantize(folder / "m.gguf", tmp_path / "q.gguf", "q2_k", imatrix=importances(tmp_path / "cut.gguf"))

    moetrim("imatrix", "merge", folder / "i.gguf", folder / "i.gguf", "-o", tmp_path / "twice.gguf")
    for name, (sums, counts) in read(tmp_path / "twice.gguf").items():
        np.testing.assert_array_equal(sums, 2 * before[name][0])
        np.testing.assert_array_equal(counts, 2 * before[name][1])

    for code, message, command in [
            (3, "is of 3 experts, the plan of 4",
             ["slice", tmp_path / "cut.gguf", "--plan", tmp_path / "p.json", "-o", tmp_path / "x"]),
            (2, "exists already", ["merge", folder / "i.gguf", "-o", tmp_path / "cut.gguf"]),
            (3, "different models", ["merge", folder / "i.gguf", tmp_path / "cut.gguf", "-o", tmp_path / "x"]),
            (3, "not an imatrix", ["show", folder / "m.gguf"])]:
        assert message in moetrim("imatrix", *command, code=code).stderr
