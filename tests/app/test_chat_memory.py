"""A memory as a person meets it in chat: passages under the answers, searched, switched off, gone or damaged; at any width, whatever stands in them."""

import json
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
GREEDY = {"temperature": 0, "max_new_tokens": 12}
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
    often = {"precision": "float32", "snapshot_every_tokens": 10 * STEP, "sample_every_tokens": 10**9, "evaluate_every_tokens": 10**9, "eval_tokens": 0}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        train(preset.model_copy(update={"train": preset.train.model_copy(update=often)}), budget_tokens=steps * STEP)
    return folder


@pytest.fixture(scope="module")
def attending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tmp_path_factory.mktemp("attending"), 64, retro=RETRO)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a memory and no unit, taught on questions with their answers."""
    folder = tmp_path_factory.mktemp("reading")
    rows = [{"question": f"What does the reference say of {name}?", "answer": text[:300]} for name, text in list(topics.items())[:60]]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"type": "files", "path": "./asked.jsonl", "repeat": True, "fields": ["question", "answer"], "format": "Q: {question}\nA: {answer}"}
    memory = RETRO | {"add_cross_attention": False, "chunk_size": 16}
    return taught(folder, 40, retro=memory, data={**TINY["data"], "sources": [source]})


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
    settings = one.preset.generation.model_copy(update=GREEDY)
    return without_blanks(clean("".join(one.conversation(settings).say(message)))) or "(nowords)"


@pytest.mark.timeout(120)
def test_passages_searching_switching_off_and_an_earlier_memory(attending: Path, here: Any) -> None:
    now, before = here(attending), here(attending, "prev")
    assert before.memory.lookup.length < now.memory.lookup.length
    with Person(MAIN, attending) as person:
        opens(person, "chat")
        person.waits_for("›", 30)
        person.types(lines(*SETTINGS, "/reset", "The statement"))
        text = last_turn(person.waits_for(r"(?s)› The statement\n.*▪ texts · \w+\.txt, row 1: The .*\n›\s*$", 20), "The statement")
        answer, _, passages = text.partition("(max_new_tokens reached")
        assert without_blanks(answer) == expected(now, "The statement")
        assert 1 <= passages.count(MARK) <= 4 and "\x1b" not in passages

        person.types(lines(f"/memory {ASKED}"))
        text = last_turn(person.waits_for(rf"(?s)› /memory {ASKED[:40]}.*▪ .*\n›\s*$", 10), "/memory")
        found = now.found(ASKED)
        assert "▪ texts · with.txt, row 1" in text and all(without_blanks(now.text(passage.tokens)) in without_blanks(text) for passage in found)
        assert len(found) == 2, "each once, though the files were read again and again"

        person.types(lines("/memory off"))
        text = last_turn(person.waits_for(r"(?s)› /memory off.*reached.*\n›\s*$", 20), "/memory off")
        about, _, text = text.partition("answered again:")
        assert "The memory is off; your last words are " in about and MARK not in text
        assert without_blanks(text.partition("(max_new_tokens reached")[0]) == expected(now._replace(memory=None), "The statement")
        assert expected(now._replace(memory=None), "The statement") != expected(now, "The statement"), "else nothing would be compared"

        person.types(lines("/snapshot prev", "/reset", "The statement"))
        text = last_turn(person.waits_for(r"(?s)prev snapshot.*› The statement\n.*reached.*\n›\s*$", 20), "The statement")
        assert MARK not in text, "it stays off"
        person.types(lines("/memory on", "/reset", "The statement"))
        text = last_turn(person.waits_for(r"(?s)memory is on.*› The statement\n.*▪ .*\n›\s*$", 20), "The statement")
        assert without_blanks(text.partition("(max_new_tokens reached")[0]) == expected(before, "The statement")

        person.types(lines("/settings max_new_tokens 9000"))
        person.waits_for(r"planner\.piece_length .*\n\n›\s*$", 10)  # the end of what it shows
        person.types(lines("The statement is"))
        person.waits_for(lambda text: len(text.rpartition("›")[2]) > 400, 20)
        person.types("ctrl-c")
        person.waits_for(r"(?s)\(stopped; .*▪ texts.*\n›\s*$", 10)
        person.types(lines("/memory", "/quit"))
        person.waits_for("q quit", 10)
        person.types("q")
        assert person.ends() == 0 and "Traceback" not in person.raw
        assert "write /memory and some words" in person.raw


@pytest.mark.slow
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
        assert "texts·evil.txt,row1:hostile" in first and "texts·evil.txt,row1:hostile" in second and "they" in second.partition("▪")[2]
        raw = person.raw[begun:]
        assert not any(evil in raw for evil in ("\x1b[2J", "\x1b]0", "owned\x07", "\x9b", "\u202e"))
        person.types(lines("/settings max_new_tokens 5", "hostile"))
        person.waits_for(r"(?s)▪ .*\n›\s*$", 10)
        person.types(lines("/quit"))
        person.waits_for("❯ ")
        assert "Traceback" not in person.raw


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_memory_that_is_gone_or_damaged_is_said_once_and_the_model_talks(attending: Path, tmp_path: Path) -> None:
    gone, cut = copied(attending, tmp_path / "gone"), copied(attending, tmp_path / "cut")
    shutil.rmtree(gone / "checkpoints" / MEMORY)
    (chunks,) = (cut / "checkpoints" / MEMORY).glob("*.chunks")
    os.truncate(chunks, chunks.stat().st_size // 2)
    for folder, at_once in ((gone, True), (cut, False)):
        with Person(MAIN, folder, 120, 60) as person:
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


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_compared_each_answers_with_the_memory_of_its_time(attending: Path, tmp_path: Path, here: Any) -> None:
    """Also where the memory is gone, which is said of each."""
    written = {}
    for which in ("current", "prev"):
        one = here(attending, which)
        written[which] = without_blanks(clean("".join(one.conversation(one.preset.generation.model_copy(update=GREEDY), 1).say("The statement"))))
    gone = copied(attending, tmp_path / "gone")
    shutil.rmtree(gone / "checkpoints" / MEMORY)
    for folder, troubles in ((attending, 0), (gone, 2)):
        with Person(MAIN, folder, 100, 40) as person:
            opens(person, "compare")
            person.waits_for("Esc to leave", 10)
            person.types(lines(*SETTINGS, "/with 1 2", "The statement"))
            text = last_turn(person.waits_for(r"(?s)seed 1 · 2 models in memory", 30), "The statement")
            assert text.count("without its memory: checkpoints/memory") == troubles
            found = [without_blanks(part.split("\n", 1)[1]) for part in text.split("prev · ")[:2]]
            assert troubles or (written["current"] in without_blanks(text.split("prev · ")[0]) and found[1].startswith(written["prev"]))
            person.types(lines("/quit"))
            person.waits_for("q quit", 10)
            assert "Traceback" not in person.raw


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_model_without_the_unit_reads_passages_before_the_question(reading: Path, here: Any) -> None:
    """On the same screen; they are gone with the next question, and switched off there are none."""
    one, topic = here(reading), list(topics)[7]
    question = f"What does the reference say of {topic}?"
    conversation = one.conversation(one.preset.generation.model_copy(update=GREEDY))
    answer = conversation.say(question)
    written = "".join(answer)
    conversation.settle(answer)
    text, passages = one.tokenizer.decode(conversation.tokens), conversation.passages
    assert f"\n\nQ: {question}\nA:" in text
    assert 1 <= len(passages) <= 2 and sum(len(passage.tokens) for passage in passages) <= one.preset.model.seq_length // 2
    assert any(topic in one.text(passage.tokens) for passage in passages)
    with Person(MAIN, reading, 100, 30) as person:
        opens(person, "chat")
        assert "Q: ... A: ..." in person.waits_for("›", 30)
        person.types(lines(*SETTINGS, question))
        shown = last_turn(person.waits_for(r"(?s)reached.*▪ asked.*\n›\s*$", 20), question)
        assert without_blanks(shown.partition("(max_new_tokens")[0]) == (without_blanks(clean(written)) or "(nowords)")
        assert shown.count(MARK) == len(passages) and "asked.jsonl, row " in shown
        assert all(without_blanks(one.text(passage.tokens)) in without_blanks(shown) for passage in passages)
        person.types(lines("/memory off", "/reset", question))
        shown = last_turn(person.waits_for(r"(?s)is off.*› What.*reached.*\n›\s*$", 20), question)
        assert MARK not in shown and without_blanks(shown.partition("(max_new_tokens")[0]) == expected(one._replace(memory=None), question)
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
