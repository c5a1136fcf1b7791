"""Each head foretells held-out text better than one that looks at nothing, by a tenth of its loss or more; and not with futures that are others'.

The text is the source code of Python's standard library: nine files of ten are read once, the tenth is held out. What the value head needs, a
trunk that has read for a while, long rows and a low learning rate, was settled on other text, the documentation of installed packages, before
this one was looked at. The second next token needs as long: after 300,000 tokens it was 8 % below the unigram, on two seeds. Hidden
spans were 6 % below chance after 150,000 tokens, on one seed, and 11 to 15 % after 300,000, on three.
PROOF_SEEDS="0 1 2" takes all three seeds, and as many tokens as stand here (ten minutes of one core); by itself the test takes one, and fewer.
"""

import os
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from lm.auxiliary.heads import HEADS
from lm.preset import Preset
from tests.auxiliary.proving import FUTURES_OF_OTHERS, Trained, trained, trivial

SEEDS = tuple(map(int, os.environ["PROOF_SEEDS"].split())) if "PROOF_SEEDS" in os.environ else ()
SHORT, LONG = 300_000, 1_200_000  # tokens
BETTER, ALIKE = 0.9, 0.97
SLOW = ["value", "second_next"]
SPANS = ["span_contrastive"]
OTHERS = [name for name in HEADS if name not in (*SLOW, *SPANS)]

pytestmark = [pytest.mark.longest, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The standard library's source, without its tests, as two folders of text."""
    folders = {part: tmp_path_factory.mktemp(part) for part in ("read", "held_out")}
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in root.rglob("*.py") if not {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts))
    for number, path in enumerate(files):
        text = path.read_text(encoding="utf-8", errors="replace")
        (folders["held_out" if number % 10 == 0 else "read"] / f"{number:04}.txt").write_text(text, encoding="utf-8")
    return folders


def preset_of(folder: Path, seed: int, names: list[str], rows: int, length: int) -> Preset:
    source = {"type": "files", "name": "library", "path": str(folder), "repeat": True}
    raw: dict[str, Any] = {
        "model": {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "seq_length": length},
        "train": {"per_gpu_batch_size": rows, "learning_rate": 0.005, "warmup_share": 0.05, "seed": seed, "precision": "float32"},
        "data": {"sources": [source], "vocab_size": 512},
        "auxiliary": {f"enable_{name}": True for name in names},
    }
    return Preset.model_validate(raw)


def shown(seed: int, found: dict[str, float], naive: dict[str, float]) -> str:
    return f"seed {seed}: " + ", ".join(f"{name} {100 * (1 - found[name] / naive[name]):.1f}% below {naive[name]:.4f}" for name in found if name in naive)


def losses_of(proved: Trained, names: list[str]) -> dict[str, float]:
    return {loss: value for name in names for loss, value in proved.losses(name).items()}


def check_futures(proved: Trained, names: list[str], naive: dict[str, float]) -> None:
    """With what comes later taken from other rows, nothing is foretold any more: what does not look is as good, but for what neighbouring files have in
    common."""
    for name in names:
        if name in FUTURES_OF_OTHERS:
            assert proved.losses(name, FUTURES_OF_OTHERS[name])[name] > ALIKE * naive[name], name


@pytest.mark.parametrize("seed", SEEDS or (0,))
def test_each_head_is_better_than_one_that_looks_at_nothing(library: dict[str, Path], seed: int) -> None:
    presets = [preset_of(library[part], seed, OTHERS, 8, 128) for part in ("read", "held_out")]
    proved = trained(*presets, SHORT if SEEDS else SHORT // 2, 160)
    naive, found = trivial(proved), losses_of(proved, OTHERS)
    print(shown(seed, found, naive))
    assert all(found[name] <= BETTER * naive[name] for name in found), shown(seed, found, naive)
    check_futures(proved, OTHERS, naive)


@pytest.mark.parametrize("seed", SEEDS or (0,))
def test_hidden_spans_are_found_by_what_they_hold(library: dict[str, Path], seed: int) -> None:
    """And with the words of other rows in them, by nothing, though what stands before them stays."""
    presets = [preset_of(library[part], seed, SPANS, 8, 128) for part in ("read", "held_out")]
    proved = trained(*presets, 2 * SHORT if SEEDS else SHORT, 160)
    naive, found = trivial(proved), losses_of(proved, SPANS)
    print(shown(seed, found, naive))
    assert all(found[name] <= BETTER * naive[name] for name in found), shown(seed, found, naive)
    check_futures(proved, SPANS, naive)


@pytest.mark.parametrize("seed", SEEDS or (0,))
def test_heads_that_learn_slowly_are_better_too(library: dict[str, Path], seed: int) -> None:
    """A span's value by how hard the text is, and the second next token."""
    presets = [preset_of(library[part], seed, SLOW, 4, 256) for part in ("read", "held_out")]
    proved = trained(*presets, LONG if SEEDS else LONG * 3 // 4, 320)
    naive, found = trivial(proved), losses_of(proved, SLOW)
    print(shown(seed, found, naive))
    assert all(found[name] <= BETTER * naive[name] for name in found), shown(seed, found, naive)
    check_futures(proved, SLOW, naive)
