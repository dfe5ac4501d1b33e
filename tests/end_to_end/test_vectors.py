"""Statistics on request against an independent computation with transformers hooks, expert by expert in float64."""
import json

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.numpy import load_file

import models
import reference
from program import folder_bytes, moetrim, moetrim_json

LENGTHS = {"a": [17, 41, 9, 30, 23, 8, 12, 19, 27, 35, 6], "b": [25, 7, 14]}
PROMPT = 4
KINDS = "vectors,all-experts,quantisation"
# Widths above 128 have more than one group of columns, the last one short.
FAMILIES = {"qwen3_moe": dict(hidden_size=160, moe_intermediate_size=140), "gpt_oss": {}, "deepseek_v3": {}, "llama4_text": {}}
MARKERS = {"so": [[10], [11]], "so then": [[10, 12], [11, 12]]}  # as the tokenizer below spells them


def tokenizer():
    """Words behind a space have ids of their own."""
    vocabulary = {"?": 0, "so": 10, "Ġso": 11, "Ġthen": 12}
    out = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    out.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return out


def write_tasks(folder):
    """Demonstrations with a prompt, full of markers."""
    sequences = {}
    for seed, (name, lengths) in enumerate(LENGTHS.items()):
        sequences[name] = models.sequences(seed + 3, lengths, vocabulary=16)
        rows = [json.dumps({"input_ids": ids, "prompt_tokens": PROMPT}) + "\n" for ids in sequences[name]]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    return sequences


def arguments(folder, *more):
    tasks = [part for name in LENGTHS for part in ("--task", folder / f"{name}.jsonl")]
    return ["calibrate", folder / "m", *tasks, "--dtype", "fp32", "--count", "response", *more]


@pytest.fixture(scope="module", params=FAMILIES)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = models.make(folder / "m", request.param, seed=2, **FAMILIES[request.param])
    tokenizer().save(str(folder / "m/tokenizer.json"))
    sequences = write_tasks(folder)
    markers = [part for text in MARKERS for part in ("--marker", text)]
    moetrim(*arguments(folder, "--statistics", KINDS, "--activation-samples", 9, *markers, "-o", folder / "s.stats"))
    return folder, model, sequences


class Layer:
    """What an MoE block saw: its input [T, H], raw logits, and per slot id, gate and what multiplies the input."""

    def __init__(self, block, router, experts):
        self.block, self.router, self.experts = block, router, experts
        self.x, self.logits, self.ids, self.gates, self.scores = [], [], [], [], []

    def hook(self, router, args, out):
        x = args[0].reshape(-1, args[0].shape[-1])
        if reference.scales_input(router):
            scores, logits = out
            ids = logits.topk(router.top_k, dim=1).indices
            gates, scores = torch.ones(ids.shape), scores.gather(1, ids)
            x = x.reshape(-1, x.shape[-1])
        else:
            logits, gates, ids = out
            scores = torch.ones(ids.shape)
        for name, value in dict(x=x, logits=logits, ids=ids, gates=gates, scores=scores).items():
            getattr(self, name).append(value.double() if value.is_floating_point() else value)

    def tensors(self):
        return {name: torch.cat(getattr(self, name)) for name in ("x", "logits", "ids", "gates", "scores")}


def collect(model, ids):
    layers = {i: Layer(*reference.moe_of(layer)) for i, layer in enumerate(models.layers_of(model)) if reference.moe_of(layer)}
    handles = [layer.router.register_forward_hook(layer.hook) for layer in layers.values()]
    with torch.no_grad():
        for sequence in ids:
            model(torch.tensor([sequence]))
    for handle in handles:
        handle.remove()
    return layers


def matrices(experts, e):
    """gate, up [F, H] and down [H, F] of an expert, and the biases, f32."""
    gate_up, down = experts.gate_up_proj[e].detach(), experts.down_proj[e].detach()
    if hasattr(experts, "gate_up_proj_bias"):  # [in, out], gate and up take turns
        bias = experts.gate_up_proj_bias[e].detach()
        return gate_up.T[0::2], gate_up.T[1::2], down.T, bias[0::2], bias[1::2], experts.down_proj_bias[e].detach()
    if type(experts).__name__ == "Llama4TextExperts":
        gate_up, down = gate_up.T, down.T
    gate, up = gate_up.chunk(2)
    return gate, up, down, torch.zeros(len(gate)), torch.zeros(len(up)), torch.zeros(len(down))


def quantised(w, bits):
    """PMQ's quantiser, group by group."""
    out = torch.empty_like(w)
    for begin in range(0, w.shape[1], 128):
        group = w[:, begin:begin + 128]
        if bits == 1:
            out[:, begin:begin + 128] = group.sign() * group.abs().mean(1, keepdim=True)
            continue
        low, high = group.amin(1, keepdim=True).clamp(max=0), group.amax(1, keepdim=True).clamp(min=0)
        scale = (high - low) / (2**bits - 1)
        zero = (-low / scale).round()
        out[:, begin:begin + 128] = scale * (((group / scale).round() + zero).clamp(0, 2**bits - 1) - zero)
    return out


def expert(experts, parts, x):
    """Activations [n, F] and outputs [n, H] in float64."""
    gate, up, down, gate_bias, up_bias, down_bias = (p.double() for p in parts)
    g, u = x @ gate.T + gate_bias, x @ up.T + up_bias
    if hasattr(experts, "gate_up_proj_bias"):
        g, u = g.clamp(max=experts.limit), u.clamp(-experts.limit, experts.limit)
        activation = (u + 1) * g * torch.sigmoid(experts.alpha * g)
    else:
        activation = torch.nn.functional.silu(g) * u
    return activation, activation @ down.T + down_bias


def reading_weights(layer):
    """Everything that multiplies the block's input."""
    out = [getattr(layer.router, "wg", layer.router).weight] + [part for e in range(len(layer.experts.gate_up_proj)) for part in matrices(layer.experts, e)[:2]]
    for name in ("shared_experts", "shared_expert", "shared_mlp"):
        shared = getattr(layer.block, name, None)
        out += [shared.gate_proj.weight, shared.up_proj.weight] if shared is not None else []
    return out + ([layer.block.shared_expert_gate.weight] if hasattr(layer.block, "shared_expert_gate") else [])


def expected(layer, sequences):
    """Every field, and per task the activations of all experts on its counted tokens."""
    seen, experts = layer.tensors(), len(layer.experts.gate_up_proj)
    out, activations, begin = {}, [], 0
    for name in sequences:
        total, task_activations = {}, []
        for ids in sequences[name]:
            rows = slice(begin + PROMPT, begin + len(ids))
            begin += len(ids)
            one = {key: value[rows] for key, value in seen.items()}
            marked = {text: marks(ids, spellings)[PROMPT:] for text, spellings in MARKERS.items()}
            values, of_all = of_demonstration(layer, one, experts, marked)
            task_activations.append(of_all)
            for key, value in values.items():
                joined = np.maximum if key.endswith("_max") else np.add
                total[key] = joined(total[key], value) if key in total else value
        activations.append(np.concatenate(task_activations, 1))
        for key, value in total.items():
            out.setdefault(key, []).append(value)
    out = {key: np.stack(value) for key, value in out.items()}
    out["weight_max"] = np.max([w.detach().abs().amax(0).numpy() for w in reading_weights(layer)], 0)
    return out, np.concatenate(activations, 1)


def marks(ids, spellings):
    marked = np.zeros(len(ids), bool)
    for spelling in spellings:
        for at in range(len(ids) - len(spelling) + 1):
            marked[at:at + len(spelling)] |= ids[at:at + len(spelling)] == spelling
    return marked


def of_demonstration(layer, one, experts, marked):
    x, tokens = one["x"], len(one["x"])
    values = {"logit_gram": (one["logits"].T @ one["logits"]).numpy(), "router_input_max": x.abs().amax(0).numpy() if tokens else 0,
              "all_tokens": np.float64(tokens), "marker_tokens": np.array([m.sum() for m in marked.values()])}
    rows, of_all = [], []
    for e in range(experts):
        parts = matrices(layer.experts, e)
        token, slot = torch.where(one["ids"] == e)
        inputs, gate = x[token] * one["scores"][token, slot, None], one["gates"][token, slot]
        activation, output = expert(layer.experts, parts, inputs)
        errors = []
        for bits in range(1, 5):
            weights = [quantised(w, bits) for w in parts[:3]]
            change = output - expert(layer.experts, (*weights, *parts[3:]), inputs)[1]
            errors.append(((gate[:, None] * change)**2).sum().sqrt().item())
        every, mean_output = expert(layer.experts, parts, x)
        of_all.append(every.numpy())
        rows.append({"routed_activation": activation.sum(0), "routed_output": output.sum(0), "output_square": (output**2).sum(),
                     "input_max": inputs.abs().amax(0) if len(token) else torch.zeros(x.shape[1]), "activation": every.sum(0),
                     "output": mean_output.sum(0), "quantisation_error": torch.tensor(errors),
                     "marker_count": torch.tensor([m[token.numpy()].sum() for m in marked.values()])})
    for key in rows[0]:
        values[key] = np.stack([row[key].numpy() for row in rows])
    values["marker_count"] = values["marker_count"].T
    return values, np.stack(of_all)


def test_every_field_equals_hooks(run):
    folder, model, sequences = run
    layers = collect(model, [ids for task in sequences.values() for ids in task])
    assert layers
    for index, layer in layers.items():
        ours = load_file(folder / f"s.stats/vectors-{index:05}.safetensors")
        theirs, activations = expected(layer, sequences)
        assert set(ours) == set(theirs) | {"sample_key", "sample_activations"}
        for name, value in theirs.items():
            assert ours[name].shape == value.shape, name
            np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=2e-5 * np.abs(value).max(), err_msg=name)
        # Nine tokens, each the same one for every expert.
        assert len(ours["sample_key"]) == 9 and (np.diff(ours["sample_key"]) > 0).all()
        tokens = [np.abs(activations[0] - row).max(1).argmin() for row in ours["sample_activations"][0]]
        assert len(set(tokens)) == 9
        np.testing.assert_allclose(ours["sample_activations"], activations[:, tokens], rtol=1e-3, atol=1e-4)
    facts = json.loads((folder / "s.stats/manifest.json").read_text())["vectors"]
    assert {m["text"]: m["spellings"] for m in facts["markers"]} == MARKERS


@pytest.mark.parametrize("run", ["gpt_oss"], indirect=True)
def test_few_tokens_of_a_demonstration(run, tmp_path):
    """The other sums stay what they are."""
    folder, _, sequences = run
    moetrim(*arguments(folder, "--statistics", "all-experts", "--all-experts-tokens", 3, "--activation-samples", 0, "-o", tmp_path / "s.stats"))
    for file in (tmp_path / "s.stats").glob("vectors-*"):
        few, all_of_them = load_file(file), load_file(folder / "s.stats" / file.name)
        np.testing.assert_array_equal(few["all_tokens"], [sum(min(3, len(ids) - PROMPT) for ids in task) for task in sequences.values()])
        assert (few["routed_output"] == all_of_them["routed_output"]).all() and "sample_key" not in few
    layers, plain = tmp_path / "s.stats", folder / "plain.stats"
    moetrim(*arguments(folder, "-o", plain))
    for file in plain.glob("layer-*"):
        assert file.read_bytes() == (layers / file.name).read_bytes()


@pytest.mark.parametrize("run", ["qwen3_moe"], indirect=True)
def test_shares_add_up(run, tmp_path):
    folder = run[0]
    more = ["--statistics", KINDS, "--activation-samples", 9, "--marker", "so", "--marker", "so then"]
    parts = [tmp_path / f"{i}.stats" for i in (1, 2, 3)]
    for i, part in enumerate(parts, 1):
        moetrim(*arguments(folder, *more, "--slice", f"{i}/3", "-o", part))
    moetrim("merge-statistics", *reversed(parts), "-o", tmp_path / "sum.stats")
    assert (tmp_path / "sum.stats/manifest.json").read_bytes() == (folder / "s.stats/manifest.json").read_bytes()
    for file in (folder / "s.stats").glob("vectors-*"):
        whole, merged = load_file(file), load_file(tmp_path / "sum.stats" / file.name)
        for name in whole:
            np.testing.assert_allclose(merged[name], whole[name], rtol=1e-9, atol=1e-9 * np.abs(whole[name]).max(), err_msg=name)
        np.testing.assert_array_equal(merged["sample_key"], whole["sample_key"])
        np.testing.assert_array_equal(merged["sample_activations"], whole["sample_activations"])
    moetrim(*arguments(folder, "--slice", "1/3", "--statistics", KINDS, "--activation-samples", 8, "-o", tmp_path / "other.stats"))
    assert "vectors is" in moetrim("merge-statistics", tmp_path / "other.stats", *parts[1:], "-o", tmp_path / "x", code=3).stderr


def test_groups_threads_and_kills_give_the_same_bytes(tmp_path):
    from test_kill import kill_when
    models.make(tmp_path / "m", "qwen3_moe", hidden_size=512, num_hidden_layers=3, mlp_only_layers=[], num_experts=6)
    rows = [json.dumps({"input_ids": ids}) + "\n" for ids in models.sequences(3, [1000] * 8, 101)]
    (tmp_path / "t.jsonl").write_text("".join(rows))
    run = ["calibrate", tmp_path / "m", "--task", tmp_path / "t.jsonl", "--dtype", "fp32", "--statistics", KINDS]
    memory = "382MiB"
    assert moetrim_json(*run, "--threads", 1, "--dry-run", "--max-memory", memory)["passes"] > 1
    moetrim(*run, "--threads", 2, "-o", tmp_path / "one.stats")
    few, partial = [*run, "--threads", 1, "--max-memory", memory, "-o", tmp_path / "few.stats"], tmp_path / "few.stats.partial"
    assert kill_when(few, lambda: (partial / "group-00001-vectors-00001.safetensors").exists()) is not None
    moetrim(*few)
    assert folder_bytes(tmp_path / "few.stats") == folder_bytes(tmp_path / "one.stats")


@pytest.mark.parametrize("more, code, message", [
    (["--statistics", "vector"], 2, 'did you mean "vectors"?'),
    (["--statistics", "none,vectors"], 2, "stands alone"),
    (["--statistics", "vectors", "--activation-samples", 4], 2, "are for --statistics all-experts"),
    (["--marker", "so"], 2, "--marker is for --statistics vectors"),
    (["--statistics", "vectors", "--marker", "so"], 3, "tokenizer.json"),
])
def test_wrong_requests(tmp_path, more, code, message):
    models.make(tmp_path / "m", "qwen3_moe")
    (tmp_path / "t.jsonl").write_text('{"input_ids": [3, 4, 5]}\n')
    failed = moetrim("calibrate", tmp_path / "m", "--task", tmp_path / "t.jsonl", *more, "-o", tmp_path / "s.stats", code=code)
    assert message in failed.stderr
