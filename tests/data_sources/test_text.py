"""Cutting long text: nothing lost, pieces of the promised size, at the places where a reader pauses."""

import inspect
import random
import time

import numpy
import pytest

from data_sources.text import chunks

# Of a package whose release we pin: Python's own topics differ from one patch release to the next.
PROSE = "\n\n".join(inspect.getdoc(getattr(numpy, name)) or "" for name in sorted(dir(numpy)) if callable(getattr(numpy, name)))


def solid(text: str) -> str:
    return "".join(text.split())


def test_a_text_below_the_upper_bound_stays_as_it_is() -> None:
    assert chunks("  a text \n") == ["  a text \n"]
    assert chunks("x" * 5000) == ["x" * 5000]


def test_blank_text_gives_nothing() -> None:
    assert chunks("") == chunks(" \n" * 5000) == []


def test_pieces_of_prose_have_the_promised_size_and_end_at_paragraphs() -> None:
    pieces = chunks(PROSE)
    assert all(3000 <= len(piece) <= 5000 for piece in pieces[:-1])
    assert 1500 <= len(pieces[-1]) <= 5000
    at_paragraphs = [PROSE.find(piece + "\n\n") >= 0 for piece in pieces[:-1]]
    assert sum(at_paragraphs) > 0.95 * len(pieces)


@pytest.mark.parametrize(("text", "end"), [("One sentence after another. " * 400, "another."), ("word " * 2000, "word"), ("no_end" * 2000, "")])
def test_cuts_fall_back_from_sentences_to_words_to_anywhere(text: str, end: str) -> None:
    pieces = chunks(text)
    assert len(pieces) > 1
    assert all(piece.endswith(end) for piece in pieces[:-1])


def test_a_sentence_may_end_with_a_quote_or_without_a_space() -> None:
    assert all(piece.endswith('done."') for piece in chunks('He said, "It is done." ' * 400)[:-1])
    assert all(piece.endswith("。") for piece in chunks("这是一个句子。" * 1500)[:-1])


def test_nothing_is_lost_or_repeated_whatever_the_text() -> None:
    draw = random.Random(5)
    for _ in range(200):
        text = "".join(draw.choice(["a", "bc.", " ", "\n", "\n\n", "漢。", "x" * 30, " " * 20, '."']) for _ in range(draw.randrange(400)))
        pieces = chunks(text, low=30, high=50)
        assert solid("".join(pieces)) == solid(text)
        assert all(len(piece) <= 50 for piece in pieces)


def test_the_last_piece_is_never_tiny() -> None:
    for length in range(5001, 11_000, 37):
        assert len(chunks("word " * (length // 5) + "x" * (length % 5))[-1]) >= 1500


def test_the_indent_after_a_cut_is_kept() -> None:
    text = "x" * 3500 + "\n\n    indented " + "y" * 3500
    assert chunks(text) == ["x" * 3500, "    indented " + "y" * 3500]


def test_bounds_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="5 to 4"):
        chunks("text", low=5, high=4)


@pytest.mark.parametrize("pattern", ["x", "x. ", "x ", "\n ", "\n" + 5000 * " ", "x\n"])
def test_time_grows_with_the_length_and_no_faster(pattern: str) -> None:
    """A quadratic search would take 16 times as long on the longer text; four times and some noise are fine."""

    def seconds(size: int) -> float:
        text = pattern * (size // len(pattern)) + "end"
        started = time.process_time()
        chunks(text)
        return time.process_time() - started

    seconds(500_000)
    assert seconds(4_000_000) < 8 * seconds(1_000_000) + 0.05
