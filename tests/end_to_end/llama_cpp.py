"""llama.cpp v0.5.0 for the tests: its libraries through ctypes, and its converter from Hugging Face.

scripts/llama_cpp.sh installs both. The structures follow include/llama.h of that release; quantised caches, flash attention,
repacked weights and MTP layers are off, so that logits are what the file's weights give. An assertion that fails inside
llama.cpp ends the process: pytest's fault handler then names the test.
"""
import contextlib
import ctypes
import io
import json
import os
import platform
import sys
from ctypes import POINTER, byref, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path

import numpy as np
import pytest

import program

FOLDER = program.ROOT / "build/llama.cpp"
os.environ["GGML_NO_BACKTRACE"] = "1"  # it would run a debugger
if platform.machine() != "x86_64":
    pytest.skip("llama.cpp's libraries come for x86-64 alone", allow_module_level=True)

FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12,
              "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20,
              "q2_k_s": 21, "iq3_xs": 22, "iq3_xxs": 23, "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26, "iq3_m": 27, "iq2_s": 28,
              "iq2_m": 29, "iq4_xs": 30, "iq1_m": 31, "bf16": 32, "tq1_0": 36, "tq2_0": 37, "mxfp4": 38}


class LlamaError(RuntimeError):
    """What llama.cpp logged when it refused."""


def structure(name, /, **fields):
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


ModelParameters = structure(
    "llama_model_params", devices=c_void_p, tensor_buft_overrides=c_void_p, n_gpu_layers=c_int32, split_mode=c_int,
    load_mode=c_int, lazy_mode=c_int, main_gpu=c_int32, tensor_split=c_void_p, progress_callback=c_void_p,
    progress_callback_user_data=c_void_p, kv_overrides=c_void_p, vocab_only=c_bool, check_tensors=c_bool,
    use_extra_bufts=c_bool, no_host=c_bool, no_alloc=c_bool, load_mtp=c_bool)
ContextParameters = structure(
    "llama_context_params", n_ctx=c_uint32, n_batch=c_uint32, n_ubatch=c_uint32, n_seq_max=c_uint32, n_rs_seq=c_uint32,
    n_outputs_max=c_uint32, n_outputs_max_per_seq=c_uint32, n_threads=c_int32, n_threads_batch=c_int32, ctx_type=c_int,
    rope_scaling_type=c_int, pooling_type=c_int, attention_type=c_int, flash_attn_type=c_int, rope_freq_base=c_float,
    rope_freq_scale=c_float, yarn_ext_factor=c_float, yarn_attn_factor=c_float, yarn_beta_fast=c_float, yarn_beta_slow=c_float,
    yarn_orig_ctx=c_uint32, defrag_thold=c_float, cb_eval=c_void_p, cb_eval_user_data=c_void_p, type_k=c_int, type_v=c_int,
    abort_callback=c_void_p, abort_callback_data=c_void_p, embeddings=c_bool, offload_kqv=c_bool, no_perf=c_bool,
    op_offload=c_bool, swa_full=c_bool, kv_unified=c_bool, samplers=c_void_p, n_samplers=c_size_t, ctx_other=c_void_p)
QuantizeParameters = structure(
    "llama_model_quantize_params", nthread=c_int32, ftype=c_int, output_tensor_type=c_int, token_embedding_type=c_int,
    allow_requantize=c_bool, quantize_output_tensor=c_bool, only_copy=c_bool, pure=c_bool, keep_split=c_bool, dry_run=c_bool,
    imatrix=c_void_p, kv_overrides=c_void_p, tt_overrides=c_void_p, prune_layers=c_void_p, max_buf_size=c_size_t)
ImportanceData = structure("llama_model_imatrix_data", name=c_char_p, data=POINTER(c_float), size=c_size_t)
TensorOverride = structure("llama_model_tensor_override", pattern=c_char_p, type=c_int)
Batch = structure(
    "llama_batch", n_tokens=c_int32, token=POINTER(c_int32), embd=POINTER(c_float), pos=POINTER(c_int32),
    n_seq_id=POINTER(c_int32), seq_id=POINTER(POINTER(c_int32)), logits=POINTER(c_int8))
ChatMessage = structure("llama_chat_message", role=c_char_p, content=c_char_p)
LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)

# name: (result, arguments)
FUNCTIONS = {
    "model_default_params": (ModelParameters, []),
    "context_default_params": (ContextParameters, []),
    "model_quantize_default_params": (QuantizeParameters, []),
    "backend_init": (None, []),
    "log_set": (None, [LogCallback, c_void_p]),
    "version": (c_char_p, []),
    "model_load_from_file": (c_void_p, [c_char_p, ModelParameters]),
    "model_free": (None, [c_void_p]),
    "model_get_vocab": (c_void_p, [c_void_p]),
    "model_chat_template": (c_char_p, [c_void_p, c_char_p]),
    "model_meta_count": (c_int32, [c_void_p]),
    "model_meta_key_by_index": (c_int32, [c_void_p, c_int32, c_char_p, c_size_t]),
    "model_meta_val_str_by_index": (c_int32, [c_void_p, c_int32, c_char_p, c_size_t]),
    "model_quantize": (c_uint32, [c_char_p, c_char_p, POINTER(QuantizeParameters)]),
    "init_from_model": (c_void_p, [c_void_p, ContextParameters]),
    "free": (None, [c_void_p]),
    "n_ctx": (c_uint32, [c_void_p]),
    "get_memory": (c_void_p, [c_void_p]),
    "memory_clear": (None, [c_void_p, c_bool]),
    "batch_init": (Batch, [c_int32, c_int32, c_int32]),
    "batch_free": (None, [Batch]),
    "decode": (c_int32, [c_void_p, Batch]),
    "get_logits": (POINTER(c_float), [c_void_p]),
    "vocab_n_tokens": (c_int32, [c_void_p]),
    "vocab_get_text": (c_char_p, [c_void_p, c_int32]),
    "vocab_get_add_bos": (c_bool, [c_void_p]),
    "vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "vocab_bos": (c_int32, [c_void_p]),
    "vocab_eos": (c_int32, [c_void_p]),
    "tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    "detokenize": (c_int32, [c_void_p, POINTER(c_int32), c_int32, c_char_p, c_int32, c_bool, c_bool]),
    "chat_apply_template": (c_int32, [c_char_p, POINTER(ChatMessage), c_size_t, c_bool, c_char_p, c_int32]),
}


class Library:
    """libllama with the CPU backend for AVX2 (or the plain one), so that every machine computes the same."""

    def __init__(self):
        names = FOLDER / "lib"
        assert names.exists(), "llama.cpp is not installed: run scripts/llama_cpp.sh"
        self.messages = []
        for name in ("libggml-base.so", "libggml.v0.5.0.so"):
            ggml = ctypes.CDLL(str(names / name), mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(names / "libllama.v0.5.0.so"))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(library, "llama_" + name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.callback = LogCallback(self.log)  # kept: ctypes does not
        self.log_set(self.callback, None)
        ggml.ggml_backend_load.restype = c_void_p
        ggml.ggml_backend_load.argtypes = [c_char_p]
        if not any(ggml.ggml_backend_load(bytes(names / f"libggml-cpu-{kind}.so")) for kind in ("haswell", "x64")):
            raise LlamaError("no CPU backend: " + self.take_messages())
        self.backend_init()
        self.check_layout()

    def log(self, level, text, _):
        self.messages.append((level, text.decode(errors="replace")))

    def take_messages(self, lowest: int = 4) -> str:
        """Errors logged since the last call, and what went on with one: warnings count for nothing."""
        text, kept = "", False
        for level, message in self.messages:
            kept = kept if level == 5 else level >= lowest
            text += message if kept else ""
        self.messages.clear()
        return text.strip()

    def check_layout(self):
        """Defaults that stand at the ends of the structures: another release would show different ones."""
        model, context, quantize = (self.model_default_params(), self.context_default_params(),
                                    self.model_quantize_default_params())
        assert self.version().startswith(b"0.5.0"), self.version()
        assert model.use_extra_bufts and not model.vocab_only and model.main_gpu == 0
        assert (context.n_ctx, context.n_batch, context.n_ubatch, context.yarn_beta_fast) == (512, 2048, 512, -1.0)
        assert (context.type_k, context.type_v) == (1, 1) and context.no_perf and context.n_samplers == 0
        assert quantize.ftype == 7 and quantize.quantize_output_tensor and quantize.max_buf_size == 8 << 30


_library = None


def library() -> Library:
    global _library
    _library = _library or Library()
    return _library


def ids_array(ids):
    return (c_int32 * len(ids))(*ids)


def text_of(call, size: int = 1 << 16) -> str:
    """What a function wrote that takes a buffer and its size, and returns the length."""
    buffer = ctypes.create_string_buffer(size)
    length = call(buffer, size)
    assert 0 <= length < size, length
    return buffer.raw[:length].decode()


class Model:
    """A model, or its vocabulary alone; LlamaError has llama.cpp's own words. Of several threads those that wait keep cores
    busy. `settings`: fields of ContextParameters."""

    def __init__(self, path, vocab_only: bool = False, threads: int = 1, **settings):
        self.library, self.settings = library(), settings
        self.context, self.capacity, self.threads = None, 0, threads
        parameters = self.library.model_default_params()
        parameters.vocab_only = vocab_only
        parameters.use_extra_bufts = False
        parameters.check_tensors = True
        self.library.messages.clear()
        self.model = self.library.model_load_from_file(os.fsencode(path), parameters)
        messages = self.library.take_messages()
        if not self.model:
            raise LlamaError(messages or f"{path} was not loaded")
        self.vocab = self.library.model_get_vocab(self.model)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.context:
            self.library.free(self.context)
        if self.model:
            self.library.model_free(self.model)
        self.context = self.model = None

    @property
    def vocabulary(self) -> int:
        return self.library.vocab_n_tokens(self.vocab)

    @property
    def metadata(self) -> dict:
        """Values of the metadata as llama.cpp prints them; arrays are not among them whole."""
        def value(i, function):
            return text_of(lambda buffer, size: function(self.model, i, buffer, size), 1 << 20)
        return {value(i, self.library.model_meta_key_by_index): value(i, self.library.model_meta_val_str_by_index)
                for i in range(self.library.model_meta_count(self.model))}

    def reserve(self, tokens: int):
        if tokens <= self.capacity:
            return
        if self.context:
            self.library.free(self.context)
        self.capacity = max(256, tokens)
        parameters = self.library.context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = self.capacity
        parameters.n_outputs_max = parameters.n_outputs_max_per_seq = self.capacity
        parameters.n_threads = parameters.n_threads_batch = self.threads
        for name, value in self.settings.items():
            setattr(parameters, name, value)
        parameters.flash_attn_type = 0
        parameters.type_k = parameters.type_v = 0  # f32
        parameters.swa_full = True
        self.library.messages.clear()
        self.context = self.library.init_from_model(self.model, parameters)
        messages = self.library.take_messages()
        if not self.context:
            raise LlamaError(messages or "no context")

    def decode(self, ids, start: int, every: bool) -> np.ndarray:
        """Logits [tokens or 1, vocabulary] of tokens that continue the `start` ones before."""
        batch = self.library.batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
                batch.logits[i] = every or i + 1 == len(ids)
            self.library.messages.clear()
            if self.library.decode(self.context, batch) != 0:
                raise LlamaError(self.library.take_messages() or "llama_decode failed")
        finally:
            self.library.batch_free(batch)
        rows = len(ids) if every else 1
        return np.ctypeslib.as_array(self.library.get_logits(self.context), (rows, self.vocabulary)).copy()

    def logits(self, ids) -> np.ndarray:
        """[tokens, vocabulary] of one sequence, float32."""
        self.reserve(len(ids))
        self.library.memory_clear(self.library.get_memory(self.context), True)
        return self.decode(list(ids), 0, True)

    def greedy(self, ids, count: int, stop=()) -> list:
        """The likeliest continuation: at most `count` tokens, ending with a token of `stop` where one comes."""
        self.reserve(len(ids) + count)
        self.library.memory_clear(self.library.get_memory(self.context), True)
        answer, fed, start = [], list(ids), 0
        while len(answer) < count and not (answer and answer[-1] in stop):
            row = self.decode(fed, start, False)[0]
            start += len(fed)
            fed = [int(row.argmax())]
            answer += fed
        return answer

    def tokenize(self, text: str, special: bool = True, add_special: bool = False) -> list:
        """Ids. `special`: tokens such as <|im_end|> are recognised; `add_special`: BOS is added where the model wants it."""
        data = text.encode()
        ids = (c_int32 * (len(data) + 16))()
        count = self.library.tokenize(self.vocab, data, len(data), ids, len(ids), add_special, special)
        assert count >= 0, count
        return ids[:count]

    def detokenize(self, ids, special: bool = True) -> str:
        data = ids_array(ids)
        return text_of(lambda buffer, size: self.library.detokenize(self.vocab, data, len(ids), buffer, size, False, special))

    def token_text(self, token: int) -> str:
        return self.library.vocab_get_text(self.vocab, token).decode()

    def is_end(self, token: int) -> bool:
        return self.library.vocab_is_eog(self.vocab, token)

    def chat_template(self, name: str | None = None) -> str | None:
        template = self.library.model_chat_template(self.model, name.encode() if name else None)
        return template.decode() if template is not None else None

    def apply_chat_template(self, messages, add_generation_prompt: bool = True) -> str:
        """By llama.cpp's list of templates, which it picks from by how the model's own looks."""
        chat = (ChatMessage * len(messages))(*[ChatMessage(m["role"].encode(), m["content"].encode()) for m in messages])
        template = self.library.model_chat_template(self.model, None)
        return text_of(lambda buffer, size: self.library.chat_apply_template(
            template, chat, len(messages), add_generation_prompt, buffer, size))


def quantize(source, out, kind: str, imatrix=None, pure: bool = False, types=None, keep_split: bool = False):
    """What llama-quantize does, at kind "q4_k_m" and so on. imatrix: {tensor: float32 array of importances, by expert one
    behind the other}; types: {pattern of tensor names: ggml's type id}; pure: every matrix at the kind's own type."""
    lib = library()
    parameters = lib.model_quantize_default_params()
    parameters.nthread, parameters.ftype = 1, FILE_TYPES[kind]
    parameters.allow_requantize, parameters.pure, parameters.keep_split = True, pure, keep_split
    kept = {name.encode(): np.ascontiguousarray(data, dtype=np.float32) for name, data in (imatrix or {}).items()}
    table = (ImportanceData * (len(kept) + 1))(*[
        ImportanceData(name, data.ctypes.data_as(POINTER(c_float)), data.size) for name, data in kept.items()])
    overrides = (TensorOverride * (len(types or {}) + 1))(*[TensorOverride(k.encode(), v) for k, v in (types or {}).items()])
    parameters.imatrix = ctypes.cast(table, c_void_p) if kept else None
    parameters.tt_overrides = ctypes.cast(overrides, c_void_p) if types else None
    lib.messages.clear()
    if lib.model_quantize(os.fsencode(source), os.fsencode(out), byref(parameters)) != 0:
        raise LlamaError(lib.take_messages() or f"{source} was not quantised")
    lib.messages.clear()
    return Path(out)


@contextlib.contextmanager
def converter():
    """The module of llama.cpp's converter, with the `gguf` package of its own in place of the published one."""
    global _converter
    def ours():
        return {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "gguf"}
    published = ours()
    if not _converter:
        source = FOLDER / "source"
        sys.path[:0] = [str(source), str(source / "gguf-py")]
        import convert_hf_to_gguf
        sys.path.remove(str(source))
        sys.path.remove(str(source / "gguf-py"))
        _converter = convert_hf_to_gguf, ours()
    module, theirs = _converter
    sys.modules.update(theirs)
    try:
        yield module
    finally:
        ours()
        sys.modules.update(published)


_converter = None


def convert(*jobs):
    """llama.cpp's own converter. A job is a dict: folder, out, and at will outtype ("f32"), more (options), pre, the name of the
    pre-tokenizer, which it knows of published tokenizers alone, and vocabulary "none" for checkpoints without a tokenizer."""
    with converter() as module, contextlib.redirect_stderr(io.StringIO()):
        text_model = sys.modules["conversion.base"].TextModel

        def set_no_vocabulary(model):
            model._set_vocab_none()
            model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])  # which llama.cpp then needs

        for job in jobs:
            with pytest.MonkeyPatch.context() as patch:
                if "pre" in job:
                    patch.setattr(text_model, "get_vocab_base_pre", lambda *_: job["pre"])
                if job.get("vocabulary") == "none":
                    architecture = json.loads((Path(job["folder"]) / "config.json").read_text())["architectures"][0]
                    patch.setattr(module.get_model_class(architecture), "set_vocab", set_no_vocabulary)
                    patch.setattr(module.get_model_class(architecture), "no_mtp", False)  # the converter never takes it back
                patch.setattr(sys, "argv", ["", str(job["folder"]), "--outfile", str(job["out"]), "--outtype",
                                            job.get("outtype", "f32"), *job.get("more", [])])
                module.main()
    return [Path(job["out"]) for job in jobs]


def log_probabilities(logits) -> np.ndarray:
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence(ours, theirs) -> float:
    """Mean over the tokens of KL(theirs || ours), in nats."""
    p, q = log_probabilities(theirs), log_probabilities(ours)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def agreement(ours, theirs) -> float:
    """Share of the tokens whose likeliest next token is the same."""
    return float((np.argmax(ours, -1) == np.argmax(theirs, -1)).mean())
