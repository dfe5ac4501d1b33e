"""Values of quantised weights against transformers, compressed-tensors, and packers written here from published layouts.

Every comparison is bit for bit: the references get their scales as fp32, and both sides then do the same one
multiplication (see quantised.h).
"""
import json
import subprocess

import pytest
import torch
from compressed_tensors.compressors.mxfp4 import MXFP4PackedCompressor
from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, _dequantize_fp8_weight
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from program import BUILD

FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@pytest.fixture
def random():
    return torch.Generator().manual_seed(3)


class Folder:
    """A checkpoint folder with one weight, and what the probe makes of it."""

    def __init__(self, path):
        self.path = path

    def values(self, tensors, shape, quantization, module="a.up_proj", bf16=False):
        save_file({k: v.contiguous() for k, v in tensors.items()}, self.path / "model.safetensors", {"format": "pt"})
        (self.path / "config.json").write_text(json.dumps({"quantization_config": quantization} if quantization else {}))
        (self.path / "shapes").write_text(json.dumps({module: list(shape)}))
        program = BUILD / "tests" / "quantised_probe"
        arguments = [program, self.path, self.path / "shapes", self.path / "out", *(["bf16"] if bf16 else [])]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        self.kind = json.loads(done.stdout)[module]
        return load_file(self.path / "out")[module]


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def same(got, expected):
    """Same bits, any NaN for NaN; and bfloat16 output is the same rounded."""
    assert got.dtype == expected.dtype and got.shape == expected.shape
    integer = torch.int32 if got.dtype == torch.float32 else torch.int16
    equal = (got.view(integer) == expected.contiguous().view(integer)) | (got.isnan() & expected.isnan())
    assert equal.all(), f"{(~equal).sum()} of {equal.numel()} differ: {got[~equal][:5]} {expected[~equal][:5]}"


def check(folder, tensors, shape, quantization, expected, kind, module="a.up_proj"):
    same(folder.values(tensors, shape, quantization, module), expected)
    assert folder.kind == kind
    same(folder.values(tensors, shape, quantization, module, bf16=True), expected.bfloat16())


def any_bytes(shape, random):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)


def any_scale(shape, random, dtype=torch.float32):
    return (torch.rand(shape, generator=random) * 0.02 + 1e-3).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_plain(folder, random, dtype):
    weight = torch.randn(7, 11, generator=random, dtype=torch.float64).to(dtype)
    weight[0, :6] = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 6e-8, -65504.0]).to(dtype)
    check(folder, {"a.up_proj.weight": weight}, (7, 11), None, weight.float(), "plain")


def test_every_half(folder):
    weight = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16).reshape(256, 256)
    check(folder, {"a.up_proj.weight": weight}, (256, 256), None, weight.float(), "plain")


@pytest.mark.parametrize("name", FP8)
@pytest.mark.parametrize("scale", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
@pytest.mark.parametrize("shape,block", [((300, 517), (128, 128)), ((7, 11), (128, 128)), ((64, 96), (32, 16)), ((129, 5), (1, 7))])
def test_fp8_blocks(folder, random, name, scale, shape, block):
    """Random bytes are every code, denormals and NaN among them."""
    weight = any_bytes(shape, random).view(FP8[name])
    grid = tuple(-(-n // b) for n, b in zip(shape, block))
    if scale == torch.float8_e8m0fnu:
        inverse = torch.randint(100, 140, grid, dtype=torch.uint8, generator=random).view(scale)
    else:
        inverse = any_scale(grid, random, scale)
    expected = _dequantize_fp8_weight(weight, inverse.float(), list(block), torch.float32)
    quantization = {"quant_method": "fp8", "weight_block_size": list(block), "activation_scheme": "dynamic"}
    tensors = {"a.up_proj.weight": weight, "a.up_proj.weight_scale_inv": inverse}
    check(folder, tensors, shape, quantization, expected, "fp8")


@pytest.mark.parametrize("shape", [(), (1,), (9,), (9, 1)])
def test_fp8_tensor_and_channel(folder, random, shape):
    weight = any_bytes((9, 37), random).view(torch.float8_e4m3fn)
    scale = any_scale(shape, random)
    expected = weight.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale)
    tensors = {"a.up_proj.weight": weight, "a.up_proj.weight_scale": scale, "a.up_proj.input_scale": torch.ones(())}
    check(folder, tensors, (9, 37), {"quant_method": "modelopt", "quant_algo": "FP8"}, expected, "fp8")


def test_fp8_fused_experts(folder, random):
    weight = any_bytes((3, 32, 48), random).view(torch.float8_e4m3fn)
    inverse = any_scale((3, 2, 3), random)
    expected = Fp8Dequantize(None)._dequantize_one(weight, inverse, torch.float32)
    tensors = {"experts.down_proj.weight": weight, "experts.down_proj_scale_inv": inverse}
    check(folder, tensors, (3, 32, 48), {"quant_method": "fp8", "weight_block_size": [16, 16]}, expected, "fp8", "experts.down_proj")


def test_mxfp8(folder, random):
    weight = any_bytes((5, 96), random).view(torch.float8_e4m3fn)
    scale = torch.randint(100, 140, (5, 3), dtype=torch.uint8, generator=random)
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
    tensors = {"a.up_proj.weight": weight, "a.up_proj.weight_scale_inv": scale}
    check(folder, tensors, (5, 96), {"quant_method": "mxfp8"}, expected, "fp8")


def compressed(weights, layout):
    return {"quant_method": "compressed-tensors", "format": layout,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy,grid", [("tensor", (1,)), ("channel", (9, 1)), ("group", (9, 3))])
def test_int8(folder, random, symmetric, strategy, grid):
    weight = any_bytes((9, 48), random).view(torch.int8)
    scale = any_scale(grid, random)
    zeros = None if symmetric else any_bytes(grid, random).view(torch.int8)
    weights = {"num_bits": 8, "type": "int", "strategy": strategy, "symmetric": symmetric,
               "group_size": 16 if strategy == "group" else None}
    expected = dequantize(weight, scale, zeros, QuantizationArgs(**weights))
    tensors = {"a.up_proj.weight": weight, "a.up_proj.weight_scale": scale}
    if zeros is not None:
        tensors["a.up_proj.weight_zero_point"] = zeros
    check(folder, tensors, (9, 48), compressed(weights, "int-quantized"), expected, "int8")


def test_mxfp4_fused_experts(folder, random):
    """gpt-oss. Exponents beyond those of normal numbers are left out; 255 is refused."""
    blocks = any_bytes((3, 10, 4, 16), random)
    scales = torch.randint(3, 250, (3, 10, 4), dtype=torch.uint8, generator=random)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    tensors = {"experts.gate_up_proj_blocks": blocks, "experts.gate_up_proj_scales": scales}
    check(folder, tensors, (3, 10, 128), {"quant_method": "mxfp4"}, expected, "mxfp4", "experts.gate_up_proj")


def test_mxfp4_as_int8(folder, random):
    """FP8 models whose experts have 4 bits: int8 pairs beside E8M0 scales."""
    packed = any_bytes((7, 48), random).view(torch.int8)
    scale = torch.randint(100, 140, (7, 3), dtype=torch.uint8, generator=random).view(torch.float8_e8m0fnu)
    expected = Fp8Dequantize(None)._dequantize_one(packed, scale, torch.float32)
    tensors = {"a.up_proj.weight": packed, "a.up_proj.weight_scale_inv": scale}
    check(folder, tensors, (7, 96), {"quant_method": "fp8", "expert_dtype": "fp4"}, expected, "mxfp4")


def scheme(weights):
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))


def test_mxfp4_compressed(folder, random):
    weights = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True, "scale_dtype": "torch.uint8"}
    scale = torch.exp2(torch.randint(-9, 0, (7, 3), generator=random).float())
    state = MXFP4PackedCompressor.compress({"weight": torch.randn(7, 96, generator=random), "weight_scale": scale}, scheme(weights))
    fp4 = unpack_fp4_from_uint8(state["weight_packed"], 7, 96, torch.float32)
    expected = dequantize(fp4, scale, args=QuantizationArgs(**weights))
    tensors = {f"a.up_proj.{k}": v for k, v in state.items()}
    check(folder, tensors, (7, 96), compressed(weights, "mxfp4-pack-quantized"), expected, "mxfp4")


@pytest.mark.parametrize("modelopt", [False, True])
def test_nvfp4(folder, random, modelopt):
    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
    original = torch.randn(7, 80, generator=random)
    overall = 448 * 6 / original.abs().max().reshape(1)
    scale = (original.reshape(7, 5, 16).abs().amax(-1) / 6 * overall).to(torch.float8_e4m3fn)
    state = NVFP4PackedCompressor.compress(
        {"weight": original, "weight_scale": scale.float(), "weight_global_scale": overall}, scheme(weights))
    fp4 = unpack_fp4_from_uint8(state["weight_packed"], 7, 80, torch.float32)
    if modelopt:
        second = 1 / overall.reshape(())
        expected = fp4 * (scale.float() * second).repeat_interleave(16, 1)
        tensors = {"a.up_proj.weight": state["weight_packed"], "a.up_proj.weight_scale": scale,
                   "a.up_proj.weight_scale_2": second, "a.up_proj.input_scale": torch.ones(())}
        quantization = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    else:
        expected = dequantize(fp4, scale.float(), args=QuantizationArgs(**weights), global_scale=overall)
        tensors = {f"a.up_proj.{k}": v for k, v in state.items()}
        assert tensors["a.up_proj.weight_scale"].dtype == torch.float8_e4m3fn
        quantization = compressed(weights, "nvfp4-pack-quantized")
    check(folder, tensors, (7, 80), quantization, expected, "nvfp4")
    assert (expected - original).abs().max() < 1  # the reference itself means this weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits,shape,group", [
    (4, (13, 96), 32), (4, (67, 520), 40), (8, (5, 48), 16), (4, (9, 37), None), (8, (70, 301), None), (2, (5, 96), 32)])
def test_packed_int(folder, random, dtype, symmetric, bits, shape, group):
    weights = {"num_bits": bits, "type": "int", "strategy": "group" if group else "channel", "group_size": group, "symmetric": symmetric}
    scale = any_scale((shape[0], shape[1] // group if group else 1), random, dtype)
    state = {"weight": torch.randn(shape, generator=random) * 0.05, "weight_scale": scale}
    if not symmetric:
        half = 1 << (bits - 1)
        state["weight_zero_point"] = torch.randint(-half, half, scale.shape, generator=random, dtype=torch.int8)
    state = PackedQuantizationCompressor.compress(state, scheme(weights))
    exact = {**state, "weight_scale": scale.float()}
    expected = PackedQuantizationCompressor.decompress(exact, scheme(weights))["weight"]
    tensors = {f"a.up_proj.{k}": v for k, v in state.items()}
    check(folder, tensors, shape, compressed(weights, "pack-quantized"), expected, "packed_int")


def packed_columns(codes, bits):
    """[R, C] codes to int32 [ceil(R * bits / 32), C]: one stream of bits down each column, low bits first."""
    rows, columns = codes.shape
    words = [[0] * columns for _ in range(-(-rows * bits // 32))]
    for c in range(columns):
        stream = sum(int(codes[r, c]) << (bits * r) for r in range(rows))
        for w in range(len(words)):
            word = stream >> (32 * w) & 0xFFFFFFFF
            words[w][c] = word - (1 << 32 if word >> 31 else 0)
    return torch.tensor(words, dtype=torch.int32)


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("bits,shape,group", [
    (4, (72, 288), 32), (4, (8, 64), -1), (8, (12, 96), 48), (2, (16, 320), 64), (3, (32, 96), 32), (4, (5, 32), 16)])
def test_gptq(folder, random, version, ordered, bits, shape, group):
    rows, columns = shape
    width = columns if group == -1 else group
    groups = columns // width
    codes = torch.randint(0, 1 << bits, (columns, rows), generator=random)
    zeros = torch.randint(1, 1 << bits, (groups, rows), generator=random)
    scales = any_scale((groups, rows), random, torch.float16)
    order = torch.arange(columns) // width
    if ordered:
        order = order[torch.randperm(columns, generator=random)]
    expected = (scales.float()[order] * (codes - zeros[order])).T
    stored = zeros - 1 if version == "gptq" else zeros
    tensors = {"a.up_proj.qweight": packed_columns(codes, bits), "a.up_proj.scales": scales,
               "a.up_proj.qzeros": packed_columns(stored.T, bits).T, "a.up_proj.bias": torch.zeros(rows)}
    if ordered:
        tensors["a.up_proj.g_idx"] = order.int()
    quantization = {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": version}
    check(folder, tensors, shape, quantization, expected, "gptq")


@pytest.mark.parametrize("shape,group", [((24, 96), 32), ((72, 301), 43), ((8, 128), -1)])
def test_awq(folder, random, shape, group):
    rows, columns = shape
    width = columns if group == -1 else group
    codes = torch.randint(0, 16, (columns, rows), generator=random)
    zeros = torch.randint(0, 16, (columns // width, rows), generator=random)
    scales = any_scale(zeros.shape, random, torch.float16)
    expected = ((codes - zeros.repeat_interleave(width, 0)) * scales.float().repeat_interleave(width, 0)).T

    def packed(values):
        eight = values.reshape(len(values), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        words = (eight << (4 * torch.arange(8))).sum(-1)
        return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)

    tensors = {"a.up_proj.qweight": packed(codes), "a.up_proj.qzeros": packed(zeros), "a.up_proj.scales": scales}
    quantization = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    check(folder, tensors, shape, quantization, expected, "awq")


def test_awq_as_compressed_tensors_reads_it(folder, random):
    """The converter of compressed-tensors unpacks the same words to the same codes."""
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    words = torch.randint(-(1 << 31), 1 << 31, (64, 3), generator=random).to(torch.int32)
    zeros = torch.randint(-(1 << 31), 1 << 31, (2, 3), generator=random).to(torch.int32)
    scales = any_scale((2, 24), random, torch.float16)
    tensors = {"a.up_proj.qweight": words, "a.up_proj.qzeros": zeros, "a.up_proj.scales": scales}
    got = folder.values(tensors, (24, 64), {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"})
    converted = AutoAWQConverter(group_size=32).process(dict(tensors))
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False}
    state = {k.removeprefix("a.up_proj."): v for k, v in converted.items()}
    state["weight_scale"] = state["weight_scale"].float()
    same(got, PackedQuantizationCompressor.decompress(state, scheme(weights))["weight"])
