"""Documents longer than a row: states that go from row to row, through snapshots, and gradients as far as they are asked to go."""

import gc
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_sources import Batch
from data_sources.order import LANES
from data_sources.packed import Rows
from lm.model import Context, build_model
from lm.ops.cross_entropy import linear_cross_entropy
from lm.preset import MECHANISMS, Preset
from lm.preset.plan import state_grows
from lm.training import Halted, train
from lm.training.carried import Carried, detached
from lm.training.distribution import Ranks
from lm.training.evaluation import ALONE, encoded, tally_of
from lm.training.learner import Learner
from lm.training.setup import open_session
from lm.training.snapshots import Snapshot, Snapshots
from lm.training.step import Teacher, TooLarge, Total
from tests.benchmarks.long_context import LONG, SHORT, apart
from tests.data_sources.streams import byte_tokenizer
from tests.training.elastic import taken_over

V, ROW = 50, 24
BOUNDED = [name for name, kind in MECHANISMS.items() if kind == "mixer" and not state_grows(name)]
Tiny = Callable[..., Preset]


def preset_of(mixer: str = "s5", rows: int = 2, **long_context: Any) -> Preset:
    sections = {
        "model": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "seq_length": ROW},
        "train": {"per_gpu_batch_size": rows, "precision": "float32", "grad_clip": 1e6, "long_context": {"enabled": True, "chunk_length": 6, **long_context}},
        "data": {"sources": [{"type": "files", "path": "nowhere"}]},
        mixer: {"enabled": True},
    }
    return Preset.model_validate(sections | ({"longformer": {"enabled": True, "window": 5, "global_tokens": 1}} if mixer == "longformer" else {}))


def learner_of(preset: Preset) -> Learner:
    torch.manual_seed(1)
    learner = Learner(build_model(preset, V))
    for parameter in learner.parameters():  # new layers are the identity
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.2)
    return learner


def teacher_of(preset: Preset, learner: Learner) -> Teacher:
    """A teacher whose steps leave the weights as they are."""
    still = torch.optim.SGD([{"params": [*learner.parameters()], "scale": 1.0}], lr=0.0)
    return Teacher(Ranks(preset.train), learner, still, preset.train.model_copy(update={"learning_rate": 0.0}), {}, Carried(learner.model))


def batch_of(tokens: Tensor, restart: Tensor, first: int = 0) -> Batch:
    """Rows (B, T) of one source, numbered from `first`; each token's target is the next but one, so that rows need no neighbour."""
    shape = tokens.shape
    numbers = torch.arange(first, first + len(tokens)).numpy()
    return Batch.of(Rows(tokens.numpy(), ((tokens * 7 + 3) % V).numpy(), restart.numpy(), torch.zeros(shape, dtype=torch.int64).numpy(), numbers))


def text(batch: int, time: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    restart = torch.rand(batch, time, generator=generator) < 0.05
    restart[:, 0] = True
    return torch.randint(V, (batch, time), generator=generator), restart


def gradients_of(teacher: Teacher, batch: Batch, number: int = 0) -> dict[str, Tensor]:
    """What a step back-propagates."""
    assert teacher.carried is not None
    teacher._gradients_in_memory(batch, Total(batch.valid, int(batch.is_text.sum())), 1, teacher._cut(number))
    found = {name: parameter.grad.clone() for name, parameter in teacher.learner.named_parameters() if parameter.grad is not None}
    teacher.optimizer.zero_grad()
    teacher.carried.take_back()
    return found


def mean_loss(learner: Learner, batch: Batch, state: Any = None) -> tuple[Tensor, Any]:
    """Straight from the model: mean nats, and the state after the rows."""
    out = learner.model(batch.tokens, state or learner.model.initial_state(len(batch.tokens)), Context(restart=batch.restart))
    total, _ = linear_cross_entropy(out.hidden.flatten(0, 1), learner.model.readout, batch.targets.flatten())
    return total / batch.valid, out.state


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() < 5e-4 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("mixer", BOUNDED)
def test_gradients_through_all_chunks_are_those_of_the_whole_row(mixer: str) -> None:
    preset = preset_of(mixer, backprop_chunks=4)
    learner = learner_of(preset)
    batch = batch_of(*text(2, ROW))
    loss, _ = mean_loss(learner, batch)
    loss.backward()
    wanted = {name: parameter.grad.clone() for name, parameter in learner.named_parameters() if parameter.grad is not None}
    learner.zero_grad()
    close(gradients_of(teacher_of(preset, learner), batch), wanted)


def test_gradients_end_after_backprop_chunks_and_now_and_then_later() -> None:
    preset = preset_of("s5", backprop_chunks=2, long_unroll_every=3, long_unroll_chunks=4)
    learner = learner_of(preset)
    batch = batch_of(*text(2, ROW))

    def by_hand(window: int) -> dict[str, Tensor]:
        state = None
        for piece in batch.pieces(window):
            loss, state = mean_loss(learner, piece, state)
            (loss * piece.valid / batch.valid).backward()
            state = detached(state)
        found = {name: parameter.grad.clone() for name, parameter in learner.named_parameters() if parameter.grad is not None}
        learner.zero_grad()
        return found

    teacher = teacher_of(preset, learner)
    short, long = by_hand(12), by_hand(24)
    for number, wanted in enumerate((short, short, long, short, short, long)):
        close(gradients_of(teacher, batch, number), wanted)
    assert any((short[name] - long[name]).norm() > 0.01 * long[name].norm() for name in short)


@pytest.mark.parametrize("mixer", BOUNDED)
def test_rows_of_a_lane_are_read_as_one_text(mixer: str) -> None:
    """Steps of 60 rows: lanes 0 to 11 come twice in a step. The nats of every token are those of lanes read at once."""
    preset = preset_of(mixer, rows=60)
    learner = learner_of(preset)
    teacher = teacher_of(preset, learner)
    tokens, restart = text(LANES, 5 * ROW)
    together = batch_of(tokens, restart)
    with torch.no_grad():
        out = learner.model(together.tokens, learner.model.initial_state(LANES), Context(restart=together.restart))
        _, nll = linear_cross_entropy(out.hidden.flatten(0, 1), learner.model.readout, together.targets.flatten())
    wanted = nll.view(LANES, 5, ROW).transpose(0, 1).reshape(5 * LANES, ROW)  # by row number
    of_rows = [part.view(LANES, 5, ROW).transpose(0, 1).reshape(5 * LANES, ROW) for part in (tokens, restart)]
    for first in range(0, 240, 60):
        step = teacher.step(batch_of(*(part[first : first + 60] for part in of_rows), first), 1, 0, 1000)
        assert step.loss == pytest.approx(float(wanted[first : first + 60].mean()), rel=1e-4)


def test_after_an_unsound_step_its_lanes_begin_afresh() -> None:
    preset = preset_of()
    learner = learner_of(preset)
    teacher = teacher_of(preset, learner)
    carried = teacher.carried
    assert carried is not None
    tokens, restart = text(4, ROW)
    teacher.step(batch_of(tokens[:2], restart[:2]), 1, 0, 1000)
    teacher.step(batch_of(tokens[2:], restart[2:], first=2), 1, 0, 1000)
    kept = carried.of([2, 3])
    healthy = learner.model.embedding.weight.data.clone()
    learner.model.embedding.weight.data[:] = torch.nan
    assert not teacher.step(batch_of(tokens[:2], restart[:2], first=48), 1, 0, 1000).sound
    learner.model.embedding.weight.data = healthy
    assert same(carried.of([0, 1]), learner.model.initial_state(2)) and same(carried.of([2, 3]), kept)


def test_a_step_that_found_no_memory_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half of the rows does not fit at first: the first half is not read twice."""
    preset = preset_of(rows=4)
    tokens, restart = text(4, 2 * ROW)
    states = []
    for fails in (False, True):
        learner = learner_of(preset)
        teacher = teacher_of(preset, learner)
        teacher.micro_rows = 2
        assert teacher.carried is not None
        for half in range(2):
            calls = 0
            read = Learner.forward

            def reading(self: Learner, pieces: Sequence[Batch], *rest: Any, fails: bool = fails and half == 1, read: Any = read) -> Any:
                nonlocal calls
                calls += 1
                if fails and calls == 6:
                    raise MemoryError
                return read(self, pieces, *rest)

            monkeypatch.setattr(Learner, "forward", reading)
            part = slice(half * ROW, (half + 1) * ROW)
            teacher.step(batch_of(tokens[:, part], restart[:, part], first=48 * half), 1, 0, 1000)
            monkeypatch.undo()
        assert teacher.micro_rows == (1 if fails else 2)
        states.append(teacher.carried.of(range(4)))
    for one, other in zip(leaves(states[0]), leaves(states[1]), strict=True):
        torch.testing.assert_close(one, other)


def test_what_to_lower_where_there_is_no_memory_for_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Learner, "forward", full)
    preset = preset_of()
    with pytest.raises(TooLarge, match=r"^a window of a row does not fit into memory: lower train\.long_context\.chunk_length"):
        teacher_of(preset, learner_of(preset)).step(batch_of(*text(2, ROW)), 1, 0, 1000)


def leaves(state: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(state)


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))


def test_carried_states_are_no_slices_of_larger_ones() -> None:
    preset = preset_of("longformer")
    teacher = teacher_of(preset, learner_of(preset))
    assert teacher.carried is not None
    teacher.step(batch_of(*text(2, ROW)), 1, 0, 1000)
    for kept in teacher.carried._states.values():
        assert all(leaf.untyped_storage().nbytes() == leaf.nbytes for leaf in kept)


def test_states_of_another_model_are_not_taken() -> None:
    teacher = teacher_of(preset_of("s5"), learner_of(preset_of("s5")))
    assert teacher.carried is not None
    teacher.step(batch_of(*text(2, ROW)), 1, 0, 1000)
    tensors = teacher.carried.tensors()
    for other in ("rwkv", "hyena"):
        carried = Carried(learner_of(preset_of(other)).model)
        assert not carried.load(tensors, range(LANES)) and not carried.tensors()
    again = Carried(learner_of(preset_of("s5")).model)
    assert again.load(tensors, [1]) and again.tensors()["lanes"].tolist() == [1]


# Whole runs


def long_life(tiny: Tiny, **train_switches: Any) -> Preset:
    """Rows shorter than most documents, which begin anew after 300 tokens."""
    long = {"enabled": True, "context_length": 300, "chunk_length": 32, "backprop_chunks": 1, "long_unroll_every": 5, "long_unroll_chunks": 2}
    return tiny(train={"eval_tokens": 1000, "long_context": long, **train_switches}, s5={"enabled": True, "state_size": 8})


def steps_of(folder: Path) -> list[tuple[int, float, float]]:
    events = map(json.loads, (folder / "run.jsonl").read_text(encoding="utf-8").splitlines())
    return [(event["tokens"], event["loss"], event["gradient_norm"]) for event in events if event["event"] == "step"]


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_run_goes_on_in_the_middle_of_documents(tiny: Tiny, tmp_path: Path, precision: str) -> None:
    preset, budget = long_life(tiny, precision=precision), 24 * 256
    whole, halved, forgetful = (tmp_path / name for name in ("whole", "halved", "forgetful"))
    train(preset, whole, budget)
    for folder in (halved, forgetful):
        train(preset, folder, budget, should_stop=lambda folder=folder: (folder / "run.jsonl").exists() and len(steps_of(folder)) >= 14)
        assert 14 <= len(steps_of(folder)) < 24
    lanes = Snapshots(halved).read("current").carried["lanes"].tolist()
    assert lanes == list(range(LANES))
    train(preset, halved, budget)
    assert steps_of(halved) == steps_of(whole)
    snapshots = Snapshots(forgetful)  # the proof that this test can fail: without the states the loss is another
    stripped = snapshots.read("current")
    stripped.carried.clear()
    snapshots.save(stripped)
    train(preset, forgetful, budget)
    assert [step[0] for step in steps_of(forgetful)] == [step[0] for step in steps_of(whole)] and steps_of(forgetful) != steps_of(whole)


def test_held_out_documents_are_read_from_their_first_token_to_their_last(tiny: Tiny) -> None:
    """As each read alone at once, beginning anew where training does; on any number of ranks."""
    preset = long_life(tiny)
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    model = build_model(preset, len(tokenizer))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.1)
    texts = ["ab" * length for length in (1, 40, 8, 333, 150, 151, 20, 64, 5, 300)]
    nats = 0.0
    with torch.no_grad():
        for line in texts:
            ids = [tokenizer.bos_token_id, *encoded(tokenizer, line), tokenizer.eos_token_id]
            for start in range(0, len(ids) - 1, 300):
                piece = torch.tensor(ids[start : start + 301])
                hidden = model(piece[None, :-1]).hidden[0]
                nats += float(linear_cross_entropy(hidden, model.readout, piece[1:])[0])
        for size in (1, 2):
            shares = [tally_of(model, texts, tokenizer, preset, ALONE._replace(rank=rank, world_size=size), lambda: False) for rank in range(size)]
            assert sum(share.nats for share in shares) == pytest.approx(nats, rel=1e-4)
            assert sum(share.tokens for share in shares) == sum(len(line) + 1 for line in texts)
            assert sum(share.bytes for share in shares) == sum(map(len, texts))


@torch.no_grad()
def test_held_out_documents_that_have_ended_take_no_time(tiny: Tiny) -> None:
    preset, tokenizer, read = long_life(tiny), byte_tokenizer(), []
    model = build_model(preset, len(tokenizer))
    model.embedding.register_forward_hook(lambda module, tokens, out: read.append(tokens[0].numel()))
    tally = tally_of(model, ["a" * length for length in (5, 9, 20, 31, 32, 1000)], tokenizer, preset, ALONE, lambda: False)
    assert sum(read) == 4 * 32 + 64 + 1001 and tally.tokens == 6 + 10 + 21 + 32 + 33 + 1001


def snapshots_in_memory() -> list[Snapshot]:
    return [held for held in gc.get_objects() if type(held) is Snapshot]


def test_states_are_taken_where_they_mean_what_they_meant(tiny: Tiny, tmp_path: Path) -> None:
    """Also by another preset; what they meant follows from more than their shapes."""
    longformer = {"enabled": True, "window": 5, "global_tokens": 1}

    def opened(preset: Preset) -> tuple[dict[str, Tensor], list[str]]:
        told: list[Any] = []
        others = snapshots_in_memory()
        with open_session(preset, tmp_path, 2000, (told.append,)) as session:
            assert len(snapshots_in_memory()) <= len(others), "its tensors are copied by now"
            carried = session.run.carried
            return carried.tensors() if carried else {}, [event["text"] for event in told if event["event"] == "notice" and "the states of" in event["text"]]

    def preset_with(model: dict[str, Any] | None = None, **long_context: Any) -> Preset:
        sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "seq_length": 32}
        long = {"enabled": True, "context_length": 300, "chunk_length": 16, **long_context}
        return tiny(train={"eval_tokens": 0, "long_context": long}, model=sizes | (model or {}), longformer=longformer)

    train(preset_with(), tmp_path, 1000)
    kept = Snapshots(tmp_path).read("current").carried
    found, told = opened(preset_with({"seq_length": 53, "position_interpolation_layers": "odd"}, context_length=50))
    assert found.keys() == kept.keys() and all(torch.equal(found[name], kept[name]) for name in kept) and told == []
    for model in ({"position_interpolation": 2.0}, {"qk_norm": False}, {"num_layers": 3}):
        found, told = opened(preset_with(model))
        assert found == {} and len(told) == 1
    assert opened(preset_with(enabled=False)) == ({}, [])


def test_a_state_that_grows_is_not_carried(tiny: Tiny, tmp_path: Path) -> None:
    preset = long_life(tiny)
    with pytest.raises(Halted, match="attention in layer 0 keeps every token"):
        train(preset.model_copy(update={"s5": preset.s5.model_copy(update={"enabled": False})}), tmp_path, 1000)


def test_rows_grow_as_the_preset_says_through_a_stop(tiny: Tiny, tmp_path: Path) -> None:
    """Stages of the model's life: a second run does not begin with the first again."""
    stages = [{"until_tokens": 700, "seq_length": 16}, {"until_tokens": 1800, "seq_length": 32}]
    preset, budget = tiny(train={"eval_tokens": 0, "seq_length_curriculum": stages}), 3000
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    train(preset, whole, budget)
    tokens = [0, *(step[0] for step in steps_of(whole))]
    sizes = [after - before for before, after in pairwise(tokens)]
    assert sizes == [4 * (16 if before < 700 else 32 if before < 1800 else 64) for before in tokens[:-1]] and set(sizes) == {64, 128, 256}
    train(preset, halved, budget, should_stop=lambda: (halved / "run.jsonl").exists() and len(steps_of(halved)) >= 10)
    told: list[Any] = []
    train(preset, halved, budget, observers=(told.append,))
    assert steps_of(halved) == steps_of(whole)
    assert [event["exact"] for event in told if event["event"] in ("resume", "certificate")] == [True, True]
    train(preset, halved, budget + 1)
    after = [step[0] for step in steps_of(halved)][len(sizes) :]
    assert after[0] == 256


@pytest.mark.slow
def test_states_move_to_another_number_of_processes(tiny: Tiny, tmp_path: Path) -> None:
    """On one process, then on three, each of which carries the states of its lanes, then on one again."""
    preset, budget = long_life(tiny), 40 * 256
    whole, folder = tmp_path / "whole", tmp_path / "moved"
    train(preset, whole, budget)
    train(preset, folder, budget, should_stop=lambda: (folder / "run.jsonl").exists() and len(steps_of(folder)) >= 13)
    taken_over(3, preset, tmp_path, folder, budget, 14)
    assert Snapshots(folder).read("current").carried["lanes"].sort().values.tolist() == list(range(LANES))
    train(preset, folder, budget)
    losses, moved = ([step[1] for step in steps_of(place)] for place in (whole, folder))
    assert moved == pytest.approx(losses, rel=2e-4)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_row() -> None:
    """Forward and backward over 657,000 tokens: at most 1.1 times the memory of 65,700."""
    assert apart(LONG, 2)["peak"] <= 1.1 * apart(SHORT, 2)["peak"]
