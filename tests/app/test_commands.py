"""What can be typed in a chat."""

import re

import pytest

from lm.app.commands import COMMANDS, Command, CommandError, changed, command_in, named_snapshot
from lm.app.sitting import described
from lm.preset import preset_from_json
from lm.preset.switches import GenerationConfig

PRESET = preset_from_json('{"name": "x", "data": {"sources": ["natural_questions", "wikipedia"]}}', "test")


def test_commands_and_words_are_told_apart():
    assert command_in("hello / there", COMMANDS) is None
    assert command_in("/settings top_p 0.5", COMMANDS) == Command("/settings", ("top_p", "0.5"))
    with pytest.raises(CommandError, match="/temperature is no command; there are /settings"):
        command_in("/temperature 1", COMMANDS)


@pytest.mark.parametrize(
    ("name", "value", "kept"), [("temperature", "0", 0), ("top_p", "0.5", 0.5), ("max_new_tokens", "7", 7), ("repetition_penalty", "1", 1)]
)
def test_settings_change_for_this_chat(name, value, kept):
    settings = changed(PRESET, GenerationConfig(no_repeat_ngram=3), (name, value))
    assert getattr(settings, name) == kept and settings.no_repeat_ngram == 3


def test_null_is_a_value():
    settings = changed(PRESET, GenerationConfig(), ("draft_entropy", "2.5"))
    assert settings.draft_entropy == 2.5 and changed(PRESET, settings, ("draft_entropy", "null")).draft_entropy is None
    assert ("draft_entropy", "null") in [row[:2] for row in described(GenerationConfig())]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("temperature", "200"), r"^temperature: found 200\W+allowed: a number from 0 to 100$"),
        (("temperature", "nan"), "temperature"),
        (("temperature", "warm"), r'^temperature: found "warm"\W+allowed: a number'),
        (("top_p", "0"), r"^top_p: found 0\W+allowed: a number above 0 to 1"),
        (("max_new_tokens", "1.5"), "max_new_tokens: found 1.5"),
        (("temprature", "1"), 'did you mean "temperature"'),
        (("temperature",), "write /settings NAME VALUE"),
        (("a", "b", "c"), "write /settings NAME VALUE"),
    ],
)
def test_bad_settings_say_what_is_allowed(words, said):
    with pytest.raises(CommandError) as caught:
        changed(PRESET, GenerationConfig(), words)
    assert re.search(said, str(caught.value)) and "\n" not in str(caught.value)


def test_snapshots_by_name():
    assert named_snapshot(("prev2",)) == "prev2"
    for words in ((), ("prev3",), ("prev", "x")):
        with pytest.raises(CommandError, match="current, prev, prev2"):
            named_snapshot(words)
