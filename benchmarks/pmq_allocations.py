#!/usr/bin/env python3
"""How many of the bit allocations that MC-MoE publishes for Mixtral-8x7B `moetrim precision` finds from their factors.

Usage: pmq_allocations.py FOLDER

FOLDER is a copy of the repository Aaronhuang-778/MC-MoE: experts_act_frequency.pkl, experts_act_weight.pkl, experts_quant_loss.pkl
and experts_mixture_bit_selection/*. Its factors become a statistics folder; every budget of 12 to 20 bits for 8 experts is solved
for all 32 layers. The published ones were solved by Gurobi with exponents 1, 1.5 and 1.
"""
import argparse
import json
import pickle
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[1]
SLICES, HIDDEN, WIDTH = 8, 1, 1
STATS = ["routed_count", "gate_sum", "gate_square_sum", "router_mass", "tcess_sum", "tcess_logit_sum", "norm_sum", "gated_norm_sum",
         "easy_ep_sum", "max_abs", "max_abs_first_row"]


def write_layer(folder, layer, counts, gates, errors, tokens):
    experts = len(counts)
    zeros = {name: np.zeros((1, SLICES, experts)) for name in STATS}
    zeros["routed_count"][0, 0] = counts
    zeros["gate_sum"][0, 0] = gates
    token_count = np.zeros((1, SLICES))
    token_count[0, 0] = tokens
    pairs = np.zeros((1, experts, experts))
    save(folder, "layer", layer, dict(**zeros, token_count=token_count, coactivation=pairs, transitions=pairs.copy()))
    save(folder, "vectors", layer, dict(
        logit_gram=pairs.copy(), routed_activation=np.zeros((1, experts, WIDTH)), routed_output=np.zeros((1, experts, HIDDEN)),
        output_square=np.zeros((1, experts)), input_max=np.zeros((1, experts, HIDDEN)), router_input_max=np.zeros((1, HIDDEN)),
        weight_max=np.zeros(HIDDEN), quantisation_error=errors[None]))


def save(folder, kind, layer, tensors):
    metadata = {"moetrim_format": f"statistics-{kind}-1", "moetrim_layer": str(layer)}
    save_file(tensors, folder / f"{kind}-{layer:05d}.safetensors", metadata)


def write_statistics(folder, source):
    load = lambda name: pickle.loads((source / name).read_bytes())
    counts, gates, errors = load("experts_act_frequency.pkl"), load("experts_act_weight.pkl"), load("experts_quant_loss.pkl")
    folder.mkdir()
    tokens = max(int(counts[layer].sum()) for layer in counts)
    for layer in counts:
        of_layer = np.zeros((len(counts[layer]), 4))
        for expert, by_bits in errors[layer].items():
            of_layer[expert, :3] = [by_bits[bits] for bits in (1, 2, 3)]
        write_layer(folder, layer, counts[layer].double().numpy(), gates[layer].double().numpy(), of_layer, tokens)
    manifest = dict(
        format="moetrim-statistics", version=1, tool_version="0", checkpoint_fingerprint="0" * 32, family="mixtral", router="softmax",
        router_selects_by_logit=True, gates_normalised=True, layers=len(counts), experts=8, experts_per_token=2,
        moe_layers=sorted(counts), tcess_top_k=0, tcess_threshold=-1, dtype="fp32", count="all",
        tasks=[dict(name="c4", digest="0", demonstrations=1, tokens=tokens, counted_tokens=tokens)], settings={},
        vectors=dict(width=WIDTH, hidden=HIDDEN, quantisation=True))
    (folder / "manifest.json").write_text(json.dumps(manifest))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    source = parser.parse_args().folder
    agree = total = 0
    with tempfile.TemporaryDirectory() as temporary:
        stats = Path(temporary, "pmq.stats")
        write_statistics(stats, source)
        for budget in range(12, 21):
            name = f"experts_mixture_bitwidth_combination_{budget}bit.pkl"
            published = pickle.loads((source / "experts_mixture_bit_selection" / name).read_bytes())
            command = [ROOT / "build" / "moetrim", "precision", stats, "--bits", str(budget / 8), "-o", Path(temporary, "bits.json"), "--json"]
            plan = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            same = sum(layer["bits"] == list(published[layer["layer"]].values()) for layer in plan["layers"])
            print(f"{budget} bits for 8 experts: {same} of {len(published)} layers agree")
            agree += same
            total += len(published)
    print(f"{agree} of {total} allocations agree")


if __name__ == "__main__":
    main()
