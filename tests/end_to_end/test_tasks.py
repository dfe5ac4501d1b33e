"""Plans for several tasks, against the formulas of docs/tasks.md in numpy, from the statistics files alone."""
import json

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file

import models
from program import ROOT, moetrim, moetrim_json, write_task

TASKS = {"a": 1, "b": 2, "c": 3}
EXPERTS, GROUPS, KEEP = 15, 3, 9
SIZE = EXPERTS // GROUPS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """15 experts in 3 groups, 2 of them chosen, 4 per token."""
    folder = tmp_path_factory.mktemp("tasks")
    models.make(folder / "m", "deepseek_v3")
    for task, seed in TASKS.items():
        write_task(folder / f"{task}.jsonl", models.sequences(seed, [9, 14]))
        moetrim("calibrate", folder / "m", "--task", folder / f"{task}.jsonl", "--dtype", "fp32", "-o", folder / f"{task}.stats")
    return folder


def parts(folder, task):
    """EASY-EP and REAP, [layers, experts] each, divided by their sums."""
    out = []
    for file in sorted((folder / f"{task}.stats").glob("layer-*.safetensors")):
        layer = {name: values.sum(axis=1)[0] for name, values in load_file(file).items() if values.ndim == 3}
        count = layer["routed_count"]
        reap = np.divide(layer["gated_norm_sum"], count, out=np.zeros(EXPERTS), where=count > 0)
        out.append([layer["easy_ep_sum"], reap])
    scores = np.array(out).transpose(1, 0, 2)
    return scores / scores.sum(-1, keepdims=True)


def mixed(folder, task, easy_ep=1.0, reap=1.0):
    a, b = parts(folder, task)
    return easy_ep * a + reap * b


def share(scores):
    return scores / scores.sum(-1, keepdims=True)


def order(scores):
    """Of one group, best first; ties to the lower id."""
    return np.argsort(-scores, kind="stable")


def best(scores, protected=None):
    """Kept ids per layer, KEEP / GROUPS of each group."""
    kept = []
    for l, layer in enumerate(scores):
        ids = []
        for g in range(0, EXPERTS, SIZE):
            first = [i for i in order(layer[g:g + SIZE]) if protected is not None and protected[l][g + i]]
            rest = [i for i in order(layer[g:g + SIZE]) if i not in first]
            ids += sorted(g + i for i in (first + rest)[:KEEP // GROUPS])
        kept.append(ids)
    return kept


def union(tasks, weights):
    places = np.zeros_like(tasks[0])
    total = sum(w * share(t) for t, w in zip(tasks, weights))
    for l in range(len(places)):
        for g in range(0, EXPERTS, SIZE):
            rank = np.full(SIZE, np.inf)
            for t, w in zip(tasks, weights):
                used = [i for i in order(t[l, g:g + SIZE]) if t[l, g + i] != 0]
                for place, i in enumerate(used, 1):
                    rank[i] = min(rank[i], place / w)
            by = sorted(range(SIZE), key=lambda i: (rank[i], -total[l, g + i], i))
            places[l, g + np.array(by)] = np.arange(SIZE, 0, -1)
    return places


def planned(folder, *options, method="easy-ep+reap", main="a"):
    plan = folder / "plan.json"
    moetrim("plan", folder / f"{main}.stats", "--method", method, "--keep", KEEP, *options, "-o", plan)
    plan = json.loads(plan.read_text())
    return [layer["keep"] for layer in plan["layers"]], plan


def test_combined_scores(folder):
    a, b = (mixed(folder, t, 0.7, 3) for t in "ab")
    scores = moetrim_json("score", folder / "a.stats", "--method", "easy-ep:0.7+reap:3")
    assert scores["method"] == "reap:3+easy-ep:0.7"
    np.testing.assert_allclose([layer["scores"] for layer in scores["layers"]], a, rtol=1e-12)
    kept, plan = planned(folder, "--with", folder / "b.stats:2", method="reap:3+easy-ep:0.70")
    assert kept == best(share(a) + 2 * share(b)) and plan["method"] == "reap:3+easy-ep:0.7"
    assert [(task["name"], task["weight"]) for task in plan["source"]["tasks"]] == [("a", 1), ("b", 2)]


def test_unions_protected_and_dropped_tasks(folder):
    a, b, c = (mixed(folder, t) for t in "abc")
    beside = ["--with", folder / "b.stats", "--with", f"{folder}/c.stats:3"]
    results = {
        "sum": (beside, share(a) + share(b) + 3 * share(c)),
        "union": ([*beside, "--combine", "union"], union([a, b, c], [1, 1, 3])),
        "some": ([*beside, "--combine", "union", "--task", "c=0.5", "--task", "a"], union([c, a], [1.5, 1])),
        "folder dropped": (["--drop-task", f"{folder}/b.stats:0.5"], share(a) - 0.5 * share(b)),
        "task dropped": ([*beside, "--drop-task", "b"], share(share(a) + 3 * share(c)) - 0.1 * share(b)),
    }
    kept = {}
    for name, (options, scores) in results.items():
        kept[name], plan = planned(folder, *options)
        assert kept[name] == best(scores), name
    assert len({json.dumps(k) for k in kept.values()}) == len(kept)  # the cases can tell the formulas apart

    protected = np.zeros(a.shape, bool)
    for l in range(len(a)):
        for g in range(0, EXPERTS, SIZE):
            protected[l, g + order(b[l, g:g + SIZE])[:2]] = True  # 0.3 of 5, rounded up
    keep, plan = planned(folder, "--protect-task", f"{folder}/b.stats:30%")
    assert keep == best(a, protected) != best(a)
    assert {(p["layer"] - plan["layers"][0]["layer"], p["expert"]) for p in plan["protect"]} == set(zip(*map(list, protected.nonzero())))
    assert {p["why"] for p in plan["protect"]} == {"task b"}
    jsonschema.validate(plan, json.loads((ROOT / "recipes/plan.schema.json").read_text()))


def test_numbers_by_layer_from_a_file(folder):
    layers = [layer["layer"] for layer in planned(folder)[1]["layers"]]
    listed = folder / "counts.json"
    listed.write_text(json.dumps({"layers": [{"layer": i, "keep": 9 + 3 * (i % 2)} for i in layers]}))
    moetrim("plan", folder / "a.stats", "--method", "reap", "--keep-by-layer", listed, "-o", folder / "p.json")
    plan = json.loads((folder / "p.json").read_text())
    assert [len(layer["keep"]) for layer in plan["layers"]] == [9 + 3 * (i % 2) for i in layers]
    for text, word in [({"layers": [{"layer": layers[0], "keep": 9}]}, "MoE layers"), ({"layers": []}, "empty"),
                       ({"layers": [{"layer": i, "keep": 10} for i in layers]}, "9 and 12")]:
        listed.write_text(json.dumps(text))
        refused = moetrim("plan", folder / "a.stats", "--method", "reap", "--keep-by-layer", listed, "-o", folder / "q.json", code=3)
        assert word in refused.stderr


@pytest.mark.parametrize("options, code, word", [
    (["--with", "a.stats"], 3, "both have a task"),
    (["--with", "missing.stats"], 3, "no folder that calibrate wrote"),
    (["--drop-task", "b"], 3, "no such task"),
    (["--drop-task", "b.stats:x"], 2, "above zero"),
    (["--drop-task", "b.stats:0"], 2, "above zero"),
    (["--protect-task", "b.stats:1.5"], 2, "protect-task"),
    (["--protect-task", "b.stats:0.9"], 3, "protected experts"),
    (["--combine", "max"], 2, "sum or union"),
    (["--combine", "union", "--drop-task", "b.stats"], 2, "leave one of them out"),
    (["--drop-task", "a"], 2, "--task"),
    (["--task", "a", "--with", "b.stats", "--drop-task", "a"], 2, "both kept for and dropped"),
])
def test_refusals(folder, options, code, word):
    refused = moetrim("plan", "a.stats", "--method", "reap", "--keep", KEEP, *options, "-o", "q.json", code=code, cwd=folder)
    assert word in refused.stderr
    assert not (folder / "q.json").exists()


def test_a_recipe_protects_and_drops_tasks(folder):
    recipe = dict(checkpoint="m", output="out", calibrate={"task": ["a.jsonl"], "dtype": "fp32"},
                  plan={"method": "reap+easy-ep", "keep": KEEP, "protect-task": ["b.stats:0.2"], "drop-task": ["c.stats"]})
    jsonschema.validate(recipe, json.loads((ROOT / "recipes/recipe.schema.json").read_text()))
    (folder / "r.json").write_text(json.dumps(recipe))
    moetrim("run", folder / "r.json")
    kept, _ = planned(folder, "--protect-task", f"{folder}/b.stats:0.2", "--drop-task", folder / "c.stats")
    assert [layer["keep"] for layer in json.loads((folder / "out/plan.json").read_text())["layers"]] == kept
    scores = load_file(folder / "out/scores.safetensors")["scores"]
    np.testing.assert_allclose(scores, share(mixed(folder, "a")) - 0.1 * share(mixed(folder, "c")), atol=1e-15)
    recipe["plan"]["drop-task"] = ["d.stats"]
    (folder / "r.json").write_text(json.dumps(recipe))
    assert "d.stats" in moetrim("run", folder / "r.json", code=3).stderr
