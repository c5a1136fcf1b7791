"""The folder itself: whole or not there, nothing in the way is touched, small, and its card tells the facts."""

import ast
import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import lm.export.folder as folder_module
from lm.export import ExportError, export_snapshot
from lm.export.folder import ASIDE
from lm.export.sources import flat_sources
from lm.training.snapshots import Snapshot, Snapshots
from tests.export.conftest import preset_of, snapshot_of


@pytest.fixture(scope="module")
def snapshot(tokenizer_json: str) -> Snapshot:
    measured = {"brief": {"installed_docs": {"now": 2.5, "at": 9_000, "tokens": 80, "best": 2.4}, "natural_questions": {"now": 3.5, "at": 9_000, "tokens": 70}}}
    measured["full"] = {"installed_docs": {"now": 2.25, "at": 12_345, "tokens": 400, "best": 2.25}}
    return snapshot_of(preset_of("small", about="A little one."), tokenizer_json, measured=measured)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_needs_torch_and_transformers_and_nothing_else(snapshot: Snapshot, tmp_path: Path) -> None:
    place = export_snapshot(snapshot, tmp_path)
    files = {path.name for path in place.iterdir()}
    code = {name for name in files if name.endswith(".py")}
    own = {"model.py", "preset.py", "ops_rotary.py", "units.py", "units_unit.py", "units_attention.py", "units_head_norm.py", "units_options.py"}
    own |= {"units_neighbours.py", "ops_fused.py", "units_bidirectional.py"}  # and any may attend to neighbours, by GPUs' kernels, from both ends
    own |= {"ops_picking.py", "ops_scan.py", "units_mixture_of_depths.py", "units_router.py", "units_subsequence.py"}  # any layer may be for some tokens
    own |= {"ops_readout.py", "units_swiglu.py", "units_relu2.py", "units_joined.py"}  # and feed-forwards may be of either kind
    assert code == own | {"modeling_perennial.py", "configuration_perennial.py"}
    plain = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "README.md"}
    assert files == code | plain
    for name in code:
        for node in ast.walk(ast.parse((place / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in code
            elif isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {module.split(".")[0] for module in modules} <= {"torch", "transformers", *sys.stdlib_module_names}
    assert len({path.stat().st_mode for path in place.iterdir()}) == 1, "whoever may read one file may read all"


def test_the_code_is_the_programs_own_but_for_its_imports(snapshot: Snapshot, tmp_path: Path) -> None:
    place = export_snapshot(snapshot, tmp_path)
    for name, origin in {"units_attention.py": "lm/units/attention.py", "model.py": "lm/model.py"}.items():
        ours, written = (path.read_text(encoding="utf-8").splitlines() for path in (Path(origin), place / name))
        assert origin in written[0]
        differing = [(a, b) for a, b in zip(ours, written[2:], strict=True) if a != b]
        assert differing and all(a.startswith("from lm.") and b.startswith("from .") for a, b in differing)


def test_other_code_has_another_configuration_file() -> None:
    """Else transformers would build the second of two models in folders of one name with the code of the first."""
    one, other, again = (flat_sources(units)["configuration_perennial.py"] for units in (["attention"], ["attention", "swiglu"], ["attention"]))
    assert one == again != other


def test_nothing_in_the_way_is_touched(snapshot: Snapshot, tmp_path: Path) -> None:
    first = export_snapshot(snapshot, tmp_path)
    (first / "README.md").write_text("my own words", encoding="utf-8")
    before = content(first)
    (tmp_path / f"{first.name}-2").write_text("a file of somebody's")
    third = export_snapshot(snapshot, tmp_path)
    assert (first.name, third.name) == ("small-12345", "small-12345-3")
    assert content(first) == before and (tmp_path / f"{first.name}-2").read_text() == "a file of somebody's"
    assert '"small-12345-3", trust_remote_code' in (third / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {first.name, f"{first.name}-2", third.name}


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_elsewhere(*_: Any, **__: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def forbidden(*_: Any, **__: Any) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


ENDINGS = [
    (Path, "mkdir", forbidden, "permission denied"),
    (Path, "write_text", full, "no space left on device"),
    (folder_module, "save_file", full_elsewhere, "no space left on device"),
    (os, "fsync", full, "no space left on device"),
    (Path, "rename", forbidden, "permission denied"),
    (folder_module, "flat_sources", interrupted, None),
    (folder_module, "save_file", interrupted, None),
    (os, "fsync", interrupted, None),
]


@pytest.mark.parametrize(("where", "what", "happens", "said"), ENDINGS, ids=[f"{what} {happens.__name__}" for _, what, happens, _ in ENDINGS])
def test_what_is_not_whole_is_not_there(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, what: str, happens: Callable[..., None], said: str | None
) -> None:
    exports = tmp_path / "exports"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt if said is None else ExportError) as caught:
        patched.setattr(where, what, happens)
        export_snapshot(snapshot, exports)
    if said:
        assert str(caught.value) == f"{exports}: the export can't be written: {said}"
    assert not exports.exists() or list(exports.iterdir()) == []
    assert export_snapshot(snapshot, exports).name == "small-12345", "and the next one goes well"


def test_a_kill_at_any_instant_leaves_whole_folders_and_the_next_export_none_other(snapshot: Snapshot, tmp_path: Path) -> None:
    meant = content(export_snapshot(snapshot, tmp_path / "meant"))
    meant.pop("README.md")  # which tells the folder's own name
    path, exports = Snapshots(tmp_path / "c").save(snapshot), tmp_path / "exports"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    subprocess.run([sys.executable, "-m", "tests.export.kills", path, exports], env=environment, check=True, timeout=200)
    for folder in exports.glob("small-*"):
        assert {name: data for name, data in content(folder).items() if name != "README.md"} == meant
    export_snapshot(snapshot, exports)
    assert not (exports / ASIDE).exists()


def test_what_a_killed_export_left_is_cleared_away(snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / ASIDE).mkdir()
    (tmp_path / ASIDE / "half.safetensors").write_bytes(b"half")
    place = export_snapshot(snapshot, tmp_path)
    assert list(tmp_path.iterdir()) == [place] and not (place / "half.safetensors").exists()


def test_one_at_a_time_and_a_folder_that_is_a_file(snapshot: Snapshot, tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ExportError, match="another export is being written there"):
        export_snapshot(snapshot, tmp_path)
    os.close(handle)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="file: the export can't be written: file exists"):
        export_snapshot(snapshot, tmp_path / "file")


def test_the_card_tells_the_facts(snapshot: Snapshot, tmp_path: Path) -> None:
    said: list[str] = []
    place = export_snapshot(snapshot, tmp_path, said.append)
    card = (place / "README.md").read_text(encoding="utf-8")
    parameters = sum(tensor.numel() for tensor in snapshot.model_weights.values())
    rows = [f"| parameters | {parameters:,} |", "| tokens read | 12,345 |", "| layers | 2 x (attention, swiglu) |", "| preset | small |"]
    rows += ["| natural_questions | 12,000 | 97.2% |", "| installed_docs | 345 | 2.8% |"]
    rows += ["| installed_docs | 2.2500 | 400 | 12,345 |", "| natural_questions | 3.5000 | 70 | 9,000 |", '- "sentence-transformers/natural-questions"']
    assert all(row in card.splitlines() for row in rows)
    assert "A little one." in card and "library_name: transformers" in card
    assert said == ["writing the code", "writing the tokenizer and the card", "writing the weights"]


def test_the_card_says_that_a_memory_stays_behind(tokenizer_json: str, tmp_path: Path) -> None:
    row = "| memory | not in this folder: its layers that attend to neighbours are given none here, and then add nothing |"
    for retro, said in (({"enabled": True}, True), ({"enabled": True, "add_cross_attention": False}, False), ({}, False)):
        place = export_snapshot(snapshot_of(preset_of("reads on", retro=retro), tokenizer_json), tmp_path)
        assert (row in (place / "README.md").read_text(encoding="utf-8").splitlines()) == said


def test_of_averaged_weights_the_average_is_written(tokenizer_json: str, tmp_path: Path) -> None:
    preset = preset_of("steady", train={"average_tokens": 70_000})
    found = snapshot_of(preset, tokenizer_json)
    found = replace(found, average={"model.norm.weight": torch.full_like(found.weights["model.norm.weight"], 1.25)})
    place = export_snapshot(found, tmp_path)
    written = load_file(place / "model.safetensors")
    for name, tensor in found.weights.items():
        assert torch.equal(written[f"model.{name.removeprefix('model.')}"], found.average.get(name, tensor))
    card = (place / "README.md").read_text(encoding="utf-8")
    assert "| weights | an average over training, in which weights of 70,000 tokens ago count half |" in card.splitlines()


def test_names_from_outside_are_only_words(tokenizer_json: str, tmp_path: Path) -> None:
    hostile = preset_of("../[x](y)\u001b[2J|", about="<script>*loud*\n# head")
    place = export_snapshot(snapshot_of(hostile, tokenizer_json, sources={"a|b\n<i>": 7}), tmp_path)
    card = (place / "README.md").read_text(encoding="utf-8")
    assert place.parent == tmp_path and place.name == "x_y_2J-12345"
    assert "\x1b" not in card and "\n# head" not in card and "\\<script\\>\\*loud\\* # head" in card
    assert "| a\\|b \\<i\\> | 7 | 100.0% |" in card.splitlines()
    assert "It has not been measured yet." in card


def test_the_way_of_writing_is_the_presets(tokenizer_json: str, tmp_path: Path) -> None:
    drawn = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2, "no_repeat_ngram": 4, "max_new_tokens": 77}
    place = export_snapshot(snapshot_of(preset_of("p", generation=drawn), tokenizer_json), tmp_path)
    told = json.loads((place / "generation_config.json").read_text(encoding="utf-8"))
    rules = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 4, "max_new_tokens": 77}
    ids = {"bos_token_id": 0, "eos_token_id": [0, 1], "pad_token_id": 1}
    assert told == {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, **rules, **ids}
