"""Each head against its equation in a slow loop; what its gradients reach; what it sees; and nothing to see."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_sources import Batch
from data_sources.batch import Arrivals, bounds_of
from lm.auxiliary.choice import after_first, coming_mean, goes_on, one_in, uniform
from lm.auxiliary.head import Reading
from lm.auxiliary.heads import HEADS
from lm.auxiliary.latent_consistency import drawn
from lm.preset import Preset, PresetError, preset_from_json
from lm.training.learner import weighted_sum
from tests.auxiliary.small import ALL, PAD, learner_of, preset_of, read
from tests.training.ranks import V, rows


@pytest.fixture(scope="module", params=[None, 1.5], ids=["no cap", "capped"])
def setting(request: pytest.FixtureRequest) -> tuple:
    """A learner with all heads in float64, and what they are given of eight rows; with a soft cap on scores and without."""
    model = {"hidden_size": 24, "num_layers": 2, "num_heads": 2, "seq_length": 64, "logit_soft_cap": request.param}
    learner = learner_of(preset_of(ALL, model=model), torch.float64)
    return learner, read(learner, rows())[0]


def scores_of(reading: Reading, latent: Tensor) -> Tensor:
    """Of every entry of the vocabulary (V,) for a latent (D,), plainly."""
    matrix, cap = reading.readout
    return matrix @ latent if cap is None else cap * torch.tanh(matrix @ latent / cap)


def document(reading: Reading) -> list[list[int]]:
    """By row and place in it the number of the document, and another below zero for each token of padding."""
    batch = rows()
    assert torch.equal(batch.tokens, reading.tokens)
    padding = -1 - torch.arange(batch.tokens.shape[1]).expand_as(batch.tokens)
    return torch.where(batch.source < 0, padding, batch.restart.cumsum(1)).tolist()


def nats(scores: Tensor, token: int) -> float:
    return float(scores.logsumexp(-1) - scores[token])


@pytest.mark.parametrize("name", HEADS)
def test_gradients_reach_the_trunk_unless_switched_off(name: str) -> None:
    """One head at a time, at its loss alone; switched off, the head still learns."""
    for stops in (False, True):
        learner = learner_of(preset_of({f"enable_{name}": True, "stop_gradients": [name] * stops}))
        losses = learner([rows()]).losses
        sum(loss for loss_name, loss in losses.items() if loss_name != "next_token").backward()
        reached = {path for path, parameter in learner.model.named_parameters() if parameter.grad is not None and parameter.grad.any()}
        assert all(parameter.grad.any() for parameter in learner.heads.parameters())
        assert reached == set() if stops else any(path.startswith("layers.0.0") for path in reached)


def test_a_foretold_latent_is_judged_by_the_value_head_and_teaches_it() -> None:
    learner = learner_of(preset_of({"enable_dynamics": True, "enable_value": True}))
    learner([rows()]).losses["dynamics_value"].backward()
    for head in ("dynamics", "value"):
        assert all(parameter.grad.any() for name, parameter in learner.heads[head].named_parameters()), head


def test_where_nothing_is_scored_every_parameter_still_takes_part() -> None:
    learner = learner_of(preset_of(ALL))
    learned = learner([rows(padding_from=0)])
    weighted_sum(learned.losses, {}).backward()
    assert all(float(loss) == 0 for loss in learned.losses.values()), learned.losses
    for name, parameter in learner.heads.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
    before = {name: buffer.clone() for name, buffer in learner.heads.named_buffers()}
    learner.after_step(learned.stats)
    assert all(torch.isfinite(buffer).all() for buffer in learner.heads.buffers())
    assert torch.equal(before["value.mean"], learner.heads["value"].mean)
    assert all(torch.equal(before[f"span_contrastive.{name}"], getattr(learner.heads["span_contrastive"], name)) for name in ("left", "lane"))


def test_without_heads_the_learner_gives_what_it_gave() -> None:
    bare, full = learner_of(preset_of({})), learner_of(preset_of(ALL))
    full.model.load_state_dict(bare.model.state_dict())
    one, other = bare([rows()]), full([rows()])
    assert list(one.losses) == ["next_token"] and not one.stats
    assert torch.equal(one.losses["next_token"], other.losses["next_token"]) and torch.equal(one.nll, other.nll)


# What each predicts, against a loop over tokens.


@pytest.mark.parametrize("span", [5, 1000])
def test_the_value_of_a_token_is_what_the_tokens_after_it_cost(span: int) -> None:
    """Of a span longer than the row, all that the row has left."""
    learner = learner_of(preset_of(ALL | {"value_span": span}), torch.float64)
    (reading,) = read(learner, rows())
    head, documents, spent = learner.heads["value"], document(reading), []
    found, known = head.wanted(reading)
    for row, line in enumerate(documents):
        for time, here in enumerate(line):
            ahead = [at for at in range(time, min(time + head.span, len(line))) if line[at] == here]
            costs = [float(reading.nll[row, at]) for at in ahead if reading.targets[row, at] >= 0]
            assert bool(known[row, time]) == bool(costs)
            if costs:
                assert float(found[row, time]) == pytest.approx(sum(costs) / len(costs), rel=1e-12)
                error = abs(float(head.estimate(reading.hidden[row, time])) - sum(costs) / len(costs))
                spent.append(0.5 * error**2 if error < 1 else error - 0.5)
    taught = head(reading)
    assert float(taught.sums["value"]) == pytest.approx(sum(spent), rel=1e-9) and int(taught.counts["value"]) == len(spent)


def test_nothing_that_was_read_is_in_the_value_to_come() -> None:
    """Raising what a token costs changes the value of those before it, and of none behind."""
    cost, restart = torch.rand(1, 12, dtype=torch.float64), torch.zeros(1, 12, dtype=torch.bool)
    restart[0, 8] = True
    plain, _ = coming_mean(cost, cost > 0, restart, 3)
    cost[0, 5] += 1
    changed, _ = coming_mean(cost, cost > 0, restart, 3)
    assert ((changed - plain).abs() > 1e-9)[0].nonzero().flatten().tolist() == [3, 4, 5]  # nll[5] is of token 6, which 5 has not read


@pytest.mark.parametrize(("name", "ahead"), [("second_next", 2), ("reconstruction", 0)])
def test_a_token_is_named(setting: tuple, name: str, ahead: int) -> None:
    learner, reading = setting
    head, documents = learner.heads[name], document(reading)
    chosen = one_in(2, 0, name.replace("_", " "), reading.row, 0, reading.tokens)
    total, count = 0.0, 0
    for row, line in enumerate(documents):
        for time in range(len(line)):
            last = time + max(ahead - 1, 0)  # its target is the token that should be named
            if not chosen[row, time] or last >= len(line) or line[last] != line[time] or min(reading.targets[row, time : last + 1]) < 0:
                continue
            wanted = int(reading.tokens[row, time] if ahead == 0 else reading.targets[row, last])
            total += nats(scores_of(reading, head.network(reading.hidden[row, time])), wanted)
            count += 1
    taught = head(reading)
    assert float(taught.sums[name]) == pytest.approx(2 * total, rel=1e-6)
    assert int(taught.counts[name]) == 2 * count > 60


def test_the_policy_is_near_the_models_own_distribution(setting: tuple) -> None:
    learner, reading = setting
    head, total = learner.heads["policy"], 0.0
    chosen = one_in(5, 0, "policy", reading.row, 0, reading.tokens) & (reading.targets >= 0)
    for row, time in chosen.nonzero().tolist():
        teacher = torch.distributions.Categorical(logits=scores_of(reading, reading.hidden[row, time]))
        student = torch.distributions.Categorical(logits=head.scores(reading.hidden[row, time], reading.readout))
        total += float(torch.distributions.kl_divergence(teacher, student))
    assert float(head(reading).sums["policy"]) == pytest.approx(5 * total, rel=1e-4)


def test_the_dynamics_go_from_latent_to_latent(setting: tuple) -> None:
    learner, reading = setting
    head, value, documents = learner.heads["dynamics"], learner.heads["value"], document(reading)
    wanted, known = value.wanted(reading)
    first, compares = head.chains(reading)
    near = kl = judged = 0.0
    for place, compared in zip(first.tolist(), compares.tolist(), strict=True):
        row, time = divmod(place, reading.tokens.shape[1])
        latent, guesses, truths = reading.hidden[row, time], [], []
        for step in range(1, 4):
            at = time + step
            if at >= len(documents[row]) or documents[row][at] != documents[row][time]:
                break
            latent = head.step(latent, reading.embedding[reading.tokens[row, at]])
            near += float(F.smooth_l1_loss(latent, reading.hidden[row, at]))
            if compared:
                scores = [torch.distributions.Categorical(logits=scores_of(reading, h)) for h in (reading.hidden[row, at], latent)]
                kl += float(torch.distributions.kl_divergence(*scores))
            if known[row, at]:
                guesses.append(value.estimate(latent))
                truths.append(wanted[row, at])
        if guesses:
            judged += float(F.smooth_l1_loss(torch.stack(guesses).mean(), torch.stack(truths).mean()))
    sums = head(reading).sums
    assert compares.any() and not compares.all()
    assert float(sums["dynamics"]) == pytest.approx(near * 3 / 3, rel=1e-9)  # one in three tokens, three steps
    assert float(sums["dynamics_kl"]) == pytest.approx(kl * 6 / 3, rel=1e-4)
    assert float(sums["dynamics_value"]) == pytest.approx(judged * 3, rel=1e-9)


def test_no_latent_of_padding_is_foretold() -> None:
    """The third row ends in padding that no restart parts from the text; what is read and not scored, a question, is text."""
    batch = rows()
    learner = learner_of(preset_of(ALL | {"latent_every": 1, "consistency_every": 3}))
    for source, ends in ((batch.source, True), (torch.zeros_like(batch.source), False)):
        reading = read(learner, replace(batch, source=source))[0]
        chains, rollouts = learner.heads["dynamics"], learner.heads["latent_consistency"]
        foretold = [link.place for link in chains.links(reading, chains.chains(reading)[0])]
        foretold.append(rollouts.beginnings(reading) + rollouts.depth)
        assert bool((batch.source.flatten()[torch.cat(foretold)] >= 0).all()) == ends


def test_the_teacher_of_latent_consistency_is_the_mean_end_of_rollouts(setting: tuple) -> None:
    """One beginning in a row, so that no rollout stands on another."""
    learner, reading = setting
    head = learner.heads["latent_consistency"]
    first = head.beginnings(reading)
    alone = [place for place in first.tolist() if not any(0 < place - other < 16 and other // 16 == place // 16 for other in first.tolist())]
    found, ends = head.teacher(reading, first), {}
    for place in alone:
        row, time = divmod(place, 16)
        for rollout in range(2):
            tokens = reading.tokens.clone()
            for step in range(2):
                hidden = reading.again(tokens)[row, time + step]
                lot = uniform(0, f"rollout {rollout} {step}", reading.row, 0, reading.tokens)[row, time]
                tokens[row, time + step + 1] = drawn(scores_of(reading, hidden)[None], lot[None])[0]
            ends[place] = ends.get(place, 0) + reading.again(tokens)[row, time + 2] / 2
    assert len(alone) > 4
    for place, end in ends.items():
        torch.testing.assert_close(found[first.tolist().index(place)], end)


@pytest.mark.parametrize("normalises", [True, False])
def test_spans_are_told_from_those_of_other_lanes(normalises: bool) -> None:
    learner = learner_of(preset_of(ALL | {"span_l2_normalize": normalises}), torch.float64)
    (reading,) = read(learner, rows())
    head, norm = learner.heads["span_contrastive"], (lambda vector: vector / vector.norm()) if normalises else (lambda vector: vector)
    head.lane[:40] = torch.arange(40) % 8
    head.lane[20:30] = -1
    spans = head.spans(reading)
    masked = reading.again(head.masked(reading, spans))
    total = 0.0
    for places in spans.place.tolist():
        row = places[0] // 16
        query = norm(head.query(torch.stack([masked.flatten(0, 1)[place - 1] for place in places]).mean(0)))
        held = [reading.tokens.flatten()[places], *(head.left[slot] for slot in range(len(head.left)) if head.lane[slot] not in (-1, row))]
        scores = [query @ norm(head.key(torch.stack([reading.embedding[token] for token in span.tolist()]).mean(0))) for span in held]
        total += nats(torch.stack(scores) / 0.5, 0)
        assert len({document(reading)[row][place % 16] for place in (places[0] - 1, *places)}) == 1, "what stands before is of the same document"
    assert len(spans.place) > 5 and (head.masked(reading, spans) == PAD).sum() >= spans.place.numel()
    assert float(head(reading).sums["span_contrastive"]) == pytest.approx(5 * total, rel=1e-6)


def test_a_span_is_told_by_its_own_row_alone_also_where_documents_go_on() -> None:
    """Nothing begins anew in these rows, so what stands before their first column is not there."""
    learner = learner_of(preset_of(ALL), torch.float64)
    batch = rows()
    batch = replace(
        batch,
        restart=torch.zeros_like(batch.restart),
        cu_seqlens=torch.from_numpy(bounds_of(np.zeros(batch.restart.shape, bool))),
        restarts=0,
        row=batch.row + 16,
    )
    head, (together,) = learner.heads["span_contrastive"], read(learner, batch)
    place = head.spans(together).place % batch.tokens.shape[1]
    assert len(place) > 10 and (place > 0).all()
    drawn_first = after_first(head.stride, 0, "spans", together.row, 0, together.targets)[:, 0] % head.stride == 0
    assert drawn_first.any(), "else nothing was tried"
    alone = [float(head(reading).sums["span_contrastive"]) for one in batch.split(1) for reading in read(learner, one)]
    assert float(head(together).sums["span_contrastive"]) == pytest.approx(sum(alone), rel=1e-9)


def test_one_pair_has_one_score_under_autocast() -> None:
    """What a span holds, once as its own key and once as another's: they are told apart by nothing."""
    head = learner_of(preset_of(ALL | {"span_contrastive_temperature": 0.07})).heads["span_contrastive"]
    key = torch.nn.functional.normalize(torch.randn(len(head.lane), 7, generator=torch.Generator().manual_seed(1)), dim=-1)
    head.lane.fill_(-1)
    head.lane[0] = 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head.losses(torch.roll(key, 1, 1)[:1], key[:1], key, torch.tensor([3]))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)


def test_each_row_leaves_its_spans_for_the_next_step(setting: tuple) -> None:
    learner, reading = setting
    head = learner.heads["span_contrastive"]
    spans, stats = head.spans(reading), head(reading).stats
    head.lane.fill_(-1)
    head.after_step(stats)
    kept = head.lane >= 0
    assert int(kept.sum()) == int((spans.number < 4).sum()) > 5
    assert set(head.lane[kept].tolist()) <= set(reading.lane.tolist())
    for row, number, places in zip(spans.row.tolist(), spans.number.tolist(), spans.place, strict=True):
        if number < 4:  # rows 0 to 7 write slots 0 to 31
            assert head.lane[4 * row + number] == row and torch.equal(head.left[4 * row + number], reading.tokens.flatten()[places])


def test_spans_stay_until_rows_far_behind_write_their_slots(setting: tuple) -> None:
    """A queue: a step of the rows that come next leaves them as they are, and rows of the same slots take their place."""
    learner, reading = setting
    head = learner.heads["span_contrastive"]
    head.lane.fill_(-1)
    head.after_step(head(reading).stats)
    first, kept = head.left.clone(), head.lane >= 0
    others = reading._replace(tokens=(reading.tokens + 1) % V)
    head.after_step(head(others._replace(row=reading.row + 8, lane=reading.lane + 8)).stats)
    assert torch.equal(head.left[kept], first[kept]) and head.lane.max() >= 8
    far = others._replace(row=reading.row + len(head.lane) // 4)
    head.after_step(head(far).stats)
    spans = head.spans(far)
    written = [4 * int(row) + int(number) for row, number in zip(spans.row, spans.number, strict=True) if number < 4]
    assert written and not (head.left[written] == first[written]).all(1).any()


def test_a_step_with_more_rows_than_slots_mixes_no_spans(setting: tuple) -> None:
    """The first such step leaves nothing where two rows meet; from then on one round's rows leave theirs."""
    learner, reading = setting
    head = learner.heads["span_contrastive"]
    head.lane.fill_(-1)
    apart, true = len(head.lane) // 4, set()
    for number in range(3):
        rounds = [reading._replace(row=reading.row + apart * (2 * number + turn)) for turn in range(2)]
        true |= {tuple(span) for each in rounds for span in each.tokens.flatten()[head.spans(each).place].tolist()}
        first, second = (head(each).stats for each in rounds)
        assert int(second["count"].sum()) > 0 if number == 0 else not second["count"].any()
        head.after_step({name: first[name] + second[name] for name in first} | {"rows": torch.tensor(2 * apart)})
        assert {tuple(span) for span in head.left[head.lane >= 0].tolist()} <= true
    assert (head.lane >= 0).sum() > 5 and head.rounds == 2
    head.rounds.fill_(1)


def test_no_key_knows_what_stands_around_its_span(setting: tuple) -> None:
    """With every other token of the rows another, keys are the same; with another in a span they are not."""
    learner, reading = setting
    head, batch = learner.heads["span_contrastive"], rows()
    heard = []
    head.losses = lambda query, key, others, lane: heard.append(key) or query.sum(1)
    place = head.spans(reading).place.flatten()
    others = (batch.tokens + 1) % V
    around = others.flatten().index_copy(0, place, batch.tokens.flatten()[place]).view_as(others)
    inside = batch.tokens.flatten().index_copy(0, place, others.flatten()[place]).view_as(others)
    for tokens in (batch.tokens, around, inside):
        learner([replace(batch, tokens=tokens)])
    del head.losses
    torch.testing.assert_close(heard[1], heard[0])
    assert (heard[2] != heard[0]).any(1).all()


def test_no_neighbours_tell_of_what_is_masked() -> None:
    """They were found by the true words of the chunk before, which in another reading may be masked, or other ones."""
    retro = {"enabled": True, "layers": [1], "num_neighbors": 1, "chunk_size": 4, "add_cross_attention": True}
    learner, batch = learner_of(preset_of(ALL, retro=retro)), rows()
    found = torch.arange(8)[:, None, None] + torch.zeros(8, 1, 8, dtype=torch.int64)
    one, other = (Arrivals(16 * torch.arange(8) + 4, tokens, torch.full((8, 1), 8)) for tokens in (found, found + 9))
    readings = [read(learner, replace(batch, answers=answers))[0] for answers in (one, other)]
    assert not torch.equal(readings[0].hidden, readings[1].hidden), "the text as it is is read with them"
    assert torch.equal(*(reading.again(batch.tokens.flip(1)) for reading in readings))


@pytest.mark.parametrize("time", [1, 2, 16])
@pytest.mark.parametrize(
    "switches", [{"value_span": 1000, "span_length": 20, "dynamics_steps": 16, "consistency_depth": 3}, {"span_l2_normalize": False}], ids=str
)
def test_steps_are_sound_where_rows_are_shorter_than_what_heads_look_at(switches: dict[str, object], time: int) -> None:
    """As the first stages of a curriculum may be; and where spans are compared by more than directions."""
    learner = learner_of(preset_of(ALL | switches))
    batch = rows()._part(slice(None), slice(0, time))
    for _ in range(3):
        learned = learner([batch])
        weighted_sum(learned.losses, {}).backward()
        learner.after_step(learned.stats)
    assert all(torch.isfinite(tensor).all() for tensor in (*learned.losses.values(), *learner.buffers()))
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    depth, length = switches.get("consistency_depth", 2), switches.get("span_length", 2)
    for name, ahead in {"second_next": 1, "dynamics": 1, "latent_consistency": depth, "span_contrastive": length}.items():
        assert bool(learned.counts[name]) <= (time > ahead), name
        assert bool(learned.counts[name]) or time < 16 or time <= ahead, name


# What is looked at depends on the row alone.


def test_choices_do_not_depend_on_how_rows_are_cut() -> None:
    row, like = torch.tensor([5, 77, 1_000_003]), torch.zeros(3, 20)
    for draw in (lambda row, start, like: one_in(4, 1, "x", row, start, like), lambda row, start, like: uniform(1, "x", row, start, like)):
        whole = draw(row, 0, like)
        parts = torch.cat([draw(row, 0, like[:, :7]), draw(row, 7, like[:, 7:])], 1)
        assert torch.equal(whole, parts) and torch.equal(whole[1:2], draw(row[1:2], 0, like[1:2]))
    assert one_in(4, 1, "x", row, 0, like).sum(1).tolist() == [5, 5, 5]
    assert not torch.equal(uniform(1, "x", row, 0, like), uniform(1, "y", row, 0, like))
    lots = uniform(3, "z", torch.arange(50), 0, torch.zeros(50, 400))
    assert lots.min() >= 0 and lots.max() < 1 and abs(float(lots.mean()) - 0.5) < 0.01 and abs(float(lots.std()) - 12**-0.5) < 0.01


def test_a_lot_falls_as_often_as_is_likely() -> None:
    logits, lots = torch.tensor([0.1, 2.0, -1.0, 0.7]), (torch.arange(10_000) + 0.5) / 10_000
    shares = torch.bincount(drawn(logits.expand(10_000, 4), lots), minlength=4) / 10_000
    torch.testing.assert_close(shares, logits.softmax(0), atol=2e-4, rtol=0)


def test_what_goes_on() -> None:
    restart = torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    assert goes_on(restart, 1).tolist() == [[True, False, True, True, False], [True, True, True, True, False]]
    assert not goes_on(restart, 5).any() and not goes_on(restart, 9).any() and goes_on(restart[:, :0], 2).shape == (2, 0)


# The law.


def predictions(learner, reading: Reading) -> dict[str, Tensor]:
    """What each head says at each place, (B, T - 1, ...), before the last token of the row is known."""
    heads, hidden = learner.heads, reading.hidden[:, :-1]
    spans = heads["span_contrastive"].spans(reading)
    following = F.embedding(reading.tokens[:, 1:], reading.embedding)
    return {
        "second_next": heads["second_next"].network(hidden),
        "reconstruction": heads["reconstruction"].network(hidden),
        "value": heads["value"].estimate(hidden),
        "policy": heads["policy"].scores(hidden, reading.readout),
        "latent_consistency": heads["latent_consistency"].foretold(hidden),
        "dynamics": heads["dynamics"].step(hidden[:, :-1], following[:, :-1]),
        "span_contrastive": reading.again(heads["span_contrastive"].masked(reading, spans))[:, :-1],
    }


def test_a_later_token_changes_no_prediction_before_it(setting: tuple) -> None:
    learner, reading = setting
    batch = rows()
    tokens = batch.tokens.clone()
    tokens[:, -1] = (tokens[:, -1] + 1) % V
    other = predictions(learner, read(learner, replace(batch, tokens=tokens))[0])
    for name, said in predictions(learner, reading).items():
        torch.testing.assert_close(said, other[name], msg=lambda text, name=name: f"{name}: {text}")


def test_rows_in_pieces_are_seen_as_the_parts_that_they_are(setting: tuple) -> None:
    """Latents, places and costs; a target that would lie in the next piece is not there."""
    learner, reading = setting
    batch: Batch = rows()
    first, second = read(learner, *batch.pieces(9))
    assert (first.start, second.start) == (0, 9)
    torch.testing.assert_close(torch.cat([first.hidden, second.hidden], 1), reading.hidden)
    torch.testing.assert_close(torch.cat([first.nll, second.nll], 1), reading.nll)
    assert learner.heads["dynamics"].chains(first)[0].numel() + learner.heads["dynamics"].chains(second)[0].numel() <= len(
        learner.heads["dynamics"].chains(reading)[0]
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_pieces_that_are_read_again_on_the_way_back_teach_the_same(recompute: bool) -> None:
    learner = learner_of(preset_of(ALL))
    weighted_sum(learner(rows().pieces(9), learner.model.initial_state(8), recompute).losses, {}).backward()
    found = {name: parameter.grad.clone() for name, parameter in learner.named_parameters()}
    learner.zero_grad()
    weighted_sum(learner(rows().pieces(9), learner.model.initial_state(8), not recompute).losses, {}).backward()
    for name, parameter in learner.named_parameters():
        torch.testing.assert_close(parameter.grad, found[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        ('{"enable_latent_consistency": true, "consistency_every": 3, "consistency_depth": 3}', "make consistency_every larger"),
        ('{"enable_span_contrastive": true, "span_mask_fraction": 0.6}', "at most half"),
        ('{"stop_gradients": ["valeu"]}', 'did you mean "value"'),
        ('{"stop_gradients": ["value", "policy", "value"]}', '"value" is there twice'),
        ('{"enable_span_contrastive": true, "span_length": 256}', r"never seen together in 256 \(model.seq_length\); make span_length smaller"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(switches: str, words: str) -> None:
    with pytest.raises(PresetError, match=words) as error:
        preset_from_json(f'{{"data": {{"sources": ["c4"]}}, "auxiliary": {switches}}}', "here.json")
    assert "\n" not in str(error.value)


def laid_over(auxiliary: dict[str, object], length: int, chunk: int | None = None) -> Preset:
    long = {"long_context": {"enabled": True, "chunk_length": chunk, "backprop_chunks": 1}} if chunk else {}
    raw = {"name": "here", "model": {"seq_length": length}, "data": {"sources": ["c4"]}, "s5": {"enabled": True}, "train": long}
    return Preset.model_validate(raw | {"auxiliary": auxiliary})


@pytest.mark.parametrize(
    ("head", "switch", "ahead"), [("dynamics", "dynamics_steps", 9), ("latent_consistency", "consistency_depth", 9), ("span_contrastive", "span_length", 9)]
)
def test_what_no_row_is_long_enough_for_is_refused(head: str, switch: str, ahead: int) -> None:
    """Or no chunk of one, where rows are read in chunks; of a head that is off nothing is asked."""
    on = {f"enable_{head}": True, switch: ahead}
    for length, chunk in ((ahead, None), (64, ahead)):
        with pytest.raises(ValueError, match=f"make {switch} smaller"):
            laid_over(on, length, chunk)
        laid_over({switch: ahead}, length, chunk)
    laid_over(on, ahead + 1)
    laid_over(on, 64, ahead + 1)


def test_what_is_on_for_nothing_is_said() -> None:
    weights = {"dynamics_weight": 0, "dynamics_kl_weight": 0, "policy_kl_weight": 0}
    on = {"enable_dynamics": True, "enable_policy": True, "stop_gradients": ["value", "policy"]}
    nothing, off = laid_over(on | weights, 64).notices[:-1], laid_over(on | weights, 64).notices[-1]
    assert [line.split()[1] for line in nothing] == ["auxiliary.enable_dynamics", "auxiliary.enable_policy"] and off.endswith("that are off: value")
    assert len(laid_over(on | weights | {"enable_value": True}, 64).notices) == 1, "the dynamics learn by what the value head says of them"
    assert not laid_over(on | {"stop_gradients": []}, 64).notices
