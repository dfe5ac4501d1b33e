"""Router and expert outputs of a model, collected with hooks, and every score computed from them in float64.

Independent of moetrim: it sees what the model's modules compute, expert by expert.
"""
import numpy as np
import torch

import models


def moe_of(layer):
    """The block, router and experts of one layer, or None for a dense one."""
    for name in ("mlp", "block_sparse_moe", "feed_forward"):
        block = getattr(layer, name, None)
        if hasattr(block, "experts"):
            return block, getattr(block, "gate", None) or block.router, block.experts
    return None


def collect(model, ids):
    """Per MoE layer a dict of arrays over all tokens: logits [T, E], ids [T, K], gates [T, K], outputs [T, K, H] and
    residual [T, H], in "sigmoid" whether the router scores experts one by one, and in "residual scale" what the block's
    output is multiplied by before it joins the residual (granitemoe). A gate is what multiplies the
    expert's output: after normalisation and scaling, and 1 where the score multiplies the input instead (llama4)."""
    layers = {i: layer for i, layer in enumerate(models.layers_of(model)) if moe_of(layer)}
    seen = {i: dict(logits=[], ids=[], gates=[], outputs=[], residual=[]) for i in layers}
    handles = []
    for i, layer in layers.items():
        _, router, experts = moe_of(layer)
        record = Recorder(seen[i], experts)
        handles.append(layer.post_attention_layernorm.register_forward_pre_hook(record.residual))
        handles.append(router.register_forward_hook(record.scaled_inputs if scales_input(router) else record.routing))
    with torch.no_grad():
        for sequence in ids:
            model(torch.tensor([sequence]))
    for handle in handles:
        handle.remove()
    return {i: {k: np.concatenate(v) for k, v in d.items()} | constants(layers[i]) for i, d in seen.items()}


def constants(layer):
    return {"sigmoid": is_sigmoid(moe_of(layer)[1]), "residual scale": getattr(layer, "residual_multiplier", 1.0)}


def is_sigmoid(router) -> bool:
    return type(router).__name__.startswith(("DeepseekV3", "Glm4Moe", "Dots1", "MiniMaxM2", "Llama4"))


def scales_input(router) -> bool:
    return type(router).__name__ == "Llama4Router"


class Recorder:
    """Hooks of one layer. They return nothing: what a hook returns would replace the module's output."""

    def __init__(self, seen, experts):
        self.seen = seen
        self.experts = experts

    def residual(self, module, args):
        self.seen["residual"].append(args[0][0].double().numpy())

    def routing(self, module, args, out):
        logits, gates, ids = out
        x = args[0].reshape(-1, args[0].shape[-1])
        self.add(logits, gates, ids, expert_outputs(self.experts, x, ids))

    def scaled_inputs(self, module, args, out):
        scores, logits = out
        ids = logits.topk(module.top_k, dim=1).indices
        self.add(logits, torch.ones(ids.shape), ids, expert_outputs(self.experts, args[0], ids, scores.gather(1, ids)))

    def add(self, logits, gates, ids, outputs):
        self.seen["logits"].append(logits.double().numpy())
        self.seen["gates"].append(gates.double().numpy())
        self.seen["ids"].append(ids.numpy())
        self.seen["outputs"].append(outputs)


def expert_outputs(experts, x, chosen, input_scale=None):
    """Un-gated output of every chosen expert, [T, K, H], one expert's plain arithmetic at a time."""
    out = torch.zeros(*chosen.shape, x.shape[-1], dtype=torch.float64)
    for token in range(x.shape[0]):
        for slot in range(chosen.shape[1]):
            scaled = x[token] if input_scale is None else x[token] * input_scale[token, slot]
            out[token, slot] = expert_output(experts, chosen[token, slot], scaled).double()
    return out.numpy()


def expert_output(experts, e, x):
    gate_up, down = experts.gate_up_proj[e], experts.down_proj[e]
    if hasattr(experts, "gate_up_proj_bias"):  # gpt_oss: [in, out], gate and up alternate, both are clamped
        mixed = x @ gate_up + experts.gate_up_proj_bias[e]
        gate, up = mixed[0::2].clamp(max=experts.limit), mixed[1::2].clamp(-experts.limit, experts.limit)
        return ((up + 1) * gate * torch.sigmoid(experts.alpha * gate)) @ down + experts.down_proj_bias[e]
    if type(experts).__name__ == "Llama4TextExperts":  # [in, out]
        gate_up, down = gate_up.T, down.T
    gate, up = (gate_up @ x).chunk(2)
    return down @ (torch.nn.functional.silu(gate) * up)


def probabilities(layer):
    """What the router's score function gives every expert before any selection, [T, E]."""
    if layer["sigmoid"]:
        return 1 / (1 + np.exp(-layer["logits"]))
    p = np.exp(layer["logits"] - layer["logits"].max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def mask_router(model, plan):
    """Makes the original route as if the dropped experts were not there."""
    for entry in plan["layers"]:
        block, router, _ = moe_of(models.layers_of(model)[entry["layer"]])
        dropped = [e for e in range(plan["experts"]) if e not in entry["keep"]]
        # The score of a logit of minus infinity is 0, which a selection bias would lift again.
        for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
            if name.endswith("e_score_correction_bias"):
                tensor.data[..., dropped] = -torch.inf
        router.forward = masked(router.forward, dropped)


def masked(forward, dropped):
    def logits_masked(*arguments):
        linear = torch.nn.functional.linear

        def linear_masked(*arguments):
            logits = linear(*arguments)
            logits[:, dropped] = -torch.inf
            return logits

        torch.nn.functional.linear = linear_masked
        try:
            return forward(*arguments)
        finally:
            torch.nn.functional.linear = linear

    return logits_masked


def scores(layer, experts: int, threshold: float):
    """Every method's executed scores for one layer, [E] each."""
    ids, gates, outputs, h = layer["ids"], layer["gates"], layer["outputs"], layer["residual"]
    tokens, top_k = ids.shape
    norms = np.linalg.norm(outputs, axis=2)
    routed = (gates[:, :, None] * outputs).sum(1)
    after = h + layer["residual scale"] * routed
    turn = np.maximum(0, 1 - (h * after).sum(1) / np.linalg.norm(h, axis=1) / np.linalg.norm(after, axis=1))
    chosen_logits = np.take_along_axis(layer["logits"], ids, 1)
    share = np.exp(chosen_logits - chosen_logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)

    def per_expert(values):
        return np.array([values[ids == e].sum() for e in range(experts)])

    count = per_expert(np.ones((tokens, top_k)))
    top1 = layer["logits"].argmax(1)
    return {
        "frequency": count,
        "soft-frequency": per_expert(gates),
        "ean": per_expert(norms),
        "reap": per_expert(gates * norms) / np.maximum(count, 1),
        "easy-ep": per_expert(gates * norms * turn[:, None]),
        "tcess": per_expert(np.where(share >= threshold, share, 0)) / tokens,
        "tcess official": np.array([layer["logits"][top1 == e, e].sum() for e in range(experts)]) / tokens,
    }
