#!/usr/bin/env python3
"""Writes docs/families.md from what the program knows, what each family's file says first, and which quantisations are tested.

Usage: .venv/bin/python scripts/make_families_doc.py    (MOETRIM_BUILD names the build folder if it is not build/)
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/end_to_end"))
from program import moetrim_json  # noqa: E402
from test_quantised import CASES  # noqa: E402

PREFACE = """\
# Families

Made by `scripts/make_families_doc.py` from `moetrim list families --json`; a test holds it to the program. A checkpoint's family
is its `model_type`; any other one is refused. [add-a-family.md](add-a-family.md) tells how to add one.

Every family is compared with the class of the last column on random small models: logits, measured statistics and scores, and a
pruned checkpoint with the original whose router is masked. The models named here have that architecture; their published
checkpoints themselves were not run. Quantised weights are read by the same code in every family; the column says which
combinations are tested end to end.

Layouts: *per-expert* is a tensor for every matrix of every expert, *fused* one for all experts of a layer, *transposed* input first,
*interleaved* gate and up in turns. The layouts that are compared are in `tests/end_to_end/models.py`. A router's *selection bias*
chooses experts and is no part of their gates. Windows, qk-norm and groups apply where config.json turns them on.
"""
NO_CLASS = {"PanguProMoE": "none: tests/end_to_end/pangu_pro.py"}
COLUMNS = ["family", "models", "attention", "router", "layouts", "quantisations tested", "transformers class"]


def document(families) -> str:
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(row, families)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    return f"{PREFACE}\n{table}\n## What is special\n\n{''.join(map(note, families))}"


def row(family):
    tested = [method for name, method in CASES if name == family["name"]]
    compared = NO_CLASS.get(family["name"], family["architectures"][0])
    names = ", ".join(f"`{name}`" for name in [family["name"], *family["aliases"]])
    return [names, family["covers"], *(", ".join(family[key]) for key in ("attention", "router", "layouts")),
            ", ".join(tested) or "none", compared]


def note(family) -> str:
    mtp = " Multi-token-prediction blocks can be pruned, kept or dropped (`--mtp`)." if family["mtp"] else ""
    return f"- **{family['name']}**. {first_comment(family['name'])}{mtp} Read from: {family['source']}.\n"


def first_comment(name: str) -> str:
    """What the family's file says in its first lines."""
    for file in (ROOT / "src/family/families").glob("*.cpp"):
        text = file.read_text()
        if f'.name = "{name}"' in text:
            lines = re.match(r"(// .*\n)+", text)[0].splitlines()
            return " ".join(line.removeprefix("// ") for line in lines)
    raise SystemExit(f"no file in src/family/families defines {name}")


def main():
    (ROOT / "docs/families.md").write_text(document(moetrim_json("list", "families")["families"]))


if __name__ == "__main__":
    main()
