"""Multi-token-prediction blocks: measured like transformers' own MTP layer runs, then pruned, kept or dropped."""
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import MtpLayer

import models
import reference
from program import moetrim, moetrim_json, write_task

IDS = models.sequences(9, [25, 40, 7, 2])
FAMILIES = ["deepseek_v3", "glm4_moe", "qwen3_next"]


class Mtp:
    """A checkpoint with one block more, and the block as transformers builds it."""

    def __init__(self, folder, family, **changes):
        self.family, self.folder = family, folder
        self.model = models.make(folder / "m", family, **changes)
        decoder = self.model.model.layers[-1]
        norm = type(self.model.model.norm)
        config = self.model.config
        self.index = config.num_hidden_layers
        torch.manual_seed(4)
        # The index of a layer that attends, which the last one does in every family here.
        self.block = MtpLayer(config, type(decoder), norm, config.num_hidden_layers - 1).eval()
        with torch.no_grad():
            for name, parameter in [*self.block.named_parameters(), *self.block.named_buffers()]:
                bias = "norm" in name or "bias" in name
                parameter.copy_((0.0 if bias and family == "qwen3_next" else float(bias)) + (0.1 if bias else 0.2) * torch.randn_like(parameter))
        self.block.mtp_block.load_state_dict({k: v + 0.1 * torch.randn_like(v) for k, v in decoder.state_dict().items()})
        self.save()

    def save(self):
        tensors = load_file(self.folder / "m/model.safetensors")
        separate = self.family == "qwen3_next"
        names = ({"enorm": "mtp.pre_fc_norm_embedding", "hnorm": "mtp.pre_fc_norm_hidden", "eh_proj": "mtp.fc", "post_norm": "mtp.norm"}
                 if separate else {"post_norm": f"model.layers.{self.index}.shared_head.norm"})
        base = "mtp.layers.0" if separate else f"model.layers.{self.index}"
        for name, tensor in self.block.state_dict().items():
            module = name.split(".")[0]
            if module != "mtp_block":
                tensors[f"{names.get(module, f'{base}.{module}')}.weight"] = tensor
            elif ".experts." in name:
                tensors.update(one_by_one(f"{base}.mlp.experts", name.split(".")[-1], tensor))
            else:
                tensors[name.replace("mtp_block", base)] = tensor
        if not separate:  # published blocks carry copies of both
            tensors[f"{base}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
            tensors[f"{base}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
        save_file({k: v.contiguous() for k, v in tensors.items()}, self.folder / "m/model.safetensors", {"format": "pt"})
        config = json.loads((self.folder / "m/config.json").read_text())
        config["mtp_num_hidden_layers" if separate else "num_nextn_predict_layers"] = 1
        config.pop("num_mtp_layers", None)
        (self.folder / "m/config.json").write_text(json.dumps(config, indent=2))

    def collect(self):
        seen = dict(logits=[], ids=[], gates=[], outputs=[], residual=[])
        _, router, experts = reference.moe_of(self.block.mtp_block)
        record = reference.Recorder(seen, experts)
        handles = [self.block.mtp_block.post_attention_layernorm.register_forward_pre_hook(record.residual),
                   router.register_forward_hook(record.routing)]
        with torch.no_grad():
            for sequence in IDS:
                self.run(torch.tensor([sequence]))
        for handle in handles:
            handle.remove()
        return {k: np.concatenate(v) for k, v in seen.items()} | {"sigmoid": reference.is_sigmoid(router), "residual scale": 1.0}

    def run(self, ids):
        """Position t sees the embedding of token t + 1 and the model's last hidden state at t."""
        base = self.model.model
        hidden = base(ids).last_hidden_state[:, :-1]
        embedded = base.embed_tokens(ids[:, 1:])
        length = embedded.shape[1]
        positions = torch.arange(1, length + 1).unsqueeze(0)
        mask = torch.full((1, 1, length, length), torch.finfo(torch.float32).min).triu(1)
        return self.block(embedded, hidden, position_embeddings=base.rotary_emb(embedded, position_ids=positions),
                          attention_mask=mask, position_ids=positions, past_key_values=None)


def one_by_one(base, part, tensor):
    """The tensors of single experts behind a fused parameter of transformers 5."""
    if part == "down_proj":
        return {f"{base}.{e}.down_proj.weight": w for e, w in enumerate(tensor)}
    return {f"{base}.{e}.{name}.weight": half for e, w in enumerate(tensor) for name, half in zip(("gate_proj", "up_proj"), w.chunk(2))}


@pytest.fixture(params=FAMILIES)
def mtp(request, tmp_path):
    made = Mtp(tmp_path, request.param)
    write_task(tmp_path / "t.jsonl", IDS)
    return made


def calibrate(folder, *options):
    moetrim("calibrate", folder / "m", "--task", folder / "t.jsonl", "--dtype", "fp32", *options, "-o", folder / "s.stats")


def plan(folder, keep):
    moetrim("plan", folder / "s.stats", "--method", "reap", "--keep", keep, "-o", folder / "plan.json")
    return json.loads((folder / "plan.json").read_text())


def test_scores_of_the_block_equal_hooks(mtp):
    calibrate(mtp.folder)
    layer = mtp.collect()
    experts = layer["logits"].shape[1]
    for method in ("frequency", "reap", "easy-ep"):
        ours = moetrim_json("score", mtp.folder / "s.stats", "--method", method)["layers"][-1]
        assert ours["layer"] == mtp.index
        np.testing.assert_allclose(ours["scores"], reference.scores(layer, experts, -1)[method], rtol=1e-3, atol=1e-5)
    assert load_file(mtp.folder / f"s.stats/layer-{mtp.index:05}.safetensors")["token_count"].sum() == sum(len(s) - 1 for s in IDS)


def names_of_block(mtp, tensors):
    prefix = "mtp." if mtp.family == "qwen3_next" else f"model.layers.{mtp.index}."
    return {name for name in tensors if name.startswith(prefix)}


def config_of(folder):
    config = json.loads((folder / "config.json").read_text())
    return config.get("num_nextn_predict_layers", config.get("mtp_num_hidden_layers"))


def rewritten(mtp, choice, code=0):
    moetrim("rewrite", mtp.folder / "m", "--plan", mtp.folder / "plan.json", "--mtp", choice, "-o", mtp.folder / choice, code=code)
    if code == 0:
        assert moetrim_json("verify", mtp.folder / choice)["errors"] == 0
        _, info = AutoModelForCausalLM.from_pretrained(mtp.folder / choice, output_loading_info=True)
        assert not info["missing_keys"] and not info["mismatched_keys"]
        return load_file(mtp.folder / choice / "model.safetensors"), info
    return None


def test_prune_keep_and_drop(mtp):
    calibrate(mtp.folder)
    before = load_file(mtp.folder / "m/model.safetensors")
    count = models.two_thirds(mtp.model.config)
    keep = next(entry["keep"] for entry in plan(mtp.folder, count)["layers"] if entry["layer"] == mtp.index)

    pruned, _ = rewritten(mtp, "prune")
    block = names_of_block(mtp, pruned)
    for name in block:
        parts = name.split(".")
        if "experts" in parts:
            at = parts.index("experts") + 1
            parts[at] = str(keep[int(parts[at])])
            assert torch.equal(pruned[name], before[".".join(parts)])
        elif ".gate." in name:
            assert torch.equal(pruned[name], before[name][keep])
        else:
            assert torch.equal(pruned[name], before[name])
    assert sum(name.endswith("experts.0.down_proj.weight") for name in block) == 1 and config_of(mtp.folder / "prune") == 1
    assert sum("experts." in name and name.endswith("down_proj.weight") for name in block) == count + ("shared_experts" in str(block))

    whole, _ = rewritten(mtp, "keep")
    assert names_of_block(mtp, whole) == names_of_block(mtp, before)
    assert all(torch.equal(whole[name], before[name]) for name in names_of_block(mtp, before))

    dropped, info = rewritten(mtp, "drop")
    assert not names_of_block(mtp, dropped) and config_of(mtp.folder / "drop") == 0 and not info["unexpected_keys"]


def test_a_plan_without_the_block_needs_a_choice(mtp):
    calibrate(mtp.folder, "--mtp", "drop")
    plan(mtp.folder, models.two_thirds(mtp.model.config))
    rewritten(mtp, "prune", code=3)
    rewritten(mtp, "drop")
