"""Greedy answers with the KV cache against transformers' generate, and exact match, on the shipped model."""
import json
import subprocess

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import models
from program import BUILD, ROOT, moetrim_json

MODEL = ROOT / "demo/model"
TASKS = sorted(f.name.removesuffix(".test.jsonl") for f in (ROOT / "calibration").glob("*.test.jsonl"))


@pytest.fixture(scope="module")
def theirs():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), AutoTokenizer.from_pretrained(MODEL)


@pytest.mark.parametrize("task", TASKS)
def test_exact_match_equals_transformers(theirs, task):
    """fp32, so that no rounding decides a token: the same answers are right."""
    model, tokenizer = theirs
    file = ROOT / f"calibration/{task}.test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()][:12]
    right = 0
    for row in rows:
        ids = tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]}], add_generation_prompt=True,
                                            return_tensors="pt", return_dict=True)
        out = model.generate(**ids, max_new_tokens=128, do_sample=False)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True)
        right += text.rsplit("#### ", 1)[-1].strip() == row["answer"].rsplit("#### ", 1)[-1].strip()
    ours = moetrim_json("evaluate", MODEL, "--task", file, "--samples", 12, "--dtype", "fp32", "--exact-match", "--batch", 5,
                        "--max-new-tokens", 128)
    assert ours["tasks"][0]["correct"] == right
    assert ours["tasks"][0]["samples"] == 12


def test_loss_of_rendered_conversations(theirs):
    """--count response counts what follows the generation prompt, as rendered by transformers."""
    model, tokenizer = theirs
    file = ROOT / f"calibration/{TASKS[0]}.test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()][:8]
    loss, tokens = 0.0, 0
    for row in rows:
        user = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(user, add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(user + [{"role": "assistant", "content": row["response"]}], tokenize=False)
        ids = torch.tensor(tokenizer(whole, add_special_tokens=False)["input_ids"])
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            p = torch.log_softmax(model(ids[None]).logits[0].double(), -1)
        loss -= p[torch.arange(start - 1, len(ids) - 1), ids[start:]].sum().item()
        tokens += len(ids) - start
    ours = moetrim_json("evaluate", MODEL, "--task", file, "--samples", 8, "--dtype", "fp32", "--count", "response")
    assert ours["tokens"] == tokens
    assert ours["loss"] == pytest.approx(loss / tokens, rel=1e-4)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_cached_tokens_equal_a_whole_forward(family, tmp_path):
    """Prompts of several lengths, answered together through the caches of every kind of attention."""
    model = models.make(tmp_path / "m", family)
    prompts = models.sequences(3, [21, 1, 38])
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    done = subprocess.run([BUILD / "tests/generate_probe", tmp_path / "m", tmp_path / "prompts.json", "8"], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    for prompt, answer in zip(prompts, json.loads(done.stdout)):
        assert len(answer) == 8
        for i, token in enumerate(answer):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer[:i]])).logits[0, -1]
            assert logits[token] >= logits.max() - 1e-3
