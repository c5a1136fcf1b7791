"""Drafts and plans as a person meets them in chat: a line under the answer, settings that are changed and refused, a snapshot without heads."""

import io
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lm.app import chat_screen, partner
from lm.app.commands import CommandError, changed
from lm.preset.generation import GenerationConfig
from lm.training.snapshots import Snapshots
from tests.app.person import MAIN, Person
from tests.app.test_chat_memory import GREEDY, SETTINGS, last_turn, taught
from tests.app.test_earlier import lines, opens, without_blanks
from tests.generation.words import randomised, tiny_preset, words_tokenizer

HEADS = {"enable_dynamics": True, "enable_value": True, "enable_policy": True}


@pytest.fixture(scope="module")
def foretelling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tmp_path_factory.mktemp("foretelling"), 12, auxiliary=HEADS, generation={"draft_length": 4})


def answered(one: partner.Partner, settings: GenerationConfig) -> str:
    return "".join(one.conversation(settings).say("The statement"))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_drafts_are_told_under_the_answer_and_change_nothing_in_it(foretelling: Path) -> None:
    one = partner.load(foretelling / "checkpoints" / "lm_current.pth")
    assert set(one.heads) == {"dynamics", "value", "policy"}
    with Person(MAIN, foretelling, 100, 40) as person:
        opens(person, "chat")
        person.waits_for("›", 30)
        person.types(lines(*SETTINGS, "The statement"))
        text = last_turn(person.waits_for(r"(?s)› The statement\n.*reached.*drafts: \d+ % of \d+ kept · \d\.\d tokens a pass.*\n›\s*$", 20), "The statement")
        expected = answered(one, one.preset.generation.model_copy(update=GREEDY | {"draft_length": 0}))
        assert without_blanks(text.partition("(max_new_tokens")[0]) == without_blanks(expected)
        person.types(lines("/settings draft_length 0", "/reset", "The statement"))
        again = last_turn(person.waits_for(r"(?s)forgotten.*› The statement\n.*reached.*\n›\s*$", 20), "The statement")
        assert "drafts:" not in again
        assert without_blanks(again.partition("(max_new_tokens")[0]) == without_blanks(expected)
        person.types(lines("/settings planner.enabled true", "/settings planner.commit piece", "/reset", "The statement"))
        person.waits_for(r"(?s)forgotten.*› The statement\n.*reached.*\n›\s*$", 20)
        person.types(lines("/settings planner.depht 3", "/settings planner 3", "/quit"))
        person.waits_for("q quit", 10)
        person.types("q")
        assert person.ends() == 0 and "Traceback" not in person.raw
        assert 'did you mean "depth"' in person.raw


@pytest.mark.slow
def test_a_model_without_heads_leaves_drafts_out_and_refuses_the_rest(foretelling: Path) -> None:
    one = partner.load(foretelling / "checkpoints" / "lm_current.pth")
    bare = one._replace(heads={})
    wanted = one.preset.generation.model_copy(update=GREEDY)
    assert wanted.draft_length and answered(bare, wanted) == answered(one, wanted)
    with pytest.raises(CommandError, match="policy_weight needs the policy head"):
        bare.conversation(wanted.model_copy(update={"policy_weight": 1.0}))


def test_drafts_stay_wanted_through_a_snapshot_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they can't be had it is said, and only there; what a person sets there counts."""
    preset, (model, heads) = tiny_preset(), randomised(tiny_preset())
    bare = preset.model_copy(update={"auxiliary": type(preset.auxiliary)()})
    partners = {"current": partner.Partner(preset, 0, model, words_tokenizer(), None, heads), "prev": partner.Partner(bare, 0, model, words_tokenizer())}
    monkeypatch.setattr(chat_screen, "load", partners.get)
    monkeypatch.setattr(Snapshots, "path_of", lambda self, which: which)
    said = io.StringIO()
    chat = chat_screen.Chat(Console(file=said, width=200), chat_screen.talk_with("current", GenerationConfig(draft_length=4, top_p=0.5)))

    def length(name: str, *words: str) -> int:
        said.seek(0)
        said.truncate()
        chat._obey(name, words)
        return chat.talk.conversation.settings.draft_length

    assert length("/snapshot", "prev") == 0 and "without drafts: this snapshot has no dynamics head" in said.getvalue()
    assert length("/settings", "temperature", "0.7") == 0
    assert length("/snapshot", "current") == 4 and "without drafts" not in said.getvalue()
    assert (chat.talk.conversation.settings.temperature, chat.talk.conversation.settings.top_p) == (0.7, 0.5)
    assert length("/settings", "draft_length", "6") == 6 and length("/snapshot", "prev") == 0 and length("/snapshot", "current") == 6
    assert length("/snapshot", "prev") == 0 and length("/settings", "draft_length", "0") == 0
    assert length("/snapshot", "current") == 0 and length("/snapshot", "prev") == 0 and "without drafts" not in said.getvalue()


def test_ctrl_c_where_nothing_is_written_yet_stops_that_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    preset, (model, heads) = tiny_preset(), randomised(tiny_preset())
    one = partner.Partner(preset, 0, model, words_tokenizer(), None, heads)
    said = io.StringIO()
    chat = chat_screen.Chat(Console(file=said, width=200), chat_screen.Talk("current", one, one.conversation(), 0))
    monkeypatch.setattr(chat, "lines", lambda: iter(["plant lives", "/reset", "/quit"]))
    say = chat.talk.conversation.say

    def interrupted(message: str) -> Any:
        signal.raise_signal(signal.SIGINT)
        return say(message)

    monkeypatch.setattr(chat.talk.conversation, "say", interrupted)
    chat.run()
    assert not chat.talk.conversation.turns and "(stopped)" in said.getvalue() and "forgotten" in said.getvalue()


def test_settings_inside_the_planner_are_changed_by_their_path() -> None:
    preset = tiny_preset()
    settings: Any = changed(preset, preset.generation, ("planner.depth", "5"))
    assert settings.planner.depth == 5 and changed(preset, settings, ("planner.enabled", "true")).planner.enabled
    for words, said in {("planner.depth", "99"): "planner.depth", ("planner.x.y", "1"): "no setting", ("temperature.x", "1"): "no setting"}.items():
        with pytest.raises(CommandError, match=said) as caught:
            changed(preset, settings, words)
        assert "\n" not in str(caught.value)
    without = preset.model_copy(update={"auxiliary": type(preset.auxiliary)()})
    with pytest.raises(CommandError, match="draft_length needs the dynamics head"):
        changed(without, without.generation, ("draft_length", "4"))
