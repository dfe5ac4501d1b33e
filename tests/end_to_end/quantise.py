"""Quantises the linear weights of a checkpoint in the ways that published checkpoints use, by plain rounding.

Each method maps a module's name and its weight [N, K] to the tensors that are stored, and to the values that they stand for.
"""
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BLOCK = 128
GROUP = 16


def fp8(weight, scale):
    """Codes, and values: code times scale in fp32."""
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return codes, codes.float() * scale


def fp8_block(name, weight):
    rows, columns = (-(-n // BLOCK) for n in weight.shape)
    padded = torch.zeros(rows * BLOCK, columns * BLOCK)
    padded[:weight.shape[0], :weight.shape[1]] = weight
    scale = padded.view(rows, BLOCK, columns, BLOCK).abs().amax((1, 3)) / 448
    wide = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:weight.shape[0], :weight.shape[1]]
    codes, values = fp8(weight, wide)
    return {f"{name}.weight": codes, f"{name}.weight_scale_inv": scale}, values


def fp8_tensor(name, weight):
    scale = weight.abs().max() / 448
    codes, values = fp8(weight, scale)
    return {f"{name}.weight": codes, f"{name}.weight_scale": scale, f"{name}.input_scale": torch.ones(())}, values


def fp8_channel(name, weight):
    scale = weight.abs().amax(1, keepdim=True) / 448
    codes, values = fp8(weight, scale)
    return {f"{name}.weight": codes, f"{name}.weight_scale": scale}, values


def words(codes, dim, order=range(8)):
    """Eight 4-bit codes along a dimension to one int32."""
    codes = codes.movedim(dim, -1)
    eight = codes.reshape(*codes.shape[:-1], -1, 8)[..., list(order)]
    packed = (eight.long() << (4 * torch.arange(8))).sum(-1)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32).movedim(-1, dim)


def four_bits(weight):
    """Codes 0 to 15 with zero at 8, scales [N, G] that fp16 holds exactly, and values."""
    groups = weight.reshape(weight.shape[0], -1, GROUP)
    scale = (groups.abs().amax(-1) / 7).half().float()
    codes = (groups / scale.unsqueeze(-1)).round().clamp(-8, 7)
    return (codes + 8).reshape(weight.shape), scale, (codes * scale.unsqueeze(-1)).reshape(weight.shape)


def gptq(name, weight):
    codes, scale, values = four_bits(weight)
    zeros = torch.full((scale.shape[1], weight.shape[0]), 7)  # stored less one
    tensors = {"qweight": words(codes.T, 0), "qzeros": words(zeros, 1), "scales": scale.T.half(),
               "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP}
    return {f"{name}.{k}": v for k, v in tensors.items()}, values


def awq(name, weight):
    codes, scale, values = four_bits(weight)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    zeros = torch.full((scale.shape[1], weight.shape[0]), 8)
    tensors = {"qweight": words(codes.T, 1, order), "qzeros": words(zeros, 1, order), "scales": scale.T.half()}
    return {f"{name}.{k}": v for k, v in tensors.items()}, values


def pack_quantized(name, weight):
    codes, scale, values = four_bits(weight)
    tensors = {"weight_packed": words(codes, 1), "weight_scale": scale.half(), "weight_shape": torch.tensor(weight.shape)}
    return {f"{name}.{k}": v for k, v in tensors.items()}, values


FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def nearest_fp4(x):
    return (x.unsqueeze(-1) - FP4).abs().argmin(-1)


def nvfp4(name, weight):
    overall = 448 * 6 / weight.abs().max().reshape(1)
    groups = weight.reshape(weight.shape[0], -1, GROUP)
    scale = (groups.abs().amax(-1) / 6 * overall).to(torch.float8_e4m3fn)
    factor = (scale.float() / overall).unsqueeze(-1)
    codes = nearest_fp4(groups / factor)
    values = (FP4[codes] * factor).reshape(weight.shape)
    codes = codes.reshape(weight.shape)
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
    tensors = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": overall}
    return {f"{name}.{k}": v for k, v in tensors.items()}, values


def compressed(layout, weights):
    return {"quant_method": "compressed-tensors", "format": layout, "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


METHODS = {
    "fp8 blocks": (fp8_block, {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}),
    "fp8 per tensor": (fp8_tensor, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "fp8 per channel": (fp8_channel, compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel",
                                                                    "symmetric": True})),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq"}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}),
    "int4": (pack_quantized, compressed("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group",
                                                           "group_size": GROUP, "symmetric": True})),
    "nvfp4": (nvfp4, compressed("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group",
                                                         "group_size": GROUP, "symmetric": True})),
}


def quantise(folder: Path, method: str, model):
    """Rewrites a per-expert checkpoint in place; every linear weight but routers and the head is quantised. The model gets the
    values that the codes stand for."""
    make, config = METHODS[method]
    tensors = load_file(folder / "model.safetensors")
    stored, values = {}, {}
    for name, weight in tensors.items():
        plain = weight.dim() != 2 or any(part in name for part in ("embed", "lm_head", "gate.weight"))
        if plain:
            stored[name] = weight
            continue
        parts, values[name] = make(name.removesuffix(".weight"), weight)
        stored.update(parts)
    save_file({k: v.contiguous() for k, v in stored.items()}, folder / "model.safetensors", {"format": "pt"})
    change_config(folder, quantization_config=config)
    load_values(model, values)


def change_config(folder: Path, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def load_values(model, values):
    """Puts per-expert values into the fused parameters of transformers 5."""
    with torch.no_grad():
        state = dict(model.named_parameters())
        for name, value in values.items():
            if ".experts." not in name:
                state[name].copy_(value)
                continue
            block, rest = name.split(".experts.")
            expert, part = int(rest.split(".")[0]), rest.split(".")[1]
            if part == "down_proj":
                state[f"{block}.experts.down_proj"][expert].copy_(value)
            else:
                half = value.shape[0]
                begin = 0 if part == "gate_proj" else half
                state[f"{block}.experts.gate_up_proj"][expert, begin:begin + half].copy_(value)


def mxfp4(folder: Path, model):
    """gpt-oss as it is published: blocks of 32 inputs with a power of two each, stored output first."""
    tensors = load_file(folder / "model.safetensors")
    stored = {}
    state = dict(model.named_parameters())
    for name, weight in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = weight
            continue
        rows = weight.transpose(1, 2)  # [E, N, K]
        groups = rows.reshape(*rows.shape[:2], -1, 32)
        exponent = torch.floor(torch.log2(groups.abs().amax(-1))) - 2
        factor = torch.exp2(exponent).unsqueeze(-1)
        codes = nearest_fp4(groups / factor)
        stored[f"{name}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
        stored[f"{name}_scales"] = (exponent + 127).to(torch.uint8)
        with torch.no_grad():
            state[name].copy_((FP4[codes] * factor).reshape(rows.shape).transpose(1, 2))
    save_file({k: v.contiguous() for k, v in stored.items()}, folder / "model.safetensors", {"format": "pt"})
    change_config(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
