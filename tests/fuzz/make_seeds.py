#!/usr/bin/env python3
"""Makes the seeds of the fuzz targets: small files of every kind, and hostile ones, named by their defect.

Usage: make_seeds.py
"""
import json
import pathlib
import struct

SEEDS = pathlib.Path(__file__).parent / "seeds"
U32, STRING, ARRAY, U64, BOOL = 4, 8, 9, 10, 7
WIDTHS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(keys=(), tensors=(), data=0, alignment=32, version=3, counts=None) -> bytes:
    out = b"GGUF" + struct.pack("<I2Q", version, *(counts or (len(tensors), len(keys))))
    out += b"".join(keys) + b"".join(tensors)
    return out + bytes(-len(out) % alignment + data) if data else out


def gguf_seeds() -> dict[str, bytes]:
    kinds = [key(f"k{kind}", kind, struct.pack("<" + width, 1)) for kind, width in WIDTHS.items()]
    arrays = [key(f"a{kind}", ARRAY, struct.pack(f"<IQ2{width}", kind, 2, 0, 1)) for kind, width in WIDTHS.items()]
    texts = [key("s", STRING, text("value")), key("t", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text(""))]
    two = [tensor("a", [5, 3], 0, 0), tensor("blk.0.ffn_up_exps.weight", [256, 2, 2], 12, 64)]
    align = key("general.alignment", U32, struct.pack("<I", 64))
    split = [key("split.no", 2, b"\0\0"), key("split.count", 2, b"\1\0"), key("split.tensors.count", 5, b"\2\0\0\0")]
    return {
        "good-empty": gguf(),
        "good-keys": gguf([*kinds, *arrays, *texts]),
        "good-tensors": gguf([*texts, *split], two, 64 + 576),
        "good-alignment": gguf([align], [tensor("a", [8], 24, 0), tensor("b", [1, 2, 3, 4], 0, 64)], 64 + 128, 64),
        "bad-version": gguf(version=2),
        "bad-big-endian": b"GGUF" + struct.pack(">I2Q", 3, 0, 0),
        "bad-counts": gguf(counts=(1 << 63, 1 << 32)),
        "bad-sizes-sum": gguf([], [tensor("a", [8], 0, 0), tensor("b", [1 << 60], 0, 32)], 64),
        "bad-exabyte": gguf([], [tensor("a", [1 << 60], 24, 0)], 32),
        "bad-dimensions": gguf([], [tensor("a", [1] * 9, 0, 0)], 32),
        "bad-shape-wraps": gguf([], [tensor("a", [1 << 32, (1 << 32) + 1], 0, 0)], 32),
        "bad-alignment-0": gguf([key("general.alignment", U32, bytes(4))], two, 640),
        "bad-alignment-wraps": gguf([key("general.alignment", U32, b"\xff" * 4)], two, 640),
        "bad-alignment-type": gguf([key("general.alignment", STRING, text("32"))], two, 640),
        "bad-text-length": gguf([text("k") + struct.pack("<IQ", STRING, 61 << 30)]),
        "bad-array-length": gguf([key("k", ARRAY, struct.pack("<IQ", U64, 1 << 61) + bytes(8))]),
        "bad-nested": gguf([key("k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 100)]),
        "bad-boolean": gguf([key("k", BOOL, b"\2")]),
        "bad-twice": gguf([key("k", BOOL, b"\1")] * 2, [two[0]] * 2, 64),
        "bad-overlap": gguf([], [two[0], tensor("b", [8], 0, 32)], 128),
        "bad-split": gguf([split[0], key("split.count", 2, b"\2\0"), split[2]], two, 640),
    }


def safetensors(header, data=0) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(header)) + header + bytes(data)


def entry(kind: str, shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


def safetensors_seeds() -> dict[str, bytes]:
    widths = {"BOOL": 1, "F8_E4M3": 1, "F16": 2, "BF16": 2, "I32": 4, "F64": 8, "C64": 8}
    every, at = {"__metadata__": {"format": "pt", "a": "\u00e4"}}, 0
    for name, width in widths.items():
        every[f"t.{name}"] = entry(name, [3, 1], at, at + 3 * width)
        at += 3 * width
    plain = json.dumps({"w": entry("U8", [4], 0, 4)})
    return {
        "good-empty": safetensors({}),
        "good-types": safetensors(every, at),
        "good-scalar-and-empty": safetensors({"s": entry("F32", [], 0, 4), "e": entry("F4", [0, 7], 4, 4)}, 4),
        "good-spaces": safetensors(b'{ "w" : {"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":[{}]} }  ', 1),
        "bad-length": struct.pack("<Q", (1 << 64) - 1) + b"{}",
        "bad-length-lie": struct.pack("<Q", 3) + b"{}",
        "bad-shape": safetensors({"w": entry("F32", [1 << 62, 8], 0, 4)}, 4),
        "bad-negative": safetensors(b'{"w":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}', 1),
        "bad-aliases": safetensors({f"t{i}": entry("U8", [4], 0, 4) for i in range(20)}, 4),
        "bad-hole": safetensors({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, 3),
        "bad-nested": safetensors(b'{"w":{"x":' + b"[" * 200),
        "bad-twice": safetensors((plain[:-1] + "," + plain[1:]).encode(), 4),
        "bad-utf8": safetensors(b'{"\xff\xfe":1}'),
        "bad-escape": safetensors(b'{"\\u0000\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        "bad-offsets": safetensors({"w": entry("U8", [1], 1, 0)}, 1),
    }


for folder, seeds in {"gguf": gguf_seeds(), "safetensors": safetensors_seeds()}.items():
    (SEEDS / folder).mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (SEEDS / folder / name).write_bytes(data)
