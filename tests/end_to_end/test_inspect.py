"""What inspect says of every family, and of a model that is of none."""
import json

import pytest

import models
import reference
from program import moetrim, moetrim_json


@pytest.mark.parametrize("family", models.FAMILIES)
def test_sizes(family, tmp_path):
    model = models.make(tmp_path / "m", family)
    said = moetrim_json("inspect", tmp_path / "m")
    layers = models.layers_of(model)
    routers = [reference.moe_of(layer)[1] for layer in layers if reference.moe_of(layer)]
    assert said["layers"] == len(layers) and said["moe_layers"] == len(routers)
    assert said["experts"] == next(p.shape[0] for p in routers[0].parameters() if p.shape[-1] == said["hidden"])
    assert moetrim_json("verify", tmp_path / "m")["errors"] == 0


def test_an_unknown_family(tmp_path):
    models.make(tmp_path / "m", "qwen3_moe")
    file = tmp_path / "m/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "qwen9_moe"}))
    said = moetrim_json("inspect", tmp_path / "m")
    assert said["family"] is None and said["layers"] == 3 and said["experts"] == 7
    assert "docs/add-a-family.md" in moetrim("inspect", tmp_path / "m").stdout
