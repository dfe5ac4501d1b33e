"""Router and expert outputs of a transformers model, collected with hooks, and every score computed from them in float64.

Independent of moetrim: it sees what the transformers modules compute, expert by expert.
"""
import numpy as np
import torch


def collect(model, ids):
    """Per MoE layer a dict of arrays over all tokens: logits [T, E], ids [T, K], gates [T, K], outputs [T, K, H], residual [T, H]."""
    layers = {i: layer for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")}
    seen = {i: dict(logits=[], ids=[], gates=[], outputs=[], residual=[]) for i in layers}
    handles = []
    for i, layer in layers.items():
        record = Recorder(seen[i])
        handles.append(layer.post_attention_layernorm.register_forward_pre_hook(record.residual))
        handles.append(layer.mlp.gate.register_forward_hook(record.routing))
        handles.append(layer.mlp.experts.register_forward_pre_hook(record.experts))
    with torch.no_grad():
        for sequence in ids:
            model(torch.tensor([sequence]))
    for handle in handles:
        handle.remove()
    return {i: {k: np.concatenate(v) for k, v in d.items()} for i, d in seen.items()}


class Recorder:
    """Hooks of one layer. They return nothing: what a hook returns would replace the module's output."""

    def __init__(self, seen):
        self.seen = seen

    def residual(self, module, args):
        self.seen["residual"].append(args[0][0].double().numpy())

    def routing(self, module, args, out):
        for name, values in zip(("logits", "gates", "ids"), out):
            self.seen[name].append(values.double().numpy() if name != "ids" else values.numpy())

    def experts(self, module, args):
        self.seen["outputs"].append(expert_outputs(module, args[0], args[1]))


def expert_outputs(module, x, chosen):
    """Un-gated output of every chosen expert, [T, K, H], one expert's plain arithmetic at a time."""
    out = torch.zeros(*chosen.shape, x.shape[-1], dtype=torch.float64)
    for token in range(x.shape[0]):
        for slot in range(chosen.shape[1]):
            e = chosen[token, slot]
            gate, up = (module.gate_up_proj[e] @ x[token]).chunk(2)
            out[token, slot] = (module.down_proj[e] @ (torch.nn.functional.silu(gate) * up)).double()
    return out.numpy()


def scores(layer, experts: int, threshold: float):
    """Every method's executed scores for one layer, [E] each."""
    ids, gates, outputs, h = layer["ids"], layer["gates"], layer["outputs"], layer["residual"]
    tokens, top_k = ids.shape
    norms = np.linalg.norm(outputs, axis=2)
    routed = (gates[:, :, None] * outputs).sum(1)
    after = h + routed
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
