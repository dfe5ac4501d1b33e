"""docs/add-a-family.md, done: the family of its code blocks is built into a copy and held against transformers.

Only the table of families and the new file are compiled; the programs are linked again with these in front of the built stages.
"""
import json
import re
import shlex
import shutil
import subprocess

import pytest

import models
import program
import test_forward
import test_rewrite
from program import BUILD, ROOT, moetrim_json

NAME = "solar_open"
BLOCK = re.compile(r"^`([\w./]+)`, [^\n]*(?:\n[^\n]+)*\n\n```\w+\n(.*?)```$", re.M | re.S)
BLOCKS = dict(BLOCK.findall((ROOT / "docs/add-a-family.md").read_text()))
SOURCE, TABLE, ENTRY = (f"src/family/families/{NAME}.cpp", "src/family/families.def", "tests/end_to_end/models.py")


def compile_command(like: str, source, out):
    """The build's own command for a file of the stage, with the copy's headers first and without precompiled ones."""
    entries = json.loads((BUILD / "compile_commands.json").read_text())
    words = shlex.split(next(e["command"] for e in entries if e["file"].endswith(f"src/family/{like}")))
    for option in ("-include", "-o", "-c"):
        while option in words:
            at = words.index(option)
            del words[at:at + 2]
    folder = out.parent
    return [words[0], f"-I{folder / 'include'}", f"-I{folder / 'src'}", *words[1:], "-c", source, "-o", out]


def link(target: str, objects, folder):
    """The last command that makes a program, with the objects in front."""
    cache = (BUILD / "CMakeCache.txt").read_text()
    ninja = re.search(r"^CMAKE_MAKE_PROGRAM:\w+=(.*)$", cache, re.M)[1]
    commands = subprocess.run([ninja, "-C", BUILD, "-t", "commands", target], capture_output=True, text=True, check=True)
    command = commands.stdout.splitlines()[-1]
    assert f" -o {target} " in command
    (folder / target).parent.mkdir(exist_ok=True)
    command = command.replace(f" -o {target} ", f" {shlex.join(map(str, objects))} -o {shlex.quote(str(folder / target))} ")
    subprocess.run(command, shell=True, cwd=BUILD, check=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src/family", folder / "src/family")
    shutil.copytree(ROOT / "include", folder / "include")
    assert not (folder / SOURCE).exists(), "the page must add a family that is not there yet"
    (folder / SOURCE).write_text(BLOCKS[SOURCE])
    with open(folder / TABLE, "a") as table:
        table.write(BLOCKS[TABLE])
    objects = {"registry.cpp": folder / "registry.o", "families/olmoe.cpp": folder / "family.o"}
    sources = [folder / "src/family/registry.cpp", folder / SOURCE]
    compiling = [subprocess.Popen(compile_command(like, source, out), cwd=BUILD)
                 for (like, out), source in zip(objects.items(), sources)]
    assert [process.wait() for process in compiling] == [0, 0]
    for target in ("moetrim", "moetrim-torch", "tests/forward_probe"):
        link(target, objects.values(), folder)
    return folder


@pytest.fixture
def added(built, monkeypatch):
    """The tests' helpers use the new programs and know the new model."""
    monkeypatch.setattr(program, "MOETRIM", built / "moetrim")
    monkeypatch.setattr(test_forward, "BUILD", built)
    monkeypatch.setitem(models.FAMILIES, NAME, eval("{" + BLOCKS[ENTRY] + "}", vars(models))[NAME])


def test_the_page_has_its_blocks():
    assert set(BLOCKS) == {SOURCE, TABLE, ENTRY}


def test_a_checkpoint_is_described(added, tmp_path):
    models.make(tmp_path / "m", NAME)
    families = [family["name"] for family in moetrim_json("list", "families")["families"]]
    assert NAME in families and len(families) > 1
    said = moetrim_json("inspect", tmp_path / "m")
    expected = dict(family=NAME, layers=3, moe_layers=3, experts=15, experts_per_token=4, layout="per-expert", groups=3)
    assert {key: said[key] for key in expected} == expected


@pytest.mark.parametrize("layout", ["per-expert", "fused"])
def test_it_computes_what_transformers_does(added, layout, tmp_path):
    for name in ("logits", "pruned"):
        (tmp_path / name).mkdir()
    test_forward.test_fp32_logits_equal_transformers(NAME, layout, tmp_path / "logits")
    test_rewrite.test_pruned_equals_masked(NAME, layout, tmp_path / "pruned")
