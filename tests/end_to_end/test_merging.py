"""Plans that merge, from a statistics folder that calibrate wrote, against scipy and numpy on that folder's own numbers."""
import json

import jsonschema
import numpy as np
import pytest
import scipy.cluster.hierarchy as hierarchy
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch_file
from scipy.spatial.distance import squareform

import models
from program import ROOT, moetrim, moetrim_json, write_task

EXPERTS = 24
FEATURES = ["outputs", "logits", "weights"]
LINKAGES = ["average", "complete", "single", "ward"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Folder, and per layer usage [E], Gram of logits [E, E], mean outputs [E, H], weights [E, 3 F H] and REAP's saliency [E]."""
    folder = tmp_path_factory.mktemp("merging")
    models.make(folder / "m", "qwen2_moe", num_experts=EXPERTS)
    write_task(folder / "t.jsonl", models.sequences(3, [40, 60, 50]))
    moetrim("calibrate", folder / "m", "--task", folder / "t.jsonl", "--dtype", "fp32", "--statistics", "second-order,all-experts", "-o",
            folder / "s.stats")
    tensors = {name: tensor for file in (folder / "m").glob("*.safetensors") for name, tensor in load_torch_file(file).items()}
    layers = {}
    for layer in json.loads((folder / "s.stats/manifest.json").read_text())["moe_layers"]:
        sums = load_file(folder / f"s.stats/layer-{layer:05d}.safetensors")
        vectors = load_file(folder / f"s.stats/vectors-{layer:05d}.safetensors")
        usage = sums["routed_count"].sum(axis=(0, 1))
        weights = np.stack([np.concatenate([tensors[f"model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight"].double().numpy().ravel()
                                            for part in ["gate", "up", "down"]]) for e in range(EXPERTS)])
        layers[layer] = dict(usage=usage, weights=weights, gram=vectors["logit_gram"][0], outputs=vectors["output"][0] / vectors["all_tokens"][0],
                             saliency=sums["gated_norm_sum"].sum(axis=(0, 1)) / np.maximum(usage, 1))
    return folder, layers


def plan_of(folder, *arguments):
    return moetrim_json("plan", folder / "s.stats", *arguments, "-o", folder / "plan.json")


def partition(layer):
    """Who is with whom, as sorted lists of members."""
    groups = {expert: [expert] for expert in layer["keep"]}
    for group in layer.get("merge", []):
        groups[group["into"]] = group["members"]
    return sorted(groups.values())


def by_labels(labels):
    return sorted([int(i) for i in np.flatnonzero(labels == label)] for label in np.unique(labels))


def distances(facts, features):
    if features != "logits":
        return np.linalg.norm(facts[features][:, None] - facts[features][None], axis=-1)
    diagonal = np.diag(facts["gram"])
    return np.sqrt(np.maximum(0, diagonal[:, None] + diagonal[None] - 2 * facts["gram"]))


def check_weights(layer, values):
    for group in layer.get("merge", []):
        weights = values[group["members"]]
        expected = weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), 1 / len(weights))
        np.testing.assert_allclose(group["weights"], expected, rtol=1e-9)
        assert group["into"] == group["members"][int(np.argmax(weights))]


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("features", FEATURES)
def test_clusters_equal_scipys(measured, features, linkage):
    folder, layers = measured
    for count in (17, 9, 4):
        plan = plan_of(folder, "--merge", "hc-smoe", "--merge-to", count, "--merge-features", features, "--linkage", linkage,
                       *(["--checkpoint", folder / "m"] if features == "weights" else []))
        for layer in plan["layers"]:
            facts = layers[layer["layer"]]
            tree = hierarchy.linkage(squareform(distances(facts, features), checks=False), linkage)
            assert partition(layer) == by_labels(hierarchy.fcluster(tree, count, "maxclust")), (count, layer["layer"])
            check_weights(layer, facts["usage"])


def cosines(gram):
    lengths = np.sqrt(np.diag(gram))
    return gram / np.outer(lengths, lengths)


def test_m_smoe_and_ream_equal_numpy(measured):
    folder, layers = measured
    count = 7
    for layer in plan_of(folder, "--merge", "m-smoe", "--merge-to", count)["layers"]:
        facts = layers[layer["layer"]]
        dominant = np.argsort(-facts["usage"], kind="stable")[:count]
        labels = np.argmax(cosines(facts["gram"])[:, dominant], axis=1)
        labels[dominant] = np.arange(count)
        assert partition(layer) == by_labels(labels)
        check_weights(layer, facts["usage"])
    for layer in plan_of(folder, "--merge", "ream", "--merge-to", count, "--group-size", 5)["layers"]:
        facts = layers[layer["layer"]]
        distance = 1 - (cosines(facts["gram"]) + cosines(facts["outputs"] @ facts["outputs"].T)) / 2
        centroids = np.argsort(-facts["saliency"], kind="stable")[:count]
        free = [e for e in range(EXPERTS) if e not in centroids]
        labels = np.zeros(EXPERTS, int)
        for label, centroid in enumerate(centroids):
            near = sorted(free, key=lambda e: distance[centroid, e])[:4]
            labels[[centroid, *near]] = label
            free = [e for e in free if e not in near]
        assert partition(layer) == by_labels(labels)
        check_weights(layer, facts["saliency"])


def test_uncurl_cuts_as_well_as_a_reference(measured):
    """Spectral clustering by numpy's eigenvectors; k-means starts as documented."""
    folder, layers = measured
    count = 5
    for layer in plan_of(folder, "--merge", "uncurl", "--merge-to", count)["layers"]:
        facts = layers[layer["layer"]]
        affinity = (1 + cosines(facts["gram"])) / 2
        scale = 1 / np.sqrt(affinity.sum(axis=1))
        _, vectors = np.linalg.eigh(np.eye(EXPERTS) - scale[:, None] * affinity * scale)
        rows = vectors[:, :count] / np.linalg.norm(vectors[:, :count], axis=1, keepdims=True)
        mass = load_file(folder / f"s.stats/layer-{layer['layer']:05d}.safetensors")["router_mass"].sum(axis=(0, 1))
        centres = rows[[int(np.argmax(mass))]]
        while len(centres) < count:
            nearest = ((rows[:, None] - centres) ** 2).sum(-1).min(1)
            centres = np.vstack([centres, rows[int(np.argmax(nearest))]])
        for _ in range(100):
            labels = ((rows[:, None] - centres) ** 2).sum(-1).argmin(1)
            assert len(set(labels)) == count
            centres = np.array([rows[labels == c].mean(0) for c in range(count)])
        assert partition(layer) == by_labels(labels)
        check_weights(layer, mass)


def test_adaptive_numbers_and_what_is_left_after_dropping(measured):
    folder, layers = measured
    plan = plan_of(folder, "--merge", "m-smoe", "--merge-to", "50%", "--merge-counts", "adaptive", "--router", "map")
    shares = np.array([facts["usage"] / facts["usage"].sum() for facts in layers.values()])
    shares[np.arange(len(shares)), shares.argmax(axis=1)] = 1
    threshold = np.sort(shares.ravel())[::-1][12 * len(shares)]
    assert [len(layer["keep"]) for layer in plan["layers"]] == (shares > threshold).sum(axis=1).tolist()
    jsonschema.validate(plan, json.loads((ROOT / "recipes/plan.schema.json").read_text()))

    plan = plan_of(folder, "--keep", 0.75, "--method", "reap", "--merge", "hc-smoe", "--merge-to", 0.5, "--merge-align", "weights")
    dropped = plan_of(folder, "--keep", 0.75, "--method", "reap")
    for layer, before in zip(plan["layers"], dropped["layers"]):
        assert len(layer["keep"]) == 12
        assert sorted(sum(partition(layer), [])) == before["keep"]

    plan = plan_of(folder, "--merge", "uncurl", "--merge-to", 10, "--router", "map", "--keep-atoms", "50%", "--method", "heapr", "--keep", 18)
    width = plan["width"]
    assert all(len(layer["atoms"]) == len(layer["keep"]) == 10 for layer in plan["layers"])
    kept = sum(end - begin for layer in plan["layers"] for expert in layer["atoms"] for begin, end in expert)
    assert kept == len(layers) * 10 * width - len(layers) * 10 * width // 2


def test_options_that_do_not_go_together(measured):
    folder, _ = measured
    for arguments, code, said in [
            ([], 2, "add --method, or --merge"),
            (["--merge", "hcsmoe", "--merge-to", 8], 2, 'did you mean "hc-smoe"'),
            (["--merge", "hc-smoe"], 2, "--merge-to"),
            (["--method", "reap", "--keep", 8, "--router", "map"], 2, "--router is for plans that merge"),
            (["--merge", "hc-smoe", "--merge-to", 8, "--keep", 12], 2, "--method"),
            (["--merge", "hc-smoe", "--merge-to", 8, "--method", "reap"], 2, "--keep"),
            (["--merge", "hc-smoe", "--merge-to", 8, "--linkage", "hirarchical"], 2, "average, complete, single, ward"),
            (["--merge", "m-smoe", "--merge-to", 8, "--linkage", "ward"], 2, "m-smoe does not know it"),
            (["--merge", "hc-smoe", "--merge-to", 8, "--group-size", 4], 2, "only ream does"),
            (["--merge", "m-smoe", "--merge-to", 8, "--merge-counts", "adaptive"], 2, "--router map or duplicate"),
            (["--merge", "hc-smoe", "--merge-to", 8, "--router", "duplicate", "--method", "heapr", "--keep-atoms", 0.5], 2, "duplicate"),
            (["--merge", "hc-smoe", "--merge-to", 8, "--variant", "official"], 2, "leave it out"),
            (["--merge", "hc-smoe", "--merge-to", 3], 3, "a token is routed to 4 experts"),
            (["--merge", "hc-smoe", "--merge-to", 24], 3, "nothing would be merged"),
            (["--merge", "ream", "--merge-to", 8, "--group-size", 2], 3, "--group-size at least 3")]:
        assert said in moetrim("plan", folder / "s.stats", *arguments, "-o", folder / "no.json", code=code).stderr, arguments
    assert not (folder / "no.json").exists()


def test_statistics_that_are_missing(tmp_path):
    models.make(tmp_path / "m", "mixtral")
    write_task(tmp_path / "t.jsonl", models.sequences(1, [30]))
    calibrate = ["calibrate", tmp_path / "m", "--task", tmp_path / "t.jsonl"]
    moetrim(*calibrate, "-o", tmp_path / "default.stats")
    moetrim(*calibrate, "--statistics", "vectors", "-o", tmp_path / "vectors.stats")
    merge = ["--merge", "hc-smoe", "--merge-to", 3, "-o", tmp_path / "p.json"]
    assert "vectors" in moetrim("plan", tmp_path / "default.stats", *merge, "--merge-features", "logits", code=3).stderr
    assert "all-experts" in moetrim("plan", tmp_path / "vectors.stats", *merge, code=3).stderr
    assert "all-experts" in moetrim("plan", tmp_path / "vectors.stats", *merge, "--merge-features", "logits", "--merge-align", "activations",
                                    code=3).stderr
    moetrim("plan", tmp_path / "vectors.stats", *merge, "--merge-features", "logits")


def test_a_recipe_merges_and_measures_what_it_wrote(tmp_path):
    models.make(tmp_path / "m", "olmoe")
    write_task(tmp_path / "t.jsonl", models.sequences(1, [30, 20]))
    recipe = dict(checkpoint="m", output="out", calibrate={"task": ["t.jsonl"], "dtype": "fp32"},
                  plan={"merge": "hc-smoe", "merge-to": 6}, evaluate={"task": ["t.jsonl"], "dtype": "fp32"})
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    assert '"all-experts"' in moetrim("run", tmp_path / "r.json", code=3).stderr
    recipe["calibrate"] |= {"statistics": "all-experts"}
    jsonschema.validate(recipe, json.loads((ROOT / "recipes/recipe.schema.json").read_text()))
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    result = moetrim_json("run", tmp_path / "r.json")
    row = result["evaluation"][0]
    written = moetrim_json("evaluate", tmp_path / "out/checkpoint", "--against", tmp_path / "m", "--task", tmp_path / "t.jsonl", "--dtype",
                           "fp32")
    assert row["after"]["loss"] == pytest.approx(written["loss"]) != row["before"]["loss"]
    assert row["after"]["kl"] == pytest.approx(written["kl"])
    assert json.loads((tmp_path / "out/checkpoint/config.json").read_text())["num_experts"] == 6
    assert json.loads((tmp_path / "out/plan-random.json").read_text())["keep"] == 6
