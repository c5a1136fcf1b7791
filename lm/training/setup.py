"""How a session begins: the processes, the folder, the newest snapshot, the tokenizer, the model, the stream; and how it is cleared away."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data_sources import Batch, open_stream, reopened
from data_sources.config import PAST
from data_sources.cursor import lanes_of, without
from data_sources.documents import SourceError, SourcesFailed, Stopped
from data_sources.held_out import HeldOutStore
from data_sources.past import Past
from data_sources.prefetch import Prefetch
from data_sources.special_tokens import ObjectiveTokens, with_objective_tokens
from data_sources.stream import Options, Stream
from data_sources.tokenizer import build_tokenizer, tokenizer_from_json, tokenizer_to_json
from lm.auxiliary.heads import build_heads
from lm.memory.layout import MemoryFault
from lm.model import build_model
from lm.objectives.table import rewriter_of
from lm.preset import Preset, model_in_words
from lm.preset.holding import expected_vocabulary
from lm.preset.learned import needs_tokens, what_is_learned
from lm.training.adaptive import AdaptiveSources
from lm.training.averaging import Average
from lm.training.carried import Carried
from lm.training.certificate import certified, differences
from lm.training.change import other_tokenizer
from lm.training.distribution import Ranks, device_in_words, is_out_of_memory
from lm.training.evaluation import HELD_OUT, encoded
from lm.training.forecast import too_large
from lm.training.going_back import came_back
from lm.training.growth import Fit
from lm.training.journal import opened_journal
from lm.training.learner import Learner
from lm.training.optimizer import build_optimizer
from lm.training.remembering import Remembering, Taken
from lm.training.replay import PastKeeper, begun_replay, in_words, opened_past, past_source, spread
from lm.training.run import Run, begin_run, is_under_way, new_life, restore, taught
from lm.training.saving import Saver
from lm.training.session import GLANCE, Session
from lm.training.snapshots import Snapshot, SnapshotError, Snapshots
from lm.training.step import Teacher
from lm.training.tensorboard import TensorBoard

HELD_OUT_TOKENS = 200_000  # of a source, at most
BATCHES_AHEAD = 4
DIFFERENCES_SHOWN = 3
Observer = Callable[[Mapping[str, Any]], None]


class Halted(Exception):
    """Training can't go on. The message is one line that says why."""


class Reporter:
    """Passes events to the observers of rank 0."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = list(observers)

    def __call__(self, event: Mapping[str, Any]) -> None:
        for observer in self.observers:
            observer(event)

    def phase(self, text: str) -> None:
        self({"event": "phase", "text": text})

    def notice(self, text: str) -> None:
        self({"event": "notice", "text": text})


@contextlib.contextmanager
def open_session(
    preset: Preset, folder: Path, budget: int, observers: Sequence[Observer], should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Session]:
    """Everything that the loop needs, closed again when the loop is done.

    SnapshotError or Halted, on all ranks, when it can't begin; Stopped when it was asked to stop before there was anything to train on.
    """
    with contextlib.ExitStack() as stack:
        ranks, snapshots = Ranks(preset.train), Snapshots(folder)
        try:
            lanes_of(ranks.rank, ranks.size)
        except ValueError as error:
            raise Halted(str(error)) from None
        report = Reporter(observers if ranks.is_first else ())

        def take_the_folder() -> None:
            stack.callback(snapshots.lock().close)
            report.observers.insert(0, stack.enter_context(contextlib.closing(opened_journal(folder))))

        ranks.first_does(take_the_folder)
        for line in preset.notices:
            report.notice(line)
        report.phase("looking for the newest snapshot")
        snapshot = ranks.first_does(lambda: snapshots.newest(report.notice))
        tokenizer_json = snapshot.tokenizer if snapshot else ranks.first_does(lambda: _born_tokenizer(preset, ranks, report, should_stop))
        tokenizer_json, tokenizer = _with_tokens_of_objectives(tokenizer_json, preset, report)
        report.phase("building the model")
        run = _born_run(preset, tokenizer_json, tokenizer, budget, ranks)
        under_way = snapshot is not None and is_under_way(snapshot, preset, budget)
        how = _take_over(run, snapshot, under_way, snapshots, ranks, report) if snapshot else None
        if not snapshot:
            begin_run(run.life, preset, budget)
        run.carried = _carried(run, snapshot, bool(how and how.is_same_model), ranks, report)
        run.average = _average(run, snapshot, bool(how and how.is_whole), report)
        _tell_run(run, ranks, report)
        limit = preset.train.replay_megabytes * 1_000_000
        past = opened_past(folder, run.life, limit, report.notice) if ranks.is_first and limit else None
        lost = _settle_replay(run, not under_way, past, tokenizer, folder, ranks, report)
        keep = (limit, ranks.from_first(past.until if past else None)) if limit else None
        if preset.auxiliary.enable_adaptive_sources:
            run.adaptive = _adaptive(run, snapshot)
        if preset.train.tensorboard:
            ranks.first_does(lambda: report.observers.append(stack.enter_context(contextlib.closing(TensorBoard(folder, run.life["tokens"], report.notice)))))
        memory = _memory(run, snapshot, under_way, tokenizer, folder, ranks, report)
        stack.callback(memory.close if memory else lambda: None)
        report.phase("opening the sources")
        stream = _opened(run, tokenizer, ranks, keep, memory, should_stop)
        ahead = stack.enter_context(Prefetch(stream, BATCHES_AHEAD, _pinned if ranks.device.type == "cuda" else lambda item: item))
        store = HeldOutStore(folder / HELD_OUT, min(preset.train.eval_tokens, HELD_OUT_TOKENS))
        saver = Saver(snapshots)
        stack.callback(_let_finish, saver)
        keeper = PastKeeper(past, folder) if past else None
        session = Session(ranks, run, _teacher(run, ranks), tokenizer, stream, ahead, store, snapshots, saver, report, [], keeper, memory)
        if snapshot:
            lost_parts = {"the sample of the past that this run reads again is lost": lost, "the memory of what was read is lost": memory and memory.lost}
            changes = [line for line, is_lost in lost_parts.items() if is_lost] + _changes(session)
            session.expected = _tell_resume(run, snapshot, under_way, bool(how and how.is_whole), changes, ranks, report)
            snapshot = None  # its tensors would stay in memory as long as the session
        yield session


def _pinned(item: tuple[Batch, Any]) -> tuple[Batch, Any]:
    return item[0].pinned(), item[1]


def _teacher(run: Run, ranks: Ranks) -> Teacher:
    """What takes the run's steps."""
    terms = (run.preset.train, run.preset.loss_weights, run.carried, run.preset.auxiliary.share_every, run.average)
    return Teacher(ranks, run.learner, run.optimizer, *terms)


def _let_finish(saver: Saver) -> None:
    """The folder stays locked until the last snapshot is written; whether it was is told before, where it matters."""
    with contextlib.suppress(SnapshotError):
        saver.outcome(wait=True)


def _check_size(preset: Preset, vocab_size: int, ranks: Ranks) -> None:
    """Halted where the model is larger than this machine."""
    if reason := too_large(preset, vocab_size, ranks.device):
        raise Halted(f"{preset.name}: {reason}")


def _born_tokenizer(preset: Preset, ranks: Ranks, report: Reporter, should_stop: Callable[[], bool]) -> str:
    _check_size(preset, expected_vocabulary(preset), ranks)
    trained = preset.data.tokenizer == "bpe"
    report.phase("training the tokenizer on the first megabytes" if trained else f"fetching the tokenizer {preset.data.tokenizer}")
    try:
        return tokenizer_to_json(build_tokenizer(preset.data, preset.train.seed, should_stop))
    except (SourceError, SourcesFailed, ValueError, OSError) as error:
        raise Halted(str(error).splitlines()[0]) from None


def _with_tokens_of_objectives(tokenizer_json: str, preset: Preset, report: Reporter) -> tuple[str, Any]:
    """The tokenizer as a snapshot holds it and as it is used. It has what objectives write in the place of text from the first run on that needs it."""
    tokenizer = tokenizer_from_json(tokenizer_json)
    if not needs_tokens(preset) or ObjectiveTokens.of(tokenizer):
        return tokenizer_json, tokenizer
    before = len(tokenizer)
    tokenizer = with_objective_tokens(tokenizer)
    report.notice(f"the tokenizer gets {len(tokenizer) - before} tokens for gaps and masks, and keeps them for life")
    return tokenizer_to_json(tokenizer), tokenizer


def _born_run(preset: Preset, tokenizer_json: str, tokenizer: Any, budget: int, ranks: Ranks) -> Run:
    """A run with first weights, before anything of a snapshot is put into it."""
    _check_size(preset, len(tokenizer), ranks)
    torch.manual_seed(preset.train.seed)
    try:
        learner = Learner(build_model(preset, len(tokenizer)), build_heads(preset, tokenizer.pad_token_id)).to(ranks.device)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise Halted(f"{preset.name}: the model does not fit into the memory that is free now: close other programs, or lower model.hidden_size") from None
    optimizer = build_optimizer(learner, preset.train, ranks.precision)
    return Run(preset, tokenizer_json, learner, optimizer, new_life(preset), budget, preset.step_rows * ranks.size)


def _take_over(run: Run, snapshot: Snapshot, under_way: bool, snapshots: Snapshots, ranks: Ranks, report: Reporter) -> Fit:
    """Put `snapshot` into `run`: the run it was taken in where that is under way, else a new run of the same model. What fitted."""
    how = restore(run, snapshot)
    if not how.is_whole:
        kept = ranks.first_does(lambda: snapshots.archive("before", snapshot.life["tokens"], snapshot.path))
        report.notice(f"{how.in_words()}; as it was it stays in {kept}")
        report({"event": "fit", **how._asdict()})
    run.life, run.cursor, run.certificate, run.memory = snapshot.life, snapshot.cursor, snapshot.certificate, snapshot.run.get("memory")
    run.life |= {"taught": taught(snapshot)}
    before, now = snapshot.preset.train.optimizer, run.preset.train.optimizer
    if before != now:
        report.notice(f"the optimizer was {before} and is {now}: what it remembers of the matrices that it takes over begins anew")
    run.life |= {"objective_tokens": True} if needs_tokens(run.preset) else {}
    other = other_tokenizer(run.life, run.preset)
    if other:
        report.notice(other)
    run.lengths_from = (run.cursor["next_row"] if run.cursor else 0, run.life["tokens"])
    if under_way:
        run.tokens, run.replay = snapshot.run["tokens"], snapshot.run.get("replay")
        if snapshot.preset.step_rows == run.preset.step_rows:
            run.global_rows = snapshot.run["global_rows"]
        if _same_lengths(run, snapshot):
            run.lengths_from = tuple(snapshot.run["lengths_from"])
    else:
        begin_run(run.life, run.preset, run.budget)
        run.cursor = without(reopened(run.cursor), PAST) if run.cursor else None
    return how


def _same_lengths(run: Run, snapshot: Snapshot) -> bool:
    """Whether rows are as long, and as many in a step, as they were to be when the snapshot was taken."""
    before, now = ((each.model.seq_length, each.train.seq_length_curriculum, each.train.batch_curriculum) for each in (snapshot.preset, run.preset))
    return before == now and snapshot.run["global_rows"] == run.global_rows and "lengths_from" in snapshot.run


def _carried(run: Run, snapshot: Snapshot | None, fits: bool, ranks: Ranks, report: Reporter) -> Carried | None:
    """The states that this rank's lanes were left in, where they mean to the model what they meant. None where none are carried."""
    if not run.preset.train.long_context.enabled:
        return None
    carried = Carried(run.learner.model)
    if snapshot is None or run.cursor is None or not snapshot.carried:
        return carried
    if not (fits and carried.load(snapshot.carried, lanes_of(ranks.rank, ranks.size))):
        report.notice("the states of the snapshot are of another model: documents under way are gone on with from a fresh one")
    return carried


def _average(run: Run, snapshot: Snapshot | None, fits: bool, report: Reporter) -> Average | None:
    """The average of the weights as it was left, where it is of this very model; else one that begins with them as they are. None where it is off."""
    if not run.preset.train.average_tokens:
        return None
    average = Average(run.learner, run.preset.train.average_tokens)
    if snapshot and snapshot.average and fits:
        average.load(snapshot.average, snapshot.run["averaged"])
    elif snapshot and snapshot.average:
        report.notice("the average of the weights is of another model: a new one begins with the weights as they are now")
    return average


def _adaptive(run: Run, snapshot: Snapshot | None) -> AdaptiveSources:
    """The weights of sources as they were left, once all that is read is settled."""
    held = snapshot.run.get("adaptive") if snapshot else None
    next_row = run.cursor["next_row"] if run.cursor else 0
    return AdaptiveSources(run.preset.auxiliary, run.data, run.global_rows, run.preset.model.seq_length, next_row, held)


def _settle_replay(run: Run, begins: bool, past: Past | None, tokenizer: Any, folder: Path, ranks: Ranks, report: Reporter) -> bool:
    """Decide what the run reads again of earlier runs. Whether what it should read is lost."""
    if past and begins:
        run.replay = begun_replay(run.preset, run.life, past, lambda text: len(encoded(tokenizer, text)))
    wanted = ranks.from_first(run.replay)
    run.replay = spread(wanted, folder, ranks)
    if run.replay:
        run.data = run.preset.data.with_past(past_source(run.replay, folder))
        asked = run.preset.train.replay_share
        later = "" if begins or asked in (None, run.replay["share"]) else "; another replay_share holds from the next run on"
        report.notice(in_words(run.replay) + later)
    return bool(wanted and not run.replay)


def _changes(session: Session) -> list[str]:
    """The sources that are not what they were when the snapshot was taken, on whichever rank, in words."""
    found = session.ranks.gathered(session.take_changes())
    return list(dict.fromkeys(line for of_rank in found for line in of_rank))


def _tell_resume(run: Run, snapshot: Snapshot, under_way: bool, fits: bool, changes: list[str], ranks: Ranks, report: Reporter) -> list[str]:
    """Say from where the run goes on, and whether exactly. The hashes of the batches that should come next, where they are known.

    changes: what is not as it was outside of the model and the preset.
    """
    differs = changes
    if run.certificate:
        differs += differences(run.certificate, certified(run.learner.model, run.certificate["probe"], ranks), snapshot.preset, run.preset)
    exact = under_way and fits and bool(run.certificate) and not differs
    text = f"goes on at {run.tokens:,} of {run.budget:,} tokens" if under_way else f"a new run of {run.budget:,} tokens on the same model"
    text += ", exactly as it was" * exact + came_back(snapshot.path.parent, run.life) + "".join(f"; {line}" for line in differs[:DIFFERENCES_SHOWN])
    about = {"from": snapshot.path.name, "tokens": run.tokens, "life_tokens": run.life["tokens"], "exact": exact, "differs": differs}
    report({"event": "resume", **about, "text": f"{snapshot.path.name}: {text}"})
    alike = snapshot.preset.auxiliary == run.preset.auxiliary and what_is_learned(snapshot.preset) == what_is_learned(run.preset)
    same_batches = under_way and _same_lengths(run, snapshot) and alike
    return run.certificate.get("coming", []) if same_batches else []


def _tell_run(run: Run, ranks: Ranks, report: Reporter) -> None:
    model = run.learner.model
    about = {"preset": run.preset.name, "parameters": sum(p.numel() for p in model.parameters()), "plan": model_in_words(run.preset)}
    about |= {"device": device_in_words(ranks), "world_size": ranks.size, "budget": run.budget, "tokens": run.tokens, "life_tokens": run.life["tokens"]}
    report({"event": "run", **about, "sources": [source.name for source in run.preset.data.sources], "loss_weights": run.preset.loss_weights})


def _memory(run: Run, snapshot: Snapshot | None, under_way: bool, tokenizer: Any, folder: Path, ranks: Ranks, report: Reporter) -> Remembering | None:
    """The memory of what was read, gone on with or begun, where the preset has one. Halted where it can't be."""
    if not run.preset.retro.enabled:
        return None
    try:
        memory = Remembering(run.preset, tokenizer, folder, run.life["born"], ranks, report.notice)
        goes_on = under_way and snapshot is not None and _same_lengths(run, snapshot)
        memory.begin(run.memory, goes_on, run.cursor["next_row"] if run.cursor else 0, run.lengths.most_rows)
    except (ValueError, MemoryFault, Taken) as error:
        raise Halted(f"retro: {error}") from None
    except OSError as error:
        where = f"index_path {run.preset.retro.index_path}" if run.preset.retro.index_path else "the memory's folder"
        raise Halted(f"retro: {where} can't be written: {error.strerror}") from None
    return memory


def _opened(run: Run, tokenizer: Any, ranks: Ranks, keep: tuple[int, int] | None, memory: Remembering | None, should_stop: Callable[[], bool]) -> Stream:
    """The stream of this rank, once all ranks have reached their sources. Stopped, on all of them, when any is asked to stop before that."""
    options = Options(
        global_rows=run.global_rows,
        keep=keep,
        workers=run.preset.train.loader_processes,
        schedule=run.adaptive.schedule if run.adaptive else None,
        wait=False,
        lengths=run.lengths,
        context_length=run.preset.train.long_context.context_length if run.carried else None,
        chunk_size=memory.chunk_size if memory else None,
        recall=memory.recall if memory else None,
        states=memory.states if memory and memory.recall else None,
        rewrite=rewriter_of(run.preset, tokenizer, run.lengths),
    )
    try:
        stream = open_stream(
            run.data,
            tokenizer,
            seq_length=run.preset.model.seq_length,
            batch_size=run.preset.step_rows,
            rank=ranks.rank,
            world_size=ranks.size,
            cursor=run.cursor,
            seed=run.preset.train.seed,
            options=options,
        )
    except ValueError as error:  # found in what all ranks have alike
        raise Halted(str(error)) from None
    with contextlib.ExitStack() as undo:
        undo.callback(stream.close)
        looks = [(False, False)]
        while not all(reached for reached, _ in looks):
            if any(asked for _, asked in looks):
                raise Stopped
            looks = ranks.all_do(lambda: (stream.reached(GLANCE), should_stop()))
        undo.pop_all()
    return stream
