"""Our safetensors reader and writer against the Python package: same files, same tensors, same refusals."""

import json
import os
import pathlib
import struct
import subprocess

import numpy
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("MOETRIM_BUILD", REPOSITORY / "build"))

# Names in a header, and the torch type that holds such tensors.
TORCH_DTYPES = {
    name: getattr(torch, attribute)
    for name, attribute in {
        "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
        "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32",
        "F32": "float32", "I64": "int64", "U64": "uint64", "F64": "float64", "C64": "complex64",
    }.items()
}  # fmt: skip
ALL_DTYPES = {**{name: dtype.itemsize * 8 for name, dtype in TORCH_DTYPES.items()}, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
SHAPES = [(), (0,), (5,), (7, 11), (3, 0, 2), (2, 3, 5, 7)]


def probe(*arguments):
    program = BUILD / "tests" / "checkpoint_probe"
    assert program.exists(), f"{program} is not built"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def listed(path):
    result = probe("list", path)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def raw_bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def random_tensor(dtype, shape, generator):
    count = dtype.itemsize * int(numpy.prod(shape))
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    data = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(5)
    return {
        f"{name}.{'x'.join(map(str, shape)) or 'scalar'}": random_tensor(dtype, shape, generator)
        for name, dtype in TORCH_DTYPES.items()
        for shape in SHAPES
    }


def file_of(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_reads_what_torch_saves(tensors, tmp_path):
    path = tmp_path / "torch.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt", "ключ": "значение\n"})
    ours = listed(path)
    assert ours["metadata"] == {"format": "pt", "ключ": "значение\n"}
    assert {t["name"] for t in ours["tensors"]} == set(tensors)
    for entry in ours["tensors"]:
        expected = tensors[entry["name"]]
        assert entry["dtype"] == entry["name"].split(".")[0]
        assert entry["shape"] == list(expected.shape)
        assert bytes.fromhex(entry["bytes"]) == raw_bytes(expected), entry["name"]


def test_reads_what_numpy_saves(tmp_path):
    path = tmp_path / "numpy.safetensors"
    generator = numpy.random.default_rng(7)
    kinds = ["bool", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8", "c8"]
    arrays = {kind: (generator.random((5, 7)) * 100).astype(kind) for kind in kinds}
    safetensors.numpy.save_file(arrays, path)
    ours = {t["name"]: t for t in listed(path)["tensors"]}
    assert set(ours) == set(arrays)
    for name, array in arrays.items():
        assert ours[name]["shape"] == [5, 7]
        assert bytes.fromhex(ours[name]["bytes"]) == array.tobytes()


def test_torch_reads_what_we_write(tensors, tmp_path):
    source, copy = tmp_path / "source.safetensors", tmp_path / "copy.safetensors"
    safetensors.torch.save_file(tensors, source, metadata={"note": 'a "b"'})
    assert probe("copy", source, copy).returncode == 0
    loaded = safetensors.torch.load_file(copy)
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert raw_bytes(loaded[name]) == raw_bytes(tensor), name
    with safetensors.safe_open(copy, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "note": 'a "b"'}


@pytest.mark.parametrize("dtype", sorted(ALL_DTYPES))
def test_every_type_of_the_package_survives(dtype, tmp_path):
    """Also the types that torch cannot hold: compared through the package's own parser."""
    source, copy = tmp_path / "source.safetensors", tmp_path / "copy.safetensors"
    data = bytes(range(ALL_DTYPES[dtype] * 3 * 4 // 8))
    file_of(source, {"w": {"dtype": dtype, "shape": [3, 4], "data_offsets": [0, len(data)]}}, data)
    assert probe("copy", source, copy).returncode == 0
    (name, entry), = safetensors.deserialize(copy.read_bytes())
    assert (name, entry["dtype"], entry["shape"], bytes(entry["data"])) == ("w", dtype, [3, 4], data)


def test_written_bytes_are_canonical(tensors, tmp_path):
    source, first, second = (tmp_path / name for name in ("source", "first", "second"))
    safetensors.torch.save_file(tensors, source)
    assert probe("copy", source, first).returncode == 0
    assert probe("copy", first, second).returncode == 0
    assert first.read_bytes() == second.read_bytes()
    assert (8 + struct.unpack("<Q", first.read_bytes()[:8])[0]) % 64 == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "second", "source"]


W = '"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
A = '"a":{"dtype":"U8","shape":[3],"data_offsets":[4,7]}'


def both_accept(header, data):
    return header, data, True, True


def both_refuse(header, data):
    return header, data, False, False


# header, data, does the package read it, do we read it
CASES = {
    "empty": both_accept("{}", 0),
    "metadata null": both_accept('{"__metadata__":null}', 0),
    "metadata empty": both_accept('{"__metadata__":{}}', 0),
    "space in front": both_accept(" {" + W + "}", 4),
    "tabs and newlines around": both_accept("\t\r\n {" + W + "}\t\r\n ", 4),
    "order differs": both_accept("{" + A + "," + W + "}", 7),
    "extra field": both_accept('{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":{"y":[1]}}}', 4),
    "zero size inside offsets": both_accept('{"z":{"dtype":"U8","shape":[0],"data_offsets":[4,4]},' + W + "," + A + "}", 7),
    "path as a name": both_accept("{" + W.replace('"w"', '"../w"') + "}", 4),
    "same key, same range": ("{" + W + "," + W + "}", 4, True, False),
    "NUL in a name": ("{" + W.replace('"w"', '"w\\u0000"') + "}", 4, True, False),
    "extent of 2^63 beside 0": ('{"w":{"dtype":"U8","shape":[0,9223372036854775808],"data_offsets":[0,0]}}', 0, True, False),
    "same key, two ranges": both_refuse("{" + W + "," + A.replace('"a"', '"w"') + "}", 7),
    "metadata twice": both_refuse('{"__metadata__":{},"__metadata__":{}}', 0),
    "metadata number": both_refuse('{"__metadata__":{"a":1}}', 0),
    "byte order mark": both_refuse("\ufeff{}", 0),
    "NUL behind": both_refuse("{}\0\0", 0),
    "tail": both_refuse("{" + W + "}", 5),
    "missing byte": both_refuse("{" + W + "}", 3),
    "hole": both_refuse("{" + W + "," + A.replace("4,7", "5,8") + "}", 8),
    "overlap": both_refuse("{" + W + "," + A.replace("4,7", "3,6") + "}", 6),
    "unknown type": both_refuse("{" + W.replace("U8", "F17") + "}", 4),
    "three offsets": both_refuse("{" + W.replace("0,4", "0,4,4") + "}", 4),
    "float offset": both_refuse("{" + W.replace("0,4", "0.0,4") + "}", 4),
    "negative offset": both_refuse("{" + W.replace("0,4", "-4,0") + "}", 4),
    "minus zero": both_refuse("{" + W.replace("0,4", "-0,4") + "}", 4),
    "overflow": both_refuse("{" + W.replace("[4]", "[4611686018427387905,4]") + "}", 4),
    "odd count of F4": both_refuse('{"w":{"dtype":"F4","shape":[5],"data_offsets":[0,3]}}', 3),
    "no shape": both_refuse('{"w":{"dtype":"U8","data_offsets":[0,4]}}', 4),
    "5000 deep": both_refuse('{"w":' + "[" * 5000 + "]" * 5000 + "}", 0),
    "invalid UTF-8": both_refuse(b'{"\xff":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', 4),
    "lone surrogate": both_refuse('{"\\ud800":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', 4),
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case, tmp_path):
    header, data_bytes, reference_reads, we_read = CASES[case]
    header = header if isinstance(header, bytes) else header.encode()
    path = file_of(tmp_path / "case.safetensors", header, bytes(data_bytes))
    try:
        with safetensors.safe_open(path, "np"):
            reference_read = True
    except safetensors.SafetensorError:
        reference_read = False
    assert reference_read == reference_reads
    result = probe("list", path)
    assert result.returncode == (0 if we_read else 3), result.stderr
    assert we_read or str(path) in result.stderr
