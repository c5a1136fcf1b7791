"""What it has read: the page of the model's whole life, from life.json or, failing that, from the journal."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from rich.text import Text

from lm.app.life import read_life
from lm.app.pager import drawn
from lm.app.reading import SourceReading, read_reading, when
from lm.app.reading_screen import page
from tests.app.events import HOSTILE, whole_run
from tests.app.person import MAIN, Person

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LIFE = {"born": "2026-11-18T10:00:00+00:00", "runs": 2, "life_tokens": 4000, "last_preset": "best_qa", "run_tokens": 1000, "budget": 100_000_000}
LIFE |= {"vocab_size": 600, "sources": {"wikipedia": 3000, "books": 1000}}
READ = {"wikipedia": {"documents": 70, "epochs": 1, "last_error": "no route", "last_error_at": "2026-11-20T09:00:00+00:00"}}


def write(folder, life=None, events=()):
    (folder / "lm_current.pth").write_bytes(b"")
    if life is not None:
        (folder / "life.json").write_text(json.dumps(life))
    (folder / "run.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "step", "to')


def shown(folder, width=78, now=NOW):
    return "\n".join(line.plain for line in page(read_life(folder), read_reading(folder), width, now))


def test_life_is_told_by_its_own_file(tmp_path):
    write(tmp_path, LIFE | {"read": READ | {"pages": {"documents": 0, "last_error": "gated", "last_error_at": None}}})
    first, second, third = read_reading(tmp_path)
    assert first == SourceReading("wikipedia", 3000, 70, 1, "", "no route", "2026-11-20T09:00:00+00:00")
    assert second == SourceReading("books", 1000) and third == SourceReading("pages", last_error="gated")
    text = shown(tmp_path)
    assert "4,000 tokens of 70 documents since 2026-11-18" in text and "last error 3 h 0 min ago: no route" in text
    assert next(line for line in text.splitlines() if "wikipedia" in line).split() == ["wikipedia", "70", "3,000", "75%", "2", "in", "earlier", "runs"]


def test_without_it_the_journal_tells(tmp_path):
    run = list(whole_run(6_000_000))
    early = {"event": "run", "sources": ["old"]}
    about = {"tokens": 9, "documents": 2, "epoch": 0, "state": "finished"}
    before = [
        early,
        {"event": "source", "name": "old", "state": "waiting", "reason": "a fault"},
        {"event": "step", "life_tokens": 9, "sources": {"old": about}},
    ]
    write(tmp_path, {key: value for key, value in LIFE.items() if key != "sources"}, [*before, *run])
    by_name = {reading.name: reading for reading in read_reading(tmp_path)}
    last = [event for event in run if event["event"] == "step"][-1]["sources"]
    for name, told in last.items():
        reading = by_name[name]
        assert (reading.tokens, reading.documents, reading.epochs, reading.state) == (told["tokens"], told["documents"], told["epoch"], told["state"])
    assert by_name["fineweb_edu"].last_error == "no route to huggingface.co" and by_name["fineweb_edu"].last_error_at == "after 2.00M tokens"
    assert by_name["old"] == SourceReading("old", 9, 2, 0, "", "a fault", "after 0 tokens")
    text = shown(tmp_path)
    assert "● waiting" in text and "last error after 2.00M tokens: no route to huggingface.co" in text and "in earlier runs" in text


@pytest.mark.parametrize("broken", ["", "{", "[]", "null", '{"sources": 5}', '{"sources": {"a": "x"}}', '{"sources": {"a": 1}, "read": {"a": 5}}'])
def test_what_is_damaged_is_passed_over(tmp_path, broken):
    write(tmp_path)
    (tmp_path / "life.json").write_text(broken)
    (tmp_path / "run.jsonl").write_text('[1]\n{"event": "step", "sources": 3}\n\x00\n{"event": "source"}\n{"event": "step", "sources": {"a": 1}}\n')
    assert read_reading(tmp_path) == []
    assert "Nothing is known" in shown(tmp_path)


def hostile(folder, count=40):
    names = [HOSTILE.replace("\ud800", ""), "x" * 300, "東京" * 40, "\x1b[31m", *(f"source {number}" for number in range(count))]
    about = {"documents": 10**9, "epochs": 3, "last_error": names[0] * 9, "last_error_at": names[0]}
    write(folder, LIFE | {"sources": dict.fromkeys(names, 10**12), "read": dict.fromkeys(names, about)})


@pytest.mark.parametrize("width", [1, 18, 43, 78, 118, 300])
def test_any_width_and_hostile_names(tmp_path, width):
    hostile(tmp_path)
    lines = page(read_life(tmp_path), read_reading(tmp_path), width, NOW)
    drawing = drawn(Text("\n").join(lines), width)
    text = "\n".join("".join(part for _, part in line) for line in drawing)
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text and "\x9b" not in text and "owned" not in text
    assert width < 18 or all(line.cell_len <= width for line in lines) and len(drawing) == len(lines)


def test_when():
    ago = NOW - timedelta(days=2, hours=5, minutes=3)
    assert when(ago.isoformat(), NOW) == "2 d 5 h ago" and when("after 5 tokens", NOW) == "after 5 tokens"
    assert when("2026-11-20", NOW) == "2026-11-20"  # a date that names no time zone


def test_it_is_a_page_of_the_menu(folder):
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    hostile(checkpoints)
    with Person(MAIN, folder) as person:
        person.waits_for("q quit")
        person.goes_to("What it has read")
        assert "There is no model" not in person.text
        person.types("enter")
        text = person.waits_for("lines 1 to 21 of ")
        assert "documents   tokens  share epoch" in text and "owned" not in person.raw
        person.types("\x1b[F")
        assert "source 9" in person.text and "lines 1 to" not in person.text
        person.resizes(40, 10)
        person.look(0.7)
        assert "tokens (2%)" in person.text
        person.types("q")
        person.waits_for("❯ ")
        (checkpoints / "lm_current.pth").unlink()
        person.goes_to("What it has read")
        person.types("enter")
        person.waits_for("no model yet")
