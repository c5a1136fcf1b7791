"""Models that fill gaps as a person meets them: what they write for whom, what the screens say of them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from rich.console import Console

from lm.app.columns import Answer
from lm.app.compare_screen import Comparison
from lm.app.evaluate_screen import MEANING, PSEUDO, _page
from lm.app.facts import Facts
from lm.app.forgetting import panel_of
from lm.app.panels import held_out_line, held_out_table
from lm.preset import Preset
from lm.training import train
from lm.training.headers import listed

STEP = 4 * 64  # tokens
UL2 = {"train": {"objective": "ul2"}}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with checkpoints/ in it, of a model that took some steps."""
    corpus = tmp_path_factory.mktemp("corpus") / "topics.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in topics.values()), encoding="utf-8")

    def folder(name: str, steps: int = 4, **sections: Any) -> Path:
        raw: dict[str, dict[str, Any]] = {
            "model": {"hidden_size": 24, "num_layers": 1, "num_heads": 2, "seq_length": 64},
            "train": {"per_gpu_batch_size": 4, "learning_rate": 0.01, "eval_tokens": 600},
            "data": {"sources": [{"type": "files", "name": "reference", "path": str(corpus), "repeat": True}], "vocab_size": 400},
            "generation": {"max_new_tokens": 6},
        }
        preset = Preset.model_validate({"name": name} | {key: raw.get(key, {}) | sections.get(key, {}) for key in raw.keys() | sections.keys()})
        place = tmp_path_factory.mktemp(name)
        train(preset, place / "checkpoints", steps * STEP)
        return place

    return folder


@pytest.fixture(scope="module")
def gapped(taught: Callable[..., Path]) -> Path:
    """Of a model that was taught R, S and X."""
    return taught("gapped", **UL2)


@pytest.fixture
def console() -> Iterator[Console]:
    with open("/dev/null", "w") as nowhere:
        yield Console(file=nowhere, record=True, width=80)


def test_a_comparison_says_that_there_are_too_many_gaps(gapped: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(gapped)
    (current, *_) = listed(Path("checkpoints"))
    answer = Answer(current.kind, current.header)
    assert list(Comparison(console)._begun(answer, "a ___ " * 101)) == []
    assert answer.note == "101 gaps, and the model knows 100; leave fewer"


def measured(**more: Any) -> dict[str, Any]:
    figures = {"cross_entropy": 3.0, "perplexity": 20.1, "bits_per_byte": 1.4, "tokens": 900}
    return {"event": "evaluation", **figures, **more, "sources": {"reference": figures | more}}


def test_figures_by_both_sides_are_named_so(console: Console) -> None:
    facts = Facts()
    facts(measured(pseudo=True))
    panel = panel_of(measured(pseudo=True)["sources"], None, [], {})
    console.print(_page(measured(pseudo=True), panel, [])(80), *held_out_table(facts, 60, 9), *held_out_line(facts, 80), sep="\n")
    shown = console.export_text()
    assert (
        shown.count("pseudo-perplexity") == 3
        and "pseudo-bits/byte" in shown
        and shown.count("pseudo-bits per byte") == 1
        and PSEUDO in shown
        and MEANING not in shown
    )
    assert "held-out text, pseudo" in shown and "pseudo-bits per byte" in facts.log[-1].text
    console.print(_page(measured(), panel, [])(80))
    assert "pseudo" not in console.export_text()


def test_losses_of_denoisers_stand_with_the_held_out_figures(console: Console) -> None:
    facts, told = Facts(), measured(denoisers={"R": 3.25, "X": 4.125})
    facts(told)
    console.print(_page(told, panel_of(told["sources"], None, [], {}), [])(80))
    assert "gaps  R 3.250, X 4.125" in console.export_text()
    assert [line.plain.split() for line in held_out_table(facts, 60, 9)][-1] == ["gaps", "R", "3.250,", "X", "4.125"]
