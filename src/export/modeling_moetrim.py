"""Experts of different widths or numbers, and merged ones, for transformers 5 (trust_remote_code=True).

moetrim writes this file beside them. `moetrim_slim` in config.json may list, by layer, the number of `experts` and the width of
every expert. Layers with a number of their own have as many experts, and rows of the router; the keys of config.json that
`count_keys` names have the largest. Layers with `widths` have parameters for each expert, as wide as listed:
`experts.slim_gate.N`, `slim_up.N` and `slim_down.N`, and `slim_gate_bias.N`, `slim_up_bias.N` and `slim_down_bias.N` where the
architecture has biases. Where `map` lists an expert for every row of the router, rows share merged experts. Where `low_rank`
lists numbers of rows for an expert, each of its matrices [outputs, inputs] is `slim_gate_left.N` times `slim_gate_right.N`, but
for the outputs `slim_gate_row_ids.N`, whose rows are `slim_gate_rows.N`. All else is the class that transformers has for the
architecture.
"""
import copy
import inspect
import re

import torch
import transformers
from torch import nn
from transformers import STOCK_MODEL as StockModel


class RowIds(nn.Module):
    """The numbers of the rows that stay whole, by expert: they are not trained."""

    def __init__(self, counts: dict[str, int]):
        super().__init__()
        for expert, count in counts.items():
            self.register_buffer(expert, torch.zeros(count, dtype=torch.int32))

    def __getitem__(self, expert: str):
        return getattr(self, expert)


class SlimExperts(nn.Module):
    """The routed experts of one block, called like the module of transformers that it takes the place of.

    H is the hidden size and F the width of the expert. Matrices are [F, H], [F, H] and [H, F], or the other way round where
    `input_first` is set; biases are [F], [F] and [H]. `rows` has, of every expert, how many rows of gate, up and down stay whole
    beside factors of that rank, or None where its matrices are whole.
    """

    def __init__(self, stock: nn.Module, widths: list[int], hidden: int, input_first: bool, expert_of_row: list[int],
                 rank: int, rows: list[list[int] | None]):
        super().__init__()
        self.widths = widths
        self.expert_of_row = expert_of_row
        self.input_first = input_first
        self.has_bias = hasattr(stock, "gate_up_proj_bias")
        self.act_fn = getattr(stock, "act_fn", None)
        self.alpha = getattr(stock, "alpha", None)
        self.limit = getattr(stock, "limit", None)

        def parameters(shapes):
            return nn.ParameterDict({str(expert): nn.Parameter(torch.empty(*shape)) for expert, shape in shapes.items()})

        def add_matrices(part, kept, outputs, inputs):
            shapes = dict(enumerate(zip(outputs, inputs)))
            whole = {e: shape for e, shape in shapes.items() if kept[e] is None}
            setattr(self, part, parameters({e: shape[::-1] if input_first else shape for e, shape in whole.items()}))
            factored = {e: shape for e, shape in shapes.items() if kept[e] is not None}
            if factored:
                setattr(self, f"{part}_left", parameters({e: (out, rank) for e, (out, _) in factored.items()}))
                setattr(self, f"{part}_right", parameters({e: (rank, into) for e, (_, into) in factored.items()}))
                setattr(self, f"{part}_rows", parameters({e: (kept[e], into) for e, (_, into) in factored.items()}))
                setattr(self, f"{part}_row_ids", RowIds({str(e): kept[e] for e in factored}))

        def vectors(lengths):
            return nn.ParameterList(nn.Parameter(torch.empty(length)) for length in lengths)

        hiddens = [hidden] * len(widths)
        gate_rows, up_rows, down_rows = zip(*(counts or (None, None, None) for counts in rows))
        add_matrices("slim_gate", gate_rows, widths, hiddens)
        add_matrices("slim_up", up_rows, widths, hiddens)
        add_matrices("slim_down", down_rows, hiddens, widths)
        if self.has_bias:
            self.slim_gate_bias, self.slim_up_bias, self.slim_down_bias = vectors(widths), vectors(widths), vectors(hiddens)

    def forward(self, hidden_states, top_k_index=None, top_k_weights=None):
        """Sum over a token's experts of weight times output. hidden_states [T, H]; index and weights [T, K]."""
        if top_k_index is None:
            return self.share_by_share(hidden_states)
        out = torch.zeros_like(hidden_states)
        # Rows beyond the router's are how expert parallelism marks what another rank computes.
        experts = torch.tensor([*self.expert_of_row, len(self.widths)], device=top_k_index.device)
        top_k_expert = experts[top_k_index.clamp(max=len(self.expert_of_row))]
        for expert in top_k_expert.unique().tolist():
            if expert == len(self.widths):
                continue
            token, rank = torch.where(top_k_expert == expert)
            weighted = self.expert(expert, hidden_states[token]) * top_k_weights[token, rank, None]
            out.index_add_(0, token, weighted.to(out.dtype))
        return out

    def share_by_share(self, hidden_states):
        """Llama 4 calls with every expert's share, [E T, H], scaled by the router: zeros for tokens of other experts."""
        out = []
        for expert, share in zip(self.expert_of_row, hidden_states.chunk(len(self.expert_of_row))):
            used = share.any(dim=-1)
            out.append(torch.zeros_like(share))
            out[-1][used] = self.expert(expert, share[used])
        return torch.cat(out)

    def expert(self, expert: int, x):
        gate = self.project("slim_gate", expert, x)
        up = self.project("slim_up", expert, x)
        if self.has_bias:
            gate, up = gate + self.slim_gate_bias[expert], up + self.slim_up_bias[expert]
        out = self.project("slim_down", expert, self.gated(gate, up))
        return out + self.slim_down_bias[expert] if self.has_bias else out

    def project(self, part, expert, x):
        expert = str(expert)
        if expert in getattr(self, part):
            weight = getattr(self, part)[expert]
            return x @ weight if self.input_first else nn.functional.linear(x, weight)
        left, right, rows, ids = (getattr(self, f"{part}_{name}")[expert] for name in ("left", "right", "rows", "row_ids"))
        out = nn.functional.linear(nn.functional.linear(x, right), left)
        return out.index_copy(-1, ids.long(), nn.functional.linear(x, rows))

    def gated(self, gate, up):
        if self.limit is None:
            return self.act_fn(gate) * up
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + 1) * gate * torch.sigmoid(self.alpha * gate)


def with_experts(block: nn.Module, config, keys: list[str], count: int, layer: int) -> nn.Module:
    """A block like this one, router and all, with another number of experts.

    It is built from a copy of the model's config in which `keys`, which count experts, say so. What is switched while the
    model runs, such as the implementation of experts, is then read from the model's own config, as in all other layers.
    """
    own = copy.deepcopy(config)
    for key in keys:
        if hasattr(own, key):
            setattr(own, key, count)
    takes_layer = "layer_idx" in inspect.signature(type(block).__init__).parameters
    block = type(block)(own, **({"layer_idx": layer} if takes_layer else {}))
    for module in block.modules():
        if getattr(module, "config", None) is own:
            module.config = config
    return block


class SlimMoe(StockModel):
    """The architecture of transformers with slim experts, or with another number of them in every layer."""

    def __init__(self, config, *arguments, **options):
        if int(transformers.__version__.split(".")[0]) < 5:
            raise ImportError(f"this checkpoint needs transformers 5 or later, found {transformers.__version__}")
        super().__init__(config, *arguments, **options)
        slim = config.moetrim_slim
        text = config.get_text_config()
        counts, widths = slim.get("experts", {}), slim.get("widths", {})
        missing = {*counts, *widths}
        for name, _ in list(self.named_modules()):
            match = re.search(r"\blayers\.(\d+)\.\w+\.experts$", name)
            if not match or match[1] not in missing:
                continue
            layer, place = match[1], name.removesuffix(".experts")
            missing.discard(layer)
            if layer in counts:
                parent, _, block = place.rpartition(".")
                setattr(self.get_submodule(parent), block,
                        with_experts(self.get_submodule(place), text, slim["count_keys"], counts[layer], int(layer)))
            if layer in widths:
                self.slim_block(self.get_submodule(place), slim, layer, text.hidden_size)
        # Behind the layers are blocks that transformers leaves out.
        missing = [layer for layer in missing if int(layer) < text.num_hidden_layers]
        if missing:
            raise ValueError(f"config.json lists the experts of layers {sorted(missing)}, which have none")

    @staticmethod
    def slim_block(block, slim, layer, hidden):
        widths = slim["widths"][layer]
        expert_of_row = slim.get("map", {}).get(layer, list(range(len(widths))))
        factors = slim.get("low_rank", {"rank": 0, "rows": {}})
        rows = factors["rows"].get(layer, [None] * len(widths))
        block.experts = SlimExperts(block.experts, widths, hidden, slim["input_first"], expert_of_row, factors["rank"], rows)
