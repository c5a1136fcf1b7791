"""House rules: which room may import which, what is promised by name, what no file holds, and that the README's tree is the tree."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

FLOOR = {"lm.preset": 0, "lm.ops": 0, "lm.units": 1, "lm.memory": 1, "lm.objectives": 1, "lm.auxiliary": 1, "lm.model": 2}
FLOOR |= {"lm.generation": 3, "lm.training": 4, "lm.export": 5, "lm.app": 6}
OWN = [path for folder in ("lm", "data_sources") for path in sorted(Path(folder).rglob("*.py"))] + [Path("main.py")]
HEAVY = {"torch", "transformers", "datasets", "numpy", "accelerate", "pyarrow", "faiss"}


def imports(path: Path) -> list[str]:
    """Modules that a file imports anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
    return found


def room(module: str) -> str | None:
    return max((name for name in FLOOR if module == name or module.startswith(f"{name}.")), key=len, default=None)


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", OWN, ids=str)
def test_arrows_run_one_way(path: Path) -> None:
    here = room(module_of(path))
    for module in imports(path):
        top, there = module.split(".")[0], room(module)
        assert not (path.parts[0] == "data_sources" and top == "lm"), f"{path} imports {module}"
        assert not (here and there and FLOOR[there] > FLOOR[here]), f"{path} imports {module}"
        assert not (top in ("rich", "questionary", "prompt_toolkit") and here != "lm.app"), f"{path} imports {module}: screens are lm.app's"
        assert top not in ("argparse", "click", "typer", "fire", "optparse", "getopt"), f"{path} parses arguments"
        assert not (here == "lm.preset" and top in HEAVY), f"{path} imports {module}: the menu must not wait for it"
        assert not (here == "lm.preset" and top == "data_sources" and module not in ("data_sources.config", "data_sources.catalogue"))


def test_the_menu_needs_nothing_heavy() -> None:
    program = "import sys, lm.app.menu, lm.app.shelf; lm.app.shelf.read_shelf(); print(sorted(set(sys.modules) & set(sys.argv[1:])))"
    done = subprocess.run([sys.executable, "-c", program, *HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PROMISES = {
    "lm.preset": ["load_preset", "Preset", "PresetError"],
    "lm.model": ["build_model", "Context"],
    "lm.units": ["UNITS"],
    "data_sources": ["open_stream", "merge_cursors"],
    "lm.training": ["train"],
    "lm.training.snapshots": ["Snapshots"],
    "lm.generation": ["generate"],
}


@pytest.mark.parametrize("module", PROMISES)
def test_promised_names_exist(module: str) -> None:
    for name in PROMISES[module]:
        assert getattr(importlib.import_module(module), name).__doc__ or name == "UNITS"


def test_promised_arguments() -> None:
    from data_sources import open_stream
    from lm.generation import generate
    from lm.training import train

    assert list(inspect.signature(train).parameters)[:3] == ["preset", "checkpoint_dir", "budget_tokens"]
    assert list(inspect.signature(generate).parameters)[:5] == ["model", "tokenizer", "prompt", "settings", "state"]
    wanted = {"seq_length", "batch_size", "rank", "world_size", "cursor", "part"}
    assert wanted <= set(inspect.signature(open_stream).parameters)


@pytest.mark.parametrize("path", OWN, ids=str)
def test_files_are_short_and_say_what_they_are_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= (60 if path.name == "main.py" else 400)
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path}:{node.lineno} {node.name} is long"
            assert len(node.args.args) + len(node.args.kwonlyargs) <= 11, f"{path}:{node.lineno} {node.name} takes too much"
            assert node.args.kwarg is None, f"{path}:{node.lineno} {node.name} swallows misspelt options"


def test_requirements_are_pinned() -> None:
    for file in ("requirements.txt", "requirements-dev.txt"):
        assert all("==" in line for line in Path(file).read_text(encoding="utf-8").split()), file


def test_the_readmes_tree_is_the_tree() -> None:
    readme = Path("README.md").read_text(encoding="utf-8")
    block = re.search(r"```text\nperennial/\n(.*?)```", readme, re.S)
    assert block, "the README has its layout in a ```text block that begins with perennial/"
    told = set(re.findall(r"^ {2}(\S+)", block[1], re.M))
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    there = {f"{parts[0]}/" if len(parts) > 1 else parts[0] for parts in (line.split("/") for line in tracked.stdout.splitlines())}
    assert told == there - {".gitignore"}
    rooms = set(re.findall(r"^ {4}(\S+)", block[1], re.M))
    inside = {path.name + ("/" if path.is_dir() else "") for path in Path("lm").iterdir() if path.name not in ("__init__.py", "__pycache__")}
    assert inside - {f"{name}/" for name in ("memory", "objectives", "auxiliary")} <= rooms
