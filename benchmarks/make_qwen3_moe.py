#!/usr/bin/env python3
"""Writes a random Qwen3-MoE of about 0.9 B parameters, bf16: hidden 1024, 8 layers, 64 experts top-8 of width 512.

Usage: make_qwen3_moe.py FOLDER [--layers 8]
The router's spread and the differing sizes of the experts' outputs are those of a trained model, so that routing is uneven.
"""
import argparse

import torch
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_moe import Qwen3MoeConfig

VOCABULARY = 8192


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = Qwen3MoeConfig(vocab_size=VOCABULARY, hidden_size=1024, num_hidden_layers=arguments.layers, num_attention_heads=16,
                            num_key_value_heads=4, head_dim=128, num_experts=64, num_experts_per_tok=8,
                            moe_intermediate_size=512, intermediate_size=512, norm_topk_prob=True, mlp_only_layers=[],
                            max_position_embeddings=4096)
    torch.set_default_dtype(torch.bfloat16)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.normal_(0, 0.05)
            spread = torch.randn(64).mul(0.5).exp().to(torch.bfloat16)
            layer.mlp.experts.down_proj.mul_(spread[:, None, None])
    model.save_pretrained(arguments.folder)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters in {arguments.folder}")


if __name__ == "__main__":
    main()
