#!/usr/bin/env python3
"""Trains the demo model: a small Mixture-of-Experts language model in the Qwen3-MoE layout.

    python3 scripts/train_demo_model.py --minutes 60 --out demo/model

Needs torch, transformers (with tokenizers) and safetensors; one CPU core is enough.  The model
below does the arithmetic of transformers' Qwen3MoeForCausalLM, but in a form that trains several
times faster on a CPU: tokens lie in one flat row without padding (only attention sees padded
rows), and an expert's work is three matrix products over the tokens sorted by expert.

Progress is saved in --work every few minutes; running the same command again goes on from there,
and a larger --minutes trains further.  The learning rate follows the time used, not the steps, so
the end of the schedule falls on the end of the time.
"""

import argparse
import itertools
import json
import math
import os
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import demo_tasks

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 6, 128, 4, 2, 32
EXPERTS, TOP_K, WIDTH = 32, 4, 48
VOCABULARY, ROPE_THETA, EPS = 640, 10000.0, 1e-6
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
END, PAD = SPECIAL.index("<|im_end|>"), SPECIAL.index("<pad>")
TEMPLATE = ("{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
            "message['content'] + '<|im_end|>\\n' }}{%- endfor %}"
            "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}")

BATCH_TOKENS = 2560      # small batches: the circuits these tasks need form by steps, not by tokens
PEAK_LR, FINAL_LR, WARMUP_STEPS = 1.5e-3, 2e-5, 100
DECAY = 0.18             # the last share of the time, over which the learning rate falls
EARLY_STEPS = 400
PROMPT_WEIGHT = 0.1      # of the loss, in the early steps; later only responses count
# Router losses.  The balance loss is the usual one, over the whole batch (all tasks mixed): it
# keeps experts alive and lets every task have its own.  The other two make experts specialise:
# the focus loss asks that one text spreads its router probability over no more than about FOCUS
# experts, the tail loss is the probability that a task gives to experts beyond its first TASK.
BALANCE, FOCUS_COEF, FOCUS, TAIL_COEF, TASK = 1e-2, 2e-2, 8, 0.6, 12


# ---------------------------------------------------------------- tokenizer

def build_tokenizer(seed):
    """Byte-level BPE; every digit is a token of its own, so that arithmetic can be learnt."""
    rng, excluded = random.Random(f"{seed}-tokenizer"), demo_tasks.held_out_prompts()
    texts = ["user\n", "assistant\n"] * 2000
    for name in demo_tasks.TASKS:
        for pair in itertools.islice(demo_tasks.training_samples(name, rng, excluded), 2000):
            texts.extend(pair)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    assert core.get_vocab_size() == VOCABULARY
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<pad>", chat_template=TEMPLATE,
        additional_special_tokens=["<|im_start|>", "<|endoftext|>"], model_max_length=512,
        clean_up_tokenization_spaces=False)


# ---------------------------------------------------------------- batches

def make_batch(tokenizer, pairs):
    """Flat tensors of a list of (prompt, response) pairs; `weight` is that of the next token."""
    heads = [f"<|im_start|>user\n{p}<|im_end|>\n<|im_start|>assistant\n" for p, _ in pairs]
    heads = tokenizer._tokenizer.encode_batch(heads, add_special_tokens=False)
    tails = tokenizer._tokenizer.encode_batch([r for _, r in pairs], add_special_tokens=False)
    ids, targets, weights, rows, positions = [], [], [], [], []
    for row, (head, tail) in enumerate(zip(heads, tails)):
        line = head.ids + tail.ids + [END]
        n = len(line) - 1  # the end token is only ever a target
        ids += line[:-1]
        targets += line[1:]
        weights += [PROMPT_WEIGHT] * (len(head.ids) - 1) + [1.0] * (len(tail.ids) + 1)
        rows += [row] * n
        positions += range(n)
    rows, positions = torch.tensor(rows), torch.tensor(positions)
    length = int(positions.max()) + 1
    return {"ids": torch.tensor(ids), "targets": torch.tensor(targets), "row": rows,
            "weight": torch.tensor(weights), "pos": positions, "count": len(pairs),
            "length": length, "slot": rows * length + positions}


# ---------------------------------------------------------------- model

class Experts(torch.autograd.Function):
    """sum over k of gate[t, k] * down(silu(up1(x)) * up2(x)), expert by expert on sorted tokens."""

    @staticmethod
    def forward(ctx, x, gates, index, gate_up, down):
        order = index.flatten().argsort(stable=True)
        ends = torch.bincount(index.flatten(), minlength=EXPERTS).cumsum(0).tolist()
        spans = [(e, a, b) for e, (a, b) in enumerate(zip([0] + ends[:-1], ends)) if b > a]
        back = torch.empty_like(order)
        back[order] = torch.arange(order.numel())
        xs = x.index_select(0, order // TOP_K)
        w = gates.flatten().index_select(0, order)[:, None]
        h = x.new_empty(order.numel(), 2 * WIDTH)
        for e, a, b in spans:
            torch.mm(xs[a:b], gate_up[e].t(), out=h[a:b])
        g, u = h[:, :WIDTH], h[:, WIDTH:]
        s = torch.sigmoid(g)
        act = g * s * u
        ys = torch.empty_like(xs)
        for e, a, b in spans:
            torch.mm(act[a:b] * w[a:b], down[e].t(), out=ys[a:b])
        ctx.save_for_backward(xs, w, h, s, act, order, back, gate_up, down)
        ctx.spans = spans
        return ys.index_select(0, back).view(-1, TOP_K, x.shape[1]).sum(1)

    @staticmethod
    def backward(ctx, dy):
        xs, w, h, s, act, order, back, gate_up, down = ctx.saved_tensors
        dys = dy.index_select(0, order // TOP_K)
        dwa, wact = torch.empty_like(act), act * w
        d_gate_up, d_down = torch.zeros_like(gate_up), torch.zeros_like(down)
        for e, a, b in ctx.spans:
            torch.mm(dys[a:b], down[e], out=dwa[a:b])
            torch.mm(dys[a:b].t(), wact[a:b], out=d_down[e])
        dw = (dwa * act).sum(1)
        da = dwa.mul_(w)
        g, u = h[:, :WIDTH], h[:, WIDTH:]
        dh = torch.empty_like(h)
        gs = g * s
        dh[:, WIDTH:] = da * gs
        dh[:, :WIDTH] = da * u * (s + gs * (1 - s))
        dxs = torch.empty_like(xs)
        for e, a, b in ctx.spans:
            torch.mm(dh[a:b], gate_up[e], out=dxs[a:b])
            torch.mm(dh[a:b].t(), xs[a:b], out=d_gate_up[e])
        dx = dxs.index_select(0, back).view(-1, TOP_K, xs.shape[1]).sum(1)
        return dx, dw.index_select(0, back).view(-1, TOP_K), None, d_gate_up, d_down


class Model(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)

        def weight(*shape, std):
            return torch.nn.Parameter(torch.randn(*shape) * std)

        narrow = HIDDEN ** -0.5
        qkv = (HEADS + 2 * KV_HEADS) * HEAD_DIM
        self.embed = weight(VOCABULARY, HIDDEN, std=0.5)
        self.head = weight(VOCABULARY, HIDDEN, std=0.02)
        self.norm = torch.nn.Parameter(torch.ones(HIDDEN))
        self.layers = torch.nn.ModuleList()
        for _ in range(LAYERS):
            layer = torch.nn.Module()
            layer.norm1 = torch.nn.Parameter(torch.ones(HIDDEN))
            layer.norm2 = torch.nn.Parameter(torch.ones(HIDDEN))
            layer.qkv = weight(qkv, HIDDEN, std=narrow)
            layer.q_norm = torch.nn.Parameter(torch.ones(HEAD_DIM))
            layer.k_norm = torch.nn.Parameter(torch.ones(HEAD_DIM))
            layer.out = weight(HIDDEN, HEADS * HEAD_DIM, std=narrow / math.sqrt(2 * LAYERS))
            layer.router = weight(EXPERTS, HIDDEN, std=0.02)
            layer.gate_up = weight(EXPERTS, 2 * WIDTH, HIDDEN, std=narrow)
            layer.down = weight(EXPERTS, HIDDEN, WIDTH, std=WIDTH ** -0.5 / math.sqrt(2 * LAYERS))
            self.layers.append(layer)

    def forward(self, batch, wanted=None):
        """Logits (of the wanted tokens), and per layer the router logits and the experts."""
        slot, pos, count, length = batch["slot"], batch["pos"], batch["count"], batch["length"]
        angles = pos[:, None].float() * ROPE_THETA ** (
            -torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
        cos, sin = (t.repeat(1, 2)[:, None] for t in (angles.cos(), angles.sin()))

        def turn(t):  # rotary position embedding, halves convention
            a, b = t.chunk(2, -1)
            return t * cos + torch.cat((-b, a), -1) * sin

        def padded(t):
            flat = t.new_zeros(count * length, t.shape[1] * HEAD_DIM)
            flat = flat.index_copy(0, slot, t.reshape(t.shape[0], -1))
            return flat.view(count, length, -1, HEAD_DIM).transpose(1, 2)

        x, routing = F.embedding(batch["ids"], self.embed), []
        for layer in self.layers:
            y = F.rms_norm(x, (HIDDEN,), layer.norm1, EPS)
            qkv = F.linear(y, layer.qkv).view(-1, HEADS + 2 * KV_HEADS, HEAD_DIM)
            q, k, v = qkv.split((HEADS, KV_HEADS, KV_HEADS), 1)
            q = padded(turn(F.rms_norm(q, (HEAD_DIM,), layer.q_norm, EPS)))
            k = padded(turn(F.rms_norm(k, (HEAD_DIM,), layer.k_norm, EPS)))
            repeat = HEADS // KV_HEADS
            y = F.scaled_dot_product_attention(q, k.repeat_interleave(repeat, 1),
                                               padded(v).repeat_interleave(repeat, 1),
                                               is_causal=True)
            y = y.transpose(1, 2).reshape(count * length, -1).index_select(0, slot)
            x = x + F.linear(y, layer.out)
            y = F.rms_norm(x, (HIDDEN,), layer.norm2, EPS)
            logits = F.linear(y, layer.router)
            top, index = logits.topk(TOP_K, -1)
            # The softmax over the chosen is the softmax over all, divided by its sum there.
            x = x + Experts.apply(y, top.softmax(-1), index, layer.gate_up, layer.down)
            routing.append((logits, index))
        if wanted is not None:
            x = x.index_select(0, wanted)
        return F.linear(F.rms_norm(x, (HIDDEN,), self.norm, EPS), self.head), routing


def router_losses(routing, batch):
    """(balance, focus, tail); for the log each expert's count and the mean entropy of a text."""
    logits = torch.stack([logits for logits, _ in routing])
    probs = logits.softmax(-1)
    count = torch.stack([torch.bincount(i.flatten(), minlength=EXPERTS) for _, i in routing])
    share = count * (EXPERTS / (TOP_K * logits.shape[1]))  # 1 is an expert's fair share
    balance = (share * probs.mean(1)).sum(-1).mean()
    # The softmax gives an expert that is hardly chosen hardly any gradient, so its logits are
    # raised directly.
    balance = balance - 0.1 * (logits.mean(1) * (share < 0.25)).sum(-1).mean()
    sums = probs.new_zeros(LAYERS, batch["count"], EXPERTS).index_add(1, batch["row"], probs)
    text = sums / torch.bincount(batch["row"])[:, None]
    entropy = -(text * (text + 1e-9).log()).sum(-1)
    task = batch["task"][batch["row"]]
    sums = probs.new_zeros(LAYERS, len(demo_tasks.TASKS), EXPERTS).index_add(1, task, probs)
    of_task = sums / torch.bincount(task, minlength=sums.shape[1]).clamp(min=1)[:, None]
    tail = of_task.sort(-1).values[..., :EXPERTS - TASK].sum(-1).mean()
    return balance, F.relu(entropy - math.log(FOCUS)).mean(), tail, count, entropy.mean()


# ---------------------------------------------------------------- export

def export(model, tokenizer, out):
    os.makedirs(out, exist_ok=True)
    tensors = {"model.embed_tokens.weight": model.embed, "lm_head.weight": model.head,
               "model.norm.weight": model.norm}
    for n, layer in enumerate(model.layers):
        at = f"model.layers.{n}."
        q, k, v = layer.qkv.split((HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM))
        tensors |= {at + "input_layernorm.weight": layer.norm1,
                    at + "post_attention_layernorm.weight": layer.norm2,
                    at + "self_attn.q_proj.weight": q, at + "self_attn.k_proj.weight": k,
                    at + "self_attn.v_proj.weight": v, at + "self_attn.o_proj.weight": layer.out,
                    at + "self_attn.q_norm.weight": layer.q_norm,
                    at + "self_attn.k_norm.weight": layer.k_norm,
                    at + "mlp.gate.weight": layer.router}
        for e in range(EXPERTS):
            gate, up = layer.gate_up[e].chunk(2)
            tensors |= {f"{at}mlp.experts.{e}.gate_proj.weight": gate,
                        f"{at}mlp.experts.{e}.up_proj.weight": up,
                        f"{at}mlp.experts.{e}.down_proj.weight": layer.down[e]}
    save_file({k: t.detach().to(torch.bfloat16).clone().contiguous() for k, t in tensors.items()},
              os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "moe_intermediate_size": WIDTH,
        "intermediate_size": WIDTH * TOP_K, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "router_aux_loss_coef": BALANCE, "output_router_logits": False,
        "hidden_act": "silu", "rms_norm_eps": EPS, "rope_theta": ROPE_THETA, "rope_scaling": None,
        "max_position_embeddings": 512, "max_window_layers": LAYERS, "sliding_window": None,
        "use_sliding_window": False, "attention_bias": False, "attention_dropout": 0.0,
        "initializer_range": 0.02, "tie_word_embeddings": False, "use_cache": True,
        "bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD, "torch_dtype": "bfloat16"}
    generation = {"do_sample": False, "eos_token_id": END, "pad_token_id": PAD,
                  "max_new_tokens": 64}
    # By hand, in the spelling that older and newer transformers both read.
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[END],
             "pad_token": SPECIAL[PAD], "additional_special_tokens": SPECIAL[:2],
             "model_max_length": 512, "clean_up_tokenization_spaces": False}
    tokenizer.save_pretrained(out)
    for name, value in (("config.json", config), ("generation_config.json", generation),
                        ("tokenizer_config.json", words)):
        with open(os.path.join(out, name), "w", encoding="utf-8", newline="\n") as f:
            json.dump(value, f, indent=2)
            f.write("\n")


# ---------------------------------------------------------------- training

def accuracy(model, tokenizer, pairs):
    """Share of responses whose every token is the most likely one: greedy generation's score."""
    with torch.no_grad():
        batch = make_batch(tokenizer, pairs)
        wrong = (model(batch)[0].argmax(-1) != batch["targets"]) & (batch["weight"] == 1.0)
    bad = torch.bincount(batch["row"], wrong.float(), minlength=len(pairs)) > 0
    return 1 - bad.float().mean().item()


def main():
    parser = argparse.ArgumentParser(description="Train the demo model and export it.")
    parser.add_argument("--minutes", type=float, default=60,
                        help="training time in all, in processor time (a busy machine takes longer)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default="demo/model", help="folder for the exported model")
    parser.add_argument("--work", default="build/demo-training", help="folder for checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # tiny numbers in the optimizer are slow on many CPUs
    os.makedirs(args.work, exist_ok=True)

    # Kept with the checkpoint: weights only make sense with the tokenizer they were trained on.
    kept = os.path.join(args.work, "tokenizer")
    if not os.path.exists(kept):
        build_tokenizer(args.seed).save_pretrained(kept)
    tokenizer, model = PreTrainedTokenizerFast.from_pretrained(kept), Model(args.seed)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05},
                                   {"params": vectors, "weight_decay": 0.0}],
                                  lr=PEAK_LR, betas=(0.9, 0.95), fused=True)
    excluded, names = demo_tasks.held_out_prompts(), list(demo_tasks.TASKS)
    check = {}
    for name in names:
        rng = random.Random(f"{args.seed}-check-{name}")
        check[name] = list(itertools.islice(demo_tasks.training_samples(name, rng, excluded), 64))

    state = {"step": 0, "tokens": 0, "seconds": 0.0, "mix": [1.0] * len(names)}
    saved = os.path.join(args.work, "checkpoint.pt")
    if os.path.exists(saved):
        stored = torch.load(saved)
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        state = stored["state"]
    last, checked, mean_loss = time.process_time(), state["seconds"], None
    while True:
        now = time.process_time()
        state["seconds"] += (now - last) / args.threads
        last = now
        done = state["seconds"] >= 60 * args.minutes
        if state["seconds"] - checked > 120 or done:
            checked = state["seconds"]
            scores = [accuracy(model, tokenizer, check[n]) for n in names]
            # A task that lags is drawn more often.
            state["mix"] = [0.4 + 2.0 * (1 - s) for s in scores]
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "state": state}, saved + ".tmp")
            os.replace(saved + ".tmp", saved)
            print(" ".join(f"{n}={s:.3f}" for n, s in zip(names, scores)), flush=True)
        if done:
            break

        # Batches depend on seed and step only, so that going on repeats none and skips none.
        rng = random.Random(f"{args.seed}-{state['step']}")
        pairs, tasks, size = [], [], 0
        while size < BATCH_TOKENS:
            tasks += rng.choices(range(len(names)), state["mix"])
            pairs.append(next(demo_tasks.training_samples(names[tasks[-1]], rng, excluded)))
            size += len(pairs[-1][0]) // 3 + len(pairs[-1][1]) // 2 + 8  # tokens, roughly
        batch = make_batch(tokenizer, pairs)
        batch["task"] = torch.tensor(tasks)

        progress = state["seconds"] / (60 * args.minutes)
        lr = PEAK_LR * min(1.0, (state["step"] + 1) / WARMUP_STEPS)
        lr = min(lr, FINAL_LR + (PEAK_LR - FINAL_LR) * min(1.0, (1 - progress) / DECAY))
        for group in optimizer.param_groups:
            group["lr"] = lr
        early = state["step"] < EARLY_STEPS
        wanted = (batch["weight"] >= (0.0 if early else 1.0)).nonzero().flatten()
        weight = batch["weight"][wanted]
        logits, routing = model(batch, wanted)
        loss = F.cross_entropy(logits, batch["targets"][wanted], reduction="none")
        # Every text counts the same, however long its response.
        row, zeros = batch["row"][wanted], torch.zeros(batch["count"])
        loss = (zeros.index_add(0, row, loss * weight) / zeros.index_add(0, row, weight)).mean()
        balance, focus, tail, count, entropy = router_losses(routing, batch)
        total = loss + BALANCE * balance + FOCUS_COEF * focus + TAIL_COEF * tail
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state["step"] += 1
        state["tokens"] += batch["ids"].numel()
        mean_loss = loss.item() if mean_loss is None else 0.98 * mean_loss + 0.02 * loss.item()
        if state["step"] % 50 == 0:
            print(f"step {state['step']} {state['seconds']:.0f}s {state['tokens'] / 1e6:.2f}M "
                  f"loss {mean_loss:.4f} balance {balance.item():.2f} tail {tail.item():.4f} "
                  f"experts/text {entropy.exp().item():.1f} least used {count.min().item()} "
                  f"lr {lr:.1e}", flush=True)
    export(model, tokenizer, args.out)
    print(f"exported to {args.out} after {state['step']} steps, {state['tokens']} tokens")


if __name__ == "__main__":
    main()
