"""Tokenizers in exported GGUF files: llama.cpp gives the ids that the tokenizers library gives, by every name we know.

The vocabularies are trained here on text that no pre-tokenizer has split, so that merges reach over every place where one
could: whatever llama.cpp splits elsewhere shows as other ids.
"""
import json
import os
import random
import unicodedata

import gguf
import pytest
from tokenizers import Regex, Tokenizer, models as tokenizer_models, pre_tokenizers, trainers

import llama_cpp
import models
from program import ROOT, moetrim

VOCABULARY = 1300
TEXTS = [
    "The quick brown fox doesn't jump; it'LL've been 3 33 333 3333 33333 times!!! I'm \"sure\", they're O'Neill's.\n",
    "def f(x_1, y):\n\treturn {'a': x_1 ** 2, \"b\": [1, 2.50, 1e-3]}  # comment\r\n\r\n    if x != y:\n        pass\n\n\n",
    "Größe, naïve café, ÀÉÎ: Ünïcödé straße. Ça va? Dvořák a Łódź, İstanbul'da, ǅ ǈ\n",
    "Привет, мир! Съешь ещё этих мягких французских булок. ЁЖИК\n", "Γειά σου Κόσμε, ΑΒΓ αβγ\n",
    "你好，世界！今天是2024年3月15日。我想在apple工作1314151天～\n", "これはテストです。カタカナとひらがな、漢字。ﾊﾝｶｸ\n", "안녕하세요 세계! 한국어 텍스트입니다.\n",
    "مرحبا بالعالم ١٢٣ العربية\n", "שלום עולם\n", "नमस्ते दुनिया १२३ हिन्दी\n", "สวัสดีชาวโลก ภาษาไทย\n",
    "🚀 😶‍🌫️ 🦙🦙 👩‍👩‍👧‍👦 ✅ ½ Ⅻ ² ①\n", "   leading\ttabs\t\t and  trailing   \n \n  \n\t\n",
    "a/b//c https://x.org/?q=1&r=2 C:\\dir\\x <|tag|> $100 €5 100% #1 @me\n"]
CHARACTERS = (list("abcxyzABCXYZ'stredvmlSTRE  \t\n\r0123456789.,!?;:-_/\\()[]{}<>=+*&^%$#@\"`~|") +
              list("éßøÀÉΩωжЖЯ你好世界一龥ひカー漢한글ا١नि्สวัកា½²Ⅻ①🚀😀‍️ \u3000。，！“”…\u0301\u0308ǅʰª\u200b\u2028"))

# Pre-tokenizers as they stand in published tokenizer.json files, by llama.cpp's name.
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WORDS_AND_BYTES = {**BYTES, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN35 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
CL100K = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
UPPER, LOWER, ENDING = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDING}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDING}"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
KIMI = r"[\p{Han}]+|" + O200K.replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]").replace(r"[\r\n/]*", r"[\r\n]*")
DEEPSEEK_V3 = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
               "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
               "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
DEEPSEEK_V2 = [
    "[\r\n]",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-"
    r"ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+"]


def split(expression, **other):
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False, **other}


def plain(text):
    """Without what llama.cpp's stand-ins for classes of letters do not know: combining marks, and cases outside ASCII."""
    return not any(unicodedata.category(c).startswith("M") or (not c.isascii() and unicodedata.category(c) in ("Lu", "Ll", "Lt"))
                   for c in text)


class Shape:
    def __init__(self, *steps, ignore_merges=False, alike=lambda text: True, digits=True):
        self.steps, self.ignore_merges, self.alike, self.digits = steps, ignore_merges, alike, digits


SHAPES = {
    "qwen2": Shape(split(QWEN2), BYTES),
    "qwen35": Shape(split(QWEN35), BYTES),
    "llama-bpe": Shape(split(CL100K, behavior="Removed", invert=True), BYTES, ignore_merges=True),
    "glm4": Shape(split(CL100K), BYTES),
    "gpt-4o": Shape(split(O200K), BYTES, alike=plain),
    # No digits are merged in its vocabulary: llama.cpp splits numbers off whole.
    "deepseek-llm": Shape(*map(split, DEEPSEEK_V2), DIGITS, BYTES, alike=lambda text: "\u2028" not in text, digits=False),
    "deepseek-v3": Shape(*map(split, DEEPSEEK_V3), BYTES),
    "kimi-k2": Shape(split(KIMI), BYTES, alike=plain),
    "gpt-2": Shape(WORDS_AND_BYTES),
    "refact": Shape(DIGITS, WORDS_AND_BYTES),
}


def strings(seed, count, length):
    generator = random.Random(seed)
    return ["".join(generator.choices(CHARACTERS, k=generator.randrange(1, length))) for _ in range(count)]


def train(digits):
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if not digits:
        steps.insert(0, pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"))
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    pieces = [text[i:i + 24] for text in TEXTS * 3 for i in range(0, len(text), 3)]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 100, min_frequency=2, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(pieces + strings(1, 2000, 12), trainer)
    return json.loads(tokenizer.to_str())


@pytest.fixture(scope="module")
def trained():
    return {digits: train(digits) for digits in (True, False)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    models.make(folder, "qwen3_moe", vocab_size=VOCABULARY, num_hidden_layers=1, mlp_only_layers=[], hidden_size=32)
    return folder


@pytest.fixture
def export(weights, tmp_path):
    """Writes a checkpoint with this tokenizer.json and these other files as GGUF."""
    def run(tokenizer, *more, code=0, files=None):
        folder = tmp_path / "checkpoint"
        folder.mkdir(exist_ok=True)
        if not (folder / "model.safetensors").exists():
            os.link(weights / "model.safetensors", folder / "model.safetensors")
        config = json.loads((weights / "config.json").read_text())
        for name in [key for key in config if key.endswith("_token_id")]:
            del config[name]
        content = {"config.json": config, "tokenizer.json": tokenizer, **(files or {})}
        for name, value in content.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
        done = moetrim("export", folder, "--format", "gguf", "-o", tmp_path / "out.gguf", "--overwrite", *more, code=code)
        return done.stderr if code else (tmp_path / "out.gguf", done.stderr)
    return run


def metadata(file):
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_ids_of_every_pretokenizer(name, trained, export):
    shape = SHAPES[name]
    steps = list(shape.steps)
    tokenizer = json.loads(json.dumps(trained[shape.digits]))
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]
    tokenizer["model"]["ignore_merges"] = shape.ignore_merges
    file, notes = export(tokenizer)
    theirs = Tokenizer.from_str(json.dumps(tokenizer))
    texts = [text for text in TEXTS + strings(2, 300, 40) if shape.alike(text)]
    assert len(texts) > 50
    with llama_cpp.Model(file, vocab_only=True) as model:
        assert model.metadata["tokenizer.ggml.pre"] == name
        for text in texts:
            assert model.tokenize(text) == theirs.encode(text).ids, text
    assert ("not quite the tokenizer's" in notes) == (name in ("gpt-4o", "kimi-k2", "deepseek-llm"))
    assert "no file says which token ends a text" in notes


# --- What stands beside the vocabulary ---

def token(content, special=True, **flags):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": not special,
            "special": special, **flags}


def with_added(tokenizer, *tokens):
    first = max(tokenizer["model"]["vocab"].values()) + 1
    return {**tokenizer, "added_tokens": [{"id": first + i, **added} for i, added in enumerate(tokens)]}


@pytest.fixture
def chat(trained):
    """A tokenizer with every kind of token, and the files around it."""
    added = [token("<|begin|>"), token("<|end_of_turn|>"), token("<think>", special=False), token("<|call|>"), token("<|observe|>"),
             token("<|user|>")]
    tokenizer = with_added(trained[True], *added)
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split(CL100K), BYTES]}
    tokenizer["model"]["ignore_merges"] = True
    ids = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    tokenizer["post_processor"] = {"type": "Sequence", "processors": [BYTES, {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": "<|begin|>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [ids["<|begin|>"]], "tokens": ["<|begin|>"]}}}]}
    files = {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>",
                                  "eos_token": {"content": "<|end_of_turn|>", "__type": "AddedToken"}},
        "special_tokens_map.json": {"pad_token": "<|observe|>"},
        "generation_config.json": {"eos_token_id": [ids[t] for t in ("<|end_of_turn|>", "<|call|>", "<|observe|>", "<|user|>")]},
        "chat_template.jinja": "{% for m in messages %}<|user|>{{ m.content }}é{% endfor %}  \n",
        "additional_chat_templates/tool-use.jinja": "{{ tools }}"}
    return tokenizer, files, ids


def test_special_tokens_and_templates(chat, export):
    tokenizer, files, ids = chat
    template = files["chat_template.jinja"] + "\r\n \t"
    file, _ = export(tokenizer, files={**files, "chat_template.jinja": template})
    keys = metadata(file)
    roles = {"bos": "<|begin|>", "eos": "<|end_of_turn|>", "padding": "<|observe|>", "eot": "<|observe|>", "eom": "<|user|>"}
    assert {role: keys[f"tokenizer.ggml.{role}_token_id"] for role in roles} == {role: ids[text] for role, text in roles.items()}
    types = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]))
    assert len(types) == VOCABULARY
    kinds = {"<|begin|>": "CONTROL", "<think>": "USER_DEFINED", "a": "NORMAL", f"[PAD{max(ids.values()) + 1}]": "UNUSED",
             f"[PAD{VOCABULARY - 1}]": "UNUSED"}
    assert {text: types[text] for text in kinds} == {text: gguf.TokenType[kind] for text, kind in kinds.items()}
    assert keys["tokenizer.chat_template"] == template
    assert keys["tokenizer.chat_template.tool_use"] == "{{ tools }}" and keys["tokenizer.chat_templates"] == ["tool_use"]
    theirs = Tokenizer.from_str(json.dumps(tokenizer))
    with llama_cpp.Model(file, vocab_only=True) as model:
        for text in ("", "hello", "<|user|> a <think>b\n<|end_of_turn|>", "x<|unknown|>"):
            assert model.tokenize(text, add_special=True) == theirs.encode(text).ids
            assert model.tokenize(text) == theirs.encode(text, add_special_tokens=False).ids
        assert all(model.is_end(ids[t]) for t in ("<|end_of_turn|>", "<|call|>", "<|observe|>", "<|user|>"))
        assert not model.is_end(ids["<|begin|>"])


def test_what_llama_cpp_does_otherwise_is_said(trained, export):
    tokenizer = with_added(trained[True], token("[gMASK]"), token("<sop>"), token("<mask>", lstrip=True), token("<end>"))
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split(QWEN2), BYTES]}
    tokenizer["normalizer"] = {"type": "NFC"}
    tokenizer["model"]["ignore_merges"] = True
    tokenizer["post_processor"] = {"type": "TemplateProcessing", "pair": [], "special_tokens": {
        text: {"id": text, "ids": [tokenizer["added_tokens"][i]["id"]], "tokens": [text]} for i, text in enumerate(["[gMASK]", "<sop>"])},
        "single": [{"SpecialToken": {"id": text, "type_id": 0}} for text in ("[gMASK]", "<sop>")] + [{"Sequence": {"id": "A", "type_id": 0}}]}
    ends = [entry["id"] for entry in tokenizer["added_tokens"]]
    file, notes = export(tokenizer, files={"tokenizer_config.json": {"add_bos_token": True, "eos_token": "<end>"},
                                           "generation_config.json": {"eos_token_id": ends}})
    for sentence in ("does not compose characters (NFC)", "a word whole that is a token, llama.cpp's qwen2 does not",
                     "leaves the white space beside '<mask>'", "puts '[gMASK]<sop>' before a text",
                     "says add_bos_token true", "will not stop at '<mask>'"):
        assert sentence in notes, (sentence, notes)
    keys = metadata(file)
    assert (keys["tokenizer.ggml.add_bos_token"], keys["tokenizer.ggml.eos_token_id"]) == (False, ends[3])
    with llama_cpp.Model(file, vocab_only=True) as model:
        theirs = Tokenizer.from_str(json.dumps(tokenizer))
        assert model.tokenize("a b", add_special=True) == theirs.encode("a b", add_special_tokens=False).ids


def test_keys_equal_those_of_llama_cpps_converter(chat, export, tmp_path):
    """Of the demo model and the tokenizer above; pre-tokenizers are named to it, since it knows published tokenizers alone."""
    tokenizer, files, _ = chat
    file, _ = export(tokenizer, files=files)
    moetrim("export", ROOT / "demo/model", "--format", "gguf", "-o", tmp_path / "demo.gguf")
    theirs = llama_cpp.convert(
        {"folder": tmp_path / "checkpoint", "out": tmp_path / "a.gguf", "pre": "llama-bpe", "more": ["--vocab-only"]},
        {"folder": ROOT / "demo/model", "out": tmp_path / "b.gguf", "pre": "qwen2", "more": ["--vocab-only"]})
    # It says what llama.cpp would not assume, reads neither generation_config.json nor special_tokens_map.json, and takes
    # what stands between two texts for a separator.
    other = {f"tokenizer.ggml.{key}" for key in ("add_bos_token", "add_eos_token", "eot_token_id", "eom_token_id",
                                                 "padding_token_id", "add_sep_token")}
    for ours, their in zip((file, tmp_path / "demo.gguf"), theirs):
        a, b = ({k: v for k, v in metadata(f).items() if k.startswith("tokenizer.")} for f in (ours, their))
        assert {k for k in a.keys() | b.keys() if a.get(k) != b.get(k)} <= other
        assert all(a.get(k, v) == v for k, v in b.items())


def sentencepiece(prepend=True):
    """A tokenizer.json as transformers makes it of a SentencePiece model: all ways to join a token are merges, by score."""
    pieces = sorted({c for text in TEXTS for c in text.replace(" ", "▁")} - {"\n", "é"})
    trained = Tokenizer(tokenizer_models.BPE())
    trained.train_from_iterator([t.replace(" ", "▁") for t in TEXTS] * 3, trainers.BpeTrainer(
        vocab_size=len(pieces) + 500, show_progress=False, initial_alphabet=pieces))
    learned = json.loads(trained.to_str())["model"]
    vocabulary = {text: i for i, text in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))])}
    for text in learned["vocab"]:
        vocabulary.setdefault(text, len(vocabulary))
    merges = [[text[:i], text[i:]] for text in learned["vocab"] for i in range(1, len(text))
              if text[:i] in vocabulary and text[i:] in vocabulary]
    steps = [{"type": "Prepend", "prepend": "▁"}] * prepend + [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": i, **token(text)} for i, text in enumerate(["<unk>", "<s>", "</s>"])],
            "normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None, "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": vocabulary, "merges": merges}}


@pytest.mark.parametrize("prepend", [True, False])
def test_ids_of_sentencepiece(prepend, export):
    tokenizer = sentencepiece(prepend)
    file, _ = export(tokenizer)
    theirs = Tokenizer.from_str(json.dumps(tokenizer))
    with llama_cpp.Model(file, vocab_only=True) as model:
        assert model.metadata["tokenizer.ggml.model"] == "llama"
        for text in [*TEXTS, *strings(3, 150, 40), "a    b  ", "<s>hi</s> there"]:
            assert model.tokenize(text) == theirs.encode(text).ids, text


def broken(tokenizer):
    """Tokenizers that llama.cpp cannot have, or that contradict themselves: the change and what the error says."""
    def change(**parts):
        return {**tokenizer, **parts}

    def model(**parts):
        return change(model={**tokenizer["model"], **parts})

    vocabulary = tokenizer["model"]["vocab"]
    spaced = sentencepiece()
    return {
        "unknown expression": (change(pre_tokenizer={"type": "Sequence", "pretokenizers": [split(r"\p{L}+|\s"), BYTES]}),
                               r"split \p{L}+|\s, then bytes; give the name"),
        "unknown step": (change(pre_tokenizer={"type": "Whitespace"}), '"type":"Whitespace"'),
        "no pre-tokenizer": (change(pre_tokenizer=None), "no pre-tokenizer with the step 'null'"),
        "lower case": (change(normalizer={"type": "Lowercase"}), "llama.cpp does not do '{\"type\":\"Lowercase\"}'"),
        "WordPiece": (model(type="WordPiece"), 'model.type is "WordPiece"'),
        "Unigram": (model(type="Unigram", vocab=[["a", -1.0]]), "model.vocab: an array"),
        "prefix of words": (model(continuing_subword_prefix="##"), 'model.continuing_subword_prefix is "##"'),
        "id beyond the embedding": (model(vocab={**vocabulary, "zzz": VOCABULARY}), "the token 'zzz' has the id 1300"),
        "negative id": (model(vocab={**vocabulary, "zzz": -1}), "the token 'zzz' has the id -1"),
        "two tokens of one id": (model(vocab={**vocabulary, "zzz": 5}), "have the same id, 5"),
        "nested vocabulary": (model(vocab={**vocabulary, "zzz": {"a": 1}}), "model.vocab: an object"),
        "three in a merge": (model(merges=[["a", "b", "c"]]), "model.merges[0]: expected two strings, got 3"),
        "a merge of one": (model(merges=["ab"]), "model.merges[0]: 'ab' is not two tokens"),
        "wrong id of an added token": (change(added_tokens=[{"id": 7, **token("<|x|>")}]), "the id of '<|x|>' is 7"),
        "added twice": (with_added(tokenizer, token("<|x|>"), token("<|x|>")), "'<|x|>' appears twice"),
        "text of the filling": (with_added(tokenizer, token("[PAD1299]")), "two tokens would be '[PAD1299]'"),
        "not SentencePiece's": ({**spaced, "model": {**spaced["model"], "merges": spaced["model"]["merges"][:-1]}},
                                "is not among the merges; llama.cpp's"),
        "not JSON": ("{", "not valid JSON"),
        "a key twice": ('{"model": {}, "model": {}}', "the key 'model' appears twice"),
        "deep": ("[" * 200 + "]" * 200, "nests deeper than 100 levels"),
        "no object": ("[]", 'no object "model"'),
    }


def test_what_is_refused(trained, export, tmp_path):
    good = {**trained[True], "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(QWEN2), BYTES]}}
    for name, (tokenizer, message) in broken(good).items():
        error = export(tokenizer, code=3)
        assert message in error and "tokenizer.json" in error, (name, error)
        assert not (tmp_path / "out.gguf").exists(), name
    unknown = broken(good)["unknown expression"][0]
    assert metadata(export(unknown, "--pretokenizer", "gpt-2")[0])["tokenizer.ggml.pre"] == "gpt-2"
    assert metadata(export(unknown, "--no-tokenizer")[0])["tokenizer.ggml.model"] == "none"
    assert 'did you mean "gpt-2"' in export(unknown, "--pretokenizer", "gpt2", code=2)
    for name, files, message in [("template", {"tokenizer_config.json": {"chat_template": 3}}, "chat_template is neither"),
                                 ("id", {"generation_config.json": {"eos_token_id": 99999}}, "eos_token_id: 99999 is no token")]:
        assert message in export(good, code=3, files=files), name
        for file in files:
            (tmp_path / "checkpoint" / file).unlink()
