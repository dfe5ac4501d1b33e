"""The search against plan and evaluate by hand; what it remembers; limits that nothing meets."""
import json
import math

import jsonschema
import pytest

import models
from program import ROOT, moetrim, moetrim_json, write_task

SCHEMA = json.loads((ROOT / "recipes/search.schema.json").read_text())


def make(folder, **search):
    """A random model of 5 experts of which a token uses 2, and a recipe that searches it."""
    if not (folder / "m").exists():
        models.make(folder / "m", "mixtral")
        write_task(folder / "t.jsonl", models.sequences(6, [30, 22]))
        write_task(folder / "v.jsonl", models.sequences(4, [25, 18, 31]))
    data = {"checkpoint": "m", "output": "run", "calibrate": {"task": ["t.jsonl"], "dtype": "fp32"},
            "search": {"method": ["easy-ep", "reap", "ean"], **search},
            "evaluate": {"task": ["v.jsonl"], "dtype": "fp32"}}
    jsonschema.validate(data, SCHEMA)
    (folder / "r.json").write_text("// a comment\n" + json.dumps(data))
    return folder / "r.json"


def test_the_pick_is_that_of_measuring_everything(tmp_path):
    recipe = make(tmp_path, **{"max-kl": 1})
    methods = ["easy-ep", "reap", "ean"]
    keeps = [2, 3, 4, 5]
    table = moetrim_json("search", recipe, "--all")["candidates"]
    assert sorted((c["method"], c["keep"]) for c in table) == sorted((m, k) for m in methods for k in keeps)
    plans = []
    for c in table:
        plans += ["--plan", tmp_path / f"{c['method']}-{c['keep']}.json"]
        moetrim("plan", tmp_path / "run/calibration.stats", "--method", c["method"], "--keep", c["keep"], "-o", plans[-1])
    by_hand = moetrim_json("evaluate", tmp_path / "m", *plans, "--task", tmp_path / "v.jsonl", "--dtype", "fp32")
    for c, plan in zip(table, by_hand["plans"]):
        assert math.isclose(c["kl"], plan["kl"], rel_tol=1e-5, abs_tol=1e-7)
        assert math.isclose(c["loss_increase"], plan["loss"] - by_hand["loss"], rel_tol=1e-4, abs_tol=1e-6)

    def falls(values):
        return all(a >= b for a, b in zip(values, values[1:]))

    assert all(falls([c["kl"] for k in keeps for c in table if (c["method"], c["keep"]) == (m, k)]) for m in methods)
    for limit in sorted(c["kl"] for c in table if c["keep"] < 5)[::4]:
        best = min((c for c in table if c["kl"] <= limit), key=lambda c: (c["bytes"], c["kl"], methods.index(c["method"])))
        pick = moetrim_json("search", recipe, "--max-kl", limit)["pick"]
        assert (pick["method"], pick["keep"]) == (best["method"], best["keep"])
        assert json.loads((tmp_path / "run/plan.json").read_text())["keep"] == best["keep"]
    for c in table[4:9:4]:
        best = min((o for o in table if o["bytes"] <= c["bytes"]), key=lambda o: (o["kl"], o["bytes"], methods.index(o["method"])))
        pick = moetrim_json("search", recipe, "--budget-bytes", c["bytes"])["pick"]
        assert (pick["method"], pick["keep"]) == (best["method"], best["keep"])
    moetrim("rewrite", tmp_path / "m", "--plan", tmp_path / "run/plan.json", "-o", tmp_path / "pruned", "--json")
    assert sum(f.stat().st_size for f in (tmp_path / "pruned").glob("*.safetensors")) >= pick["bytes"]


def test_a_search_goes_on_and_ends_with_the_same_result(tmp_path):
    """As after a kill: the file that remembers lacks the last plans."""
    recipe = make(tmp_path, **{"max-kl": 0.3, "counts": ["uniform", "by-layer"], "plans-per-pass": 3, "merge": ["ream"]})
    data = json.loads(recipe.read_text().split("\n", 1)[1])
    data["calibrate"]["statistics"] = "all-experts"
    recipe.write_text(json.dumps(data))
    first = moetrim_json("search", recipe)
    result = (tmp_path / "run/result.json").read_bytes()
    memory = json.loads((tmp_path / "run/search.json").read_text())
    assert len(memory["plans"]) == first["plans_measured"]
    assert {c["merge"] for c in first["candidates"] if "merge" in c} <= {"ream"}
    curves = json.loads((tmp_path / "run/sensitivity.json").read_text())["methods"]
    assert [m["method"] for m in curves] == ["easy-ep", "reap", "ean"] and len(curves[0]["layers"]) == 3
    for kept in (len(memory["plans"]) // 2, len(memory["plans"])):
        (tmp_path / "run/search.json").write_text(json.dumps({**memory, "plans": dict(list(memory["plans"].items())[:kept])}))
        again = moetrim("search", recipe)
        assert "calibrate: unchanged, skipped" in again.stderr and "done before" in again.stderr
        assert (tmp_path / "run/result.json").read_bytes() == result
    # Another text: nothing of the old one counts.
    data["evaluate"]["samples"] = 2
    recipe.write_text(json.dumps(data))
    assert "measured anew" in moetrim("search", recipe).stderr
    assert not (tmp_path / "run/candidate").exists()


def test_limits_that_nothing_meets(tmp_path):
    recipe = make(tmp_path, keep=[2, 3])
    assert "--max-kl" in moetrim("search", recipe, code=2).stderr
    said = moetrim("search", recipe, "--max-kl", 0, code=3).stderr
    assert "max-kl 0" in said and "the nearest is" in said and "3 experts" in said
    assert json.loads((tmp_path / "run/result.json").read_text())["pick"] is None
    assert not (tmp_path / "run/plan.json").exists()
    said = moetrim("search", recipe, "--budget-bytes", 1000, code=3).stderr
    assert "smallest candidate" in said and "2 experts" in said


def test_a_dry_run_says_what_it_takes_and_leaves_nothing(tmp_path):
    recipe = make(tmp_path, **{"max-kl": 0.1, "keep": {"from": "50%", "to": 5}})
    said = moetrim_json("search", recipe, "--dry-run")
    assert said["candidates"] == 9 and said["plans_per_pass"] == 16 and not (tmp_path / "run").exists()
    found = moetrim_json("search", recipe)
    assert found["passes"] <= said["passes"]


@pytest.mark.parametrize("search, code, said", [
    ({"keep": [1]}, 3, "smallest keep that works is 2"),
    ({"keep": {"from": 4, "to": 3}}, 3, "no number of experts"),
    ({"method": ["heapr"]}, 3, "second-order"),
    ({"method": ["esy-ep"]}, 2, "easy-ep"),
    ({"method": ["reap+ean", "ean+reap"]}, 3, "twice"),
    ({"merge": ["hc-smoe"]}, 3, "all-experts"),
    ({"curve-counts": [3]}, 3, "by-layer"),
    ({"kep": [3]}, 3, "keep")])
def test_what_cannot_be_searched_is_refused_at_once(search, code, said, tmp_path):
    try:
        recipe = make(tmp_path, **{"max-kl": 0.1, **search})
    except jsonschema.ValidationError:
        recipe = tmp_path / "r.json"
        recipe.write_text(json.dumps({"checkpoint": "m", "output": "run", "calibrate": {"task": ["t.jsonl"]},
                                      "search": {"method": ["reap"], "max-kl": 0.1, **search}, "evaluate": {"task": ["v.jsonl"]}}))
    assert said in moetrim("search", recipe, code=code).stderr
    assert not (tmp_path / "run").exists()


def test_the_schema_follows_that_of_run():
    """The shared parts are the same, and the shipped recipe is valid."""
    run = json.loads((ROOT / "recipes/recipe.schema.json").read_text())["properties"]
    own = SCHEMA["properties"]
    run["calibrate"]["properties"].pop("sequential")
    assert own["calibrate"] == run["calibrate"] and own["evaluate"] == own["test"] == run["evaluate"]
    lines = (ROOT / "recipes/demo-search.json").read_text().splitlines()
    jsonschema.validate(json.loads("\n".join(line for line in lines if not line.lstrip().startswith("//"))), SCHEMA)
