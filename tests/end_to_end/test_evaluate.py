"""Loss, KL, agreement and greedy answers against transformers."""
import json

import numpy as np
import pytest
import torch

import models
from program import moetrim_json, write_task

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
