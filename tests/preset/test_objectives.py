"""Switches of objectives: what names mean, what is refused, and in which words."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from data_sources.special_tokens import GAPS, OF_OBJECTIVES
from lm.preset import Preset, PresetError, load_preset, preset_from_json
from lm.preset.learned import needs_tokens, objective_after
from lm.preset.objectives import ADDED_TOKENS, MOST_GAPS, Ul2Config
from lm.preset.schema import preset_schema
from tests.preset.test_decode import decoded


@pytest.mark.parametrize(
    ("switches", "shares"),
    [
        ({}, (0.25, 0.5, 0.25)),
        ({"denoiser_types": ["R", "X"]}, (0.5, 0, 0.5)),
        ({"denoiser_types": ["prefix", "suffix", "mask"]}, (1 / 3, 2 / 3, 0)),
        ({"denoiser_types": ["suffix", "R"]}, (1 / 3, 2 / 3, 0)),
        ({"denoiser_types": ["prefix", "suffix", "S", "X", "mask", "R"]}, (0.25, 0.5, 0.25)),
        ({"denoiser_types": ["prefix", "suffix", "R"], "objective_probabilities": {"prefix": 0.5, "suffix": 0.5, "R": 1.0}}, (0.5, 0.5, 0)),
        ({"denoiser_types": ["mask", "X"], "objective_probabilities": {"mask": 0.2, "X": 0.6}}, (0.25, 0, 0.75)),
        ({"objective_probabilities": {"R": 0.25, "S": 0.5, "X": 0.25}}, (0.25, 0.5, 0.25)),
    ],
)
def test_shares_of_denoisers(switches: dict[str, Any], shares: tuple[float, ...]) -> None:
    assert Ul2Config.model_validate(switches).shares() == pytest.approx(shares)


def test_the_mission_s_names_load_and_mean_ul2() -> None:
    flat = decoded(use_ul2=True, ul2_denoiser_types=["prefix", "suffix", "mask"], ul2_objective_probabilities={"prefix": 0.3, "suffix": 0.3, "mask": 0.4})
    assert objective_after(flat) == "ul2" and needs_tokens(flat) and flat.ul2.shares() == pytest.approx((0.4, 0.6, 0))
    assert objective_after(decoded(train={"objective": "ul2"})) == "ul2" and not needs_tokens(decoded())
    assert needs_tokens(decoded(train={"objectives": [{"until_tokens": 10, "objective": "ul2"}]}))


def test_the_tokens_that_join_are_counted() -> None:
    assert len(OF_OBJECTIVES) == ADDED_TOKENS and len(GAPS) == MOST_GAPS


def test_each_example_has_tokens_for_its_gaps() -> None:
    for way in (*Ul2Config().regular_spans, *Ul2Config().extreme_spans):
        assert Ul2Config().example_length * way.rate / way.mean_span <= MOST_GAPS


STAGE = {"until_tokens": 9, "objective": "ul2", "probabilities": {"S": 1}}
ROW = {"until_tokens": 10, "objective": "clm"}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"ul2": {"objective_probabilities": {"S": 1.0}, "denoiser_types": ["R"]}}, '"S" is not among denoiser_types; allowed: R'),
        ({"ul2": {"objective_probabilities": {"R": 0.0}}}, "all are 0; give one of R, S, X more$"),
        ({"ul2": {"example_length": 1024}}, "171 gaps of 3 tokens in an example of 1024 .*, and there are tokens for 100"),
        ({"ul2": {"enabled": True}, "train": {"objective": "custom"}}, 'ul2.enabled asks for train.objective "ul2", and that is "custom"; keep one'),
        ({"train": {"objectives": [{"until_tokens": 10}]}}, r"what is learned until 10 tokens\? give objective \(clm, ul2, mlm, custom\) or probabilities"),
        ({"train": {"objectives": [{"until_tokens": 10, "probabilities": {}}]}}, "train.objectives: none is given"),
        ({"train": {"objectives": [ROW, ROW]}}, "each stage must end after the one before"),
        ({"train": {"objectives": [{**ROW, "probabilities": {"R": 1.0}}]}}, 'probabilities are of denoisers, and the objective is "clm"'),
        ({"train": {"objective": "ul2"}, "model": {"seq_length": 16}}, "needs rows of 32 tokens or more, and there are some of 16"),
        ({"train": {"objective": "ul2", "seq_length_curriculum": [{"until_tokens": 9, "seq_length": 8}]}}, "there are some of 8"),
        ({"train": {"objective": "ul2"}, "retro": {"enabled": True}}, "set retro.add_cross_attention to false"),
        ({"train": {"objective": "custom"}}, "learns targets that sources give, and wikipedia gives none; give it input_field and target_field"),
        ({"mlm": {"mask_share": 0.8, "random_share": 0.3}}, "more than all together; set random_share to 0.2 or less$"),
        ({"mlm": {"mask_share": 1.0}}, "more than all together; set random_share to 0$"),
        ({"mlm": {"mask_share": 0.0}}, "mlm.mask_share: found 0"),
        ({"mlm": {"rate": 1e-300}}, "mlm.rate: found 1e-300"),
        ({"ul2": {"objective_probabilities": {}}}, "objective_probabilities: none is given; give one, of R, S, X$"),
    ],
)
def test_what_can_not_be_is_refused_in_a_line(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(PresetError, match=said) as caught:
        decoded(**sections)
    assert "\n" not in str(caught.value)


def test_a_stage_of_denoisers_need_not_name_their_objective() -> None:
    short, long = (decoded(train={"objectives": [row]}) for row in ({"until_tokens": 9, "probabilities": {"S": 1}}, STAGE))
    assert short == long and needs_tokens(short) and short.train.objectives[0].objective == "ul2"
    jsonschema.validate(json.loads(Preset.model_validate(short).model_dump_json()), preset_schema())


def test_a_written_objective_is_not_overruled_in_silence(tmp_path: Path) -> None:
    """In a file; a snapshot's preset has every default written out, and is what it was."""
    file, sources = tmp_path / "mine.json", {"sources": ["wikipedia"]}
    file.write_text(json.dumps({"data": sources, "ul2": {"enabled": True}, "train": {"objective": "clm"}}))
    with pytest.raises(PresetError, match='mine.json: ul2.enabled asks for train.objective "ul2", and that is "clm"; keep one$'):
        load_preset(file)
    for train in ({}, {"objective": "ul2"}):
        file.write_text(json.dumps({"data": sources, "ul2": {"enabled": True}, "train": train}))
        loaded = load_preset(file)
        assert objective_after(loaded) == "ul2" and preset_from_json(loaded.model_dump_json(), "a snapshot") == loaded


def test_a_preset_with_everything_written_out_is_the_same() -> None:
    preset = decoded(train={"objective": "ul2", "objectives": [ROW]}, ul2={"objective_probabilities": {"S": 1.0}})
    assert preset_from_json(preset.model_dump_json(), "again") == preset and isinstance(preset, Preset)
