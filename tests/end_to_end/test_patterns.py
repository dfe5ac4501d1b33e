"""Patterns: retrieval against numpy, checkpoints against plan and rewrite, deltas applied byte by byte."""
import json
import re
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import models
from program import ROOT, folder_bytes, moetrim, moetrim_json, write_task

DEMO = ROOT / "demo/model"


def ids_between(seed, lengths, low, high):
    """Sequences of a part of the vocabulary: tasks that routers can tell apart."""
    random = np.random.default_rng(seed)
    return [[int(i) for i in random.integers(low, high, length)] for length in lengths]


def calibrate(folder, name, ids):
    moetrim("calibrate", folder / "m", "--task", write_task(folder / f"{name}.jsonl", ids), "--dtype", "fp32", "-o", folder / f"{name}.stats")
    return folder / f"{name}.stats"


def sums(stats, stat, depth):
    """[depth, experts] per token, of the first MoE layers."""
    rows = []
    for file in sorted(stats.glob("layer-*"))[:depth]:
        layer = load_file(file)
        rows.append(layer[stat][0].sum(0) / layer["token_count"][0].sum())
    return np.stack(rows)


def signature(stats, stat, depth):
    """[rows, depth * experts]: routed counts of the first layer by kind of prompt, everything else the mean."""
    mean = sums(stats, stat, depth)
    layer = load_file(min(stats.glob("layer-*")))
    frequent = layer["prompt_count"][0] >= 16
    if stat != "routed_count" or not frequent.any():
        return mean.reshape(1, -1)
    kinds = layer["prompt_routing"][0][frequent]
    directions = kinds / np.linalg.norm(kinds, axis=1, keepdims=True)
    for rare in layer["prompt_routing"][0][~frequent]:
        kinds[(directions @ rare).argmax()] += rare
    kinds *= mean[0].sum() / kinds.sum(1, keepdims=True)
    return np.stack([np.concatenate([kind, mean[1:].ravel()]) for kind in kinds])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model m, statistics low.stats and high.stats, and a library lib of both."""
    folder = tmp_path_factory.mktemp("patterns")
    models.make(folder / "m", "deepseek_v3", seed=3)
    for name, low, high in (("low", 3, 40), ("high", 60, 100)):
        ids = ids_between(1, [40, 30, 50], low, high)
        # The first one often enough for a kind of its own.
        moetrim("patterns", "add", folder / "lib", calibrate(folder, name, ids + ids[:1] * (16 if name == "low" else 0)))
    return folder


def test_distances_are_those_of_numpy(made):
    library, tmp_path = made / "lib", made
    queries = ids_between(2, [25], 3, 40) + ids_between(2, [31], 60, 100)
    file = write_task(tmp_path / "q.jsonl", queries)
    alone = [calibrate(tmp_path, f"q{i}", [ids]) for i, ids in enumerate(queries)]
    for depth, more in ((1, []), (2, []), (1, ["--signature-of", "router_mass"]), (1, ["--variant", "official"])):
        stat = "tcess_logit_sum" if "official" in more else more[1] if more else "routed_count"
        found = moetrim_json("patterns", "retrieve", library, "--checkpoint", tmp_path / "m", "--queries", file, "--dtype", "fp32",
                             *(["--depth", depth] if "official" not in more else []), *more)
        assert 0 < found["bytes_read"] < found["checkpoint_bytes"]
        for query, result in zip(alone, found["results"], strict=True):
            assert result["query"] is None
            q = sums(query, stat, depth).ravel()
            expected = {}
            for name in ("low", "high"):
                rows = signature(tmp_path / f"{name}.stats", stat, depth)
                official = "official" in more
                distances = ((q - rows) ** 2).sum(1) if official else 1 - rows @ q / np.linalg.norm(q) / np.linalg.norm(rows, axis=1)
                expected[name] = distances.min()
            got = {match["name"]: match["distance"] for match in result["nearest"]}
            assert list(got) == sorted(expected, key=expected.get)
            for name in expected:
                assert got[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5)


def test_a_materialised_pattern_is_the_plan_of_its_statistics(made):
    library, tmp_path = made / "lib", made
    query = write_task(tmp_path / "q.jsonl", ids_between(5, [30], 60, 100))
    chosen = ["--method", "easy-ep+reap", "--keep", "9"]
    common = ["patterns", "materialize", library, "--checkpoint", tmp_path / "m", *chosen]
    done = moetrim_json(*common, "--queries", query, "--limit", "2", "-o", tmp_path / "out")
    assert done["patterns"] == [{"name": "high", "weight": pytest.approx(1 - done["retrieval"]["results"][0]["nearest"][0]["distance"])}]
    moetrim("plan", tmp_path / "high.stats", *chosen, "-o", tmp_path / "plan.json")
    moetrim("rewrite", tmp_path / "m", "--plan", tmp_path / "plan.json", "-o", tmp_path / "expected")
    ours, expected = folder_bytes(tmp_path / "out"), folder_bytes(tmp_path / "expected")
    assert ours["model.safetensors"] == expected["model.safetensors"] and ours["config.json"] == expected["config.json"]

    keep = lambda file: [layer["keep"] for layer in json.loads(file.read_text())["layers"]]
    for combine in ("sum", "union"):
        moetrim(*common, "--name", "low=0.5", "--name", "high", "--combine", combine, "--protect-task", "low:0.2", "--plan-only", tmp_path / "mix.json")
        moetrim("plan", tmp_path / "low.stats", "--with", tmp_path / "high.stats", "--task", "low=0.5", "--task", "high", "--combine", combine,
                "--protect-task", "low:0.2", *chosen, "-o", tmp_path / "both.json")
        assert keep(tmp_path / "mix.json") == keep(tmp_path / "both.json")

    far = ["--queries", query, "--limit", "0"]
    assert "no pattern fits" in moetrim(*common, *far, "--plan-only", tmp_path / "p.json", code=3).stderr
    done = moetrim_json(*common, *far, "--fallback", "low", "--plan-only", tmp_path / "p.json")
    assert done["patterns"][0]["name"] == "low" and not done["retrieval"]["results"][0]["fits"]


def tensors_of(folder):
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as opened:
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})
    return tensors


@pytest.mark.parametrize("family, layout", [("qwen3_moe", "per-expert"), ("qwen3_moe", "fused"), ("deepseek_v3", "per-expert"), ("gpt_oss", None)])
def test_a_delta_makes_one_checkpoint_of_the_other(family, layout, tmp_path):
    models.make(tmp_path / "m", family, layout, seed=1)
    keep = models.two_thirds(models.config_of(family))
    stats = calibrate(tmp_path, "t", models.sequences(9, [25, 40]))
    for seed in (0, 1):
        moetrim("plan", stats, "--method", "random", "--seed", seed, "--keep", keep, "-o", tmp_path / f"{seed}.json")
        moetrim("rewrite", tmp_path / "m", "--plan", tmp_path / f"{seed}.json", "-o", tmp_path / f"out{seed}")
    delta = moetrim_json("patterns", "delta", tmp_path / "0.json", tmp_path / "1.json", "--checkpoint", tmp_path / "m")
    assert delta["experts"] > 0 and sum(read["bytes"] for read in delta["reads"]) == delta["load_bytes"] == delta["drop_bytes"]
    if family == "deepseek_v3":  # 3 groups of 5: an expert comes into a slot of its own group
        assert all(slot // (keep // 3) == expert // 5 for layer in delta["layers"] for slot, expert in enumerate(layer["slots"]))
    source = {read["file"]: (tmp_path / "m" / read["file"]).read_bytes() for read in delta["reads"]}
    read = {file: set() for file in source}
    for part in delta["reads"]:
        read[part["file"]].update(range(part["offset"], part["offset"] + part["bytes"]))
    ours, theirs = ({name: tensor.copy() for name, tensor in tensors_of(tmp_path / f"out{i}").items()} for i in (0, 1))
    for layer in delta["layers"]:
        for load in layer["load"]:
            for part in load["bytes"]:
                assert part["offset"] in read[part["file"]]
                data = source[part["file"]][part["offset"]:part["offset"] + part["bytes"]]
                name, own = re.subn(r"\.experts\.\d+\.", f".experts.{load['slot']}.", part["tensor"])
                place = 0 if own else load["slot"] * part["bytes"]
                ours[name].reshape(-1).view(np.uint8)[place:place + part["bytes"]] = np.frombuffer(data, np.uint8)
    order = {layer["layer"]: np.argsort(layer["slots"]) for layer in delta["layers"]}
    checked = 0
    for name, tensor in theirs.items():
        layer = re.search(r"layers\.(\d+)\.", name)
        slots = order.get(int(layer[1])) if layer else None
        if slots is not None and (own := re.search(r"\.experts\.(\d+)\.", name)):
            got = ours[name.replace(own[0], f".experts.{slots[int(own[1])]}.")]
        elif slots is not None and re.search(r"\.(gate|router)\.(weight|bias|e_score)|\.experts\.", name):
            got = ours[name][slots]
        else:
            got = ours[name]
        np.testing.assert_array_equal(got, tensor, err_msg=name)
        checked += 1
    assert checked == len(ours)
    other, why = (["--keep", keep, "--regroup"], "groups") if family == "deepseek_v3" else (["--keep", keep + 1], "experts; slots")
    moetrim("plan", stats, "--method", "random", *other, "-o", tmp_path / "2.json")
    assert why in moetrim("patterns", "delta", tmp_path / "0.json", tmp_path / "2.json", "--checkpoint", tmp_path / "m", code=3).stderr


def first_lines(source, target, count):
    target.write_text("".join(source.open().readlines()[:count]))
    return target


def test_unseen_prompts_of_the_demo_model_find_their_task(tmp_path):
    """By the statistics alone, and by single prompts."""
    for task in ("sorting", "text"):
        demonstrations = first_lines(ROOT / f"calibration/{task}.jsonl", tmp_path / f"{task}.jsonl", 96)
        moetrim("calibrate", DEMO, "--task", demonstrations, "-o", tmp_path / f"{task}.stats")
        moetrim("patterns", "add", tmp_path / "plain", tmp_path / f"{task}.stats")
        moetrim("patterns", "add", tmp_path / "lib", tmp_path / f"{task}.stats", "--prompts", demonstrations, "--checkpoint", DEMO)
    listed = moetrim_json("patterns", "list", tmp_path / "lib")["patterns"]
    assert [(p["name"], p["demonstrations"], p["signature"]["prompts"]) for p in listed] == [("sorting", 96, 96), ("text", 96, 96)]
    retrieve = ["patterns", "retrieve", tmp_path / "lib", "--checkpoint", DEMO]
    for task in ("sorting", "text"):
        unseen = first_lines(ROOT / f"calibration/{task}.test.jsonl", tmp_path / "unseen.jsonl", 40)
        plain = moetrim_json("patterns", "retrieve", tmp_path / "plain", "--checkpoint", DEMO, "--queries", unseen)["results"]
        results = moetrim_json(*retrieve, "--queries", unseen)["results"]
        for found in (plain, results):
            assert np.mean([r["pattern"] == task for r in found]) >= 0.95
        assert results[0]["query"] == json.loads(unseen.open().readline())["prompt"]
    (tmp_path / "q.txt").write_text("Frank fills 3 bags with 2 cards each. How many cards in all?\n")
    stranger = moetrim_json(*retrieve, "--queries", tmp_path / "q.txt", "--fallback", "text")
    assert stranger["results"][0]["fits"] is False and stranger["results"][0]["message"] == "no pattern fits"
    assert stranger["results"][0]["pattern"] == "text"


def test_a_pattern_goes_to_another_library(made, tmp_path):
    library = shutil.copytree(made / "lib", tmp_path / "lib")
    moetrim("patterns", "export", library, "low", "-o", tmp_path / "low.safetensors")
    moetrim("patterns", "add", tmp_path / "other", "--pattern", tmp_path / "low.safetensors", "--name", "again")
    assert folder_bytes(library)["low.safetensors"] == folder_bytes(tmp_path / "other")["again.safetensors"]
    moetrim("patterns", "export", library, "low", "--as", "plan", "--method", "reap", "--keep", "9", "-o", tmp_path / "ours.json")
    moetrim("plan", made / "low.stats", "--method", "reap", "--keep", "9", "-o", tmp_path / "theirs.json")
    ours, theirs = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("ours", "theirs"))
    assert ours == theirs
    moetrim("patterns", "remove", library, "low")
    assert "no pattern \"low\"" in moetrim("patterns", "show", library, "low", code=3).stderr
    assert "--merge" in moetrim("patterns", "export", library, "high", "--merge", "hc-smoe", "-o", "x", code=2).stderr
