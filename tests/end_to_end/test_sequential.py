"""Sequential calibration: every layer measured behind pruned ones, against transformers hooks, and what it reads."""
import json
import re
import signal

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file

import models
import reference
from program import ROOT, folder_bytes, moetrim, moetrim_json, write_task
from test_kill import kill_when

IDS = models.sequences(5, [17, 41, 9, 30, 23, 8])


def best(scores, keep, groups):
    """The best of every group of experts; equal scores go to the lower id."""
    size = len(scores) // groups
    chosen = [g * size + np.argsort(-part, kind="stable")[:keep // groups] for g, part in enumerate(np.split(scores, groups))]
    return sorted(np.concatenate(chosen).tolist())


def reference_run(model, experts, method, keep, groups):
    """{layer: (what hooks see of it, what stays of it)}: each layer is seen whole, then masked before the next one is looked at."""
    seen = {}
    for layer in [i for i, block in enumerate(models.layers_of(model)) if reference.moe_of(block)]:
        collected = reference.collect(model, IDS)[layer]
        kept = best(reference.scores(collected, experts, -1)[method], keep, groups)
        reference.mask_router(model, {"experts": experts, "layers": [{"layer": layer, "keep": kept}]})
        seen[layer] = collected, kept
    return seen


# deepseek_v3 has a dense layer first, shared experts, a selection bias and three groups, of which a token uses two.
@pytest.mark.parametrize("family, method, keep, groups", [("qwen3_moe", "frequency", 4, 1), ("deepseek_v3", "reap", 9, 3)])
def test_statistics_equal_hooks(family, method, keep, groups, tmp_path):
    model = models.make(tmp_path / "m", family, seed=1, **({} if groups > 1 else {"mlp_only_layers": []}))
    task = write_task(tmp_path / "t.jsonl", IDS)
    arguments = ["calibrate", tmp_path / "m", "--task", task, "--dtype", "fp32", "--trace", 500]
    choice = ["--method", method, "--keep", keep]
    moetrim(*arguments, "--sequential", *choice, "-o", tmp_path / "s.stats")
    manifest = json.loads((tmp_path / "s.stats/manifest.json").read_text())
    assert manifest["settings"]["sequential"]["keep"] == keep
    seen = reference_run(model, manifest["experts"], method, keep, groups)
    assert len(seen) > 1
    scores = {name: moetrim_json("score", tmp_path / "s.stats", "--method", name)["layers"] for name in ("frequency", "reap", "easy-ep")}
    for layer, (collected, _) in seen.items():
        trace = load_file(tmp_path / f"s.stats/trace/layer-{layer:05}.safetensors")
        np.testing.assert_allclose(trace["logits"], collected["logits"], rtol=1e-3, atol=1e-4)
        for name, ours in scores.items():
            ours = next(entry["scores"] for entry in ours if entry["layer"] == layer)
            np.testing.assert_allclose(ours, reference.scores(collected, manifest["experts"], -1)[name], rtol=1e-3, atol=1e-5)

    # plan makes exactly the sets that later layers were measured behind, and says so of any other.
    said = moetrim("plan", tmp_path / "s.stats", *choice, "-o", tmp_path / "plan.json").stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert {entry["layer"]: entry["keep"] for entry in plan["layers"]} == {layer: kept for layer, (_, kept) in seen.items()}
    assert "--sequential" not in said
    assert "--sequential" in moetrim("plan", tmp_path / "s.stats", "--method", "easy-ep", "--keep", keep, "-o", tmp_path / "o.json").stderr

    # The first layer sees what it always sees, later ones do not.
    moetrim(*arguments, "-o", tmp_path / "once.stats")
    once, sequential = ([load_file(f) for f in sorted((tmp_path / n).glob("layer-*"))] for n in ("once.stats", "s.stats"))
    assert (once[0]["easy_ep_sum"] == sequential[0]["easy_ep_sum"]).all()
    assert not np.allclose(once[1]["easy_ep_sum"], sequential[1]["easy_ep_sum"], rtol=1e-3)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequential")
    models.make(folder / "m", "qwen3_moe", num_hidden_layers=6, num_experts=24, moe_intermediate_size=512, hidden_size=128,
                mlp_only_layers=[])
    write_task(folder / "t.jsonl", models.sequences(1, [200] * 12))
    return folder, ["calibrate", folder / "m", "--task", folder / "t.jsonl", "--threads", 2]


CHOICE = ["--sequential", "--method", "easy-ep+reap", "--keep", "50%", "--protect", "2:5,7"]


def test_experts_are_read_once_where_they_fit(larger, tmp_path):
    arguments = [*larger[1], "--samples", 3]
    once = moetrim_json(*arguments, "-o", tmp_path / "once.stats")["reading"]["bytes"]
    held = moetrim_json(*arguments, *CHOICE, "-o", tmp_path / "held.stats")["reading"]["bytes"]
    assert abs(held - once) < 1 << 19, "whole pages, but no expert more"
    # An expert is 0.75 MiB. Without room those that stay are read again, in five of six layers, which gives the same bytes.
    fixed = moetrim_json(*arguments, "--dry-run")["peak_memory_bytes"]
    tight = [*arguments, *CHOICE, "--max-memory", fixed]
    said = moetrim_json(*tight, "--dry-run", "-o", tmp_path / "tight.stats")
    ran = moetrim(*tight, "-o", tmp_path / "tight.stats", "--json")
    again = json.loads(ran.stdout)["reading"]["bytes"] - once
    assert 20 << 20 < again <= said["reread_bytes"]
    assert "second time" in ran.stderr
    assert folder_bytes(tmp_path / "tight.stats") == folder_bytes(tmp_path / "held.stats")
    plan = moetrim_json("plan", tmp_path / "held.stats", "--method", "easy-ep+reap", "--keep", 12, "--protect", "2:5,7", "-o", tmp_path / "p")
    assert {5, 7} <= set(plan["layers"][2]["keep"])


def test_killed_and_repeated(larger, tmp_path):
    _, arguments = larger
    out = tmp_path / "s.stats"
    killed = kill_when([*arguments, *CHOICE, "-o", out], lambda: len(list((tmp_path / "s.stats.partial").glob("group-*"))) > 2)
    assert killed == -signal.SIGKILL, "the run was over before it could be killed"
    assert "another checkpoint, tasks or options" in moetrim(*arguments, *CHOICE[:-2], "-o", out, code=3).stderr
    moetrim(*arguments, *CHOICE, "-o", out)
    moetrim(*arguments, *CHOICE, "-o", tmp_path / "undisturbed.stats")
    assert folder_bytes(out) == folder_bytes(tmp_path / "undisturbed.stats")


def test_what_cannot_be_sequential_is_refused(larger, tmp_path):
    _, arguments = larger
    run = [*arguments, "-o", tmp_path / "s.stats"]
    choice = ["--sequential", "--method", "reap", "--keep", 12]

    def refused(*options, code=2):
        return moetrim(*run, *options, code=code).stderr

    assert "--method and --keep" in refused("--sequential")
    assert "are for --sequential" in refused("--keep", 12)
    assert "reverse sweep" in refused("--sequential", "--method", "heapr", "--keep", 12)
    assert "reverse sweep" in refused(*choice, "--statistics", "second-order")
    assert "one process" in refused(*choice, "--slice", "1/2")
    assert "super" in refused(*choice, "--protect", "super")
    assert "experts 0 to 23" in refused(*choice, "--protect", "5:24", code=3)
    assert "no task" in refused(*choice, "--task-weight", "other=2", code=3)
    assert "routed to" in refused("--sequential", "--method", "reap", "--keep", 2, code=3)
    assert not list(tmp_path.iterdir()), "nothing was begun"
    moetrim(*arguments, *choice, "--samples", 3, "-o", tmp_path / "t.stats")
    moetrim(*arguments, *choice, "--samples", 3, "-o", tmp_path / "u.stats")
    merged = moetrim("merge-statistics", tmp_path / "t.stats", tmp_path / "u.stats", "-o", tmp_path / "m.stats", code=3)
    assert "calibrate all tasks in one run" in merged.stderr


def test_tokens_that_do_not_fit_at_once_are_refused(tmp_path):
    models.make(tmp_path / "m", "qwen3_moe", hidden_size=512, num_hidden_layers=2, mlp_only_layers=[])
    write_task(tmp_path / "t.jsonl", models.sequences(3, [4000] * 6, 101))
    arguments = ["calibrate", tmp_path / "m", "--task", tmp_path / "t.jsonl", "--threads", 1, "-o", tmp_path / "s.stats"]
    choice = ["--sequential", "--method", "reap", "--keep", 4, "--max-memory"]
    refused = moetrim(*arguments, *choice, "440MiB", code=4).stderr
    needed = re.search(r"--max-memory to (\d+) MiB", refused)[1]
    assert 440 < int(needed) < 1000
    assert moetrim_json(*arguments, *choice, needed + "MiB", "--dry-run")["passes"] == 1
    assert "tokens at once" in moetrim(*arguments, *choice, f"{int(needed) - 1}MiB", "--dry-run", code=4).stderr


def test_a_recipe_prunes_as_its_plan_does(tmp_path):
    data = {"checkpoint": str(ROOT / "demo/model"), "output": "run",
            "calibrate": {"task": [str(ROOT / "calibration/sorting.jsonl")], "samples": 8, "sequential": True},
            "plan": {"method": "reap", "keep": 10, "protect": ["4:1"]}}
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(data))
    jsonschema.validate(data, json.loads((ROOT / "recipes/recipe.schema.json").read_text()))
    moetrim("run", file)
    moetrim("calibrate", ROOT / "demo/model", "--task", ROOT / "calibration/sorting.jsonl", "--samples", 8, "--sequential",
            "--method", "reap", "--keep", 10, "--protect", "4:1", "-o", tmp_path / "s.stats")
    assert folder_bytes(tmp_path / "run/calibration.stats") == folder_bytes(tmp_path / "s.stats")
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    assert plan["source"]["sequential"]["protect"] == ["4:1"] and 1 in plan["layers"][4]["keep"]
    assert "calibrate: unchanged, skipped" in moetrim("run", file).stderr
    data["plan"]["protect"] = ["super"]
    file.write_text(json.dumps(data))
    assert "super" in moetrim("run", file, code=2).stderr
    data["plan"] = {"method": "easy-ep", "budget-bytes": "6MB"}
    file.write_text(json.dumps(data))
    assert "calibrate.sequential" in moetrim("run", file, code=3).stderr
