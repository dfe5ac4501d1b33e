"""Random small checkpoints of every family, made by transformers with fixed seeds, in both expert layouts."""
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.mixtral import MixtralConfig
from transformers.models.olmoe import OlmoeConfig
from transformers.models.qwen2_moe import Qwen2MoeConfig
from transformers.models.qwen3_moe import Qwen3MoeConfig

# Odd sizes show stride and padding mistakes that round ones hide.
COMMON = dict(vocab_size=101, hidden_size=44, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=128,
              initializer_range=0.25, rms_norm_eps=1e-6, tie_word_embeddings=False,
              bos_token_id=1, eos_token_id=2, pad_token_id=0)
FAMILIES = ["qwen3_moe", "qwen2_moe", "mixtral", "olmoe"]


def config_of(family: str, **changes):
    if family == "qwen3_moe":
        own = dict(num_key_value_heads=2, head_dim=10, num_experts=7, num_experts_per_tok=3, moe_intermediate_size=13,
                   intermediate_size=29, norm_topk_prob=True, mlp_only_layers=[1])
        return Qwen3MoeConfig(**{**COMMON, **own, **changes})
    if family == "qwen2_moe":
        own = dict(num_key_value_heads=2, hidden_size=40, num_experts=11, num_experts_per_tok=4, moe_intermediate_size=9,
                   shared_expert_intermediate_size=17, intermediate_size=23, norm_topk_prob=False, decoder_sparse_step=1)
        return Qwen2MoeConfig(**{**COMMON, **own, **changes})
    if family == "mixtral":
        own = dict(num_key_value_heads=2, head_dim=12, num_local_experts=5, num_experts_per_tok=2, intermediate_size=19)
        return MixtralConfig(**{**COMMON, **own, **changes})
    own = dict(num_key_value_heads=2, hidden_size=48, num_experts=9, num_experts_per_tok=3, intermediate_size=15, clip_qkv=1.5)
    return OlmoeConfig(**{**COMMON, **own, **changes})


def make(folder: Path, family: str, layout: str = "per-expert", seed: int = 0, dtype=torch.float32, **changes):
    """Writes a checkpoint and returns the model, in eval mode with eager attention."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(family, **changes), attn_implementation="eager",
                                             experts_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # ones and zeros would hide a missing bias or norm
                parameter.add_(0.2 * torch.randn_like(parameter))
    model = model.to(dtype).eval()
    model.save_pretrained(folder)
    published_spelling(folder)
    if layout == "fused":
        fuse(folder, model)
    return model


def published_spelling(folder: Path):
    """transformers 5 writes `num_local_experts`; published Qwen and OLMoE configs say `num_experts`."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    if config["model_type"] != "mixtral" and "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    file.write_text(json.dumps(config, indent=2))


def fuse(folder: Path, model):
    """Replaces per-expert tensors by the fused ones that transformers 5 has in memory."""
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items()
               if ".experts." not in name and ".block_sparse_moe." not in name}
    for name, tensor in model.state_dict().items():
        if ".experts." in name or name.endswith("mlp.gate.weight"):
            tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def sequences(seed: int, lengths, vocabulary: int = 101):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def logits_of(model, ids) -> torch.Tensor:
    """[T, V] f32 of one sequence after another."""
    with torch.no_grad():
        return torch.cat([model(torch.tensor([s])).logits[0].float() for s in ids])
