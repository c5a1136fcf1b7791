"""What benchmarks measure with: results that go on, peers of equal size, rates that are tried until the best is inside, arms of cards that are presets."""

import json
import math
import os
import subprocess
import sys
from typing import Literal, get_args, get_origin

import pytest
import torch

from data_sources.config import Config
from lm.preset import Preset, count_parameters
from lm.preset.compare import in_force
from lm.training.trial import random_batch
from tests.benchmarks import ablations, cards, comparison, device_share, measures
from tests.benchmarks.measures import Results, commit_of, digest
from tests.benchmarks.peers import count, llama_of, of_size
from tests.benchmarks.teaching import in_use, teacher_of

SMALL = {"hidden_size": 48, "num_layers": 3, "num_heads": 4, "seq_length": 32}


def test_what_was_cut_off_goes_on(tmp_path):
    path, taken = tmp_path / "results.jsonl", []

    def of(results, seed):
        return results.of({"seed": seed}, lambda: taken.append(seed) or {"bits": seed / 2})

    first = Results(path)
    assert [of(first, seed) for seed in (1, 2, 1)] == [{"bits": 0.5}, {"bits": 1.0}, {"bits": 0.5}] and taken == [1, 2]
    path.write_text(path.read_text()[:-9])
    again = Results(path)
    assert again.known({"seed": 2}) is None and again.known({"seed": 1}) == {"bits": 0.5}
    of(again, 2), of(Results(path), 2)
    assert taken == [1, 2, 2] and Results(path).known({"seed": 2}) == {"bits": 1.0}
    assert not list(again.commits_told())
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_paces_are_taken_in_turns(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(measures, "timed", lambda do: (before := clock[0], do(), clock[0] - before)[2])

    def taker(name, seconds, tokens):
        def take(number):
            order.append((number, name))
            clock[0] += seconds * (1 + number)  # the machine slows down
            return tokens

        return take

    found = measures.paces({"a": taker("a", 1.0, 100), "b": taker("b", 3.0, 200)}, rounds=4, warm=1)
    assert order == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b"), (3, "b"), (3, "a"), (4, "a"), (4, "b")]
    assert [costs["b"] for costs in found] == pytest.approx([0.03, 0.045, 0.06, 0.075])
    assert measures.ratio(found, "a", "b")[:4] == pytest.approx((1.5,) * 4)
    costs = [{"a": 1.0, "b": cost} for cost in (5.0, 1.0, 2.0, 4.0, 100.0)]
    assert measures.ratio(costs, "a", "b") == (4.0, 2.0, 5.0, pytest.approx(22.4), 5)


def test_lines_tell_of_which_code_they_are(tmp_path):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path / "code", check=True, capture_output=True)

    (tmp_path / "code").mkdir()
    assert commit_of(tmp_path / "code") == ""
    (tmp_path / "code" / "a.py").write_text("a = 1\n")
    git("init"), git("add", "."), git("commit", "-m", "a")
    first = commit_of(tmp_path / "code")
    (tmp_path / "code" / "results.jsonl").write_text("{}\n")
    assert len(first) == 40 and commit_of(tmp_path / "code") == first
    (tmp_path / "code" / "a.py").write_text("a = 2\n")
    assert commit_of(tmp_path / "code") == first + "+"
    path = tmp_path / "results.jsonl"
    path.write_text('{"asked": "a", "found": 1, "commit": "1234567890abcdef+"}\n{"asked": "b", "found": 2}\n{"asked": "c", "found": 3, "commit": "5"}\n')
    results = Results(path)
    assert [results.of(asked, None) for asked in "ab"] == [1, 2]
    assert list(results.commits_told()) == ["\ncommits: 1234567890ab+ (1 lines), not known (1 lines)"]
    results.of("d", lambda: 4)
    assert json.loads(path.read_text().splitlines()[-1]) == {"asked": "d", "found": 4, "commit": results.commit}


@pytest.mark.slow
def test_a_process_tells_its_own_memory_and_not_that_of_who_began_it(tmp_path):
    (tmp_path / "own.py").write_text("from tests.benchmarks.measures import peak_bytes\nprint('said')\nprint(peak_bytes())\n")
    program = "import tests.benchmarks.measures as m; held = b'x' * 700_000_000; assert m.peak_bytes() > len(held); print(m.apart('own', ''))"
    surroundings = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    done = subprocess.run([sys.executable, "-c", program], env=surroundings, capture_output=True, text=True, check=True)
    assert 10_000_000 < int(done.stdout) < 690_000_000


@pytest.mark.parametrize("name", comparison.PEERS)
@pytest.mark.parametrize("tied", [True, False])
def test_peers_have_as_many_parameters(name, tied):
    preset = Preset.model_validate({"model": SMALL | {"tie_embeddings": tied}, "data": {"sources": ["c4"]}})
    wanted = count_parameters(preset, 301).total
    assert count(teacher_of(preset, 301)[1]) == wanted
    peer = of_size(comparison.PEERS[name], preset, 301, wanted)
    assert abs(count(peer) / wanted - 1) < 0.005
    assert peer.config.vocab_size == 301 and next(peer.parameters()).device.type == "cpu"


def test_llama_as_it_comes_is_as_large_as_the_default_model():
    """tests.benchmarks.training_step and learning take it so: with SwiGLU beside our squared ReLU."""
    preset = comparison.load_preset("configs/00_best_general.json")
    with torch.device("meta"):
        assert abs(count(llama_of(preset, 300)) / count_parameters(preset, 300).total - 1) < 0.001


def test_a_smaller_sister():
    sister = comparison.scaled(comparison.load_preset("configs/00_best_general.json"), 128)
    assert (sister.model.hidden_size, sister.model.num_heads, sister.data.vocab_size, sister.model.num_layers) == (128, 2, 8192, 8)


@pytest.mark.parametrize(("best", "further"), [(2e-3, ()), (4e-3, (8e-3,)), (1e-2, (8e-3, 16e-3)), (6e-4, (5e-4, 2.5e-4)), (1.0, (8e-3, 16e-3, 32e-3))])
def test_rates_are_tried_until_the_best_is_not_the_last(best, further):
    rates = (1e-3, 2e-3, 4e-3)
    found = comparison.tried(rates, lambda rate: abs(math.log(rate / best)))
    assert tuple(found) == pytest.approx(rates + further)


def test_the_peers_rate_is_nanogpts():
    assert comparison.cosine(0.5 * comparison.WARMUP) == 0.5 and comparison.cosine(comparison.WARMUP) == 1.0
    assert comparison.cosine(0.5 + 0.5 * comparison.WARMUP) == pytest.approx(0.55) and comparison.cosine(1.0) == comparison.cosine(1.1) == pytest.approx(0.1)


def test_where_a_curve_reaches_another():
    curve = [comparison.Look(100, 10.0, 3.0), comparison.Look(200, 30.0, 2.0), comparison.Look(300, 40.0, 2.5), comparison.Look(400, 50.0, 1.5)]
    assert comparison.reached(curve, 2.25) == (175, 25.0)
    assert comparison.reached(curve, 1.75) == (375, 47.5)
    assert comparison.reached(curve, 3.5) == (100, 10.0) and comparison.reached(curve, 1.0) is None
    end = comparison.Look(500, 95.0, 1.75)
    assert comparison.place(curve, end) == "reached with 0.75 of its tokens and 0.50 of its seconds"
    assert comparison.place(curve[:1], end) == "not reached with 0.20 of its tokens and 0.11 of its seconds"
    mean = comparison.middle([curve, [look._replace(bits=look.bits + 1, seconds=0.0) for look in curve]])
    assert mean[1] == (200, 15.0, 2.5)


def test_the_picture_is_drawn(tmp_path):
    curves = {
        name: [[comparison.Look(n, n * speed, 3 / n + seed) for n in range(1, 20)] for seed in (0, 0.1)] for speed, name in enumerate(comparison.NAMES, 1)
    }
    comparison.figure(curves, str(tmp_path / "a.svg"))
    drawn = (tmp_path / "a.svg").read_text()
    assert "<svg" in drawn and "<dc:date>" not in drawn


def test_every_arm_is_a_preset_of_its_own():
    presets = {arm.name: cards.preset_of(arm).model_dump_json() for arm in (cards.ATTENTION, *cards.ARMS)}
    assert len(presets) == len(cards.ARMS) + 1 == len(set(presets.values()))
    plain = count_parameters(cards.preset_of(cards.ATTENTION), cards.VOCABULARY).active
    for arm in cards.ARMS:
        preset = cards.preset_of(arm, seed=3)
        *sections, switch = arm.switch.split(".")
        held = preset.model_dump(mode="json")
        for section in sections:
            held = held[section]
        assert json.dumps(held[switch]) == json.dumps(arm.value) and preset.train.seed == 3
        assert not arm.sized or abs(count_parameters(preset, cards.VOCABULARY).active / plain - 1) < 0.1, arm.name


def test_every_arm_of_the_ablations_differs_from_the_default():
    default = ablations.Arm()
    for name, arm in ablations.ARMS.items():
        preset, others = ablations.preset_of(name, 2e-3, 1), (arm.vocabulary, arm.first, arm.batch)
        plain = ablations.preset_of(ablations.DEFAULT, 2e-3, 1).model_copy(update={"name": name})
        assert (preset != plain or others != (default.vocabulary, default.first, default.batch)) == (name != ablations.DEFAULT), name
        assert arm.ramps == bool(preset.train.batch_curriculum or preset.train.seq_length_curriculum)


def test_steps_of_a_ramp_are_timed_at_equal_distances(monkeypatch):
    monkeypatch.setattr(ablations, "TOKENS", 2000)
    rows = [1] * 10 + [3] * 30  # 40 tokens and then 120
    monkeypatch.setattr(ablations, "batches_for", lambda name, seed: iter([random_batch(row, 40, 9) for row in rows]))
    batches = ablations.along_the_run("batch ramp")
    assert len(batches) == ablations.WARM + ablations.PAIRS
    assert [len(batch.lane) for batch in batches[ablations.WARM :]] == [1] * 4 + [3] * 16  # 400 of 2000 tokens are of single rows


def test_averages_are_what_is_evaluated():
    preset = Preset.model_validate({"model": SMALL, "train": {"average_tokens": 40, "warmup_share": 0.0}, "data": {"sources": ["c4"]}})
    teacher, learner = teacher_of(preset, 301)
    weight = learner.model.embedding.weight
    seen = [weight.detach().clone()]
    for number in range(2):
        teacher.step(random_batch(2, 20, 301), 1, 0, 10**9, number)
        seen.append(weight.detach().clone())
    with in_use(teacher):
        assert torch.allclose(weight, (seen[1] + 2 * seen[2]) / 3, atol=1e-6) and not torch.equal(weight, seen[2])
    assert torch.equal(weight, seen[2])


def test_what_a_device_is_measured_with_is_large():
    preset = device_share.preset_of("off")
    assert 45e6 < count_parameters(preset, preset.data.vocab_size).total < 55e6
    assert preset.step_rows == device_share.ROWS and preset.train.compile == "off"
    default = device_share.load_preset("configs/00_best_general.json")
    ours, theirs = ((each.model.activation, each.model.qk_norm, each.train.optimizer, each.train.learning_rate) for each in (preset, default))
    assert ours == theirs, "it learns as the default does"


def of_few_values(section, path=""):
    """The JSON paths of switches that are on or off, or one of some words."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Config):
            yield from of_few_values(kind, f"{path}{name}.")
        elif kind is bool or bool in get_args(kind) or Literal in map(get_origin, (kind, *get_args(kind))):
            yield path + name


def test_every_switch_has_a_card_or_a_reason_not_to():
    elsewhere = ("data.", "generation.")  # what is read, and what is done with a trained model
    switches = {path for path in of_few_values(Preset) if not path.startswith(elsewhere)}
    measured = {arm.switch for arm in cards.ARMS}
    assert {"model.qk_norm", "model.activation", "train.compile", "moe.normalise", "train.long_context.enabled"} <= switches
    assert switches - measured == set(cards.WITHOUT_CARD)
    assert all(cards.WITHOUT_CARD.values())


def test_what_is_measured_is_what_is_shown(tmp_path, monkeypatch):
    from lm.app.cards import read_cards

    class Bench:
        def run(self, arm, seed):
            return {"bits": 2.5 - 0.01 * seed if arm == cards.ATTENTION else 2.4, "speed": 0.5 + seed}

        def memory(self, arm):
            return 10 if arm == cards.ATTENTION else 15

    monkeypatch.setattr(cards, "SEEDS", (0, 1))
    told = [cards.card(Bench(), arm) for arm in cards.ARMS]
    (tmp_path / "cards.json").write_text(json.dumps(told))
    read = read_cards(tmp_path / "cards.json")
    assert len(read) == sum(not isinstance(arm.value, list) for arm in cards.ARMS) == len(cards.ARMS) - 1
    assert (read[0].bits, read[0].speed, read[0].memory) == (-0.095, 1.0, 1.5)
    before = [told[0] | {"bits": 9.0}, told[1]]
    assert list(cards.shown(before, told[:1] + told[2:])) == [each for each in told if not isinstance(each["value"], list)]
    row = list(cards.table(Bench(), told))[3]
    assert row.startswith("| `longformer.enabled`, window 64 | -0.0950 (-0.1000 to -0.0900) | 1.00 | 1.50 |")


def test_a_result_hangs_on_what_is_on_alone() -> None:
    """A switch of a mechanism that is off, and how chat writes, ask for nothing to be measured anew."""
    raw = {"model": {"hidden_size": 32, "num_heads": 2}, "data": {"sources": ["c4"]}}
    plain, off, on = (
        Preset.model_validate(raw | {"colt5": section, "generation": {"temperature": heat}})
        for section, heat in (({}, 0.5), ({"budget": 0.4}, 0.7), ({"enabled": True}, 0.5))
    )
    assert in_force(plain) == in_force(off) != in_force(on)
    assert in_force(plain) != in_force(plain.model_copy(update={"model": plain.model.model_copy(update={"qk_norm": False})}))
