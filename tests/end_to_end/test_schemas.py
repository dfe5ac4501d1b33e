"""The JSON Schemas in recipes/ accept what the program writes and reads, and refuse what it refuses."""
import json

import jsonschema
import pytest

import models
from program import ROOT, moetrim, write_task

RECIPE = json.loads((ROOT / "recipes/recipe.schema.json").read_text())
PLAN = json.loads((ROOT / "recipes/plan.schema.json").read_text())


def shipped_recipe():
    lines = (ROOT / "recipes/demo.json").read_text().splitlines()
    return json.loads("\n".join(line for line in lines if not line.lstrip().startswith("//")))


def test_the_shipped_recipe_is_valid():
    jsonschema.validate(shipped_recipe(), RECIPE)


def test_limits_of_a_recipe():
    """Experts, atomic experts, bytes or multiply-adds: at least one of them."""
    recipe = shipped_recipe()
    del recipe["plan"]["keep"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(recipe, RECIPE)
    recipe["plan"] |= {"method": "heapr", "keep-atoms": "75%", "scope": "expert", "align": 8, "atom-blocks": 4, "budget-flops": 0.8,
                       "budget-bytes": "5MB"}
    recipe["calibrate"]["statistics"] = "second-order"
    jsonschema.validate(recipe, RECIPE)
    recipe["plan"]["expert-method"] = "reap"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(recipe, RECIPE)


def test_a_recipe_must_record_what_its_plan_needs(tmp_path):
    recipe = shipped_recipe()
    recipe["plan"] = {"method": "heapr", "keep-atoms": 0.5}
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    assert "calibrate.statistics" in moetrim("run", tmp_path / "r.json", code=3).stderr


@pytest.mark.parametrize("part, field", [(None, "chekpoint"), ("calibrate", "max-tokns"), ("plan", "metod"), ("evaluate", "exact")])
def test_unknown_recipe_fields_are_refused_by_both(part, field, tmp_path):
    recipe = shipped_recipe()
    (recipe[part] if part else recipe)[field] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(recipe, RECIPE)
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    assert field in moetrim("run", tmp_path / "r.json", code=3).stderr


def test_a_written_plan_is_valid(tmp_path):
    models.make(tmp_path / "m", "mixtral")
    write_task(tmp_path / "t.jsonl", models.sequences(1, [30]))
    moetrim("calibrate", tmp_path / "m", "--task", tmp_path / "t.jsonl", "-o", tmp_path / "s.stats")
    moetrim("plan", tmp_path / "s.stats", "--method", "reap", "--keep", 3, "--protect", "super", "--protect", "0:1", "-o", tmp_path / "p.json")
    plan = json.loads((tmp_path / "p.json").read_text())
    jsonschema.validate(plan, PLAN)
    assert 1 in plan["layers"][0]["keep"]
    plan["kept"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(plan, PLAN)


def test_a_written_plan_over_atoms_is_valid(tmp_path):
    models.make(tmp_path / "m", "mixtral")
    write_task(tmp_path / "t.jsonl", models.sequences(1, [30]))
    moetrim("calibrate", tmp_path / "m", "--task", tmp_path / "t.jsonl", "--statistics", "second-order", "--dtype", "fp32", "-o",
            tmp_path / "s.stats")
    moetrim("plan", tmp_path / "s.stats", "--method", "heapr", "--keep-atoms", "60%", "--keep", 3, "--protect", "0:1", "-o",
            tmp_path / "p.json")
    plan = json.loads((tmp_path / "p.json").read_text())
    jsonschema.validate(plan, PLAN)
    assert plan["layers"][0]["atoms"][plan["layers"][0]["keep"].index(1)] == [[0, plan["width"]]]
    layers = len(plan["layers"])
    kept = sum(end - begin for layer in plan["layers"] for expert in layer["atoms"] for begin, end in expert)
    total = layers * 3 * plan["width"]
    assert kept == total - total * 4 // 10
    without = json.loads(json.dumps(plan))
    del without["layers"][0]["atoms"]
    alone = json.loads(json.dumps(plan))
    del alone["width"]
    for broken in (without, alone):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, PLAN)


def test_plans_over_atoms_need_second_order_statistics_and_a_limit(tmp_path):
    models.make(tmp_path / "m", "mixtral")
    write_task(tmp_path / "t.jsonl", models.sequences(1, [30]))
    moetrim("calibrate", tmp_path / "m", "--task", tmp_path / "t.jsonl", "-o", tmp_path / "s.stats")
    plan = ["plan", tmp_path / "s.stats", "-o", tmp_path / "p.json", "--method"]
    for arguments, code, said in [
            (["heapr", "--keep-atoms", 0.5], 3, "--statistics second-order"),
            (["reap"], 2, "--keep"),
            (["reap", "--keep", 3, "--scope", "global"], 2, "atomic experts"),
            (["reap", "--keep", 3, "--expert-method", "ean"], 2, "leave it out"),
            (["reap", "--keep", 3, "--library-version", "4.51"], 2, "leave it out"),
            (["heapr"], 2, "--keep-atoms"),
            (["heapr", "--keep-atoms", 2.0], 2, "share"),
            (["heapr", "--keep-atoms", 0.5, "--align", 0], 2, "--align"),
            (["heapr", "--keep-atoms", 0.5, "--expert-method", "reap"], 2, "add --keep"),
            (["wanda", "--keep-atoms", 0.5, "--keep", 3], 2, "--expert-method"),
            (["heapr", "--keep-atoms", 0.5, "--keep", 3, "--expert-method", "wanda"], 2, "atomic experts")]:
        assert said in moetrim(*plan, *arguments, code=code).stderr, arguments
    assert not (tmp_path / "p.json").exists()
