"""Token ids and rendered chat templates equal those of transformers."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from text_cases import CONVERSATIONS, TEMPLATES, TEXTS, TOKENIZERS, ask, make_folder

@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_equal(folders, name, special):
    folder = folders(name)
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    answers = ask(*({"do": "encode", "folder": str(folder), "text": text, "special": special} for text in TEXTS))
    for text, answer in zip(TEXTS, answers):
        assert answer.get("ids") == reference.encode(text, add_special_tokens=special), (text, answer)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_decoded_text_equals(folders, name, skip):
    folder = folders(name)
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = [reference.encode(text) for text in TEXTS] + [list(range(1, 300, 7)), [5, 100000, 6]]
    answers = ask(*({"do": "decode", "folder": str(folder), "ids": one, "skip": skip} for one in ids))
    for one, answer in zip(ids, answers):
        expected = reference.decode(one, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert answer.get("text") == expected, (one, answer)


def rendered_by_transformers(tokenizer, messages, prompt, extra):
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **extra)
    except Exception as error:  # the template's own errors are Jinja's, KeyError, TypeError, ...
        return error


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_rendered_text_equals(folders, template, conversation):
    folder = folders("llama3", template)
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    messages, extra = CONVERSATIONS[conversation]
    for prompt in (False, True):
        expected = rendered_by_transformers(reference, messages, prompt, extra)
        [answer] = ask({"do": "render", "folder": str(folder), "messages": messages, "prompt": prompt, "extra": extra})
        if isinstance(expected, Exception):
            assert answer.get("code") == 3, (expected, answer)
            assert "chat_template.jinja" in answer["error"]
        else:
            assert answer.get("text") == expected


def test_every_template_renders_something(folders):
    """Guards the comparison above against being one of errors only."""
    for template in TEMPLATES:
        reference = PreTrainedTokenizerFast.from_pretrained(folders("llama3", template))
        assert isinstance(rendered_by_transformers(reference, *CONVERSATIONS["pair"][:1], False, {}), str), template


def test_template_places(folders, tmp_path):
    """tokenizer_config.json (one, or several by name), chat_template.json and the .jinja file, in rising rank."""
    folder = make_folder(tmp_path, "qwen")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    messages, tools = [{"role": "user", "content": "x"}], CONVERSATIONS["tools"][1]
    request = {"do": "render", "folder": str(folder), "messages": messages, "prompt": False}

    def set_config(template):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))

    assert "no chat template" in ask(request)[0]["error"]
    set_config("one {{ messages[0].content }}\n")
    assert ask(request) == [{"text": "one x"}]
    set_config([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}])
    assert ask(request, {**request, "extra": tools}) == [{"text": "plain"}, {"text": "tools"}]
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert ask(request) == [{"text": "json"}]
    (folder / "chat_template.jinja").write_text("file {{ eos_token }}{{ strftime_now('%Y') | length }}")
    assert ask(request) == [{"text": "file <|im_end|>4"}]


HOSTILE_TEMPLATES = {
    "endless": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursive": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "doubling": "{% set n = namespace(x='abcdefgh') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "nested": "{% set n = namespace(x=[]) %}{% for i in range(90000) %}{% for j in range(90) %}{% set n.x = [n.x] %}{% endfor %}{% endfor %}",
    "printed": "{% set n = namespace(x=[]) %}{% for i in range(90000) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
    "dumped": "{% set n = namespace(x=[]) %}{% for i in range(90000) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x | tojson }}",
    "raised": "{{ raise_exception('no such role') }}",
    "syntax": "{% if %}",
    "unclosed": "{% for m in messages %}{{ m.content }}",
    "attribute_of_nothing": "{{ messages[9].content.x }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "self_equal": "{% set n = namespace() %}{% set n.x = n %}{{ n }}{{ n | tojson }}",
}


@pytest.mark.parametrize("name", HOSTILE_TEMPLATES)
def test_hostile_template_is_an_error(tmp_path, name):
    folder = make_folder(tmp_path, "qwen")
    (folder / "chat_template.jinja").write_text(HOSTILE_TEMPLATES[name])
    request = {"do": "render", "folder": str(folder), "messages": [{"role": "user", "content": "x"}], "prompt": True}
    # A namespace that holds itself is never freed, nor is a rendering that was given up.
    [answer] = ask(request, may_leak=True)
    assert answer.get("code") == 3, answer
    assert "chat_template.jinja" in answer["error"] and len(answer["error"]) < 600


HOSTILE_TOKENIZERS = {
    "empty": b"", "not_json": b"{", "not_utf8": b'{"version": "\xff"}', "array": b"[]", "no_model": b'{"version": "1.0"}',
    "deep": b"[" * 100000, "unknown_model": b'{"model": {"type": "Nothing"}}',
    "merge_of_nothing": b'{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
    "bad_regex": b'{"added_tokens": [], "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior":'
                 b' "Isolated", "invert": false}, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
    "negative_id": b'{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
}


@pytest.mark.parametrize("name", HOSTILE_TOKENIZERS)
def test_hostile_tokenizer_is_an_error(tmp_path, name):
    (tmp_path / "tokenizer.json").write_bytes(HOSTILE_TOKENIZERS[name])
    [answer] = ask({"do": "encode", "folder": str(tmp_path), "text": "a", "special": True})
    assert answer.get("code") == 3, answer
    assert "tokenizer.json" in answer["error"] and len(answer["error"]) < 600


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"chat_template": 5}', b'{"a":' + b"[" * 500])
def test_hostile_config_is_an_error(tmp_path, damage):
    folder = make_folder(tmp_path, "qwen")
    (folder / "tokenizer_config.json").write_bytes(damage)
    [answer] = ask({"do": "encode", "folder": str(folder), "text": "a", "special": True})
    assert answer.get("code") == 3 and "tokenizer_config.json" in answer["error"], answer


def test_missing_tokenizer_says_what_to_do(tmp_path):
    request = {"do": "encode", "folder": str(tmp_path), "text": "a", "special": True}
    assert "input_ids" in ask(request)[0]["error"]
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    assert "tokenizer.model" in ask(request)[0]["error"]
