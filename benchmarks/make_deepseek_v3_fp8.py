#!/usr/bin/env python3
"""Writes a random checkpoint in the shape of DeepSeek-V3, in FP8 blocks of 128 x 128: latent attention, 128 experts top-8 in 8
groups, one shared expert, sigmoid router with a selection bias. About 1.2 GB a layer.

Usage: make_deepseek_v3_fp8.py FOLDER [--layers 11]
Written shard by shard without a model in memory; the codes of all experts come from one pool, each from another place.
"""
import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, WIDTH, DENSE, EXPERTS, VOCABULARY = 3072, 1024, 6144, 128, 8192
HEADS, QUERY_RANK, RANK, PLAIN, ROTATED, VALUE = 16, 768, 256, 64, 32, 64
BLOCK = 128
POOL = torch.randn(1 << 26, generator=torch.Generator().manual_seed(0)).mul_(16).to(torch.float8_e4m3fn)

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
    "intermediate_size": DENSE, "moe_intermediate_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    "q_lora_rank": QUERY_RANK, "kv_lora_rank": RANK, "qk_nope_head_dim": PLAIN, "qk_rope_head_dim": ROTATED, "v_head_dim": VALUE,
    "n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "num_nextn_predict_layers": 0, "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"},
}


class Writer:
    def __init__(self, folder: Path):
        self.folder, self.map, self.size, self.tensors, self.shards, self.place = folder, {}, 0, {}, 0, 0

    def add(self, name, tensor):
        self.tensors[name] = tensor

    def plain(self, name, *shape, std=0.02, dtype=torch.bfloat16):
        self.add(name, torch.randn(*shape).mul_(std).to(dtype))

    def norm(self, name, size):
        self.add(name, torch.ones(size, dtype=torch.bfloat16))

    def fp8(self, name, rows, columns):
        count = rows * columns
        self.place = (self.place + 7919 * BLOCK) % (POOL.numel() - count)
        self.add(f"{name}.weight", POOL[self.place:self.place + count].clone().view(rows, columns))
        scale = torch.rand(-(-rows // BLOCK), -(-columns // BLOCK)).add_(0.5).mul_(0.02 / 16)
        self.add(f"{name}.weight_scale_inv", scale)

    def end_shard(self):
        self.shards += 1
        file = f"model-{self.shards:05}.safetensors"
        save_file(self.tensors, self.folder / file, {"format": "pt"})
        self.map.update(dict.fromkeys(self.tensors, file))
        self.size += sum(t.nbytes for t in self.tensors.values())
        self.tensors = {}

    def finish(self, layers):
        index = {"metadata": {"total_size": self.size}, "weight_map": self.map}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (self.folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}, indent=2))


def attention(out, base):
    out.norm(f"{base}.input_layernorm.weight", HIDDEN)
    out.norm(f"{base}.post_attention_layernorm.weight", HIDDEN)
    base += ".self_attn"
    out.fp8(f"{base}.q_a_proj", QUERY_RANK, HIDDEN)
    out.norm(f"{base}.q_a_layernorm.weight", QUERY_RANK)
    out.fp8(f"{base}.q_b_proj", HEADS * (PLAIN + ROTATED), QUERY_RANK)
    out.fp8(f"{base}.kv_a_proj_with_mqa", RANK + ROTATED, HIDDEN)
    out.norm(f"{base}.kv_a_layernorm.weight", RANK)
    out.fp8(f"{base}.kv_b_proj", HEADS * (PLAIN + VALUE), RANK)
    out.fp8(f"{base}.o_proj", HIDDEN, HEADS * VALUE)


def mlp(out, base, width):
    out.fp8(f"{base}.gate_proj", width, HIDDEN)
    out.fp8(f"{base}.up_proj", width, HIDDEN)
    out.fp8(f"{base}.down_proj", HIDDEN, width)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=11)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    out = Writer(arguments.folder)
    out.plain("model.embed_tokens.weight", VOCABULARY, HIDDEN, std=1.0)
    out.plain("lm_head.weight", VOCABULARY, HIDDEN)
    out.norm("model.norm.weight", HIDDEN)
    for layer in range(arguments.layers):
        base = f"model.layers.{layer}"
        attention(out, base)
        if layer == 0:
            mlp(out, f"{base}.mlp", DENSE)
        else:
            out.plain(f"{base}.mlp.gate.weight", EXPERTS, HIDDEN)
            out.plain(f"{base}.mlp.gate.e_score_correction_bias", EXPERTS, std=0.05, dtype=torch.float32)
            mlp(out, f"{base}.mlp.shared_experts", WIDTH)
            for expert in range(EXPERTS):
                mlp(out, f"{base}.mlp.experts.{expert}", WIDTH)
        out.end_shard()
    out.finish(arguments.layers)
    print(f"{out.size / 1e9:.1f} GB in {arguments.folder}")


if __name__ == "__main__":
    main()
