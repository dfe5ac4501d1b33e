"""Loss, KL, agreement and greedy answers against transformers."""
import json

import numpy as np
import pytest
import torch

import models
from program import moetrim, moetrim_json, write_task

IDS = models.sequences(21, [19, 44, 31])


def log_probabilities(model):
    """Of every predicted token: log-probabilities [n, V] and the token."""
    rows, targets = [], []
    with torch.no_grad():
        for s in IDS:
            rows.append(torch.log_softmax(model(torch.tensor([s])).logits[0, :-1].double(), -1))
            targets.append(torch.tensor(s[1:]))
    return torch.cat(rows), torch.cat(targets)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_loss_and_kl(family, tmp_path):
    a = models.make(tmp_path / "a", family, seed=0)
    b = models.make(tmp_path / "b", family, seed=1)
    write_task(tmp_path / "t.jsonl", IDS)
    ours = moetrim_json("evaluate", tmp_path / "a", "--against", tmp_path / "b", "--task", tmp_path / "t.jsonl", "--dtype", "fp32")
    (p, targets), (q, _) = log_probabilities(a), log_probabilities(b)
    loss = -p.gather(1, targets[:, None]).mean().item()
    assert ours["tokens"] == len(targets)
    assert ours["loss"] == pytest.approx(loss, rel=1e-5)
    assert ours["perplexity"] == pytest.approx(np.exp(loss), rel=1e-4)
    assert ours["kl"] == pytest.approx((q.exp() * (q - p)).sum(1).mean().item(), rel=1e-4)
    assert ours["top1_agreement"] == pytest.approx((p.argmax(1) == q.argmax(1)).double().mean().item())


def test_counted_tokens(tmp_path):
    model = models.make(tmp_path / "m", "qwen3_moe")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"input_ids": s, "prompt_tokens": 5}) + "\n" for s in IDS))
    losses = {}
    for count in ("all", "prompt", "response"):
        losses[count] = moetrim_json("evaluate", tmp_path / "m", "--task", tmp_path / "t.jsonl", "--count", count, "--dtype", "fp32")
    assert [losses[c]["tokens"] for c in losses] == [sum(map(len, IDS)) - 3, 4 * 3, sum(map(len, IDS)) - 15]
    p, targets = log_probabilities(model)
    starts = np.cumsum([0] + [len(s) - 1 for s in IDS])
    rows = np.concatenate([np.arange(starts[i], starts[i] + 4) for i in range(3)])
    assert losses["prompt"]["loss"] == pytest.approx(-p[rows, targets[rows]].mean().item(), rel=1e-5)


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_plans_share_the_layers_before_they_differ(family, tmp_path):
    """All in one pass is each alone, and a plan that goes on from another one's states is the checkpoint written for it."""
    models.make(tmp_path / "m", family, num_hidden_layers=4)
    write_task(tmp_path / "t.jsonl", IDS)
    arguments = ["--task", tmp_path / "t.jsonl", "--dtype", "fp32"]
    moetrim("calibrate", tmp_path / "m", *arguments, "-o", tmp_path / "s.stats")
    config = models.config_of(family)
    for name, method, keep in [("a", "reap", models.two_thirds(config)), ("r", "random", models.two_thirds(config)),
                               ("all", "reap", models.groups_of(config)[0])]:
        moetrim("plan", tmp_path / "s.stats", "--method", method, "--keep", keep, "-o", tmp_path / f"{name}.json")
    a, r = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ar")
    assert a["layers"][-1]["keep"] != r["layers"][-1]["keep"]
    (tmp_path / "late.json").write_text(json.dumps({**a, "layers": [*a["layers"][:-1], r["layers"][-1]]}))
    names = ["r", "late", "all", "a", "late"]
    plans = [option for name in names for option in ("--plan", tmp_path / f"{name}.json")]
    together = moetrim_json("evaluate", tmp_path / "m", *plans, *arguments)
    for name, plan in zip(names, together["plans"]):
        assert [plan] == moetrim_json("evaluate", tmp_path / "m", "--plan", tmp_path / f"{name}.json", *arguments)["plans"]
    unchanged = together["plans"][2]
    assert (unchanged["loss"], unchanged["kl"], unchanged["top1_agreement"]) == (together["loss"], 0, 1)
    moetrim("rewrite", tmp_path / "m", "--plan", tmp_path / "late.json", "-o", tmp_path / "late")
    written = moetrim_json("evaluate", tmp_path / "late", "--against", tmp_path / "m", *arguments)
    for key in ("loss", "kl", "top1_agreement"):
        assert together["plans"][1][key] == pytest.approx(written[key], rel=1e-5)
    # Of four layers: the model 4; r, late and a from the first MoE layer on, two of which share all but the last.
    dense = a["layers"][0]["layer"]
    copies = moetrim_json("evaluate", tmp_path / "m", *plans, *arguments, "--dry-run")["copies"]
    assert copies == (4 + 2 * (4 - dense) + 1) / 4
