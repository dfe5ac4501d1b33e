"""Local routing consistency against a plain computation from its definition, on a random trace."""
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models
from program import moetrim, moetrim_json, write_task

EXPERTS, TOP_K = 9, 3


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Statistics whose trace is replaced by a random one with habits: two sequences are longer than any window."""
    folder = tmp_path_factory.mktemp("report")
    models.make(folder / "m", "olmoe")
    write_task(folder / "t.jsonl", models.sequences(2, [12, 9]))
    moetrim("calibrate", folder / "m", "--task", folder / "t.jsonl", "--trace", 30, "-o", folder / "s.stats")
    lengths = [300, 3, 70, 290, 18]
    tokens = sum(lengths)
    random = np.random.default_rng(5)
    column = np.arange(len(lengths)).repeat(lengths).astype(np.int32)
    save_file({"ids": column, "task": np.zeros(tokens, np.int32), "demonstration": column, "position": column},
              folder / "s.stats/trace/tokens.safetensors")
    routed = {}
    for layer in range(3):
        logits = random.normal(size=(tokens, EXPERTS))
        for t in range(1, tokens):  # neighbours resemble each other, so that there is something to find
            logits[t] = 0.8 * logits[t - 1] + 0.6 * logits[t]
        routed[layer] = np.argsort(-logits, 1)[:, :TOP_K].astype(np.int32)
        save_file({"ids": routed[layer]}, folder / f"s.stats/trace/layer-{layer:05}.safetensors")
    ends = np.cumsum(lengths)
    sequences = {layer: np.split(ids, ends[:-1]) for layer, ids in routed.items()}
    return moetrim_json("report", folder / "s.stats")["trace"], sequences


def window_counts(sequences, window):
    """Uses of every expert in every window: [windows, experts]."""
    rows = [np.zeros((0, EXPERTS), int)]
    for ids in sequences:
        used = np.zeros((len(ids), EXPERTS), int)
        np.put_along_axis(used, ids, 1, 1)
        rows += [used[i:i + window].sum(0)[None] for i in range(len(ids) - window + 1)]
    return np.concatenate(rows)


def best(counts, window):
    """SRP and its threshold, every set of experts written out."""
    found = max(((2 * counts[counts >= p].sum() / (window * (counts >= p).sum() + counts.sum()), -p) for p in range(1, window + 1)))
    held = counts >= -found[1]
    return found[0], -found[1], window * held.sum() / counts.sum()


@pytest.mark.parametrize("window", [4, 16, 64, 256])
def test_segment_routing_equals_the_definition(traced, window):
    trace, sequences = traced
    entry = next(entry for entry in trace["srp"] if entry["window"] == window)
    counts = {layer: window_counts(ids, window) for layer, ids in sequences.items()}
    assert entry["windows"] == len(counts[0])

    def check(row, expected):
        assert (row["srp"], row["threshold"], row["held"]) == pytest.approx(expected, rel=1e-12)

    check(entry["model"], best(np.concatenate(list(counts.values())), window))
    low, high = entry["model"]["interval"]
    assert low <= high and high - low < 0.5
    for row in entry["layers"]:
        check(row, best(counts[row["layer"]], window))
        single = [best(counts[row["layer"]][:, [e]], window)[0] for e in range(EXPERTS)]
        np.testing.assert_allclose(row["experts"], single, rtol=1e-12)


def hits(ids, size, window):
    """One cache, token by token: hits are judged before a token's experts come in; the fullest future is kept, then the latest."""
    held, seen, last, clock, total = set(), 0, {}, 0, 0
    for t, experts in enumerate(ids.tolist()):
        known = set(last)
        for expert in experts:
            if expert in known:
                total += expert in held
            else:
                total += seen < size
                seen += 1
        coming = [expert for row in ids[t:t + window].tolist() for expert in row]
        for expert in experts:
            if expert not in held:
                if len(held) == size:
                    held.remove(min(held, key=lambda e: (coming.count(e), last[e])))
                held.add(expert)
            coming.remove(expert)
            clock += 1
            last[expert] = clock
    return total


def test_cache_hits_equal_a_simulation(traced):
    trace, sequences = traced
    for entry in trace["sch"]:
        for size in entry["sizes"]:
            every = []
            for row in size["layers"]:
                parts = [ids for ids in sequences[row["layer"]]]
                rate = sum(hits(ids, size["experts"], entry["window"]) for ids in parts) / sum(ids.size for ids in parts)
                assert row["sch"] == pytest.approx(rate, rel=1e-12)
                every.append(rate)
            assert size["model"]["sch"] == pytest.approx(np.mean(every), rel=1e-12)
            assert size["experts"] != EXPERTS or rate == 1
    assert [size["experts"] for size in trace["sch"][0]["sizes"]] == [3, 6, 9]


def test_a_plan_is_judged(tmp_path):
    models.make(tmp_path / "m", "mixtral")
    write_task(tmp_path / "t.jsonl", models.sequences(4, [12] * 8))
    moetrim("calibrate", tmp_path / "m", "--task", tmp_path / "t.jsonl", "-o", tmp_path / "s.stats")
    moetrim("plan", tmp_path / "s.stats", "--method", "reap", "--keep", 3, "-o", tmp_path / "p.json")
    report = moetrim_json("report", tmp_path / "s.stats", "--plan", tmp_path / "p.json")
    plan = report["plans"][0]
    assert report["trace"] is None and len(plan["convergence"]) == 8 and plan["convergence"][-1] == 1
    low, high = plan["confidence"]["interval"]
    assert plan["confidence"]["slices"] == 8 and 0 < low <= plan["confidence"]["overlap"] <= high <= 1
    assert moetrim_json("report", tmp_path / "s.stats", "--plan", tmp_path / "p.json") == report
    assert "overlap of resampled kept sets" in moetrim("report", tmp_path / "s.stats", "--plan", tmp_path / "p.json").stdout
