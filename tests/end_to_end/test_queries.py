"""What the first routers make of queries: against a calibration on each of them, and the bytes it takes."""
import json
import subprocess

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import models
from program import BUILD, moetrim, moetrim_json, write_task

SUMS = ["routed_count", "gate_sum", "router_mass", "tcess_logit_sum"]
IDS = models.sequences(9, [17, 5, 33])


def route(checkpoint, task, depth, memory=0):
    done = subprocess.run([BUILD / "tests/forward_probe", "--queries", checkpoint, task, "fp32", str(depth), str(memory)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss", "llama4_text"])
def test_sums_are_those_of_a_calibration(family, tmp_path):
    """Demonstration i is slice i of the statistics."""
    models.make(tmp_path / "m", family, seed=4)
    task = write_task(tmp_path / "all.jsonl", IDS)
    together = route(tmp_path / "m", task, 2)["queries"]
    moetrim("calibrate", tmp_path / "m", "--task", task, "--dtype", "fp32", "-o", tmp_path / "all.stats")
    files = sorted((tmp_path / "all.stats").glob("layer-*"))[:2]
    for number, query in enumerate(together):
        assert query["tokens"] == len(IDS[number])
        assert [f"layer-{layer['layer']:05}.safetensors" for layer in query["layers"]] == [file.name for file in files]
        for layer, file in zip(query["layers"], files):
            recorded = load_file(file)
            for name in SUMS:
                np.testing.assert_allclose(layer[name], recorded[name][0, number], rtol=1e-6, atol=1e-12, err_msg=name)
    assert route(tmp_path / "m", write_task(tmp_path / "one.jsonl", IDS[1:2]), 2)["queries"] == together[1:2]


def tensor_bytes(folder, wanted):
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            total += sum(tensors.get_tensor(name).nbytes for name in tensors.keys() if wanted(name))
    return total


def test_only_what_comes_before_the_router_is_read(tmp_path):
    """A dense layer, then MoE layers with shared experts; a large vocabulary of which eight rows are needed."""
    models.make(tmp_path / "m", "deepseek_v3", hidden_size=256, num_hidden_layers=5, first_k_dense_replace=1, intermediate_size=512,
                moe_intermediate_size=128, vocab_size=4096)
    task = write_task(tmp_path / "t.jsonl", [[7, 8, 9, 7, 1000, 8, 3000, 2, 9, 4000, 5]])

    def before_router(name):
        layer = name.split(".layers.")[-1].split(".")[0]
        behind = ".experts." in name or ".shared_experts." in name
        return layer == "0" or (layer == "1" and not behind)

    needed = tensor_bytes(tmp_path / "m", before_router) + 8 * 256 * 4
    read = route(tmp_path / "m", task, 1)["bytes"]
    pages = 4096 * (8 + 2 * 20)  # rows and tensors begin and end within one
    assert needed <= read <= needed + pages
    experts = tensor_bytes(tmp_path / "m", lambda name: ".layers.1." in name and ".experts." in name)
    shared = tensor_bytes(tmp_path / "m", lambda name: ".layers.1." in name and ".shared_experts." in name)
    further = tensor_bytes(tmp_path / "m", lambda name: ".layers.2." in name and ".experts." not in name and ".shared_experts." not in name)
    deeper = route(tmp_path / "m", task, 2)
    chosen = np.count_nonzero(deeper["queries"][0]["layers"][0]["routed_count"])
    expected = needed + chosen * experts // 15 + shared + further
    assert 0 < chosen < 15 and expected <= deeper["bytes"] <= expected + 2 * pages + chosen * 6 * 4096


def test_little_memory_gives_the_same_sums(tmp_path):
    models.make(tmp_path / "m", "qwen3_moe", hidden_size=512, num_hidden_layers=2, mlp_only_layers=[])
    task = write_task(tmp_path / "t.jsonl", models.sequences(3, [2000] * 6, 101))
    planned = moetrim_json("calibrate", tmp_path / "m", "--task", task, "--dtype", "fp32", "--dry-run")["peak_memory_bytes"]
    few = route(tmp_path / "m", task, 1, planned - (16 << 20))
    one = route(tmp_path / "m", task, 1)
    assert few["queries"] == one["queries"] and few["bytes"] > 1.5 * one["bytes"]
