#!/usr/bin/env python3
"""Checks that a stage includes only the stages that src/CMakeLists.txt says it may use.

Usage: check_stages.py REPOSITORY
"""
import re
import sys
from pathlib import Path

OPEN_TO_ALL = {"error", "suggest", "run_options", "json_fields", "split_mix", "linear_inputs"}  # headers that belong to no stage
# Public headers of a stage beside the one with its name.
HEADERS_OF = {"checkpoint": {"gguf_file"},
              "gguf": {"gguf_architecture", "gguf_export", "gguf_rewrite", "gguf_tokenizer", "imatrix"},
              "statistics": {"vectors", "row_statistics", "input_statistics"}, "forward": {"vector_sums"},
              "score": {"contrast", "task_algebra", "scores_file"},
              "plan": {"merging", "placement", "switching", "confidence", "precision", "smoothing", "upcycle", "replace",
                       "allocation", "keep_counts", "sequential", "plan_exchange", "whole_experts"},
              "patterns": {"expert_delta"}, "rewrite": {"slab_recipe"}, "calibrate": {"queries"}}


def stages(root: Path) -> dict[str, set[str]]:
    allowed: dict[str, set[str]] = {}
    for line in (root / "src/CMakeLists.txt").read_text().splitlines():
        match = re.match(r"moetrim_stage\((\w+)(?: TORCH)?(?: NEEDS ([\w ]+))?\)", line)
        if match:
            needs = (match.group(2) or "").split()
            unknown = [n for n in needs if n not in allowed]
            if unknown:
                sys.exit(f"src/CMakeLists.txt: stage {match.group(1)} needs {unknown}, which are not above it")
            allowed[match.group(1)] = {match.group(1), *needs}
    return allowed


def main() -> int:
    root = Path(sys.argv[1])
    allowed = stages(root)
    owner = {header: stage for stage, headers in HEADERS_OF.items() for header in headers}
    torch_free = {line.split("(")[1].split()[0].rstrip(")")
                  for line in (root / "src/CMakeLists.txt").read_text().splitlines()
                  if line.startswith("moetrim_stage(") and " TORCH" not in line}
    faults = []
    files = [*(root / "src").rglob("*.cpp"), *(root / "src").rglob("*.h"), *(root / "include/moetrim").glob("*.h")]
    for file in sorted(files):
        inside_src = file.is_relative_to(root / "src")
        stage = file.relative_to(root / "src").parts[0] if inside_src else owner.get(file.stem, file.stem)
        if stage not in allowed:
            continue  # the command line may use everything
        for number, line in enumerate(file.read_text().splitlines(), 1):
            match = re.match(r'#include "(?:moetrim/)?(\w+)(?:/|\.h)', line)
            beside = match and (file.parent / line.split('"')[1]).exists()  # a private header of the same folder
            if match and not beside and owner.get(match.group(1), match.group(1)) not in allowed[stage] | OPEN_TO_ALL:
                faults.append(f"{file.relative_to(root)}:{number}: stage {stage} may not include {line.split()[1]}")
            if stage in torch_free and re.match(r"#include <(ATen|torch|c10)/", line):
                faults.append(f"{file.relative_to(root)}:{number}: stage {stage} must not need LibTorch")
    print("\n".join(faults) or f"{len(files)} files keep to their stages")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
