"""What the model still knows: only measures of the same text and the same weights stand beside each other."""

import copy
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.text import Text

from lm.app.earlier import held_out
from lm.app.forgetting import lines_of, panel_of
from lm.app.pager import drawn
from lm.training.forgetting import KEPT, forgotten_in_words, keep_measures, kept_measures, last_measured, note_measures
from lm.training.headers import Header, Listed
from tests.app.events import HOSTILE

NOW = {"wikipedia": 2.0, "books": 1.5, "c4": 1.2}
TOKENS = {"wikipedia": 700, "books": 300, "c4": 9_000}
REMEDY = "To forget less: train.replay_share 0.2 (now {}) in the next run's preset; new text is then learned about 5 % less well"


def header(tokens, bits, best=None, at=None, text=TOKENS, identity=""):
    """A snapshot whose life tells that `bits` were measured of it, or when it had read `at` tokens."""
    full = {name: {"now": now, "best": (best or bits)[name], "at": at or tokens, "tokens": text[name]} for name, now in bits.items()}
    life = {"tokens": tokens, "sources": {**dict.fromkeys(TOKENS, 1), "long ago": 5}, "measured": {"full": full}}
    return Header(Path("x"), 1, datetime(2026, 11, 20, tzinfo=UTC), "p", life, {}, {}, identity, {})


def measures(bits, text=TOKENS):
    return {name: {"bits_per_byte": value, "tokens": text[name]} for name, value in bits.items()}


def panel(current=None, others=(), kept=None):
    current = current or header(5000, NOW)
    return panel_of(measures(NOW), current, [Listed("current", Path("c"), current), *others], kept or {})


def test_each_snapshot_is_known_by_its_own_measures():
    others = [
        Listed("prev", Path("a"), header(4000, {"wikipedia": 1.9, "books": 1.6}, at=3000)),  # of older weights
        Listed("prev2", Path("b"), header(3000, {"wikipedia": 1.9, "books": 1.6, "c4": 1.3}, text=TOKENS | {"books": 299})),  # less text
        Listed("run", Path("d"), header(2000, {"wikipedia": 2.1, "books": 1.4, "c4": 1.2})),
        Listed("run", Path("e"), header(1000, {}, identity="e")),
        Listed("left", Path("f"), header(900, {"wikipedia": 0.1})),
        Listed("run", Path("g"), None, "is damaged"),
    ]
    found = panel(others=others, kept={"e": measures({"c4": 1.19}), "other": measures(NOW)})
    assert [dict(bits) for _, bits in found.earlier] == [{}, {"wikipedia": 1.9, "c4": 1.3}, {"wikipedia": 2.1, "books": 1.4, "c4": 1.2}, {"c4": 1.19}]
    assert found.best == {"wikipedia": 1.9, "books": 1.4, "c4": 1.19}
    assert [str(each.path) for each in found.missing] == ["a", "b", "e"]
    assert found.sources == ["wikipedia", "books", "c4", "long ago"]
    assert found.warnings == [
        "wikipedia: 2.000 bits per byte, 5% more than its best 1.900: it is being forgotten",
        "books: 1.500 bits per byte, 7% more than its best 1.400: it is being forgotten",
        REMEDY.format("0"),
    ]


@pytest.mark.parametrize(("best", "is_told"), [(2.0 / 1.0201, True), (2.0 / 1.0199, False)])
def test_two_percent_is_the_line(best, is_told):
    found = panel(header(5000, NOW, best=NOW | {"wikipedia": best}))
    assert [line.startswith("wikipedia: 2.000") for line in found.warnings] == [True, False] * is_told
    words = forgotten_in_words(header(5000, NOW, best=NOW | {"wikipedia": best}).life)
    assert words == ("forgotten, against its best: wikipedia (+2%)" if is_told else "nothing forgotten")


@pytest.mark.parametrize("width", [18, 78, 198])
def test_what_to_do_about_it_stands_below_in_full(width):
    """By what the last run read again; nothing where nothing is forgotten."""
    lost = {"wikipedia": 1.5}
    for replay, words in (
        (None, REMEDY.format("0")),
        ({"share": 0.05}, REMEDY.format("0.05")),
        ({"share": 0.2}, "(now 0.2, at most 0.5) in the next run's preset, or the source in it again"),
    ):
        current = replace(header(5000, NOW, best=NOW | lost), run={"replay": replay})
        shown = "\n".join(line.plain for line in lines_of(panel(current), width))
        assert "".join(words.split()) in "".join(shown.split())
    assert "replay_share" not in "\n".join(line.plain for line in lines_of(panel(), 78))


def test_nothing_measured_is_nothing_said():
    assert forgotten_in_words({"tokens": 5}) == "" == forgotten_in_words(header(5000, NOW, best=dict.fromkeys(NOW, 0.1), at=4000).life)


def test_the_table_stands_on_80_columns():
    others = [Listed(kind, Path("x"), header(tokens, NOW)) for kind, tokens in [("prev", 4), ("prev2", 3), ("run", 100_000_000), ("run", 2), ("run", 1)]]
    lines = [line.plain for line in lines_of(panel(others=others), 78)]
    assert max(map(len, lines)) <= 78
    assert next(line for line in lines if "wikipedia" in line).split() == ["wikipedia", *["2.000"] * 7]
    assert next(line for line in lines if "long ago" in line).split() == ["long", "ago", *"–––––––"]
    assert lines[1].split() == ["now", "best", "prev", "prev2", *["run", "end"] * 3] and lines[2].split() == ["source", "5,000", "4", "3", "100M", "2", "1"]


@pytest.mark.parametrize("width", [1, 18, 43, 78, 198])
def test_any_width_and_hostile_names(width):
    names = [HOSTILE.replace("\ud800", ""), "x" * 300, "東京" * 40]
    bits = dict.fromkeys(names, 2.0)
    current = Header(Path("x"), 1, datetime.now(UTC), "p", {"tokens": 5, "measured": {}}, {}, {}, "", {})
    others = [Listed("prev", Path("x"), header(4, bits, text=dict.fromkeys(names, 9)))]
    lines = lines_of(panel_of(measures(dict.fromkeys(names, 2.5), dict.fromkeys(names, 9)), current, others, {}), width)
    drawing = drawn(Text("\n").join(lines), width)
    text = "\n".join("".join(part for _, part in line) for line in drawing)
    assert "\x1b" not in text and "\u202e" not in text and "owned" not in text
    assert width < 18 or all(line.cell_len <= width for line in lines) and len(drawing) == len(lines)


def test_what_was_measured_when_asked_for_is_kept(tmp_path):
    assert kept_measures(tmp_path) == {}
    for number in range(KEPT + 3):
        keep_measures(tmp_path, f"{number}", measures({"c4": number}) | {"books": {"bits_per_byte": 1.0, "tokens": 3, "perplexity": 9.0}})
    kept = kept_measures(tmp_path)
    assert list(kept) == [f"{number}" for number in range(3, KEPT + 3)]
    assert kept["7"] == {"c4": {"bits_per_byte": 7, "tokens": 9_000}, "books": {"bits_per_byte": 1.0, "tokens": 3}}
    for broken in ("", "[]", "null"):
        (tmp_path / "measures.json").write_text(broken)
        assert kept_measures(tmp_path) == {}
    keep_measures(tmp_path, "a", measures({"c4": 1}))
    assert list(json.loads((tmp_path / "measures.json").read_text())) == ["a"]
    keep_measures(tmp_path / "measures.json", "a", measures({"c4": 1}))  # where nothing can be written it is no matter


def test_what_was_never_learned_is_not_forgotten():
    """After going back the later snapshots are of another future: they are shown, and are no best. What was before the fork is one."""
    later = Listed("prev", Path("a"), header(6000, {"wikipedia": 1.5}))
    assert panel(others=[later]).best == NOW and panel(others=[later]).warnings == []
    at = datetime(2026, 11, 20, 12, tzinfo=UTC)
    current = header(5000, NOW)
    current.life["went_back"] = [{"from_tokens": 4500, "tokens": 3000, "at": at.isoformat(timespec="seconds")}]
    before, left, since = (
        Listed("run", Path("b"), replace(header(tokens, {name: 1.0}), saved=at + timedelta(hours=hours)))
        for tokens, name, hours in ((3000, "wikipedia", -2), (4500, "books", -1), (4500, "c4", 1))
    )
    found = panel(current, [before, left, since])
    assert found.best == {"wikipedia": 1.0, "books": 1.5, "c4": 1.0}
    assert [bits for _, bits in found.earlier] == [{"wikipedia": 1.0}, {"books": 1.0}, {"c4": 1.0}], "all are shown"


def test_the_past_is_no_source_of_its_own():
    current = header(5000, NOW)
    current.life["sources"]["past text"] = 70
    assert panel(current).sources == ["wikipedia", "books", "c4", "long ago"]


def test_what_was_measured_by_both_sides_is_held_against_its_own_kind(tmp_path):
    """A life that turned from masks to the next token: that is neither progress nor forgetting."""
    life, both = {"tokens": 10, "runs": [{"tokens": 10}]}, {"a": {"bits_per_byte": 1.0, "tokens": 5, "pseudo": True}}
    assert note_measures(life, both, "full") == [] and life["runs"][-1]["after"] == {"a": {"bits_per_byte": 1.0, "at": 10}}
    assert last_measured(life, pseudo=False) == {} and last_measured(life, pseudo=True) == life["runs"][-1]["after"]
    before = Header(Path("x"), 1, datetime(2026, 11, 20, tzinfo=UTC), "p", copy.deepcopy(life), {}, {}, "b", {"model": {"bidirectional": "own"}})
    life |= {"tokens": 20}
    assert note_measures(life, {"a": {"bits_per_byte": 2.0, "tokens": 5}}, "full") == []
    assert life["measured"]["full"]["a"]["best"] == 2.0 and life["runs"][-1]["after"] == {"a": {"bits_per_byte": 2.0, "at": 20}}
    now = Header(Path("y"), 1, datetime(2026, 11, 21, tzinfo=UTC), "p", life, {}, {}, "n", {})
    keep_measures(tmp_path, "b", both)
    assert kept_measures(tmp_path) == {"b": both}
    found = panel_of({"a": {"bits_per_byte": 2.0, "tokens": 5}}, now, [Listed("prev", Path("x"), before)], kept_measures(tmp_path))
    assert found.best == {"a": 2.0} and not found.earlier and not found.missing
    found = panel_of(both, before, [Listed("run", Path("x"), before), Listed("prev", Path("y"), now)], {})
    assert found.best == {"a": 1.0} and [dict(bits) for _, bits in found.earlier] == [{"a": 1.0}]
    assert held_out(before, None) == "a 1.000 pseudo-bits per byte" and held_out(now, None) == "a 2.000 bits per byte"
