"""The recipe of the demo: everything in one command, then nothing to do; and what the demo must show."""
import json

import pytest
from transformers import AutoModelForCausalLM

from program import ROOT, folder_bytes, moetrim, moetrim_json

TASKS = sorted(f.name.removesuffix(".test.jsonl") for f in (ROOT / "calibration").glob("*.test.jsonl"))


def recipe(folder, **changes):
    data = {"checkpoint": str(ROOT / "demo/model"), "output": "run",
            "calibrate": {"task": [str(ROOT / "calibration/arithmetic.jsonl")], "samples": 24},
            "plan": {"method": "easy-ep", "keep": 0.5},
            "evaluate": {"task": [str(ROOT / "calibration/arithmetic.test.jsonl")], "samples": 8, "count": "response",
                         "exact-match": True, "max-new-tokens": 128}}
    for part, fields in changes.items():
        data[part].update(fields)
    (folder / "recipe.json").write_text("// a comment\n" + json.dumps(data))
    return folder / "recipe.json"


def test_a_recipe_runs_once(tmp_path):
    result = moetrim_json("run", recipe(tmp_path))
    assert result["experts"] == {"before": 32, "after": 16}
    assert {"before", "after", "random"} <= set(result["evaluation"][0])
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "run/checkpoint", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    first = folder_bytes(tmp_path / "run")
    again = moetrim("run", tmp_path / "recipe.json")
    for step in ("calibrate", "rewrite", "evaluate"):
        assert f"{step}: unchanged, skipped" in again.stderr
    assert folder_bytes(tmp_path / "run") == first
    # Another keep: the measurement stays, the rest follows.
    changed = moetrim("run", recipe(tmp_path, plan={"keep": 20}))
    assert "calibrate: unchanged, skipped" in changed.stderr and "rewrite: unchanged" not in changed.stderr
    assert json.loads((tmp_path / "run/checkpoint/config.json").read_text())["num_experts"] == 20


def test_a_recipe_over_atoms_runs_once(tmp_path):
    atoms = {"calibrate": {"statistics": "second-order", "samples": 8},
             "plan": {"method": "heapr", "keep-atoms": 0.75, "scope": "expert", "align": 4, "keep": 16},
             "evaluate": {"exact-match": False}}
    result = moetrim_json("run", recipe(tmp_path, **atoms))
    width = json.loads((ROOT / "demo/model/config.json").read_text())["moe_intermediate_size"]
    assert result["experts"] == {"before": 32, "after": 16}
    assert result["atoms"]["after"] * 8 == result["atoms"]["before"] * 3  # half of the experts, three quarters of each
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "run/checkpoint", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.moe_intermediate_size * 4 == width * 3
    random = json.loads((tmp_path / "run/plan-random.json").read_text())
    assert random["method"] == "random-atoms" and random["source"]["expert_method"] == "random"
    first = folder_bytes(tmp_path / "run")
    again = moetrim("run", tmp_path / "recipe.json")
    for step in ("calibrate", "rewrite", "evaluate"):
        assert f"{step}: unchanged, skipped" in again.stderr
    assert folder_bytes(tmp_path / "run") == first


def test_the_shipped_recipe_reads():
    """Its paths exist and its fields are known; the demo script runs it whole."""
    text = (ROOT / "recipes/demo.json").read_text()
    data = json.loads("\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//")))
    assert (ROOT / "recipes" / data["checkpoint"] / "config.json").exists()
    for part in ("calibrate", "evaluate"):
        for file in data[part]["task"]:
            assert (ROOT / "recipes" / file).exists()
    assert data["output"] == "../runs/demo"


@pytest.mark.parametrize("task", TASKS)
def test_full_model_answers(task):
    result = moetrim_json("evaluate", ROOT / "demo/model", "--task", ROOT / f"calibration/{task}.test.jsonl", "--exact-match",
                          "--max-new-tokens", 128)
    assert result["exact_match"] >= 0.95


@pytest.mark.parametrize("task", TASKS)
def test_half_of_the_experts_keep_the_task(task, tmp_path):
    """easy-ep, reap and tcess at half the experts keep 95% of the exact match; a random half clearly does not."""
    moetrim("calibrate", ROOT / "demo/model", "--task", ROOT / f"calibration/{task}.jsonl", "-o", tmp_path / "s.stats")
    arguments = []
    for method in ("easy-ep", "reap", "tcess", "random"):
        moetrim("plan", tmp_path / "s.stats", "--method", method, "--keep", "0.5", "-o", tmp_path / f"{method}.json")
        arguments += ["--plan", tmp_path / f"{method}.json"]
    result = moetrim_json("evaluate", ROOT / "demo/model", *arguments, "--task", ROOT / f"calibration/{task}.test.jsonl",
                          "--exact-match", "--max-new-tokens", 128)
    easy_ep, reap, tcess, random_half = (plan["exact_match"] for plan in result["plans"])
    assert min(easy_ep, reap, tcess) >= 0.95 * result["exact_match"]
    assert random_half <= 0.8 * result["exact_match"]
