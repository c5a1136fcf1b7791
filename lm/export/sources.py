"""The code of an exported folder: the program's own modules that build the model, as flat files.

transformers copies a model's code from its folder file by file and follows imports like `from .units_attention import Attention`.
So each module becomes one file beside the others, lm/units/attention.py as units_attention.py, and only its imports are rewritten.
The files are found by following those imports, which is why a new unit is exported as soon as it stands in UNITS.
"""

import ast
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from lm.units import UNITS

ROOT = Path(__file__).parents[2]
REMOTE = "lm.export.remote"
ENTRIES = {"AutoConfig": "configuration_perennial.PerennialConfig", "AutoModelForCausalLM": "modeling_perennial.PerennialForCausalLM"}
CONFIGURATION = "configuration_perennial.py"
# A preset is decided at export: a plain record stands in for the types that read and check one.
STANDS_IN = {"lm.preset": f"{REMOTE}.preset", "lm.preset.switches": f"{REMOTE}.preset", "lm.preset.mechanisms": f"{REMOTE}.preset"}
TABLE = "lm.units"
LICENCE = "# Part of Perennial, MIT licence, Copyright (c) 2026 The Perennial authors: {origin}"


def flat_sources(units: Iterable[str]) -> dict[str, str]:
    """Text by file name: all that a model made of `units` needs, and the classes that transformers asks for."""
    table = _table_of(sorted(set(units)))
    texts: dict[str, str] = {}
    waiting = [f"{REMOTE}.{entry.split('.')[0]}" for entry in ENTRIES.values()]
    while waiting:
        module = waiting.pop()
        path = _path_of(module)
        text, imported = _rewritten(table if module == TABLE else path.read_text(encoding="utf-8"))
        texts[f"{_flat_name(module)}.py"] = f"{LICENCE.format(origin=path.relative_to(ROOT).as_posix())}\n\n{text}"
        waiting += [found for found in imported if f"{_flat_name(found)}.py" not in texts]
    texts[CONFIGURATION] = f"# Code {_digest(texts)}\n{texts[CONFIGURATION]}"
    return dict(sorted(texts.items()))


def _digest(texts: Mapping[str, str]) -> str:
    """Tells two exports apart: transformers takes equal configuration files in folders of one name for one kind of model."""
    return hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:16]


def _table_of(names: list[str]) -> str:
    """lm/units/__init__.py with no other units than those of the model, whose needs would come along."""
    classes = {name: UNITS[name] for name in names}
    imports = sorted({f"from {unit.__module__} import {unit.__name__}" for unit in classes.values()})
    entries = [f'    "{name}": {unit.__name__},' for name, unit in classes.items()]
    head = ['"""The table of units: those of this model."""', "", *imports, f"from {TABLE}.unit import Context, Mixed, State, Unit", ""]
    tail = ["}", "", '__all__ = ["UNITS", "Context", "Mixed", "State", "Unit"]', ""]
    return "\n".join([*head, "UNITS: dict[str, type[Unit]] = {", *entries, *tail])


def _path_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _flat_name(module: str) -> str:
    return module.removeprefix(f"{REMOTE}.").removeprefix("lm.").replace(".", "_")


def _rewritten(text: str) -> tuple[str, list[str]]:
    """`text` with its imports of our modules made relative, and the modules that it imports then."""
    lines, found = text.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith("lm."):
            continue
        module = STANDS_IN.get(node.module, node.module)
        lines[node.lineno - 1] = lines[node.lineno - 1].replace(f"from {node.module} import", f"from .{_flat_name(module)} import", 1)
        found.append(module)
    return "".join(lines), found
