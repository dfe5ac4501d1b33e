"""Random small checkpoints of every family, made by transformers with fixed seeds, in every expert layout."""
import json
from collections import namedtuple
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

import pangu_pro

# Odd sizes show stride and padding mistakes that round ones hide.
COMMON = dict(vocab_size=101, hidden_size=44, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=128,
              initializer_range=0.25, rms_norm_eps=1e-6, tie_word_embeddings=False,
              bos_token_id=1, eos_token_id=2, pad_token_id=0)


def rope(theta=1000.0, kind="default", **more):
    return dict(rope_type=kind, rope_theta=theta, **more)


def yarn(**more):
    return rope(kind="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=32.0, beta_slow=1.0, **more)


MLA = dict(hidden_size=40, num_attention_heads=5, num_key_value_heads=5, kv_lora_rank=10, qk_nope_head_dim=6,
           qk_rope_head_dim=8, v_head_dim=7, moe_intermediate_size=9, intermediate_size=23, first_k_dense_replace=1,
           routed_scaling_factor=1.7)
GATED_DELTA_NET = dict(hidden_size=40, num_hidden_layers=4, num_key_value_heads=2, head_dim=16, linear_num_key_heads=2,
                       linear_num_value_heads=6, linear_key_head_dim=7, linear_value_head_dim=9,
                       linear_conv_kernel_dim=4, num_experts=9, num_experts_per_tok=3, moe_intermediate_size=11,
                       shared_expert_intermediate_size=13, rms_norm_eps=1e-3, initializer_range=0.15)
QWEN3_5 = dict(**GATED_DELTA_NET,
               layer_types=["linear_attention", "linear_attention", "full_attention", "linear_attention"],
               rope_parameters=rope(partial_rotary_factor=0.5, mrope_section=[2, 1, 1], mrope_interleaved=True))
QWEN_VISION = dict(depth=2, hidden_size=16, num_heads=2, intermediate_size=20, patch_size=4, num_position_embeddings=16,
                   deepstack_visual_indexes=[0, 1])
LLAMA4 = dict(hidden_size=40, num_hidden_layers=4, num_key_value_heads=2, head_dim=10, num_local_experts=7,
              intermediate_size=13, intermediate_size_mlp=21, attention_chunk_size=16, floor_scale=8, attn_scale=0.4)
LLAMA4_VISION = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=8,
                     patch_size=4, vision_output_dim=12, projector_input_dim=12, projector_output_dim=12)

# config: the transformers class, of the text model for multi-modal families; own: what differs from COMMON;
# layouts: how experts lie on disk, the published way first; vision: the tower's config of a multi-modal family.
# "per-expert" and "fused" name the experts' tensors; "saved" is all that save_pretrained writes, unchanged.
Family = namedtuple("Family", "config own layouts vision", defaults=(("per-expert", "fused"), None))
FAMILIES = {
    "qwen3_moe": Family("Qwen3MoeConfig", dict(
        num_key_value_heads=2, head_dim=10, num_experts=7, num_experts_per_tok=3, moe_intermediate_size=13,
        intermediate_size=29, norm_topk_prob=True, mlp_only_layers=[1])),
    "qwen2_moe": Family("Qwen2MoeConfig", dict(
        num_key_value_heads=2, hidden_size=40, num_experts=11, num_experts_per_tok=4, moe_intermediate_size=9,
        shared_expert_intermediate_size=17, intermediate_size=23, norm_topk_prob=False, decoder_sparse_step=1)),
    "mixtral": Family("MixtralConfig", dict(
        num_key_value_heads=2, head_dim=12, num_local_experts=5, num_experts_per_tok=2, intermediate_size=19)),
    "olmoe": Family("OlmoeConfig", dict(
        num_key_value_heads=2, hidden_size=48, num_experts=9, num_experts_per_tok=3, intermediate_size=15,
        clip_qkv=1.5)),
    "deepseek_v2": Family("DeepseekV2Config", dict(
        **MLA, q_lora_rank=14, n_routed_experts=12, num_experts_per_tok=3, n_shared_experts=2, n_group=3, topk_group=2,
        topk_method="group_limited_greedy", rope_parameters=yarn(mscale=0.8, mscale_all_dim=1.1))),
    "deepseek_v2_lite": Family("DeepseekV2Config", dict(
        **{**MLA, "routed_scaling_factor": 1.0}, q_lora_rank=None, n_routed_experts=7, num_experts_per_tok=3,
        n_shared_experts=1, topk_method="greedy", rope_parameters=yarn(mscale=0.707, mscale_all_dim=0.707))),
    "deepseek_v3": Family("DeepseekV3Config", dict(
        **MLA, q_lora_rank=14, n_routed_experts=15, num_experts_per_tok=4, n_shared_experts=1, n_group=3, topk_group=2,
        norm_topk_prob=True, rope_parameters=yarn(mscale=1.2, mscale_all_dim=0.9))),
    "kimi_k2": Family("DeepseekV3Config", dict(
        **MLA, q_lora_rank=14, n_routed_experts=11, num_experts_per_tok=4, n_shared_experts=1, n_group=1, topk_group=1,
        norm_topk_prob=True, rope_parameters=yarn(mscale=1.0, mscale_all_dim=1.0))),
    "moonlight": Family("DeepseekV3Config", dict(
        **MLA, q_lora_rank=None, n_routed_experts=7, num_experts_per_tok=3, n_shared_experts=2, n_group=1, topk_group=1,
        norm_topk_prob=True, rope_parameters=rope())),
    "glm4_moe": Family("Glm4MoeConfig", dict(
        num_key_value_heads=2, head_dim=12, n_routed_experts=9, num_experts_per_tok=3, n_shared_experts=1,
        moe_intermediate_size=13, intermediate_size=21, first_k_dense_replace=1, routed_scaling_factor=1.4, n_group=1,
        topk_group=1, norm_topk_prob=True, use_qk_norm=False, attention_bias=True,
        rope_parameters=rope(partial_rotary_factor=0.5))),
    "glm4_moe_qk_norm": Family("Glm4MoeConfig", dict(
        num_key_value_heads=2, head_dim=12, n_routed_experts=9, num_experts_per_tok=3, n_shared_experts=1,
        moe_intermediate_size=13, intermediate_size=21, first_k_dense_replace=1, routed_scaling_factor=2.5, n_group=1,
        topk_group=1, norm_topk_prob=True, use_qk_norm=True, attention_bias=False,
        rope_parameters=rope(partial_rotary_factor=0.5))),
    "dots1": Family("Dots1Config", dict(
        num_key_value_heads=2, head_dim=10, n_routed_experts=9, num_experts_per_tok=3, n_shared_experts=2,
        moe_intermediate_size=11, intermediate_size=21, first_k_dense_replace=1, routed_scaling_factor=2.5, n_group=1,
        topk_group=1, norm_topk_prob=True, sliding_window=9, max_window_layers=2)),
    "ernie4_5_moe": Family("Ernie4_5_MoeConfig", dict(
        num_hidden_layers=4, num_key_value_heads=2, head_dim=10, moe_num_experts=9, moe_k=3, moe_num_shared_experts=2,
        moe_intermediate_size=11, intermediate_size=21, moe_layer_start_index=1, moe_layer_interval=2,
        tie_word_embeddings=True)),
    "hunyuan_v1_moe": Family("HunYuanMoEV1Config", dict(
        num_key_value_heads=2, head_dim=12, num_experts=7, moe_topk=3, intermediate_size=13,
        rope_parameters=rope(kind="dynamic", alpha=50.0, factor=1.0, beta_fast=32, beta_slow=1, mscale=1.0,
                             mscale_all_dim=1.0))),
    "granitemoe": Family("GraniteMoeConfig", dict(
        hidden_size=48, num_key_value_heads=2, num_local_experts=9, num_experts_per_tok=3, intermediate_size=13,
        embedding_multiplier=3.0, logits_scaling=1.5, residual_multiplier=0.6, attention_multiplier=0.2,
        tie_word_embeddings=True), ("fused", "saved")),
    # No sequence passes the original length: beyond it transformers takes the long mscale but the short factors.
    "phimoe": Family("PhimoeConfig", dict(
        num_key_value_heads=2, hidden_size=48, num_local_experts=6, num_experts_per_tok=2, intermediate_size=15,
        attention_bias=True, lm_head_bias=True, sliding_window=21, router_jitter_noise=0.2,
        rope_parameters=rope(kind="longrope", short_factor=[1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
                             long_factor=[1.0, 1.5, 2.5, 4.0, 6.0, 9.0], short_mscale=1.25, long_mscale=1.5,
                             original_max_position_embeddings=96))),
    "gpt_oss": Family("GptOssConfig", dict(
        hidden_size=40, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=10,
        num_local_experts=8, num_experts_per_tok=3, intermediate_size=14, sliding_window=9, swiglu_limit=2.0,
        initializer_range=0.2,
        rope_parameters=yarn(truncate=False)), ("fused", "saved")),
    "llama4_text": Family("Llama4TextConfig", dict(
        **LLAMA4, num_experts_per_tok=2, interleave_moe_layer_step=2, no_rope_layer_interval=2, use_qk_norm=True,
        rope_parameters=rope(kind="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=1.0,
                             original_max_position_embeddings=32)), ("fused", "saved")),
    "llama4": Family("Llama4TextConfig", dict(**LLAMA4, num_experts_per_tok=1, use_qk_norm=False), ("fused", "saved"),
                     LLAMA4_VISION),
    "minimax_m2": Family("MiniMaxM2Config", dict(
        num_attention_heads=6, num_key_value_heads=2, head_dim=12, num_local_experts=8, num_experts_per_tok=3,
        intermediate_size=11, rope_parameters=rope(partial_rotary_factor=0.5))),
    "qwen3_next": Family("Qwen3NextConfig", dict(
        **GATED_DELTA_NET, intermediate_size=21, mlp_only_layers=[1], full_attention_interval=2,
        rope_parameters=rope(partial_rotary_factor=0.5))),
    "qwen3_5_moe": Family("Qwen3_5MoeTextConfig", QWEN3_5, ("fused", "per-expert"), QWEN_VISION),
    "qwen3_5_moe_text": Family("Qwen3_5MoeTextConfig", QWEN3_5),
    "qwen3_vl_moe": Family("Qwen3VLMoeTextConfig", dict(
        num_key_value_heads=2, head_dim=12, num_experts=7, num_experts_per_tok=3, moe_intermediate_size=13,
        intermediate_size=21, mlp_only_layers=[1],
        rope_parameters=rope(mrope_section=[2, 2, 2], mrope_interleaved=True)),
        ("fused", "saved"), QWEN_VISION),
    "pangu_pro_moe": Family("pangu_pro", dict(
        num_key_value_heads=2, hidden_size=48, num_experts=12, num_experts_per_tok=4, moe_intermediate_size=11,
        shared_expert_intermediate_size=19, rope_theta=1000.0, hidden_act="silu"), ("saved",)),
}
EXPERT_COUNTS = ("n_routed_experts", "moe_num_experts", "num_experts", "num_local_experts")
CASES = [(family, layout) for family, entry in FAMILIES.items() for layout in entry.layouts]
WRAPPERS = {"llama4": "Llama4", "qwen3_5_moe": "Qwen3_5Moe", "qwen3_vl_moe": "Qwen3VLMoe"}


def config_of(family: str, **changes):
    entry = FAMILIES[family]
    if family == "pangu_pro_moe":
        return pangu_pro.Config(**{**COMMON, **entry.own, **changes})
    text = getattr(transformers, entry.config)(**{**COMMON, **entry.own, **changes})
    if entry.vision is None:
        return text
    vision = dict(entry.vision)
    if family != "llama4":
        vision["out_hidden_size"] = text.hidden_size
    if family == "qwen3_5_moe":
        vision.pop("deepstack_visual_indexes")
    wrapper = getattr(transformers, WRAPPERS[family] + "Config")
    return wrapper(text_config=text.to_dict(), vision_config=vision, tie_word_embeddings=text.tie_word_embeddings)


def make(folder: Path, family: str, layout: str = None, seed: int = 0, dtype=torch.float32, **changes):
    """Writes a checkpoint and returns the model, in eval mode with eager attention."""
    torch.manual_seed(seed)
    config = config_of(family, **changes)
    eager = dict(attn_implementation="eager", experts_implementation="eager")
    if family == "pangu_pro_moe":
        model = pangu_pro.PanguProMoE(config)
    elif FAMILIES[family].vision:
        model = getattr(transformers, WRAPPERS[family] + "ForConditionalGeneration")._from_config(config, **eager)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config, **eager)
    perturb(model, family)
    in_fp32 = {name: tensor.clone() for name, tensor in model.state_dict().items() if stays_fp32(model, name)}
    model = (model if dtype == torch.float32 else model.to(dtype)).eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tensor.data = in_fp32.get(name, tensor.data)
    model.save_pretrained(folder)
    published = FAMILIES[family].layouts[0]
    if (layout or published) != "saved":
        published_spelling(folder, family, classic=layout in (None, published))
    if layout == "fused":
        fuse(folder, model)
    return model


def perturb(model, family):
    """Noise on what starts as ones or zeros, where it would hide a missing norm, bias or sink."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "e_score_correction_bias" in name:  # beside sigmoids; ernie adds it to probabilities, which are smaller
                tensor.add_((0.07 if family == "ernie4_5_moe" else 0.2) * torch.randn_like(tensor))
            elif name.endswith(("bias", "sinks", "A_log")) or "norm" in name:
                tensor.add_(0.2 * torch.randn_like(tensor))
            if name.endswith("A_log"):  # a state that fades fast leaves little for the norm after it but rounding
                tensor.sub_(3)


def stays_fp32(model, name: str) -> bool:
    """Would from_pretrained keep it in fp32 in a bf16 model?"""
    return any(part in name for part in model._keep_in_fp32_modules_strict or ())


def published_spelling(folder: Path, family: str, classic: bool):
    """Rewrites a saved config to what published ones say; `classic` includes rope and layer types."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    text = config.get("text_config", config)
    if family in ("qwen3_moe", "qwen2_moe", "olmoe", "qwen3_vl_moe") and "num_local_experts" in text:
        text["num_experts"] = text.pop("num_local_experts")
    if classic and family not in ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe"):
        text.update(PUBLISHED.get(text["model_type"], {}))
        classic_rope(text)
        for key in NOT_PUBLISHED.get(text["model_type"], ()):
            text.pop(key, None)
        if family == "hunyuan_v1_moe":  # one number per layer
            layers = text["num_hidden_layers"]
            text["moe_topk"] = [text["moe_topk"]] * layers
            text["moe_intermediate_size"] = [text["intermediate_size"]] * layers
            text["num_shared_expert"] = [1] * layers
        if family == "minimax_m2":
            text["rotary_dim"] = int(text["head_dim"] * text.pop("partial_rotary_factor"))
    file.write_text(json.dumps(config, indent=2))


# Keys of published configs that transformers does not save, and the reverse; what they say follows from other keys.
PUBLISHED = {
    "deepseek_v2": dict(scoring_func="softmax", moe_layer_freq=1, ep_size=1),
    "deepseek_v3": dict(scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1, ep_size=1),
    "dots1": dict(scoring_func="noaux_tc", moe_layer_freq=1),
    "ernie4_5_moe": dict(moe_gate="topk", moe_use_aux_free=True),
    "hunyuan_v1_moe": dict(norm_topk_prob=True, use_qk_norm=True, use_mixed_mlp_moe=True, moe_layer_num_skipped=0,
                           use_cla=False, routed_scaling_factor=1.0, attention_head_dim=12),
    "gpt_oss": dict(experts_per_token=3, initial_context_length=16),
    "llama4_text": dict(no_rope_layers=[]),
    "minimax_m2": dict(scoring_func="sigmoid", use_routing_bias=True, use_qk_norm=True, qk_norm_type="per_layer",
                       attn_type_list=[1, 1, 1], shared_intermediate_size=0),
    "qwen3_next": dict(full_attention_interval=2),
    "qwen3_5_moe_text": dict(mamba_ssm_dtype="float32", attn_output_gate=True),
}
NOT_PUBLISHED = {
    "deepseek_v2": ("head_dim", "qk_head_dim"),
    "deepseek_v3": ("head_dim", "qk_head_dim"),
    "dots1": ("layer_types",),
    "llama4_text": ("layer_types", "moe_layers"),
    "qwen3_next": ("layer_types",),
}


def classic_rope(text):
    """`rope_theta`, `partial_rotary_factor` and `rope_scaling` of before transformers 5."""
    if text["model_type"] == "qwen3_5_moe_text":  # published after transformers 5
        return
    scaling = text.pop("rope_parameters")
    text["rope_theta"] = scaling.pop("rope_theta")
    if "partial_rotary_factor" in scaling:
        text["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    if text["model_type"] in ("deepseek_v2", "deepseek_v3", "hunyuan_v1_moe", "phimoe"):
        scaling["type"] = scaling.pop("rope_type")
    text["rope_scaling"] = None if list(scaling.values()) == ["default"] else scaling


def fuse(folder: Path, model):
    """Replaces per-expert tensors by the fused ones that transformers 5 has in memory."""
    tensors = load_file(folder / "model.safetensors")
    if not any(".experts.0." in name for name in tensors):
        return  # saved as fused
    renamed = any(".block_sparse_moe." in name for name in tensors)
    tensors = {name: tensor for name, tensor in tensors.items()
               if ".experts." not in name and ".block_sparse_moe." not in name}
    for name, tensor in model.state_dict().items():
        if ".experts." in name or renamed and ".mlp." in name:
            tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path, model):
    """The checkpoint as `model`'s class loads it, and which keys did not fit."""
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True, dtype=torch.float32,
                                               attn_implementation="eager", experts_implementation="eager")
    return loaded.eval(), info


def groups_of(config):
    """Number of experts, and of the groups that routing restricts a token to."""
    text = config.get_text_config()
    experts = next(getattr(text, key) for key in EXPERT_COUNTS if hasattr(text, key))
    if isinstance(config, pangu_pro.Config):
        return experts, text.num_experts_per_tok
    return experts, getattr(text, "n_group", None) or 1


def two_thirds(config):
    """How many experts are left when two thirds of every group, rounded up, are kept."""
    experts, groups = groups_of(config)
    return groups * -(-2 * experts // (3 * groups))


def layers_of(model):
    """The text model's layers, also inside a multi-modal one."""
    inner = (model.language_model if hasattr(model, "language_model") else model).model
    return getattr(inner, "language_model", inner).layers


def sequences(seed: int, lengths, vocabulary: int = 101):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def logits_of(model, ids) -> torch.Tensor:
    """[T, V] f32 of one sequence after another."""
    with torch.no_grad():
        return torch.cat([model(torch.tensor([s])).logits[0].float() for s in ids])
