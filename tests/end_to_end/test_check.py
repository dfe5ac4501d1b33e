"""What runtimes refuse is refused before anything is spent; transformers is asked itself."""
import json
import shutil
import subprocess
import sys

import jsonschema
import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import models
from program import MOETRIM, ROOT, moetrim, moetrim_json, write_task

sys.path.insert(0, str(ROOT / "scripts"))
import make_runtimes_doc  # noqa: E402


def checked(*arguments):
    """The object that `check` prints, refused or not."""
    done = subprocess.run([MOETRIM, "check", *map(str, arguments), "--json", "--quiet"], capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr
    return json.loads(done.stdout), done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("check")
    models.make(out / "m", "mixtral")  # 5 experts, 2 per token, 19 wide, 4 heads
    write_task(out / "t.jsonl", models.sequences(1, [30]))
    moetrim("calibrate", out / "m", "--task", out / "t.jsonl", "-o", out / "s.stats", "--statistics", "second-order")
    return out


def test_a_checkpoint_and_what_it_would_become(folder):
    found, done = checked(folder / "m", "--runtime", "sglang,tp=2,ep=2", "--runtime", "llama.cpp")
    assert done.returncode == 3 and "sglang.ep-even" in done.stderr
    first = found["checks"][0]
    assert first["refused"] and first["findings"][0]["rule"] == "sglang.ep-even" and first["findings"][0]["nearest_keeps"] == [4]
    assert not found["checks"][1]["refused"] and found["legal_keeps"] == [2, 4]
    legal = {c["runtime"] for c in first["parallel"] if c["legal"]}
    assert legal == {"sglang,tp=1,ep=1"}
    assert not checked(folder / "m", "--keep", "0.9", "--runtime", "sglang,tp=2,ep=2")[0]["refused"]  # 4 of 5
    assert "fp8-block" in checked(folder / "m", "--runtime", "sglang,quant=fp8")[1].stderr
    assert "--runtime" in moetrim("check", folder / "m", code=2).stderr
    assert "did you mean" in moetrim("check", folder / "m", "--runtime", "vlm", code=2).stderr


def test_a_plan_for_another_checkpoint(folder):
    moetrim("plan", folder / "s.stats", "--method", "reap", "--keep", 3, "-o", folder / "other.json")
    plan = json.loads((folder / "other.json").read_text())
    found, _ = checked(folder / "m", "--plan", folder / "other.json", "--runtime", "sglang,tp=2,ep=2")
    assert found["experts"] == 3 and found["checks"][0]["findings"][0]["nearest_keeps"] == [2, 4]
    plan["layers"].pop()
    (folder / "other.json").write_text(json.dumps(plan))
    assert "does not fit" in moetrim("check", folder / "m", "--plan", folder / "other.json", "--runtime", "vllm", code=3).stderr


def test_a_plan_goes_to_the_nearest_number_or_is_refused(folder):
    plan = ["plan", folder / "s.stats", "--method", "reap", "--runtime", "sglang,tp=2,ep=2"]
    said = moetrim(*plan, "--keep", 0.6, "-o", folder / "nearest.json").stdout
    written = json.loads((folder / "nearest.json").read_text())
    assert written["keep"] == 4 and written["source"]["runtimes"][0]["version"] and "sglang,tp=2,ep=2" in said
    assert written["source"]["runtimes_keep"] == {"wanted": 3, "taken": 4} and "4 experts would have been 3" in said
    refused = moetrim(*plan, "--keep", 3, "-o", folder / "refused.json", code=3).stderr
    assert "sglang.ep-even" in refused and "2 and 4" in refused and not (folder / "refused.json").exists()
    size = moetrim_json("inspect", folder / "m")["total_bytes"]
    moetrim(*plan, "--budget-bytes", size - 1, "-o", folder / "budget.json")
    assert json.loads((folder / "budget.json").read_text())["keep"] == 4


def test_widths(folder):
    plan = ["plan", folder / "s.stats", "--method", "heapr", "--keep-atoms", 0.9]
    assert "one-width" in moetrim(*plan, "--runtime", "vllm", "-o", folder / "w.json", code=3).stderr
    expert = [*plan, "--scope", "expert", "--runtime", "vllm,tp=4", "-o", folder / "w.json"]
    moetrim(*expert)
    keeps = json.loads((folder / "w.json").read_text())["layers"][0]["atoms"][0]
    assert sum(end - begin for begin, end in keeps) == 16  # the largest multiple of 4 that is not more than 0.9 x 19
    assert json.loads((folder / "w.json").read_text())["source"]["runtimes_align"] == 4
    (folder / "w.json").unlink()
    assert "vllm.tp-width" in moetrim(*expert, "--align", 3, code=3).stderr
    assert not (folder / "w.json").exists()


def test_rewrite_looks_at_the_checkpoint(folder):
    """Statistics do not know the heads: the plan says so, and rewrite refuses before it writes."""
    plan = ["plan", folder / "s.stats", "--method", "reap", "--keep", 3, "-o", folder / "heads.json"]
    assert "vllm.tp-width" in moetrim(*plan, "--runtime", "vllm,tp=3", code=3).stderr  # 19 by 3
    made = moetrim(*plan, "--runtime", "transformers,tp=3")
    assert "transformers.tp-heads" in made.stderr
    rewrite = ["rewrite", folder / "m", "--plan", folder / "heads.json", "-o", folder / "out", "--runtime"]
    assert "transformers.tp-heads" in moetrim(*rewrite, "transformers,tp=3", code=3).stderr and not (folder / "out").exists()
    moetrim(*rewrite, "transformers,tp=2")
    assert checked(folder / "out", "--runtime", "all")[1].returncode == 0


def test_a_gguf_file(folder):
    moetrim("export", folder / "m", "--format", "gguf", "--dtype", "f32", "--no-tokenizer", "-o", folder / "m.gguf")
    found, _ = checked(folder / "m.gguf", "--runtime", "llama.cpp,quant=q4_k_m")
    assert [f["rule"] for f in found["checks"][0]["findings"]] == ["llama.cpp.block"] and found["legal_keeps"] == [2, 3, 4, 5]
    assert "folder" in moetrim("check", folder / "m.gguf", "--runtime", "vllm", code=2).stderr
    moetrim("plan", folder / "s.stats", "--method", "reap", "--keep", 3, "-o", folder / "p.json")
    rewrite = ["rewrite", folder / "m.gguf", "--plan", folder / "p.json", "-o", folder / "pruned.gguf", "--runtime"]
    assert "llama.cpp.mtp-blocks" in moetrim(*rewrite, "llama.cpp,mtp", code=3).stderr and not (folder / "pruned.gguf").exists()
    moetrim(*rewrite, "llama.cpp")


def test_nothing_is_calibrated_for_what_would_be_refused(folder):
    task = {"task": [str(folder / "t.jsonl")]}
    recipe = {"checkpoint": str(folder / "m"), "output": str(folder / "run"), "calibrate": task,
              "plan": {"method": "reap", "keep": 3, "runtime": ["sglang,tp=2,ep=2"]}}
    jsonschema.validate(recipe, json.loads((ROOT / "recipes/recipe.schema.json").read_text()))
    (folder / "r.json").write_text(json.dumps(recipe))
    assert "sglang.ep-even" in moetrim("run", folder / "r.json", code=3).stderr
    assert not (folder / "run").exists()
    search = {"checkpoint": str(folder / "m"), "output": str(folder / "found"), "calibrate": task, "evaluate": task,
              "search": {"method": ["reap"], "max-kl": 9, "keep": [3], "runtime": ["sglang,tp=2,ep=2"]}}
    jsonschema.validate(search, json.loads((ROOT / "recipes/search.schema.json").read_text()))
    (folder / "q.json").write_text(json.dumps(search))
    assert "sglang.ep-even" in moetrim("search", folder / "q.json", code=3).stderr
    search["search"].pop("keep")
    (folder / "q.json").write_text(json.dumps(search))
    widths = json.loads(json.dumps(search))
    widths["search"] |= {"method": ["heapr"], "keep-atoms": [0.5]}
    widths["calibrate"] = task | {"statistics": "second-order"}
    (folder / "widths.json").write_text(json.dumps(widths))
    assert "one-width" in moetrim("search", folder / "widths.json", code=3).stderr
    assert not (folder / "found").exists()
    search["search"].pop("runtime")
    (folder / "q.json").write_text(json.dumps(search))
    result = moetrim_json("search", folder / "q.json", "--all", "--runtime", "sglang,tp=2,ep=2")
    assert sorted(c["keeps"] for c in result["candidates"]) == ["2 experts", "4 experts"]


def test_transformers_runs_groups_of_different_sizes_without_an_error(tmp_path):
    """10 experts in 4 groups, and no message: what no plan may make, and no command takes."""
    models.make(tmp_path / "m", "deepseek_v3")
    config = json.loads((tmp_path / "m/config.json").read_text())
    config |= {"n_routed_experts": 10, "num_local_experts": 10, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
    config.pop("num_local_experts")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.DeepseekV3Config.from_dict(config), experts_implementation="eager")
    assert model(torch.arange(4)[None]).logits.isfinite().all()
    shutil.rmtree(tmp_path / "m")
    model.save_pretrained(tmp_path / "m")
    assert "10 experts in 4 groups" in moetrim("check", tmp_path / "m", "--runtime", "transformers", code=3).stderr


def test_the_list_of_model_types_is_that_of_transformers():
    version, = [r["version"] for r in rules() if r["runtime"] == "transformers"]
    assert version == transformers.__version__, "read its source again, and update the rules"
    demand = next(rule["demand"] for rule in rules("transformers")[0]["rules"] if rule["id"] == "transformers.model-type")
    listed = set(demand.split("one of ")[1].split(", "))
    ours = {name for f in moetrim_json("list", "families")["families"] for name in [f["name"], *f["aliases"]]}
    assert listed == {name for name in ours if name in CONFIG_MAPPING_NAMES}


def rules(*names):
    return moetrim_json("check", "--list-rules", *names)["runtimes"]


def test_the_committed_page_is_what_the_script_makes():
    page = (ROOT / "docs/runtimes.md").read_text()
    assert page == make_runtimes_doc.with_rules(page, rules()), "run scripts/make_runtimes_doc.py"


def test_what_export_refuses_is_refused_for_llama_cpp(tmp_path):
    models.make(tmp_path / "m", "qwen3_moe", mlp_only_layers=[])
    config = json.loads((tmp_path / "m/config.json").read_text())
    for normalised in (True, False):
        (tmp_path / "m/config.json").write_text(json.dumps(config | {"norm_topk_prob": normalised}))
        found, done = checked(tmp_path / "m", "--runtime", "llama.cpp", "--runtime", "vllm")
        assert [check["refused"] for check in found["checks"]] == [not normalised, False], found
    refusal = found["checks"][0]["findings"][0]
    assert done.returncode == 3 and refusal["rule"] == "llama.cpp.export" and "norm_topk_prob" in refusal["text"]
