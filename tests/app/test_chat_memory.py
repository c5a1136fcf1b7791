"""A memory as a person meets it in chat: passages under the answers, searched, switched off, gone or damaged; at any width, whatever stands in them."""

import os
import shutil
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest

from lm.app import partner
from lm.app.chat_screen import passage_lines
from lm.app.words import clean, one_line
from lm.memory.memory import Passage
from lm.preset import load_preset
from lm.training import train
from lm.training.remembering import MEMORY
from tests.app.conftest import TINY, write_preset
from tests.app.person import MAIN, ROOT, Person
from tests.app.test_earlier import lines, opens, without_blanks

STEP = 8 * 64  # tokens
ASKED = "is used to wrap the execution of a block with methods defined by a context manager"
MARK = "▪ "
EVIL = "hostile words \x1b]0;owned\x07 \x1b[2J \x9b31m [red]and[/] " + "longword" * 60 + " \u202e東京 here they end"
RETRO = {"enabled": True, "chunk_size": 8, "layers": "all", "encoder_layers": 1}
SETTINGS = ("/settings temperature 0", "/settings max_new_tokens 12")


def taught(folder: Path, steps: int, **sections: Any) -> Path:
    """A model that has read some of Python's reference, and a hostile file of a hostile name; three snapshots, ten steps apart."""
    shutil.copy(ROOT / "main.py", folder)
    write_preset(folder, "00_best_general", {**TINY, **sections})
    (folder / "texts").mkdir()
    for name in ("with", "if", "for", "class"):
        (folder / "texts" / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    (folder / "texts" / "evil\x1b[2J\x07.txt").write_text(EVIL, encoding="utf-8")
    preset = load_preset(folder / "configs" / "00_best_general.json")
    often = {"snapshot_every_tokens": 10 * STEP, "sample_every_tokens": 10**9, "evaluate_every_tokens": 10**9, "eval_tokens": 0}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        train(preset.model_copy(update={"train": preset.train.model_copy(update=often)}), budget_tokens=steps * STEP)
    return folder


@pytest.fixture(scope="module")
def attending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tmp_path_factory.mktemp("attending"), 24, retro=RETRO)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a memory and no unit, taught on questions with answers as far as its frame goes."""
    framed = {"type": "files", "path": "./texts", "repeat": True, "format": "Q: {text}\nA: {more}"}
    data = {**TINY["data"], "sources": [framed]}
    return taught(tmp_path_factory.mktemp("reading"), 12, retro=RETRO | {"add_cross_attention": False, "num_neighbors": 4}, data=data)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Snapshots of a folder as the program in it would load them."""

    def load(folder: Path, which: str = "current") -> partner.Partner:
        monkeypatch.setattr(partner, "CHECKPOINTS", folder / "checkpoints")
        return partner.load(folder / "checkpoints" / f"lm_{which}.pth")

    return load


def copied(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place))


def last_turn(text: str, asked: str) -> str:
    """What stands on the screen below the last time that something was typed."""
    return text.rsplit(f"› {asked}", 1)[1]


def expected(one: partner.Partner, message: str) -> str:
    """The answer without the likes of a screen."""
    settings = one.preset.generation.model_copy(update={"temperature": 0, "max_new_tokens": 12})
    return without_blanks(clean("".join(one.conversation(settings).say(message))))


@pytest.mark.timeout(120)
def test_passages_searching_switching_off_and_an_earlier_memory(attending: Path, here: Any) -> None:
    now, before = here(attending), here(attending, "prev2")
    assert before.memory.lookup.length < now.memory.lookup.length
    with Person(MAIN, attending) as person:
        opens(person, "chat")
        person.waits_for("›", 30)
        person.types(lines(*SETTINGS, "/reset", "The statement"))
        text = last_turn(person.waits_for(r"(?s)› The statement\n.*▪ texts · \w+\.txt, row 1\n.*\n›\s*$", 20), "The statement")
        answer, _, passages = text.partition("(max_new_tokens reached")
        assert without_blanks(answer) == expected(now, "The statement")
        assert 1 <= passages.count(MARK) <= 4 and "\x1b" not in passages

        person.types(lines(f"/memory {ASKED}"))
        text = last_turn(person.waits_for(rf"(?s)› /memory {ASKED[:40]}.*▪ .*\n›\s*$", 10), "/memory")
        found = now.found(ASKED)
        assert "▪ texts · with.txt, row 1" in text and all(without_blanks(now.text(passage.tokens)) in without_blanks(text) for passage in found)
        assert len(found) == 2, "each once, though the files were read again and again"

        person.types(lines("/memory off", "/reset", "The statement"))
        text = last_turn(person.waits_for(r"(?s)memory is off.*› The statement\n.*reached.*\n›\s*$", 20), "The statement")
        assert MARK not in text
        assert without_blanks(text.partition("(max_new_tokens reached")[0]) == expected(now._replace(memory=None), "The statement")
        assert expected(now._replace(memory=None), "The statement") != expected(now, "The statement"), "else nothing would be compared"

        person.types(lines("/snapshot prev2", "/reset", "The statement"))
        text = last_turn(person.waits_for(r"(?s)prev2 snapshot.*› The statement\n.*reached.*\n›\s*$", 20), "The statement")
        assert MARK not in text, "it stays off"
        person.types(lines("/memory on", "/reset", "The statement"))
        text = last_turn(person.waits_for(r"(?s)memory is on.*› The statement\n.*▪ .*\n›\s*$", 20), "The statement")
        assert without_blanks(text.partition("(max_new_tokens reached")[0]) == expected(before, "The statement")

        person.types(lines("/settings max_new_tokens 9000", "The statement is"))
        person.waits_for(lambda text: len(text.rpartition("›")[2]) > 400, 20)
        person.types("ctrl-c")
        person.waits_for(r"(?s)\(stopped; .*▪ texts.*\n›\s*$", 10)
        person.types(lines("/memory", "/quit"))
        person.waits_for("q quit", 10)
        person.types("q")
        assert person.ends() == 0 and "Traceback" not in person.raw
        assert "write /memory and some words" in person.raw


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("width", "height"), [(20, 40), (200, 50)])
def test_hostile_passages_at_any_width(attending: Path, width: int, height: int) -> None:
    with Person(MAIN, attending, width, height) as person:
        opens(person, "chat")
        person.waits_for("›", 30)
        begun = len(person.raw)
        person.types(lines("/memory hostile words", "/memory 東京 here they end"))
        text = without_blanks(person.waits_for(r"(?s)東京.*▪ .*\n›\s*$", 10))
        first, second = text.split("›/memory")[1:3]
        assert "texts·evil.txt,row1hostile" in first and "texts·evil.txt,row1" in second and "they" in second.partition("▪")[2]
        raw = person.raw[begun:]
        assert not any(evil in raw for evil in ("\x1b[2J", "\x1b]0", "owned\x07", "\x9b", "\u202e"))
        person.types(lines("/settings max_new_tokens 5", "hostile"))
        person.waits_for(r"(?s)▪ .*\n›\s*$", 10)
        person.types(lines("/quit"))
        person.waits_for("❯ ")
        assert "Traceback" not in person.raw


@pytest.mark.timeout(120)
def test_a_memory_that_is_gone_or_damaged_is_said_once_and_the_model_talks(attending: Path, tmp_path: Path) -> None:
    gone, cut = copied(attending, tmp_path / "gone"), copied(attending, tmp_path / "cut")
    shutil.rmtree(gone / "checkpoints" / MEMORY)
    (chunks,) = (cut / "checkpoints" / MEMORY).glob("*.chunks")
    os.truncate(chunks, chunks.stat().st_size // 2)
    for folder, at_once in ((gone, True), (cut, False)):
        with Person(MAIN, folder, 120, 30) as person:
            opens(person, "chat")
            text = person.waits_for("›", 30)
            assert ("without its memory: " in text) == at_once
            person.types(lines("/settings max_new_tokens 5", "The statement", "and on", "/memory words"))
            text = person.waits_for(r"(?s)› /memory words\n.*\n›\s*$", 20)
            said = [line for line in text.split("\n") if "without its memory: checkpoints/memory" in line]
            assert len(said) == 1 + at_once and "(max_new_tokens reached" in last_turn(text, "and on") and MARK not in text
            person.types(lines("/quit"))
            person.waits_for("q quit", 10)
            assert "Traceback" not in person.raw


@pytest.mark.parametrize("width", [1, 20, 80, 200])
def test_whatever_stands_in_a_passage_stays_in_its_lines(width: int) -> None:
    passage = Passage(EVIL, f"{EVIL}.pdf, page 3", np.zeros(0, np.int64))
    drawn = passage_lines(passage, one_line(EVIL), width, 3)
    assert len(drawn) == 6 and all(line.cell_len <= max(width, 3) for line in drawn)
    text = "".join(line.plain for line in drawn)
    assert text.isprintable() and (width == 1 or "[red]and[/]" in text.replace(" ", "")) and "\u202e" not in text
