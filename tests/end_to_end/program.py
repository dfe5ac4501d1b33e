"""Runs the built programs."""
import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("MOETRIM_BUILD", ROOT / "build")).resolve()
MOETRIM = BUILD / "moetrim"


def moetrim(*arguments, code: int = 0, cwd=None) -> subprocess.CompletedProcess:
    """Runs moetrim and checks its exit code."""
    assert MOETRIM.exists(), f"{MOETRIM} is not built"
    done = subprocess.run([MOETRIM, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == code, f"moetrim {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def moetrim_json(*arguments, cwd=None):
    """The object that --json prints; standard output must hold nothing else."""
    return json.loads(moetrim(*arguments, "--json", "--quiet", cwd=cwd).stdout)


def write_task(file: Path, ids) -> Path:
    file.write_text("".join(json.dumps({"input_ids": s}) + "\n" for s in ids))
    return file


def folder_bytes(folder: Path) -> dict:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
