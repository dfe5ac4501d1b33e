"""What linear layers read, summed by `calibrate --statistics inputs`, against hooks on transformers' modules."""
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import models
import reference
from program import folder_bytes, moetrim, moetrim_json, write_task
from test_kill import kill_when
from test_mtp import Mtp

LENGTHS = {"a": [17, 41, 9, 30], "b": [25, 7]}
FAMILIES = ["qwen3_moe", "deepseek_v3", "qwen3_next", "llama4_text"]
# Modules by the end of their names, and what the statistics call their first argument; of those that read the same, one.
MODULES = {"q_proj": "attention", "q_a_proj": "attention", "in_proj_qkvz": "attention",
           "q_b_proj": "query_latent", "kv_b_proj": "key_value_latent",
           "o_proj": "attention_output", "out_proj": "attention_output",
           "mlp.down_proj": "mlp_down", "shared_experts.down_proj": "mlp_down", "shared_expert.down_proj": "mlp_down",
           "feed_forward.down_proj": "mlp_down", "lm_head": "head", "mlp": "mlp", "feed_forward": "mlp"}


def squares(x):
    return x.reshape(-1, x.shape[-1]).double().square().sum(0).numpy()


class Sums:
    """{layer: {input: sum}} of one task. `layers`: {index: decoder layer}."""

    def __init__(self, layers):
        self.layers, self.handles = {index: {} for index in layers}, []
        for index, layer in layers.items():
            for name, module in layer.named_modules():
                found = next((MODULES[end] for end in MODULES if ("." + name).endswith("." + end)), None)
                if found and "experts." not in name.replace("shared_experts.", ""):
                    self.watch(module, index, found)
            if reference.moe_of(layer):
                _, router, experts = reference.moe_of(layer)
                hook = lambda m, args, out, i=index, e=experts: self.routing(m, args, out, i, e)
                self.handles.append(router.register_forward_hook(hook))
            if hasattr(layer, "self_attn") and hasattr(layer.self_attn, "kv_b_proj"):
                self.watch_latent(layer.self_attn, index)

    def add(self, index, name, value):
        self.layers[index][name] = self.layers[index].get(name, 0) + value

    def watch(self, module, index, name):
        self.handles.append(module.register_forward_pre_hook(lambda m, args, kwargs: self.add(
            index, name, squares(args[0] if args else kwargs["hidden_states"])), with_kwargs=True))

    def watch_latent(self, attention, index):
        """Queries without rotation, and latents as heads attend to them."""
        def seen(module, args, out):
            heads = out[0].reshape(out.shape[1], attention.num_heads, -1)[..., :attention.qk_nope_head_dim]
            self.add(index, "query_heads", squares(heads.reshape(out.shape[1], -1)))
        latent = {}
        self.handles.append((getattr(attention, "q_b_proj", None) or attention.q_proj).register_forward_hook(seen))
        self.handles.append(attention.kv_a_layernorm.register_forward_hook(lambda m, a, out: latent.update(x=out[0].double())))

        def attended(module, args, out):
            of_heads = out[1][0].double() @ latent["x"]
            self.add(index, "attended_latent", squares(of_heads.transpose(0, 1).reshape(len(latent["x"]), -1)))
        self.handles.append(attention.register_forward_hook(attended))

    def routing(self, router, args, out, index, experts):
        x = args[0].reshape(-1, args[0].shape[-1])
        if reference.scales_input(router):
            scores, logits = out
            ids = logits.topk(router.top_k, dim=1).indices
            scale = scores.gather(1, ids)
        else:
            ids, scale = out[2], torch.ones(out[2].shape)
        count = len(experts.gate_up_proj)
        self.add(index, "routed", np.bincount(ids.flatten().numpy(), minlength=count))
        before, between = [], []
        for e in range(count):
            token, slot = torch.where(ids == e)
            rows = x[token] * scale[token, slot, None]
            gate_up = experts.gate_up_proj[e].T if type(experts).__name__ == "Llama4TextExperts" else experts.gate_up_proj[e]
            gate, up = (rows @ gate_up.T).chunk(2, dim=1)
            before.append(squares(rows))
            between.append(squares(torch.nn.functional.silu(gate) * up))
        self.add(index, "expert", np.stack(before))
        self.add(index, "expert_down", np.stack(between))

    def run(self, model, sequences):
        with torch.no_grad():
            for ids in sequences:
                model(torch.tensor([ids]))
        for handle in self.handles:
            handle.remove()
        return self.layers


def write_tasks(folder):
    tasks = {name: models.sequences(seed, lengths) for seed, (name, lengths) in enumerate(LENGTHS.items())}
    for name, sequences in tasks.items():
        rows = [json.dumps({"input_ids": ids, "prompt_tokens": 4}) + "\n" for ids in sequences]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    return tasks


def arguments(folder, *more):
    tasks = [part for name in LENGTHS for part in ("--task", folder / f"{name}.jsonl")]
    return ["calibrate", folder / "m", *tasks, "--statistics", "inputs", *more]


def of_model(model, sequences):
    layers = dict(enumerate(models.layers_of(model)))
    sums = Sums(layers)
    sums.watch(model.lm_head, len(layers) - 1, "head")
    return sums.run(model, sequences)


def check_layer(ours, theirs, where):
    """Attended latents are taken in fp32."""
    assert set(ours) == set(theirs), where
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, rtol=1e-4 if name == "attended_latent" else 2e-6,
                                   atol=1e-7 * np.abs(expected).max(), err_msg=f"{name} of {where}")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_input_equals_hooks(family, tmp_path):
    """Over all tokens, also those that are not counted."""
    model = models.make(tmp_path / "m", family, seed=2).double()
    tasks = write_tasks(tmp_path)
    moetrim(*arguments(tmp_path, "--dtype", "fp64", "--count", "response", "-o", tmp_path / "s.stats"))
    theirs = [of_model(model, sequences) for sequences in tasks.values()]
    for index, layer in theirs[0].items():
        ours = load_file(tmp_path / f"s.stats/inputs-{index:05}.safetensors")
        np.testing.assert_array_equal(ours.pop("tokens"), [sum(lengths) for lengths in LENGTHS.values()])
        check_layer(ours, {name: np.stack([task[index][name] for task in theirs]) for name in layer}, f"layer {index}")


def test_a_multi_token_prediction_block_equals_hooks(tmp_path):
    """Over the tokens that have one to look at."""
    mtp = Mtp(tmp_path, "glm4_moe")
    sequences = models.sequences(1, [25, 40, 7, 2])
    write_task(tmp_path / "t.jsonl", sequences)
    moetrim("calibrate", tmp_path / "m", "--task", tmp_path / "t.jsonl", "--statistics", "inputs", "--dtype", "fp64",
            "-o", tmp_path / "s.stats")
    mtp.model.double(), mtp.block.double()
    sums = Sums({mtp.index: mtp.block.mtp_block})
    sums.watch(mtp.block.eh_proj, mtp.index, "joined")
    theirs = sums.run(mtp.run, sequences)[mtp.index]
    ours = load_file(tmp_path / f"s.stats/inputs-{mtp.index:05}.safetensors")
    assert ours.pop("tokens") == [sum(len(ids) - 1 for ids in sequences)]
    check_layer(ours, {name: value[None] for name, value in theirs.items()}, "the block")


def test_groups_threads_kills_and_shares(tmp_path):
    """The same bytes however the tokens are cut; shares add up to the whole."""
    models.make(tmp_path / "m", "qwen3_moe", hidden_size=512, num_experts=6)
    rows = [json.dumps({"input_ids": ids}) + "\n" for ids in models.sequences(3, [500] * 8, 101)]
    (tmp_path / "t.jsonl").write_text("".join(rows))
    run = ["calibrate", tmp_path / "m", "--task", tmp_path / "t.jsonl", "--dtype", "fp32", "--statistics", "inputs"]
    memory = "371MiB"
    assert moetrim_json(*run, "--threads", 1, "--dry-run", "--max-memory", memory)["passes"] > 1
    moetrim(*run, "--threads", 2, "-o", tmp_path / "one.stats")
    few, partial = [*run, "--threads", 1, "--max-memory", memory, "-o", tmp_path / "few.stats"], tmp_path / "few.stats.partial"
    assert kill_when(few, lambda: (partial / "group-00001-inputs-00001.safetensors").exists()) is not None
    moetrim(*few)
    whole = folder_bytes(tmp_path / "one.stats")
    assert folder_bytes(tmp_path / "few.stats") == whole and len([name for name in whole if name.startswith("inputs-")]) == 3

    parts = [tmp_path / f"{i}.stats" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        moetrim(*run, "--slice", f"{i}/2", "-o", part)
    moetrim("merge-statistics", *reversed(parts), "-o", tmp_path / "sum.stats")
    assert (tmp_path / "sum.stats/manifest.json").read_bytes() == whole["manifest.json"]
    for file in (tmp_path / "one.stats").glob("inputs-*"):
        one, merged = load_file(file), load_file(tmp_path / "sum.stats" / file.name)
        for name in one:
            np.testing.assert_allclose(merged[name], one[name], rtol=1e-12, err_msg=name)
    (tmp_path / "sum.stats/inputs-00001.safetensors").unlink()
    assert "inputs-00001" in moetrim("merge-statistics", tmp_path / "sum.stats", "-o", tmp_path / "x", code=3).stderr
