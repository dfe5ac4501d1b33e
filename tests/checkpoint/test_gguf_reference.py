"""Our GGUF reader and writer against the gguf package: same files, same keys, same tensors, same bytes."""

import json
import os
import pathlib
import resource
import struct
import subprocess

import gguf
import numpy
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("MOETRIM_BUILD", REPOSITORY / "build"))

# Every type of value, with extremes; every one of them as an array too.
SCALARS = {
    "UINT8": 255, "INT8": -128, "UINT16": 65535, "INT16": -32768, "UINT32": 2**32 - 1, "INT32": -(2**31),
    "FLOAT32": 0.1, "BOOL": True, "STRING": "Gr\u00fc\u00dfe \u2581\n", "UINT64": 2**64 - 1, "INT64": -(2**63),
    "FLOAT64": 0.1,
}  # fmt: skip
OUR_NAMES = {"BOOL": "boolean", "STRING": "string", **{name: name[0].lower() + name.lstrip("UINTFLOA")
                                                       for name in SCALARS if name not in ("BOOL", "STRING")}}  # fmt: skip
# Types that are numpy arrays as they are; the others are given as bytes.
PLAIN = {"F32": "f4", "F16": "f2", "F64": "f8", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8"}


def probe(*arguments, **options):
    program = BUILD / "tests" / "gguf_probe"
    assert program.exists(), f"{program} is not built"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options)


def listed(path):
    result = probe("list", path)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def add_metadata(writer):
    for name, value in SCALARS.items():
        writer.add_key_value(f"one.{name}", value, GGUFValueType[name])
        other = "" if name == "STRING" else False if name == "BOOL" else 7
        writer.add_key_value(f"many.{name}", [value, other, value], GGUFValueType.ARRAY, GGUFValueType[name])
    writer.add_key_value("raw", b"\xff\x00\xfe", GGUFValueType.STRING)


def tensors():
    """One of every type that the package knows, of every number of dimensions."""
    generator = numpy.random.default_rng(3)
    out = {}
    for i, kind in enumerate(GGMLQuantizationType):
        if kind.name == "Q8_1":  # 40 bytes in this release of the package; 36 in ggml, which writes no file of them
            continue
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = [(block,), (3, block), (3, 5, 2 * block), (2, 3, 5, block)][i % 4]
        if kind.name in PLAIN:
            data = generator.integers(-9, 9, (*shape[:-1], 7)).astype(PLAIN[kind.name])
        else:
            data = generator.integers(0, 256, (*shape[:-1], shape[-1] // block * size), dtype=numpy.uint8)
        out[f"blk.{i}.{kind.name}"] = (data, kind)
    return out


def write(path, alignment=None, **options):
    writer = gguf.GGUFWriter(path, "moetrim-test", **options)
    if alignment:
        writer.add_custom_alignment(alignment)
    add_metadata(writer)
    for name, (data, kind) in tensors().items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_tensors(found, files=1):
    expected = tensors()
    assert [t["name"] for t in found] == list(expected)
    assert {t["file"] for t in found} == set(range(files))
    for tensor in found:
        data, kind = expected[tensor["name"]]
        shape = data.shape if kind.name in PLAIN else gguf.quant_shape_from_byte_shape(data.shape, kind)
        assert (tensor["type"], tensor["shape"]) == (kind.name, list(reversed(shape)))
        assert tensor["bytes"] == data.tobytes().hex()
        assert tensor["row_bytes"] == data.nbytes // int(numpy.prod(shape[:-1]))


@pytest.mark.parametrize("alignment", [None, 8, 128])
def test_same_keys_same_tensors_same_bytes(tmp_path, alignment):
    write(tmp_path / "theirs.gguf", alignment)
    ours = listed(tmp_path / "theirs.gguf")
    check_tensors(ours["tensors"])
    metadata = {key: (kind, value) for key, kind, value in ours["metadata"]}
    assert metadata["raw"] == ("string", "ff00fe")
    for name, value in SCALARS.items():
        kind, shown = metadata[f"one.{name}"]
        assert kind == OUR_NAMES[name]
        if name == "FLOAT32":
            assert numpy.float32(shown) == numpy.float32(value)
        else:
            assert shown == (value.encode().hex() if name == "STRING" else value)
    # What the reader found is enough to write the file again, bit for bit.
    copied = probe("copy", tmp_path / "theirs.gguf", tmp_path / "ours.gguf")
    assert copied.returncode == 0, copied.stderr
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    reader = gguf.GGUFReader(tmp_path / "ours.gguf")
    assert reader.fields["one.STRING"].contents() == SCALARS["STRING"]
    assert [t.name for t in reader.tensors] == list(tensors())


def test_a_model_in_several_files(tmp_path):
    write(tmp_path / "theirs.gguf", split_max_tensors=9, small_first_shard=True)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) > 3
    for given in (parts[0], parts[-1]):
        ours = listed(given)
        assert ours["files"] == len(parts)
        assert [t["name"] for t in ours["tensors"]] == list(tensors())
    for part in parts:
        assert probe("copy", part, tmp_path / "copy.gguf").returncode == 0
        assert (tmp_path / "copy.gguf").read_bytes() == part.read_bytes()


def test_files_without_tensors(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "moetrim-test")
    add_metadata(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert listed(tmp_path / "theirs.gguf")["tensors"] == []
    assert probe("copy", tmp_path / "theirs.gguf", tmp_path / "ours.gguf").returncode == 0
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_big_endian_files_are_refused(tmp_path):
    write(tmp_path / "big.gguf", endianess=gguf.GGUFEndian.BIG)
    result = probe("open", tmp_path / "big.gguf")
    assert result.returncode == 3 and "big-endian" in result.stderr


def test_memory_stays_within_the_size_of_the_file(tmp_path):
    """Small files, and a sparse one, that ask for gigabytes, in a process that may take 192 MiB of addresses."""

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (192 << 20, 192 << 20))

    def opened(name, data, file_bytes=0):
        (tmp_path / name).write_bytes(data)
        if file_bytes:
            os.truncate(tmp_path / name, file_bytes)
        return probe("open", tmp_path / name, preexec_fn=limited)

    def head(tensors, keys):
        return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)

    key = struct.pack("<Q", 1) + b"k"
    write(tmp_path / "good.gguf")
    assert opened("good", (tmp_path / "good.gguf").read_bytes()).returncode == 0
    for name, data in {
        "keys": head(0, 2**32), "tensors": head(2**32, 0),
        "string": head(0, 1) + key + struct.pack("<IQ", 8, 61 << 30),
        "numbers": head(0, 1) + key + struct.pack("<IIQ", 9, 0, 61 << 30),
        "strings": head(0, 1) + key + struct.pack("<IIQ", 9, 8, 2**32),
        "name": head(1, 0) + struct.pack("<Q", 61 << 30) + bytes(40),
    }.items():  # fmt: skip
        for file_bytes in (0, 1 << 40):
            refused = opened(name, data, file_bytes)
            assert refused.returncode == 3 and f"{name}: " in refused.stderr, refused
