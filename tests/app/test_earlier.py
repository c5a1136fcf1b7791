"""A model's earlier snapshots as a person meets them: compared, measured, gone back to."""

import fcntl
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from lm.app import partner, run_screen
from lm.app.columns import Answer, in_columns, per_row
from lm.app.commands import CommandError, numbered, seed_in
from lm.app.earlier import heading, moment
from lm.app.menu import ACTIONS
from lm.app.partner import Cast, Partner
from lm.app.past import past_losses, past_sources
from lm.app.terminal import uninterrupted
from lm.app.words import clean, counted
from lm.preset import load_preset
from lm.training import train
from lm.training.headers import Header, listed, read_header
from lm.training.snapshot_evaluation import evaluate_snapshot
from tests.app.conftest import TINY, write_preset
from tests.app.person import KEYS, MAIN, ROOT, Person
from tests.training.test_going_back import flipped

STEP = 8 * 64  # tokens
PROMPT = "The with statement"


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer, grown to two, and stopped in its third run: current, prev, prev2, two ends of runs, and one from before it grew."""
    folder = tmp_path_factory.mktemp("lived")
    shutil.copy(ROOT / "main.py", folder)
    write_preset(folder, "00_best_general", TINY)
    write_preset(folder, "small", {**TINY, "model": {**TINY["model"], "num_layers": 1}})
    (folder / "texts").mkdir()
    for name in ("with", "if", "for", "class", "function", "import"):
        (folder / "texts" / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        small, preset = (load_preset(Path("configs") / f"{name}.json") for name in ("small", "00_best_general"))
        train(small, budget_tokens=12 * STEP)
        train(preset, budget_tokens=12 * STEP)
        often = preset.model_copy(update={"train": preset.train.model_copy(update={"snapshot_every_tokens": 6 * STEP})})
        train(often, observers=[lambda event: steps.append(1) if event["event"] == "step" else None], should_stop=lambda: len(steps) >= 16)
    return folder


@pytest.fixture
def folder(lived: Path, tmp_path: Path) -> Path:
    """The same files under names of its own; only the journal is ever written in place."""
    place = shutil.copytree(lived, tmp_path / "lived", copy_function=os.link)
    for path in (place / "checkpoints").glob("*.jsonl"):
        path.unlink()
        shutil.copy(lived / "checkpoints" / path.name, path)
    return place


def opens(person: Person, action: str) -> None:
    """Choose an entry of the menu, counted from its end."""
    person.waits_for("q quit|❯ ")
    person.types("\x1b[F" + KEYS["up"] * (len(ACTIONS) - 1 - list(ACTIONS).index(action)) + "\r")


def lines(*typed: str) -> str:
    """What is typed, each with Enter, at once."""
    return "".join(f"{line}\r" for line in typed)


def without_blanks(text: str) -> str:
    return "".join(text.split())


def told(folder: Path, kind: str) -> list[dict]:
    return [event for event in map(json.loads, (folder / "checkpoints" / "run.jsonl").read_text().splitlines()) if event["event"] == kind]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_compare_then_go_back_and_train_on(folder):
    """On 80 columns: answers one under the other, each what its own model writes; then prev2 becomes the current one in all that is told."""
    snapshots = listed(folder / "checkpoints")
    assert [each.kind for each in snapshots] == ["current", "prev", "prev2", "run", "run"]
    now, prev, prev2, end, first = (counted(each.header.life_tokens) for each in snapshots)
    exactly = [f"{each.header.life_tokens:,} tokens · {each.header.saved.astimezone():%Y-%m-%d %H:%M:%S}" for each in snapshots]
    with Person(MAIN, folder) as person:
        opens(person, "compare")
        text = person.waits_for("Esc to leave", 10)
        kinds = ("current", "prev", "prev2", "run end", "run end")
        heads = [f" {number} ● {kind} · {words} · " for number, (kind, words) in enumerate(zip(kinds, exactly, strict=True), start=1)]
        shown = [line for line in text.split("\n") if "●" in line][:5]
        assert [line for line, head in zip(shown, heads, strict=True) if not (line.startswith(head) and re.search(r"\d+ (s|min) ago · tiny$", line))] == []
        person.types(lines("/with 1 3 5", "/settings no_repeat_ngram 4", PROMPT))
        text = person.waits_for(r"seed 1 · 3 models in memory", 30)
        heads = [f"current · {exactly[0]}", f"prev2 · {exactly[2]}", f"run end · {exactly[4]}", "seed 1"]
        places = [text.rindex(head) for head in heads]
        assert places == sorted(places)
        for each, start, stop in zip((snapshots[0], snapshots[2], snapshots[4]), places, places[1:], strict=False):
            one = partner.load(each.path)
            settings = one.preset.generation.model_copy(update={"no_repeat_ngram": 4})
            expected = "".join(one.conversation(settings, seed=1).say(PROMPT))
            shown = text[start:stop].split("\n", 1)[1]
            assert without_blanks(shown) == without_blanks(clean(expected)), each.kind

        before = person.raw.count(heads[0])
        person.types(lines("/settings max_new_tokens 9000", "/seed 5", PROMPT))
        person.waits_for(lambda text: person.raw.count(heads[0]) > before and len(person.raw.rpartition(heads[0])[2]) > 300, 20)
        person.types("\x1b")
        person.waits_for(r"\(stopped\)\s+seed 5", 10)
        person.types(lines("/nonsense"))
        person.waits_for("is no command; there are /with", 10)
        person.types("\x1b")

        assert f"{now} tokens in 3 runs" in person.waits_for("q quit", 10)
        opens(person, "back")
        text = person.waits_for(f"current · {exactly[0]}", 10)
        shown = [f"❯ prev    {prev:>5}", f"  prev2   {prev2:>5}", f"  run end {end:>5}", f"  run end {first:>5}", "lm_prev.pth", f"{prev} tokens in 3 runs"]
        assert [words for words in shown if words not in text] == [], text
        person.types("down", "enter")
        assert f"lm_prev2.pth ({prev2} tokens) becomes the current snapshot" in person.waits_for("❯ Stay as it is", 10)
        person.types("enter")
        person.waits_for("❯ prev2", 10)
        person.types("\r\x1b[B\r")
        text = person.waits_for(f"(?s)Gone back to lm_prev2.pth, at {prev2} tokens; what was current is.*q quit", 30)
        assert f"{prev2} tokens in 3 runs · tiny at {counted(snapshots[2].header.run['tokens'])} of 100M" in text
        opens(person, "reading")
        person.waits_for(rf"{prev2} tokens of \d+ documents", 10)
        person.types("q", "\x1b[H", "enter")
        person.waits_for(lambda text: len(told(folder, "resume")) == 3 and told(folder, "step")[-1]["tokens"] != 16 * STEP, 30)
        person.types("ctrl-c")
        person.waits_for("Stopped and saved at", 20)
        person.types("q")
        assert person.ends() == 0 and "Traceback" not in person.raw
    (went_back,) = told(folder, "went_back")
    assert [went_back[place]["life_tokens"] for place in ("from", "to")] == [snapshots[0].header.life_tokens, snapshots[2].header.life_tokens]
    resume = told(folder, "resume")[-1]
    assert resume["life_tokens"] == snapshots[2].header.life_tokens and "; gone back to on 20" in resume["text"]
    assert read_header(folder / "checkpoints" / went_back["kept"]).identity == snapshots[0].header.identity


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_wide_columns_measures_and_a_folder_in_use(folder):
    """On 200 columns: answers side by side, broken off by Ctrl-C; what is missing is measured; going back waits for the run in another window."""
    with Person(MAIN, folder, 200, 50) as person:
        opens(person, "compare")
        person.waits_for("Esc to leave", 10)
        person.types(lines("/settings max_new_tokens 9000", PROMPT))
        tokens = [f"{each.header.life_tokens:,} tokens" for each in listed(folder / "checkpoints")]
        heads = "  +".join(f"{kind} · {read}" for kind, read in zip(("current", "prev", "prev2", "run end", "run end"), tokens, strict=True))
        person.waits_for(heads, 30)
        person.waits_for(lambda text: "loading" not in text and text.rsplit(f"run end · {tokens[4]}", 1)[-1].count("\n") > 4, 30)
        person.types("ctrl-c")
        person.waits_for(r"\(stopped\)\s+seed 1 · [1-5] models? in memory", 10)
        person.types(lines("/with 1 2", "/settings max_new_tokens 5", PROMPT))
        text = person.waits_for(r"seed 2 · ", 20)
        rows = [re.split("   +", line) for line in text.split("\n")]
        place = max(number for number, row in enumerate(rows) if row[0] == f"current · {tokens[0]}")
        moments = [f"{each.header.saved.astimezone():%Y-%m-%d %H:%M:%S}" for each in listed(folder / "checkpoints")[:2]]
        assert rows[place][1:] == [f"prev · {tokens[1]}"] and rows[place + 1] == moments
        person.types("ctrl-d")

        opens(person, "evaluate")
        text = person.waits_for("m measure what is missing", 30)
        row = next(line for line in text.split("what it still knows")[1].split("\n") if line.strip().startswith("texts"))
        now, best, prev, prev2, *ends = row.split()[1:]
        assert (prev, prev2) == ("–", "–") and all(re.fullmatch(r"\d\.\d{3}", each) for each in (now, best, *ends)) and len(ends) == 2
        person.types("m")
        text = person.waits_for(lambda text: "what it still knows" in text and "measure what" not in text, 30)
        row = next(line for line in text.split("what it still knows")[1].split("\n") if line.strip().startswith("texts"))
        expected = [evaluate_snapshot(folder / "checkpoints", which)["sources"]["texts"]["bits_per_byte"] for which in ("current", "prev", "prev2")]
        assert row.split()[1:5] == [f"{bits:.3f}" for bits in (expected[0], min(*expected, *map(float, ends)), *expected[1:])]
        person.types("q")

        person.waits_for("q quit")
        with (folder / "checkpoints" / ".lock").open("ab") as held:
            fcntl.lockf(held, fcntl.LOCK_EX)
            opens(person, "back")
            person.waits_for("❯ prev ", 10)
            person.types("\r\x1b[B\r")
            person.waits_for("another run is using this folder; stop it first", 20)
        assert told(folder, "went_back") == [] and "❯ prev " in person.text
        (folder / "checkpoints" / "lm_prev.pth").unlink()
        (folder / "checkpoints" / "lm_prev.pth").write_bytes(b"cut off")
        person.types("q")
        opens(person, "back")
        person.waits_for("(?s)prev ✗.*is damaged or cut off", 30)
        person.types("enter")
        assert "Stay as it is" not in person.text
        flipped(folder / "checkpoints" / "lm_prev2.pth")  # which only its checksums tell
        on_twenty_columns(person)
        shutil.rmtree(folder / "checkpoints" / "archive")
        for name in ("prev", "prev2"):
            (folder / "checkpoints" / f"lm_{name}.pth").unlink()
        for name, said in (("back", "nothing to go back to yet"), ("compare", "nothing to compare with yet")):
            opens(person, name)
            person.waits_for(said, 10)
        person.types("q")
        assert person.ends() == 0 and "Traceback" not in person.raw


def on_twenty_columns(person: Person) -> None:
    """From the page "Go back" to an answer and the menu; the terminal is wide again then."""
    person.resizes(20, 24)
    person.look(0.7)
    person.types("down", "enter")
    person.waits_for("❯ Stay as it is", 10)
    person.types("q", "q")
    opens(person, "compare")
    person.waits_for("Esc to leave", 10)
    person.types(lines("/with 1 2", PROMPT))
    person.waits_for(r"(?s)current · .*prev2 · .*does\s+not\s+match\s+its\s+checksum.*seed 1 · 1 model in.*›", 20)
    person.types(lines("/quit"))
    person.waits_for("❯ ")
    person.resizes(200, 50)
    person.look(0.7)


@pytest.mark.timeout(90)
def test_the_newest_whole_one_answers_where_the_current_one_is_damaged_or_gone(folder):
    """As a run would go on from it; and each screen says so."""
    current, (now, prev, *_) = folder / "checkpoints" / "lm_current.pth", listed(folder / "checkpoints")
    flipped(current)
    with Person(MAIN, folder, 120, 30) as person:
        opens(person, "chat")
        text = person.waits_for("›", 30)
        assert "lm_current.pth: is damaged" in text and f"prev snapshot · {counted(prev.header.life_tokens)} tokens read" in text
        person.types(lines("/snapshot current"))
        person.waits_for("(?s)is damaged.*is damaged", 10)
        person.types(lines("/quit"))
        current.unlink()
        person.waits_for(f"born .*{counted(now.header.life_tokens)} tokens in 3 runs", 10)
        opens(person, "evaluate")
        text = person.waits_for("what it still knows", 30)
        assert "lm_current.pth: is missing; taking the one before" in text and counted(prev.header.life_tokens) in text.split("what it still knows")[1]
        person.types("q")
        for path in (folder / "checkpoints").glob("lm_*.pth"):
            path.unlink()
        opens(person, "chat")
        person.waits_for("There is no model yet", 10)
        person.types("q")
        assert person.ends() == 0 and "Traceback" not in person.raw


def test_the_journal_is_read_by_the_life_that_goes_on(tmp_path):
    """What was learned and read after the place that was gone back to is no part of this life, nor of its curve and its list of sources."""
    about = {"documents": 3, "epoch": 0, "state": "reading"}
    events = [{"event": "step", "tokens": at, "life_tokens": 100 + at, "loss": at, "sources": {"left": {"tokens": at, **about}}} for at in (10, 20, 30, 40)]
    events += [{"event": "went_back", "from": {"life_tokens": 140}, "to": {"life_tokens": 120}}]
    journal = tmp_path / "run.jsonl"
    journal.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert past_sources(journal) == {}
    events += [{"event": "step", "tokens": at, "life_tokens": 100 + at, "loss": -at, "sources": {"new": {"tokens": at, **about}}} for at in (25, 35, 45)]
    journal.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert list(past_losses(journal, 45, 145)) == [(10, 10), (20, 20), (25, -25), (35, -35), (45, -45)]
    assert list(past_sources(journal)) == ["new"]


def test_the_line_of_a_finished_run_says_what_was_forgotten(folder, monkeypatch):
    checkpoints = folder / "checkpoints"
    monkeypatch.setattr(run_screen, "CHECKPOINTS", checkpoints)
    assert run_screen._forgotten() == "", "this run is not at its end"
    (end,) = (each for each in listed(checkpoints) if each.kind == "run" and each.header.life_tokens == 24 * STEP)
    end.path.replace(checkpoints / "lm_current.pth")
    assert run_screen._forgotten() == "; nothing forgotten"
    (checkpoints / "lm_current.pth").unlink()
    assert run_screen._forgotten() == ""


def test_an_import_is_not_broken_off():
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def header(name: str, size: int = 1000) -> Header:
    return Header(Path(name), size, datetime(2026, 11, 20, tzinfo=UTC), "p", {"tokens": 5}, {}, {"weights.model.w": (10, 10)}, name, {})


def test_models_stay_loaded_while_there_is_room(monkeypatch):
    loaded: list[str] = []
    monkeypatch.setattr(partner, "load", lambda path: loaded.append(path.name) or Partner(None, len(loaded), None, None))
    monkeypatch.setattr(partner, "free_memory", lambda: 2 * (1000 + 400))
    cast = Cast()
    first = [cast.partner(header(name)).tokens for name in "abcab"]
    assert first == [1, 2, 3, 1, 2] and loaded == ["a", "b", "c"] and cast.size == (3, 1200)
    monkeypatch.setattr(partner, "free_memory", lambda: 2 * (1000 + 400) - 1)
    assert [cast.partner(header(name)).tokens for name in "ada"] == [1, 4, 5]
    assert loaded == ["a", "b", "c", "d", "a"] and cast.size == (1, 400)


@pytest.mark.parametrize("width", [110, 200])
def test_snapshots_of_one_evening_late_in_a_life_can_be_told_apart(width):
    """Three within a minute, after more than a billion tokens: by their heads, on a narrow and on a wide screen."""
    evening = datetime(2026, 11, 20, 21, 5, tzinfo=UTC)
    taken = [replace(header("x"), life={"tokens": 1_201_840_128 + 4096 * each}, saved=evening + timedelta(seconds=20 * each)) for each in range(3)]
    heads = [heading("run", each) for each in taken]
    assert len(set(heads)) == 3 and all(len(head) <= 60 and f"{each.life_tokens:,}" in head for head, each in zip(heads, taken, strict=True))
    shown = in_columns([Answer("run", each, "words") for each in taken], width).plain
    assert all(f"run end · {each.life_tokens:,} tokens" in shown and moment(each) in shown for each in taken)


@pytest.mark.parametrize(("count", "width", "across"), [(1, 200, 1), (3, 200, 3), (4, 200, 4), (6, 200, 3), (3, 120, 3), (4, 120, 2), (3, 109, 1), (3, 20, 1)])
def test_answers_stand_side_by_side_where_there_is_room(count, width, across):
    assert per_row(count, width) == across
    answers = [Answer("run", header("x"), "words 東京 \x1b[2J and more \n\n" * number) for number in range(count)]
    lines = in_columns(answers, width).plain.split("\n")
    assert len(lines) < 900 and not any("\x1b" in line for line in lines)
    assert in_columns(answers, width, 7).plain.split("\n") == lines[-7:]


def test_commands_of_a_comparison():
    assert numbered(("3", "1", "3"), 3) == [2, 0] and seed_in(("07",)) == 7
    for words in (("4",), ("0",), ("x",), ("-1",), ("²",)):
        with pytest.raises(CommandError, match="numbers from 1 to 3"):
            numbered(words, 3)
    for words in ((), ("1", "2"), ("x",), ("9" * 30,)):
        with pytest.raises(CommandError, match="write /seed NUMBER"):
            seed_in(words)
