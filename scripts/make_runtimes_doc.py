#!/usr/bin/env python3
"""Writes the tables of rules in docs/runtimes.md from what `moetrim check --list-rules` says; the rest of the page stays.

Usage: .venv/bin/python scripts/make_runtimes_doc.py    (MOETRIM_BUILD names the build folder if it is not build/)
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/end_to_end"))
from program import moetrim_json  # noqa: E402

BEGIN, END = "<!-- rules: made by scripts/make_runtimes_doc.py -->\n", "<!-- end of rules -->\n"


def with_rules(page: str, runtimes) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + "".join(map(section, runtimes)) + END + rest.split(END)[1]


def section(runtime) -> str:
    rows = "".join(f"| {' | '.join(cells(rule))} |\n" for rule in runtime["rules"])
    head = "| rule | | demands | when | why | read in |\n|---|---|---|---|---|---|\n"
    return f"\n### {runtime['runtime']} {runtime['version']}\n\nSource: {runtime['package']}.\n\n{head}{rows}\n"


def cells(rule):
    name = rule["id"].split(".", 2 if rule["id"].startswith("llama.cpp") else 1)[-1]
    return [name, rule["severity"], rule["demand"], rule["applies"], rule["why"], rule["source"].replace("*", "\\*")]


def main():
    file = ROOT / "docs/runtimes.md"
    file.write_text(with_rules(file.read_text(), moetrim_json("check", "--list-rules")["runtimes"]))


if __name__ == "__main__":
    main()
