"""Small tokenizers, templates, texts and conversations for comparing with transformers."""

import json
import os
import subprocess
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

REPOSITORY = Path(__file__).resolve().parents[2]
PROBE = Path(os.environ.get("MOETRIM_BUILD", REPOSITORY / "build")) / "tests" / "text_probe"


def ask(*requests, may_leak=False):
    """Answers of the probe to `requests`, in order. `may_leak` keeps a sanitizer build quiet about leaks."""
    assert PROBE.is_file(), f"{PROBE} is missing; build the target text_probe or set MOETRIM_BUILD"
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    environment = {**os.environ, "LSAN_OPTIONS": "detect_leaks=0"} if may_leak else None
    done = subprocess.run([PROBE], input=lines.encode(), stdout=subprocess.PIPE, check=False, timeout=300,
                          env=environment)
    assert done.returncode == 0, f"the probe ended with {done.returncode}"
    answers = [json.loads(line) for line in done.stdout.decode().split("\n")[:-1]]
    assert len(answers) == len(requests)
    return answers


TEMPLATES = {path.stem: path.read_text(encoding="utf-8")
             for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "It's 12345.678 o'clock; I'll pay $1,000 — won't you?",
    "  leading, trailing and   inner   spaces  ",
    "tabs\tand\n\n\nnewlines\r\n  mixed \n \n",
    "Grüße aus München, ça va? Ångström, İstanbul",
    "Привет, мир! Καλημέρα κόσμε. שלום עולם مرحبا بالعالم",
    "你好,世界。こんにちは世界、안녕하세요 세계 नमस्ते दुनिया สวัสดีชาวโลก",
    "emoji 😀👍🏽 👩‍👩‍👧‍👦 🇩🇪 ❤️ \U0001f9ff",
    "cafe\u0301 vs caf\u00e9, \ufb01ligature, ½ ² ①, zero\u200bwidth\u00a0nbsp \ufeff",
    "def f(x):\n    return {k: v**2 for k, v in x.items()}  # comment\n\tif (a && b || !c) { d[i]++; }\n",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2]}}',
    "<|im_start|>user\nspecials <s> </s> inside<|im_end|>  <|im_end|> [INST] text",
    "<s><s>two</s>", "a" * 300, "control \x00\x01\x7f\x1b[0m end", "\u2028 \u2029 \x85 line ends",
    "https://example.org/a_b?c=d&e=%20#f  user@example.org", "∑∫√ ≤ α²+β² → ∞", "1 12 123 1234 12345 ١٢٣ १२३",
]

SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
QWEN_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _special_tokens():
    return [AddedToken(token, special=True, normalized=False) for token in SPECIALS]


def _byte_level(split, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=_special_tokens(), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    return tokenizer


def _bos(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])


def qwen():
    tokenizer = _byte_level(QWEN_SPLIT, normalizers.NFC())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def llama3():
    tokenizer = _byte_level(LLAMA3_SPLIT)
    _bos(tokenizer)
    tokenizer.add_tokens([AddedToken("[INST]", normalized=False, lstrip=True), AddedToken("user@", single_word=True)])
    return tokenizer


def mixtral():
    """SentencePiece BPE as converted for Llama 2 and Mixtral: byte fallback, no pre-tokenizer."""
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.train_from_iterator(TEXTS[:9], trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False))
    trained = json.loads(words.to_str())["model"]
    names = SPECIALS[:3] + [f"<0x{byte:02X}>" for byte in range(256)]
    names += [token for token in trained["vocab"] if token not in names]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in trained["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges, unk_token="<unk>",
                                     fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(_special_tokens())
    _bos(tokenizer)
    return tokenizer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=400, special_tokens=_special_tokens(),
                                                                 unk_token="<unk>", show_progress=False))
    return tokenizer


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=500, special_tokens=_special_tokens(),
                                                                   show_progress=False))
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    # A stored cut and padding, which transformers leaves unused.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16)
    return tokenizer


NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

# name -> (maker, further entries of tokenizer_config.json)
TOKENIZERS = {
    "qwen": (qwen, {"eos_token": "<|im_end|>"}),
    "llama3": (llama3, {}),
    "mixtral": (mixtral, {"bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False,
                                        "rstrip": False, "single_word": False}}),
    "unigram": (unigram, {"add_bos_token": True, "add_eos_token": True}),
    "no_bos": (llama3, {"add_bos_token": False}),
    "added_in_config": (qwen, {"pad_token": "<|pad|>", "additional_special_tokens": ["<|tool|>", "user@"]}),
    "wordpiece": (wordpiece, {}),
}


def make_folder(root, name, template=None):
    """A checkpoint folder's tokenizer files; returns the folder."""
    folder = root / (name if template is None else f"{name}-{template}")
    folder.mkdir(parents=True, exist_ok=True)
    maker, config = TOKENIZERS[name]
    maker().save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(TEMPLATES[template], encoding="utf-8")
    return folder


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Wetter für <Ort> & \"Tag\"",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Zürich", "東京"]},
                                                    "days": {"type": "integer", "default": 1.5}}, "required": ["city"]}}}
CALL = {"id": "abcdefghi", "type": "function",
        "function": {"name": "get_weather", "arguments": {"city": "東京", "days": 2, "far": 1e-7, "big": 1e22, "ok": None}}}

# name -> (messages, further template variables)
CONVERSATIONS = {
    "one": ([{"role": "user", "content": "Hi"}], {}),
    "pair": ([{"role": "user", "content": "What's 2+2?"}, {"role": "assistant", "content": "  4  \n"}], {}),
    "system": ([{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Grüße 😀\n\n"},
                {"role": "assistant", "content": "\n<think>\nhm\n\n</think>\n\nHallo</think>!"},
                {"role": "user", "content": "again"}], {"enable_thinking": False}),
    "reasoning": ([{"role": "user", "content": "Why?"},
                   {"role": "assistant", "content": "Because.", "reasoning": "let me see", "tool_calls": None}], {}),
    "tools": ([{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
               {"role": "tool", "content": "{\"t\": 21.5}", "tool_call_id": "abcdefghi"},
               {"role": "tool", "content": "second"}, {"role": "assistant", "content": "21.5 °C"}], {"tools": [WEATHER]}),
    "two_calls": ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": [CALL, CALL]}],
                  {"tools": [WEATHER, WEATHER]}),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "look 'at' \"this\""}, {"type": "image"}]},
               {"role": "skip", "content": "a"}, {"role": "developer", "content": "é\u0000\x7f\\ \t"},
               {"role": "assistant", "content": "done"}, {"role": "stop", "content": "b"},
               {"role": "user", "content": "c"}], {}),
    "wrong_order": ([{"role": "assistant", "content": "first"}, {"role": "user", "content": "a"}], {}),
}
