#!/usr/bin/env python3
"""What calibrating DeepSeek-R1 (671 B parameters, FP8, 689 GB) would take, said by `moetrim calibrate --dry-run` itself.

Usage: estimate_deepseek_r1.py [--program build/moetrim] [--max-memory 22GiB] [--demonstrations 64] [--length 2048]
                               [--gflops 116] [--gigabytes-per-second 0.69]

Makes a checkpoint of R1's names, types and shapes whose shards are holes (no disk is taken) in a temporary folder. Tokens, passes, bytes,
memory and operations are the program's; the time is the larger of operations / --gflops and bytes / --gigabytes-per-second, since reading
goes on beside computing. The rate the program measures for itself means nothing here: holes read fast.
"""
import argparse
import json
import os
import struct
import subprocess
import tempfile
from pathlib import Path

import measure

LAYERS, DENSE_LAYERS, HIDDEN, WIDTH, DENSE, EXPERTS, VOCABULARY = 61, 3, 7168, 2048, 18432, 256, 129280
HEADS, QUERY_RANK, RANK, PLAIN, ROTATED, VALUE, BLOCK = 128, 1536, 512, 128, 64, 128, 128
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
    "intermediate_size": DENSE, "moe_intermediate_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS, "q_lora_rank": QUERY_RANK, "kv_lora_rank": RANK, "qk_nope_head_dim": PLAIN,
    "qk_rope_head_dim": ROTATED, "v_head_dim": VALUE, "n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "n_group": 8, "topk_group": 4, "first_k_dense_replace": DENSE_LAYERS, "moe_layer_freq": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "hidden_act": "silu",
    "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "rope_theta": 10000, "tie_word_embeddings": False,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
                     "mscale": 1.0, "mscale_all_dim": 1.0},
    "num_nextn_predict_layers": 0, "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"},
}
BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}


def fp8(name, rows, columns):
    yield f"{name}.weight", "F8_E4M3", [rows, columns]
    yield f"{name}.weight_scale_inv", "F32", [-(-rows // BLOCK), -(-columns // BLOCK)]


def mlp(base, width):
    yield from fp8(f"{base}.gate_proj", width, HIDDEN)
    yield from fp8(f"{base}.up_proj", width, HIDDEN)
    yield from fp8(f"{base}.down_proj", HIDDEN, width)


def layer_tensors(layer):
    base = f"model.layers.{layer}"
    for norm, size in {"input_layernorm": HIDDEN, "post_attention_layernorm": HIDDEN, "self_attn.q_a_layernorm": QUERY_RANK,
                       "self_attn.kv_a_layernorm": RANK}.items():
        yield f"{base}.{norm}.weight", "BF16", [size]
    for name, rows, columns in [("q_a_proj", QUERY_RANK, HIDDEN), ("q_b_proj", HEADS * (PLAIN + ROTATED), QUERY_RANK),
                                ("kv_a_proj_with_mqa", RANK + ROTATED, HIDDEN), ("kv_b_proj", HEADS * (PLAIN + VALUE), RANK),
                                ("o_proj", HIDDEN, HEADS * VALUE)]:
        yield from fp8(f"{base}.self_attn.{name}", rows, columns)
    if layer < DENSE_LAYERS:
        yield from mlp(f"{base}.mlp", DENSE)
        return
    yield f"{base}.mlp.gate.weight", "BF16", [EXPERTS, HIDDEN]
    yield f"{base}.mlp.gate.e_score_correction_bias", "F32", [EXPERTS]
    yield from mlp(f"{base}.mlp.shared_experts", WIDTH)
    for expert in range(EXPERTS):
        yield from mlp(f"{base}.mlp.experts.{expert}", WIDTH)


def ends():
    yield "model.embed_tokens.weight", "BF16", [VOCABULARY, HIDDEN]
    yield "model.norm.weight", "BF16", [HIDDEN]
    yield "lm_head.weight", "BF16", [VOCABULARY, HIDDEN]


def write_hole(file, tensors):
    """@return the names in the file, and its bytes of weights."""
    header, offset = {}, 0
    for name, dtype, shape in tensors:
        size = BYTES[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(file, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        os.truncate(stream.fileno(), 8 + len(text) + offset)
    return list(header), offset


def make_checkpoint(folder):
    places, total = {}, 0
    for shard in range(LAYERS + 1):
        file = f"model-{shard + 1:05}-of-{LAYERS + 1:05}.safetensors"
        names, size = write_hole(folder / file, layer_tensors(shard) if shard < LAYERS else ends())
        places.update(dict.fromkeys(names, file))
        total += size
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/moetrim")
    parser.add_argument("--max-memory", default="22GiB")
    parser.add_argument("--demonstrations", type=int, default=64)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--gflops", type=float, default=116)
    parser.add_argument("--gigabytes-per-second", type=float, default=0.69)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        total = make_checkpoint(folder)
        measure.write_task(folder / "task.jsonl", arguments.demonstrations, arguments.length)
        print(f"{total / 1e9:.0f} GB of weights\n\n| | tokens | passes | read GB | memory GiB | disk GB | operations | computing | reading |\n"
              "|---|---|---|---|---|---|---|---|---|")
        for kind in ("default", "second-order"):
            said = json.loads(subprocess.run(
                [arguments.program, "calibrate", folder, "--task", folder / "task.jsonl", "--max-memory", arguments.max_memory, "--dtype",
                 "bf16", "--statistics", kind, "--dry-run", "--json", "-o", folder / "x.stats"], capture_output=True, text=True,
                check=True).stdout)
            compute = said["operations"] / arguments.gflops / 1e9 / 3600
            read = said["read_bytes"] / arguments.gigabytes_per_second / 1e9 / 3600
            print(f"| {kind} | {said['tokens']} | {said['passes']} | {said['read_bytes'] / 1e9:.0f} | "
                  f"{said['peak_memory_bytes'] / 2**30:.1f} | {said['disk_bytes'] / 1e9:.1f} | {said['operations']:.2e} | {compute:.1f} h | "
                  f"{read:.1f} h |")


if __name__ == "__main__":
    main()
