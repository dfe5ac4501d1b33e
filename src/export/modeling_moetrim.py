"""Experts of different widths, and merged experts, for transformers 5 (trust_remote_code=True). moetrim writes this file beside them.

`moetrim_slim` in config.json lists the width of every expert, by layer. The experts of those layers have parameters of their
own, as wide as listed: `experts.slim_gate.N`, `slim_up.N` and `slim_down.N`, and `slim_gate_bias.N`, `slim_up_bias.N` and
`slim_down_bias.N` where the architecture has biases. Where `map` lists an expert for every row of the router, rows share merged
experts. All else is the class that transformers has for the architecture.
"""
import re

import torch
import transformers
from torch import nn
from transformers import STOCK_MODEL as StockModel


class SlimExperts(nn.Module):
    """The routed experts of one block, called like the module of transformers that it takes the place of.

    H is the hidden size and F the width of the expert. Matrices are [F, H], [F, H] and [H, F], or the other way round where
    `input_first` is set; biases are [F], [F] and [H].
    """

    def __init__(self, stock: nn.Module, widths: list[int], hidden: int, input_first: bool, expert_of_row: list[int]):
        super().__init__()
        self.widths = widths
        self.expert_of_row = expert_of_row
        self.input_first = input_first
        self.has_bias = hasattr(stock, "gate_up_proj_bias")
        self.act_fn = getattr(stock, "act_fn", None)
        self.alpha = getattr(stock, "alpha", None)
        self.limit = getattr(stock, "limit", None)

        def matrices(rows, columns):
            shapes = zip(columns, rows) if input_first else zip(rows, columns)
            return nn.ParameterList(nn.Parameter(torch.empty(*shape)) for shape in shapes)

        def vectors(lengths):
            return nn.ParameterList(nn.Parameter(torch.empty(length)) for length in lengths)

        hiddens = [hidden] * len(widths)
        self.slim_gate = matrices(widths, hiddens)
        self.slim_up = matrices(widths, hiddens)
        self.slim_down = matrices(hiddens, widths)
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
        gate = self.project(self.slim_gate[expert], x)
        up = self.project(self.slim_up[expert], x)
        if self.has_bias:
            gate, up = gate + self.slim_gate_bias[expert], up + self.slim_up_bias[expert]
        out = self.project(self.slim_down[expert], self.gated(gate, up))
        return out + self.slim_down_bias[expert] if self.has_bias else out

    def project(self, weight, x):
        return x @ weight if self.input_first else nn.functional.linear(x, weight)

    def gated(self, gate, up):
        if self.limit is None:
            return self.act_fn(gate) * up
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + 1) * gate * torch.sigmoid(self.alpha * gate)


class SlimMoe(StockModel):
    """The architecture of transformers with slim experts."""

    def __init__(self, config, *arguments, **options):
        if int(transformers.__version__.split(".")[0]) < 5:
            raise ImportError(f"this checkpoint needs transformers 5 or later, found {transformers.__version__}")
        super().__init__(config, *arguments, **options)
        slim = config.moetrim_slim
        hidden = config.get_text_config().hidden_size
        missing = set(slim["widths"])
        for name, module in list(self.named_modules()):
            match = re.search(r"\blayers\.(\d+)\.\w+\.experts$", name)
            if match and match[1] in slim["widths"]:
                widths = slim["widths"][match[1]]
                block = self.get_submodule(name.removesuffix(".experts"))
                expert_of_row = slim.get("map", {}).get(match[1], list(range(len(widths))))
                block.experts = SlimExperts(module, widths, hidden, slim["input_first"], expert_of_row)
                missing.discard(match[1])
        layers = config.get_text_config().num_hidden_layers  # behind them are blocks that transformers leaves out
        missing = [layer for layer in missing if int(layer) < layers]
        if missing:
            raise ValueError(f"config.json lists widths for the experts of layers {sorted(missing)}, which have none")
