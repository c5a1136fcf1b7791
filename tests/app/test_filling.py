"""Models that fill gaps as a person meets them: what they write for whom, what the screens say of them."""

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from rich.console import Console

from lm.app import chat_screen
from lm.app.columns import Answer
from lm.app.compare_screen import Comparison
from lm.app.details import details
from lm.app.evaluate_screen import MEANING, PSEUDO, _page
from lm.app.facts import Facts
from lm.app.forgetting import panel_of
from lm.app.panels import held_out_line, held_out_table
from lm.app.shelf import Shelved
from lm.generation.infilling import Filling, Piece
from lm.preset import Preset
from lm.preset.generation import GenerationConfig
from lm.training import train
from lm.training.headers import listed
from tests.app.events import opening, step

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


def test_what_is_filled_has_a_colour_and_a_cut_is_told(gapped: Path, console: Console, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(gapped)
    monkeypatch.setattr(chat_screen, "unechoed", contextlib.nullcontext)  # there is no terminal
    told = Console(file=console.file, record=True, width=80, force_terminal=True, color_system="standard")
    chat = chat_screen.Chat(told, chat_screen.talk_with("current", GenerationConfig()))
    chat._stream(Filling(["The", " statement"], iter([Piece(0, " if"), Piece(0, "", is_cut=True)])))
    assert "The \x1b[32mif\x1b[39m statement" in capsys.readouterr().out
    assert "(max_new_tokens reached)" in told.export_text(), "and not that an empty line lets it go on"
    chat.console = console  # of no colours
    chat._stream(Filling(["The", ""], iter([Piece(0, " if")])))
    assert "The if" in capsys.readouterr().out
    chat._obey("/help", ())
    shown = console.export_text()
    assert "___" in shown and "max_new_tokens reached" not in shown


def test_denoisers_of_a_stage_that_is_over_are_shown_no_more() -> None:
    facts = Facts()
    for event in opening(["reference"]):
        facts(event)
    told = {**step(1, 4096, random.Random(1)), "losses": {"next_token": 3.0, "ul2_R": 3.0}, "sources": {}}
    facts(told)
    assert facts.denoisers == {"R": 3.0}
    facts({"event": "stage", "text": "from now on it learns the next token"})
    facts(told | {"losses": {"next_token": 2.0}})
    assert facts.denoisers == {} and facts.log[-1].text == "from now on it learns the next token"


def test_the_menu_tells_what_a_preset_learns() -> None:
    raw = {"name": "a", "data": {"sources": ["c4"]}, "ul2": {"objective_probabilities": {"R": 0.2, "S": 0.6}}}
    raw["train"] = {"objective": "ul2", "objectives": [{"until_tokens": 1_000_000, "objective": "clm"}]}
    shown = "".join(text for _, text in details(Shelved(Path("a.json"), Preset.model_validate(raw), ""), 120, None))
    assert "learns      the next token until 1,000,000 tokens, then by denoisers (R 25%, S 75%)\n" in shown
