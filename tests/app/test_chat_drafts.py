"""Drafts and plans as a person meets them in chat: a line under the answer, settings that are changed and refused, a snapshot without heads."""

from pathlib import Path
from typing import Any

import pytest

from lm.app import partner
from lm.app.commands import CommandError, changed
from lm.preset.generation import GenerationConfig
from tests.app.person import MAIN, Person
from tests.app.test_chat_memory import GREEDY, SETTINGS, last_turn, taught
from tests.app.test_earlier import lines, opens, without_blanks

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


def test_settings_inside_the_planner_are_changed_by_their_path() -> None:
    from tests.generation.words import tiny_preset

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
