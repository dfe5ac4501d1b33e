"""Pangu Pro MoE, which transformers lacks: the published rule in plain PyTorch, with the parts the hooks look for.

Experts lie in as many consecutive groups as a token takes experts. Softmax over all experts; of every group the most
probable expert runs, and its output is multiplied by its probability times its entry of `router_scale`.
"""
import json
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import linear, silu


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention; the query, key, value and output projections all have biases."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head = config.hidden_size // self.heads
        self.theta = config.rope_theta
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head)
        self.o_proj = nn.Linear(self.heads * self.head, config.hidden_size)

    def rotate(self, x):
        angles = torch.outer(torch.arange(x.shape[1]), self.theta ** (-torch.arange(0, self.head, 2) / self.head))
        first, second = x.chunk(2, dim=-1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def forward(self, x):
        def split(projected, heads):
            return projected.view(len(x), heads, self.head).transpose(0, 1)

        q, k = self.rotate(split(self.q_proj(x), self.heads)), self.rotate(split(self.k_proj(x), self.kv_heads))
        v = split(self.v_proj(x), self.kv_heads)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=0) for t in (k, v))
        scores = q @ k.transpose(1, 2) * self.head ** -0.5
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1, dtype=torch.float32).to(x.dtype)
        return self.o_proj((weights @ v).transpose(0, 1).reshape(len(x), -1))


class Router(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_experts, self.groups = config.num_experts, config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.scale = nn.Parameter(torch.ones(1, config.num_experts))

    def forward(self, x):
        logits = linear_of(x, self.weight)
        groups = logits.softmax(-1, dtype=torch.float32).view(len(x), self.groups, -1)
        probability, place = groups.max(-1)
        ids = place + torch.arange(self.groups) * groups.shape[-1]
        return logits, (probability * self.scale[0][ids]).to(x.dtype), ids


def linear_of(x, weight):
    return torch.nn.functional.linear(x, weight)  # looked up at each call: the mask replaces it


class Experts(nn.Module):
    def __init__(self, config):
        super().__init__()
        experts, hidden, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))

    def forward(self, x, ids, gates):
        out = torch.zeros_like(x)
        for token in range(len(x)):
            for e, gate in zip(ids[token], gates[token]):
                out[token] += gate * swiglu(x[token], *self.gate_up_proj[e].chunk(2), self.down_proj[e])
        return out


def swiglu(x, gate, up, down):
    return linear(silu(linear(x, gate)) * linear(x, up), down)


class SharedExpert(nn.Module):
    def __init__(self, hidden, inner):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        return swiglu(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_expert = SharedExpert(config.hidden_size, config.shared_expert_intermediate_size)

    def forward(self, x):
        _, gates, ids = self.gate(x)
        return self.experts(x, ids, gates) + self.shared_expert(x)


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Block(config)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x)[0])[None]
        return x + self.mlp(self.post_attention_layernorm(x)[0])[None]


class Stack(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)


class Config(SimpleNamespace):
    def get_text_config(self):
        return self


class PanguProMoE(nn.Module):
    _keep_in_fp32_modules_strict = ()

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = Stack(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("gate.scale"):
                    parameter.add_(torch.rand_like(parameter) - 0.5)  # positive: a gate weighs, it does not turn
                elif "norm" not in name:
                    parameter.normal_(0, 0 if name.endswith("bias") else config.initializer_range)

    def forward(self, ids):
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x)
        return SimpleNamespace(logits=self.lm_head(self.model.norm(x)))

    def published(self):
        """Published tensor names and the model's tensors, as views."""
        tensors = {}
        for name, tensor in self.state_dict().items():
            if name.endswith("gate_up_proj"):
                for e, both in enumerate(tensor):
                    for part, half in zip(("gate_proj", "up_proj"), both.chunk(2)):
                        tensors[name.replace("gate_up_proj", f"{e}.{part}.weight")] = half
            elif name.endswith("experts.down_proj"):
                for e, down in enumerate(tensor):
                    tensors[name.replace("down_proj", f"{e}.down_proj.weight")] = down
            else:
                tensors[name.replace("gate.scale", "router_scale")] = tensor
        return tensors

    def save_pretrained(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        config = dict(architectures=["PanguProMoEForCausalLM"], model_type="PanguProMoE", **vars(self.config))
        config["torch_dtype"] = str(self.lm_head.weight.dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        save_file({name: tensor.clone() for name, tensor in self.published().items()}, folder / "model.safetensors",
                  metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, folder, **_):
        model = cls(Config(**json.loads((folder / "config.json").read_text())))
        tensors, own = load_file(folder / "model.safetensors"), model.published()
        info = {"missing_keys": own.keys() - tensors.keys(), "unexpected_keys": tensors.keys() - own.keys(),
                "mismatched_keys": {n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape}}
        for name in own.keys() & tensors.keys() - info["mismatched_keys"]:
            own[name].copy_(tensors[name])
        return model, info
