"""Second-order statistics of atomic experts by transformers and autograd, with the whole model in memory.

Independent of moetrim: experts run one by one, autograd gives the gradient at every expert's output, and the paper's score
comes from its [H, H] matrix of gradients, not from gradients at the atoms.
"""
import copy
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn.functional import cross_entropy, silu
from torch.overrides import TorchFunctionMode

import models
import reference

SLICES = 8  # demonstration i of a task is in slice i mod 8
SUMS = ("tokens", "activation", "gradient", "joint", "taylor", "fisher")


class InDouble(TorchFunctionMode):
    """Turns every request for float32 into one for float64: norms, softmaxes, routers and rotary tables ask for float32."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        result = function(*map(wider, arguments), **{name: wider(value) for name, value in (keywords or {}).items()})
        computed = not any(result is value for value in arguments)
        assert not (computed and getattr(result, "dtype", None) in (torch.float32, torch.complex64)), f"{function} gave float32"
        return result


def wider(value):
    return torch.float64 if value is torch.float32 else value


@contextmanager
def in_double():
    torch.set_default_dtype(torch.float64)
    try:
        with InDouble():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def sample(ids, count="all", prompt=0):
    """A demonstration: its ids and the positions that are predicted, those counted tokens that have a predecessor."""
    first, last = {"all": (0, len(ids)), "prompt": (0, prompt), "response": (prompt, len(ids))}[count]
    return SimpleNamespace(ids=ids, predicted=range(max(first, 1), last))


def collect(model, tasks, double=False):
    """Per MoE layer a dict of float64 arrays: SUMS as in the program's atoms files, "score" [tasks, E, F], the paper's mean
    score in matrix form, "down_squares" and "gate_up_squares"; and per task the predicted tokens and the loss. The loss is
    summed over a task's predicted tokens.

    tasks: per task its demonstrations, as sample() gives them.
    """
    model = doubled(model) if double else model
    with in_double() if double else nullcontext(), recording(model) as recorders:
        per_task = [run_task(model, recorders, demonstrations) for demonstrations in tasks]
        layers = {i: stack([layers[i] for _, layers in per_task]) | weights(r.experts) for i, r in recorders.items()}
    return layers, [facts for facts, _ in per_task]


def doubled(model):
    """A copy in float64. Rotary frequencies keep the values that float32 gave them, also where every pass makes them anew."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if hasattr(module, "rope_init_fn"):
            frequencies = module.rope_init_fn(module.config)
            module.rope_init_fn = lambda *_, frequencies=frequencies: frequencies
    return model


def stack(parts):
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def run_task(model, recorders, demonstrations):
    facts = {"predicted_tokens": sum(len(s.predicted) for s in demonstrations), "loss": 0.0}
    for recorder in recorders.values():
        recorder.start()
    for number, demonstration in enumerate(demonstrations):
        loss = loss_of(model, demonstration)
        facts["loss"] += loss.item()
        visits = [visit for recorder in recorders.values() for visit in recorder.visits]
        targets = [tensor for visit in visits for tensor in (visit.output, visit.gated)]
        gradients = torch.autograd.grad(loss, targets) if loss.requires_grad else [torch.zeros_like(t) for t in targets]
        for visit, *both in zip(visits, gradients[::2], gradients[1::2]):
            visit.output_gradient, visit.gated_gradient = both
        for recorder in recorders.values():
            recorder.add(number % SLICES)
    return facts, {i: recorder.sums() for i, recorder in recorders.items()}


def loss_of(model, demonstration):
    """Sum of the next-token cross entropy, in nats."""
    logits = model(torch.tensor([demonstration.ids])).logits[0]
    positions = torch.tensor(demonstration.predicted, dtype=torch.long)
    return cross_entropy(logits[positions - 1], torch.tensor(demonstration.ids)[positions], reduction="sum")


@contextmanager
def recording(model):
    """Experts run through a forward pass of our own, which keeps what autograd must be asked about."""
    layers = {i: reference.moe_of(layer) for i, layer in enumerate(models.layers_of(model))}
    recorders = {i: Recorder(*found) for i, found in layers.items() if found}
    try:
        yield recorders
    finally:
        for recorder in recorders.values():
            recorder.remove()


class Recorder:
    """One layer's experts. A visit is one expert's share of one demonstration: values [n, F], output [n, H] before the gate,
    gated [n, H]."""

    def __init__(self, block, router, experts):
        self.experts = experts
        self.count = experts.down_proj.shape[0]
        scaled = reference.scales_input(router)
        self.handle = router.register_forward_hook(self.keep_chosen) if scaled else None
        experts.forward = self.forward_scaled_inputs if scaled else self.forward

    def remove(self):
        del self.experts.forward
        if self.handle:
            self.handle.remove()

    def forward(self, x, chosen, gates):
        self.visits = []
        out = torch.zeros_like(x)
        for e in range(self.count):
            token, slot = torch.where(chosen == e)
            out = out.index_add(0, token, self.visit(e, x[token], gates[token, slot, None]))
        return out

    def keep_chosen(self, module, arguments, out):
        self.chosen = out[1].topk(module.top_k, dim=1).indices

    def forward_scaled_inputs(self, rows):
        """llama4: every expert gets a row for every token, multiplied by the gate, which is zero where not chosen."""
        self.visits = []
        rows = rows.view(self.count, -1, rows.shape[-1])
        out = torch.zeros_like(rows)
        for e in range(self.count):
            token = torch.where((self.chosen == e).any(1))[0]
            out = out.index_put((torch.tensor(e), token), self.visit(e, rows[e, token], 1.0))
        return out.view(-1, rows.shape[-1])

    def visit(self, e, x, gate):
        values = atom_values(self.experts, e, x)
        output = values @ down(self.experts, e).T
        if hasattr(self.experts, "down_proj_bias"):
            output = output + self.experts.down_proj_bias[e]
        gated = output * gate
        self.visits.append(SimpleNamespace(expert=e, values=values, output=output, gated=gated))
        return gated

    def start(self):
        experts, hidden, width = down_of(self.experts).shape
        self.total = {"tokens": torch.zeros(experts), **{name: torch.zeros(experts, width) for name in SUMS[1:4]},
                      **{name: torch.zeros(SLICES, experts) for name in SUMS[4:]}, "matrix": torch.zeros(experts, hidden, hidden)}
        self.total = {name: tensor.double() for name, tensor in self.total.items()}

    def add(self, part):
        for visit in self.visits:
            e, x, g = visit.expert, visit.values.detach().double(), visit.output_gradient.double()
            c = g @ down(self.experts, e).detach().double()
            moved = (visit.gated_gradient * visit.gated.detach()).double().sum(1)
            self.total["tokens"][e] += len(x)
            self.total["activation"][e] += (x ** 2).sum(0)
            self.total["gradient"][e] += (c ** 2).sum(0)
            self.total["joint"][e] += (x ** 2 * c ** 2).sum(0)
            self.total["taylor"][part, e] += moved.sum()
            self.total["fisher"][part, e] += (moved ** 2).sum()
            self.total["matrix"][e] += g.T @ g

    def sums(self):
        """With the paper's score of the summed loss: mean x^2 times the diagonal of WT (mean g gT) W."""
        tokens = self.total["tokens"].clamp(min=1)[:, None]
        w = down_of(self.experts).detach().double()
        mean = self.total.pop("matrix") / tokens[:, :, None]
        score = self.total["activation"] / tokens * torch.einsum("ehf,ehk,ekf->ef", w, mean, w)
        return {name: tensor.numpy() for name, tensor in self.total.items()} | {"score": score.numpy()}


def is_transposed(experts):
    return type(experts).__name__ in ("GptOssExperts", "Llama4TextExperts")  # [in, out]


def down_of(experts):
    """down_proj of all experts [E, H, F]: column k belongs to atom k."""
    return experts.down_proj.transpose(1, 2) if is_transposed(experts) else experts.down_proj


def down(experts, e):
    return down_of(experts)[e]


def gate_up(experts, e):
    """Rows of gate_proj and of up_proj, [F, H] each."""
    rows = experts.gate_up_proj[e].T if is_transposed(experts) else experts.gate_up_proj[e]
    return (rows[0::2], rows[1::2]) if interleaves(experts) else rows.chunk(2)


def interleaves(experts):
    return type(experts).__name__ == "GptOssExperts"


def atom_values(experts, e, x):
    """Input of down_proj [n, F]."""
    gate, up = (x @ rows.T for rows in gate_up(experts, e))
    if interleaves(experts):
        bias = experts.gate_up_proj_bias[e]
        gate = (gate + bias[0::2]).clamp(max=experts.limit)
        up = (up + bias[1::2]).clamp(-experts.limit, experts.limit)
        return (up + 1) * gate * torch.sigmoid(experts.alpha * gate)
    return silu(gate) * up


def weights(experts):
    with torch.no_grad():
        columns = (down_of(experts).double() ** 2).sum(1)
        rows = [sum((half.double() ** 2).sum(1) for half in gate_up(experts, e)) for e in range(len(columns))]
    return {"down_squares": columns.numpy(), "gate_up_squares": torch.stack(rows).numpy()}


def scores(layer, predicted, task=0):
    """Every method's scores of one layer and task, of the loss averaged over its predicted tokens, [E, F] or [E]."""
    n = layer["tokens"][task][:, None]
    mean, joint = layer["score"][task] / predicted ** 2, layer["joint"][task] / predicted ** 2
    return {
        "heapr": mean,
        "heapr-sum": n * mean,
        "heapr-joint": joint,
        "magnitude": np.sqrt(layer["down_squares"] + layer["gate_up_squares"]),
        "wanda": np.sqrt(layer["activation"][task] * layer["down_squares"]),
        "heapr-expert": mean.sum(1),
        "heapr-sum-expert": (n * mean).sum(1),
        "heapr-joint-expert": joint.sum(1),
        "taylor": np.abs(layer["taylor"][task].sum(0)) / predicted,
        "fisher": layer["fisher"][task].sum(0) / predicted ** 2,
    }
