"""Cards: what switches were measured to bring, beside them on the presets page. All numbers here are invented."""

import io
import json

import pytest
from rich.console import Console

from lm.app.cards import Card, cards_in_use, read_cards, switches
from lm.app.presets_screen import coloured, written_out
from lm.app.shelf import Shelved
from lm.preset import Preset
from tests.app.person import MAIN, Person

S5 = {"switch": "s5.enabled", "value": True, "bits": -0.0114, "speed": 0.931, "memory": 1.02, "parameters": 1.001}
S5 |= {"hidden_size": 64, "tokens": 1_000_000, "seeds": 2}
QK = S5 | {"switch": "model.qk_norm", "value": False, "bits": 0.5, "parameters": 0.5, "seeds": 1, "note": "so it is"}
S5_WORDS = "-0.011 bits/byte, 0.93x speed, 1.02x memory; 64 wide, 1M tokens, 2 seeds"
QK_WORDS = "false, so it is: +0.500 bits/byte, 0.93x speed, 1.02x memory, 0.50x parameters; 64 wide, 1M tokens, 1 seed"


def preset(**sections):
    return Preset.model_validate({"data": {"sources": ["c4"], "source_weights": {"c4": 1.0}}, **sections})


def page(text, cards, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(coloured(text, cards)(width))
    return console.file.getvalue()


def test_a_card_in_words():
    assert Card.model_validate(S5).words == S5_WORDS
    assert Card.model_validate(QK).words == QK_WORDS
    assert Card.model_validate(S5 | {"value": 2}).words == f"2: {S5_WORDS}"
    assert Card.model_validate(S5 | {"bits": -0.0001}).words.startswith("+0.000 bits")


def test_a_file_is_read(tmp_path):
    path = tmp_path / "cards.json"
    path.write_text(json.dumps([S5, QK, S5 | {"what_comes_later": 1}]))
    assert [card.switch for card in read_cards(path)] == ["s5.enabled", "model.qk_norm", "s5.enabled"]


@pytest.mark.parametrize("content", ["", "{", "null", "{}", "[" * 100_000, "9" * 9999, b"\xff\xfe", '[{"switch": "s5.enabled"}]', "[1, [], null]"])
def test_what_is_no_file_of_cards_shows_nothing(tmp_path, content):
    path = tmp_path / "cards.json"
    assert read_cards(path) == read_cards(tmp_path) == ()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_cards(path) == ()


WRONG = [("bits", "nan"), ("bits", float("nan")), ("bits", 1e9), ("speed", 0), ("memory", float("inf")), ("value", []), ("note", "x" * 61), ("tokens", -1)]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_card_with_what_can_not_be_is_left_out(tmp_path, key, value):
    path = tmp_path / "cards.json"
    path.write_text(json.dumps([S5 | {key: value}, QK]))
    assert [card.switch for card in read_cards(path)] == ["model.qk_norm"]


def test_hostile_words_do_no_harm():
    words = Card.model_validate(S5 | {"note": "\x1b[2J\u202ea\nb [red]"}).words
    assert words == f"a b [red]: {S5_WORDS}"


def test_which_line_is_about_which_switch():
    """Every switch of every section has its line, and only that one, whatever stands in sources."""
    held = preset(data={"sources": [{"type": "hf", "dataset": "a/s5", "name": "s5"}], "source_weights": {"s5": 1.0}}).model_dump(mode="json")
    text = json.dumps(held, indent=2)
    found = list(switches(text.splitlines()))
    for section, switch in (("s5", "enabled"), ("model", "qk_norm"), ("train", "optimizer"), ("auxiliary", "enable_value")):
        at = found.index(f"{section}.{switch}")
        assert found.count(f"{section}.{switch}") == 1
        assert text.splitlines()[at].strip().rstrip(",") == f'"{switch}": {json.dumps(held[section][switch])}'
    assert found.count("s5") == 1 and "train.long_context.enabled" in found


def test_cards_stand_beside_their_switches_or_below():
    cards = (Card.model_validate(S5), Card.model_validate(QK), Card.model_validate(S5 | {"switch": "no.such", "note": "never"}))
    text = written_out(Shelved("a.json", preset(), ""))
    wide, narrow = page(text, cards, 160).splitlines(), [line.rstrip() for line in page(text, cards, 78).splitlines()]
    assert wide[wide.index('  "s5": {') + 1].rstrip() == f'    "enabled": false,   {S5_WORDS}'
    at = narrow.index('    "qk_norm": true,')
    assert " ".join(part.strip() for part in narrow[at + 1 : at + 3]) == QK_WORDS and narrow[at + 1].startswith("      false")
    assert max(map(len, narrow)) <= 78 and "never" not in "".join(narrow)
    plain = page(text, (), 78)
    assert all("attention alone; fewer bits are better." in " ".join(" ".join(lines[:2]).split()) for lines in (wide, narrow))
    assert "measured" not in plain and plain.split() == text.split()


def test_those_of_a_preset_are_of_what_it_has():
    cards = tuple(Card.model_validate(S5 | more) for more in ({}, QK, {"switch": "colt5.budget", "value": 0.25}, {"switch": "model.num_kv_heads", "value": 1}))

    def used(**sections):
        return [card.switch for card in cards_in_use(preset(**sections), cards)]

    assert used() == []
    assert used(s5={"enabled": True}) == ["s5.enabled"]
    assert used(model={"qk_norm": False, "num_kv_heads": 1}) == ["model.qk_norm", "model.num_kv_heads"]
    assert used(colt5={"enabled": True}) == ["colt5.budget"] and used(colt5={"enabled": True, "budget": 0.5}) == []
    odd = tuple(Card.model_validate(S5 | {"switch": path}) for path in ("", "s5", "data.sources.0.x", "name.x", "model.seq_length.x"))
    assert not list(cards_in_use(preset(), odd))


def test_the_page_through_a_terminal(folder):
    (folder / "docs").mkdir()
    (folder / "docs" / "cards.json").write_text(json.dumps([S5, QK]))
    with Person(MAIN, folder) as person:
        person.waits_for("q quit")
        person.goes_to("Presets")
        person.types("enter")
        person.waits_for("e edit")
        assert "measured" not in person.text
        person.goes_to("03_valkyrie")
        assert "attention alone; fewer bits are better s5.enabled -0.011 bits/byte" in " ".join(person.text.split()) and "↑↓ choose" in person.text
        person.types("enter")
        person.waits_for("lines 1 to")
        for _ in range(40):
            if "qk_norm" in person.text:
                break
            person.types(" ")
        assert "false, so it is: +0.500 bits/byte, 0.93x speed" in person.text
        assert all(len(line) <= 80 for line in person.text.splitlines())
