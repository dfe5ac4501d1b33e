"""Plans to and from the forms of other tools, held against what those tools' own readers make of the files."""
import json

import numpy as np
import pytest

import models
from program import moetrim, moetrim_json, write_task


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model m, its statistics, scores, and a plan that keeps 4 of 7 experts."""
    folder = tmp_path_factory.mktemp("plans")
    models.make(folder / "m", "qwen3_moe", seed=5)
    random = np.random.default_rng(3)
    task = write_task(folder / "task.jsonl", [[int(i) for i in random.integers(3, 100, 40)] for _ in range(3)])
    moetrim("calibrate", folder / "m", "--task", task, "--dtype", "fp32", "-o", folder / "stats")
    moetrim("score", folder / "stats", "--method", "reap", "-o", folder / "scores")
    moetrim("plan", folder / "stats", "--method", "reap", "--keep", 4, "-o", folder / "plan.json")
    return folder


def vllm_ascend(file, experts, ratio):
    """What the reader of vllm-ascend's pull request 12525 keeps of each layer."""
    kept = int(experts * (1.0 - ratio))
    return {int(layer): ids[:kept] for line in file.read_text().splitlines() for layer, ids in json.loads(line).items()}


def profile(file, experts, layers):
    """What the reader of vLLM's pull request 42613 keeps."""
    read = json.loads(file.read_text())
    assert read["version"] == 1
    return {layer: [e for e in range(experts) if [layer, e] not in read["pruned_experts"]] for layer in layers}


def test_forms_say_what_the_plan_says_and_come_back(made, tmp_path):
    plan = json.loads((made / "plan.json").read_text())
    expected = {layer["layer"]: layer["keep"] for layer in plan["layers"]}
    for form, more, read in (("vllm-ascend", ["--scores", made / "scores"], lambda f, said: vllm_ascend(f, 7, said["expert_prune_ratio"])),
                             ("profile", [], lambda f, said: profile(f, 7, expected)),
                             ("llm-compressor", [], lambda f, said: {int(k.split(".")[2]): v for k, v in json.loads(f.read_text()).items()})):
        said = moetrim_json("plans", "export", made / "plan.json", "--form", form, *more, "-o", tmp_path / form)
        assert said["keep"] == 4 and said["file"] == str(tmp_path / form)
        assert {layer: sorted(ids) for layer, ids in read(tmp_path / form, said).items()} == expected
        ratio = ["--expert-prune-ratio", said["expert_prune_ratio"]] if "expert_prune_ratio" in said else []
        back = moetrim_json("plans", "import", tmp_path / form, "--form", form, "--checkpoint", made / "m", *ratio, "-o", tmp_path / "back.json")
        assert {layer["layer"]: layer["keep"] for layer in back["layers"]} == expected
        assert back["method"] == "imported" and back["checkpoint_fingerprint"] == plan["checkpoint_fingerprint"]
        moetrim("rewrite", made / "m", "--plan", tmp_path / "back.json", "-o", tmp_path / f"{form}-pruned")
    card = (tmp_path / "profile-pruned/README.md").read_text()
    assert "were chosen elsewhere" in card and "were reached by no measured token" not in card
    a, b = ((tmp_path / f"{form}-pruned/model.safetensors").read_bytes() for form in ("profile", "llm-compressor"))
    assert a == b


def test_a_ranking_serves_other_ratios_as_the_scores_say(made, tmp_path):
    moetrim("plans", "export", made / "plan.json", "--form", "vllm-ascend", "--scores", made / "scores", "-o", tmp_path / "ranked")
    fewer = moetrim_json("plans", "import", tmp_path / "ranked", "--form", "vllm-ascend", "--checkpoint", made / "m",
                         "--expert-prune-ratio", "0.5", "-o", tmp_path / "3.json")
    moetrim("plan", made / "stats", "--method", "reap", "--keep", 3, "-o", tmp_path / "by-scores.json")
    by_scores = json.loads((tmp_path / "by-scores.json").read_text())
    assert [layer["keep"] for layer in fewer["layers"]] == [layer["keep"] for layer in by_scores["layers"]]


def test_what_is_refused(made, tmp_path):
    plan = made / "plan.json"
    assert "give the scores" in moetrim("plans", "export", plan, "--form", "vllm-ascend", "-o", tmp_path / "x", code=2).stderr
    assert "expert prune ratio" in moetrim("plans", "import", plan, "--form", "vllm-ascend", "--checkpoint", made / "m",
                                           "-o", tmp_path / "x", code=2).stderr
    assert "pruned_experts" in moetrim("plans", "import", plan, "--form", "profile", "--checkpoint", made / "m", "-o", tmp_path / "x",
                                       code=3).stderr
    assert not (tmp_path / "x").exists()
