"""Text that streams: whole words, no line too long, nothing lost."""

import io
import random
import re
import sys

import pytest
from rich.cells import cell_len

from lm.app.flow import Lines, flow
from tests.app.person import Person

PROSE = "The first of the two rivers was used for trade,  and in the end the people (most of them) went on to well-known places.\n\n  def f(x):\n    return x\n"
MIXED = f"{PROSE} 東京は日本の首都である。Tokyo, 東京 🌱 and " + "x" * 95 + " e\u0301a\u0308 end"


def streamed(text: str, width: int, chance: random.Random) -> list[str]:
    """What `Lines` gives for `text` in pieces of random length."""
    lines, out = Lines(lambda: width), []
    while text:
        size = chance.randint(1, 9)
        out.append(lines.add(text[:size]))
        text = text[size:]
    return [*out, lines.rest()]


@pytest.mark.parametrize("width", [1, 2, 7, 20, 40, 80, 500])
@pytest.mark.parametrize("text", ["", "word", PROSE, MIXED, "x" * 300, "東京" * 50, " " * 90 + "a", "\n\n\n", "a\tb"])
def test_lines_fit_and_nothing_is_lost(text, width):
    chance = random.Random(width)
    whole = "".join(streamed(text, width, chance))
    assert all(cell_len(line) <= max(width, 2) for line in whole.split("\n"))
    assert "".join(whole.split()) == "".join(text.split())
    assert whole == "".join(streamed(text, width, chance)), "the pieces make no difference"


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_word_is_cut_that_fits_a_line(width):
    shown = "".join(streamed(PROSE, width, random.Random(1)))
    assert shown.split() == PROSE.split()
    assert "\n    return x\n" in shown  # the blanks before a line stay


def test_only_the_unfinished_word_waits():
    lines = Lines(lambda: 20)
    told = [("Hel", ""), ("lo wor", "Hello"), ("ld", ""), (", you", " world,"), (" there", " you"), ("\n", "\nthere\n"), ("東", "東"), ("京", "京"), (" b", "")]
    assert [(piece, lines.add(piece)) for piece, _ in told] == told
    assert lines.rest() == " b"


def test_a_word_longer_than_a_line_does_not_wait_for_its_end():
    lines = Lines(lambda: 10)
    assert lines.add("ab ") + lines.add("x" * 25) == "ab\n" + "x" * 10 + "\n" + "x" * 10
    assert lines.rest() == "\n" + "x" * 5


def test_a_resize_counts_from_the_next_word():
    width = 40
    lines = Lines(lambda: width)
    first = lines.add("one two three four five six seven eight ")  # 38 cells
    width = 20  # the terminal has put the last 18 of them on a line of their own
    assert "\n" not in first and lines.add("nine ten ") == "\nnine ten"
    width = 80
    assert lines.add("eleven twelve thirteen fourteen fifteen ") == " eleven twelve thirteen fourteen fifteen"


def test_the_screen_is_safe_and_an_interrupt_leaves_the_words_that_came():
    def pieces():
        yield from ("  \n", "\x1b[2Jone", " tw\x07o", " \ud800th")
        raise KeyboardInterrupt

    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert flow(pieces(), out, lambda: 80)
    assert out.buffer.getvalue() == b"one two th"
    assert not flow(iter([" ", "\n"]), out, lambda: 80)
    assert flow(iter(["東"]), out, lambda: 80) and out.buffer.getvalue().endswith(b"?")


PROGRAM = """
import shutil, sys, time
from lm.app.flow import flow
from tests.app.test_flow import PROSE
def pieces():
    for place in range(0, 3 * len(PROSE), 5):
        yield (3 * PROSE.replace("\\n", " "))[place : place + 5]
        time.sleep(0.004)
        if place == 200 and len(sys.argv) > 1:
            print("", end="", flush=True); time.sleep(1.5)
flow(pieces(), sys.stdout, lambda: shutil.get_terminal_size().columns)
time.sleep(0.5)
"""


@pytest.mark.parametrize("width", [40, 80])
def test_a_terminal_shows_whole_words(tmp_path, width):
    with Person((sys.executable, "-c", PROGRAM), tmp_path, width) as person:
        person.ends(20)
        shown = [line.rstrip() for line in person.screen.display if line.strip()]
    assert " ".join(shown).split() == (3 * PROSE.replace("\n", " ")).split()
    longest = max(map(len, PROSE.split()))
    assert all(len(line) > width - longest - 2 for line in shown[:-1])


def test_a_terminal_that_is_made_narrower(tmp_path):
    with Person((sys.executable, "-c", PROGRAM, "wait"), tmp_path, 80) as person:
        person.waits_for("used for trade", 20)
        person.look(0.5)
        person.resizes(30, 24)
        person.ends(20)
        words = PROSE.split()
        assert all(word in words for line in person.screen.display[-12:] for word in line.split())


GIVEN = [
    ("The perennial", 0),
    (" pla", 1),
    ("nt lives", 1),
    (" for", 0),
    (" many  ", 1),
    ("東京", 1),
    ("able years; an", 0),
    (" \n annual", 1),
    (" ", 1),
    ("one.", 0),
]


@pytest.mark.parametrize("width", [1, 2, 5, 9, 20, 80])
def test_what_stands_out_is_marked_and_moves_no_word(width):
    newest, told = False, {}
    for accents in (lambda: False, lambda: newest):
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")

        def pieces():
            nonlocal newest
            for text, newest in GIVEN:  # noqa: B007
                yield text

        assert flow(pieces(), out, lambda: width, accents, ("<", ">"))
        told[len(told)] = out.buffer.getvalue().decode()
    assert told[0] == re.sub("[<>]", "", told[1])
    marked = "".join(re.findall("<(.*?)>", told[1], re.S))
    assert "".join(marked.split()) == "".join("".join(text for text, is_filled in GIVEN if is_filled).split())
