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
