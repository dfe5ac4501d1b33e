#!/usr/bin/env python3
"""Writes a random model in bf16, shaped like a trained one: the router's spread and the differing sizes of the experts' outputs make
routing uneven.

Usage: make_model.py qwen3-moe|deepseek-v3 FOLDER [--layers N] [--experts E] [--width F]
qwen3-moe: 0.9 B parameters, hidden 1024, 8 layers, 64 experts top-8 of width 512, 16 / 4 heads of 128.
deepseek-v3: 0.6 B parameters, hidden 1024, 6 layers of which one is dense, latent attention, 64 experts top-8 of width 512 in 4 groups
of which 2 are chosen, one shared expert, sigmoid router with a selection bias.
"""
import argparse

import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config, Qwen3MoeConfig

VOCABULARY = 8192
COMMON = {"vocab_size": VOCABULARY, "hidden_size": 1024, "num_experts_per_tok": 8, "norm_topk_prob": True,
          "max_position_embeddings": 4096}


def qwen3_moe(layers, experts, width):
    return Qwen3MoeConfig(**COMMON, num_hidden_layers=layers or 8, num_experts=experts, moe_intermediate_size=width,
                          intermediate_size=width, num_attention_heads=16, num_key_value_heads=4, head_dim=128, mlp_only_layers=[])


def deepseek_v3(layers, experts, width):
    return DeepseekV3Config(**COMMON, num_hidden_layers=layers or 6, n_routed_experts=experts, moe_intermediate_size=width,
                            intermediate_size=2816, n_shared_experts=1, n_group=4, topk_group=2, first_k_dense_replace=1,
                            num_attention_heads=8, num_key_value_heads=8, q_lora_rank=512, kv_lora_rank=256, qk_nope_head_dim=128,
                            qk_rope_head_dim=64, v_head_dim=128, routed_scaling_factor=2.5)


MODELS = {"qwen3-moe": qwen3_moe, "deepseek-v3": deepseek_v3}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = AutoModelForCausalLM.from_config(MODELS[arguments.model](arguments.layers, arguments.experts, arguments.width))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                parameter.normal_(0, 0.05)
            elif name.endswith("mlp.experts.down_proj"):
                parameter.mul_(torch.randn(arguments.experts).mul(0.5).exp().to(torch.bfloat16)[:, None, None])
    model.save_pretrained(arguments.folder)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters in {arguments.folder}")


if __name__ == "__main__":
    main()
