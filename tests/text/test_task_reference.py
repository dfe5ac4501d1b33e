"""Task rows become the ids that transformers gives for the same rows."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from text_cases import CONVERSATIONS, TEXTS, WEATHER, ask

PAIRS = [("What is 2+2?", "4"), ("  Erkläre\n\ndas 😀 ", " Gern.\n"), ("x", "<think>\nhm\n</think>\n\ny"), ("q", ""),
         ("你好", "世界</s>"), (TEXTS[11], TEXTS[12])]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {"do": "task", "file": str(path)}


def common_prefix(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def chat_ids(tokenizer, before, reply, tools=None):
    """Ids and prompt length by the rule stated in text.h."""
    prompt = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True, tools=tools)
    whole = tokenizer.apply_chat_template(before + [reply], tokenize=False, tools=tools)
    if not whole.startswith(prompt) and reply.get("content"):
        whole = prompt + reply["content"] + tokenizer.eos_token
    ids = tokenizer.encode(whole, add_special_tokens=False)
    return ids, common_prefix(ids, tokenizer.encode(prompt, add_special_tokens=False))


@pytest.mark.parametrize("template", ["chatml", "llama3", "mistral", "thinking", "drops_reasoning"])
@pytest.mark.parametrize("name", ["qwen", "llama3", "mixtral"])
def test_pairs_through_templates(folders, tmp_path, name, template):
    folder = folders(name, template)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    rows = [{"prompt": p, "response": r, "answer": "a"} for p, r in PAIRS]
    rows += [{"question": p, "answer": f"{r}\n#### 7 \n"} for p, r in PAIRS]
    request = {**write_rows(tmp_path / "rows.jsonl", rows), "folder": str(folder)}
    task, prompts = ask(request, {**request, "generation_prompt_only": True})
    for row, got, prompt_only in zip(rows, task["rows"], prompts["rows"], strict=True):
        prompt, response = row.get("prompt", row.get("question")), row.get("response", row["answer"])
        user = {"role": "user", "content": prompt}
        ids, prompt_tokens = chat_ids(tokenizer, [user], {"role": "assistant", "content": response})
        assert (got["ids"], got["prompt_tokens"]) == (ids, prompt_tokens)
        assert (got["prompt"], got["response"], got["answer"]) == (prompt, response, "a" if "prompt" in row else "7")
        alone = tokenizer.apply_chat_template([user], add_generation_prompt=True)["input_ids"]
        assert (prompt_only["ids"], prompt_only["prompt_tokens"]) == (alone, len(alone))
        assert (prompt_only["response"], prompt_only["answer"]) == (got["response"], got["answer"])


def test_prompt_part_is_what_the_model_sees(folders, tmp_path):
    folder = folders("qwen", "chatml")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    request = {**write_rows(tmp_path / "rows.jsonl", [{"prompt": "Hi", "response": "Yo"}]), "folder": str(folder)}
    [row] = ask(request)[0]["rows"]
    head, tail = row["ids"][:row["prompt_tokens"]], row["ids"][row["prompt_tokens"]:]
    assert tokenizer.decode(head).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(tail) == "Yo<|im_end|>\n"


def test_dropped_reasoning_is_measured_as_written(folders, tmp_path):
    """The template writes <think> into the prompt and drops it from finished answers."""
    folder = folders("llama3", "drops_reasoning")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    request = {**write_rows(tmp_path / "rows.jsonl", [{"prompt": "Hi", "response": "hm</think>Yo"}]), "folder": str(folder)}
    [row] = ask(request)[0]["rows"]
    assert tokenizer.decode(row["ids"]) == "<s><user>Hi<assistant><think>\nhm</think>Yo</s>"
    assert tokenizer.decode(row["ids"][row["prompt_tokens"]:]).endswith("hm</think>Yo</s>")


@pytest.mark.parametrize("name", ["qwen", "llama3", "mixtral", "wordpiece"])
def test_rows_without_template(folders, tmp_path, name):
    folder = folders(name)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    rows = [{"prompt": p, "response": r} for p, r in PAIRS] + [{"text": text} for text in TEXTS if text.strip()]
    task = ask({**write_rows(tmp_path / "rows.jsonl", rows), "folder": str(folder)})[0]
    for row, got in zip(rows, task["rows"], strict=True):
        assert got["ids"] == tokenizer.encode(row["text"] if "text" in row else row["prompt"] + row["response"])
        if "text" in row:
            assert got["prompt_tokens"] == 0 and got["prompt"] == "" and got["response"] == row["text"]
        else:
            head = tokenizer.encode(row["prompt"])
            head = head[:-1] if name == "wordpiece" else head  # its </s> closes every text
            assert got["prompt_tokens"] == common_prefix(got["ids"], head)


def test_messages(folders, tmp_path):
    folder = folders("qwen", "thinking")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    messages = CONVERSATIONS["tools"][0]
    after = [{"role": "user", "content": "thanks"}]
    rows = [{"messages": messages, "tools": [WEATHER]}, {"messages": messages + after, "tools": [WEATHER]},
            {"messages": messages[:2], "tools": [WEATHER]}]
    request = {**write_rows(tmp_path / "rows.jsonl", rows), "folder": str(folder)}
    whole, ignored_tail, call = ask(request)[0]["rows"]
    ids, prompt_tokens = chat_ids(tokenizer, messages[:-1], messages[-1], [WEATHER])
    assert (whole["ids"], whole["prompt_tokens"]) == (ids, prompt_tokens)
    assert {**ignored_tail, "line": 1} == whole
    assert (whole["prompt"], whole["response"]) == ("Weather?", "21.5 °C")
    assert (call["ids"], call["prompt_tokens"]) == chat_ids(tokenizer, messages[:1], messages[1], [WEATHER])
    [alone] = ask({**write_rows(tmp_path / "user.jsonl", [{"messages": messages[:1]}]), "folder": str(folder),
                   "generation_prompt_only": True})[0]["rows"]
    assert alone["ids"] == tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]


ERRORS = {
    "no assistant": ("chatml", {"messages": [{"role": "user", "content": "a"}]}, "assistant"),
    "no role": ("chatml", {"messages": [{"content": "a"}]}, '"role" is missing'),
    "not a list": ("chatml", {"messages": "a"}, "at least one message"),
    "not objects": ("chatml", {"messages": [1]}, "not an object"),
    "tools": ("chatml", {"messages": [{"role": "assistant", "content": "a"}], "tools": 5}, '"tools" is not a list'),
    "no template": (None, {"messages": [{"role": "assistant", "content": "a"}]}, "needs a chat template"),
    "refused": ("mistral", {"messages": [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]},
                "chat_template.jinja: the template failed: line 12: After the optional system message"),
    "empty text": (None, {"text": ""}, "no tokens"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_row_errors_name_file_line_and_cause(folders, tmp_path, name):
    template, row, message = ERRORS[name]
    request = {**write_rows(tmp_path / "rows.jsonl", [{"input_ids": [1]}, row]), "folder": str(folders("qwen", template))}
    [answer] = ask(request)
    assert answer.get("code") == 3, answer
    assert f"{tmp_path}/rows.jsonl, line 2: " in answer["error"] and message in answer["error"]


def test_vocabulary_of_the_model_is_checked(folders, tmp_path):
    request = {**write_rows(tmp_path / "rows.jsonl", [{"text": "Hello"}]), "folder": str(folders("qwen")), "vocabulary": 5}
    assert "vocabulary of 5" in ask(request)[0]["error"]
