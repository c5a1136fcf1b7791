"""What objectives cost and what they teach: python -m tests.benchmarks.objectives

    cost     tokens a second of the stream with and without each objective, and the share of the stream's time that is spent on making examples
    quality  after equally many tokens: held-out causal bits per byte of a model that learned the next token, of one that learned by UL2, and of one
             that learned the next token and by UL2 in its last twentieth (as UL2R does); bits per byte and hits of real gaps in held-out text, filled
             in from what stands before (clm) or on both sides; and the same of masked models, with weights for each way and with shared ones

OBJECTIVES_PARTS="cost" leaves the other out. Tokens are positions that the model reads, what stands for gaps among them, so that all arms take the
same time. OBJECTIVES_TOKENS (2,000,000), OBJECTIVES_SEEDS ("0 1"), OBJECTIVES_ARMS (all) and OBJECTIVES_FOLDER (in the folder for temporary files)
belong to quality: lives and results.jsonl stay there, and started again it goes on where it was. Text: the Hub that HF_ENDPOINT leads to, else
installed documentation.
"""

import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_sources import open_stream
from data_sources.config import DataConfig
from data_sources.lengths import RowLengths
from data_sources.order import draw
from data_sources.rewriting import Example, Rewriter, Source
from data_sources.special_tokens import with_objective_tokens
from data_sources.stream import Options
from data_sources.tokenizer import build_tokenizer, tokenizer_from_json
from lm.generation import generate
from lm.generation.infilling import SHOWN, filler_of
from lm.model import Model, build_model
from lm.objectives.table import rewriter_of
from lm.ops.cross_entropy import linear_cross_entropy
from lm.preset import Preset
from lm.preset.generation import GenerationConfig
from lm.training import train
from lm.training.evaluation import encoded, evaluate
from lm.training.run import taught
from lm.training.snapshots import Snapshot, Snapshots
from tests.benchmarks.text import LOCAL, held_out_texts

TOKENS = int(os.environ.get("OBJECTIVES_TOKENS", 2_000_000))
SEEDS = tuple(map(int, os.environ.get("OBJECTIVES_SEEDS", "0 1").split()))
FOLDER = Path(os.environ.get("OBJECTIVES_FOLDER", Path(tempfile.gettempdir()) / "perennial_objectives"))
DATA = DataConfig.model_validate({"sources": ["wikipedia"]}) if "HF_ENDPOINT" in os.environ else LOCAL
MODEL = {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "seq_length": 256}
LENGTH, ROWS, BATCHES, ROUNDS = 1024, 8, 60, 3  # of cost
HELD_OUT, LONGEST, GAPS_A_TEXT, AROUND = 50, 6_000, 3, 400  # texts, their characters, gaps in each, and characters on each side of one
SURE = GenerationConfig(temperature=0, repetition_penalty=1, max_new_tokens=8)
THIRDS = {"objective_probabilities": {"R": 1, "S": 1, "X": 1}}
ARMS: dict[str, dict[str, Any]] = {
    "clm": {},
    "ul2": {"train": {"objective": "ul2"}, "ul2": THIRDS},
    "clm, then 5 % ul2": {"train": {"objective": "ul2", "objectives": [{"until_tokens": TOKENS * 19 // 20, "objective": "clm"}]}, "ul2": THIRDS},
    "mlm, own weights": {"train": {"objective": "mlm"}, "model": {"bidirectional": "own"}},
    "mlm, shared weights": {"train": {"objective": "mlm"}, "model": {"bidirectional": "shared"}},
}
COSTS = {"ul2, half of it S": {"train": {"objective": "ul2"}}, "ul2, in thirds": ARMS["ul2"], "mlm": ARMS["mlm, own weights"]}  # the first is the default
CHOSEN = [arm for arm in ARMS if re.search(os.environ.get("OBJECTIVES_ARMS", ""), arm)]


class Timed:
    """A rewriter, and the seconds of this thread that it takes."""

    def __init__(self, rewriter: Rewriter) -> None:
        self._rewriter, self.seconds = rewriter, 0.0

    def least_room(self, row: int) -> int:
        return self._rewriter.least_room(row)

    def planned(self, seed: int, row: int, position: int, source: Source, room: int) -> Example:
        began = time.thread_time()
        example = self._rewriter.planned(seed, row, position, source, room)
        self.seconds += time.thread_time() - began
        return example

    def finished(self, row: int, plans: Sequence[Any]) -> Any:
        began = time.thread_time()
        made = self._rewriter.finished(row, plans)
        self.seconds += time.thread_time() - began
        return made


def preset_of(arm: str, seed: int = 0, **model: Any) -> Preset:
    """The arm `arm` over DATA."""
    sections = (ARMS | COSTS)[arm]
    habits = {"per_gpu_batch_size": 8, "eval_tokens": 0, "evaluate_every_tokens": 10**9, "sample_every_tokens": 10**9, "snapshot_every_minutes": 3}
    raw = {"name": arm, "model": MODEL | sections.get("model", {}) | model, "ul2": sections.get("ul2", {})}
    raw |= {"train": habits | sections.get("train", {}) | {"seed": seed}}
    return Preset.model_validate({**raw, "data": DATA.model_copy(update={"vocab_size": 4096}).model_dump()})


def cost() -> None:
    tokenizer = with_objective_tokens(build_tokenizer(DATA, seed=0))
    lengths = RowLengths.constant(LENGTH)
    print(f"{BATCHES} batches of {ROWS} rows of {LENGTH}, {ROUNDS} rounds in turn, medians; seconds of this process and its threads", flush=True)
    arms = {"clm": None} | {arm: rewriter_of(preset_of(arm, seq_length=LENGTH), tokenizer, lengths) for arm in COSTS}
    found: dict[str, list[tuple[float, float, float]]] = {arm: [] for arm in arms}
    for _ in range(ROUNDS):
        for arm, rewriter in arms.items():
            found[arm].append(stream_cost(tokenizer, Timed(rewriter) if rewriter else None))
    for arm, rounds in found.items():
        speed, share, filled = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{arm:20} {speed:10,.0f} positions/s of processor time; {share:6.2%} of it on examples; {filled:6.2%} of the rows filled", flush=True)


def stream_cost(tokenizer: Any, timed: Timed | None) -> tuple[float, float, float]:
    """Positions by second of processor time, the share of that which examples take, and how full rows are."""
    with open_stream(DATA, tokenizer, LENGTH, ROWS, options=Options(rewrite=timed)) as stream:
        next(stream)
        began, before = time.process_time(), timed.seconds if timed else 0.0
        read = sum(int((batch.source >= 0).sum()) for batch, _ in islice(stream, BATCHES))
        took = time.process_time() - began
    return read / took, ((timed.seconds - before) if timed else 0.0) / took, read / (BATCHES * ROWS * LENGTH)


class Gap(NamedTuple):
    """Some words of a held-out text, and what stands around them."""

    before: str
    words: str
    after: str


def held_out() -> list[str]:
    """The same for all arms and seeds."""
    return held_out_texts(DATA, HELD_OUT, LONGEST)


def gaps_of(texts: Sequence[str]) -> list[Gap]:
    """One to three words of prose each, up to GAPS_A_TEXT of a text, drawn by what it is, with something on both sides."""
    found = []
    for text in texts:
        words = [match for match in re.finditer(r" \w+( \w+)?( \w+)?(?= \w)", text) if match.start() > 80]
        for match in dict.fromkeys(words[draw(text, "gap", number) % len(words)] for number in range(GAPS_A_TEXT if words else 0)):
            found.append(Gap(text[max(match.start() - AROUND, 0) : match.start()], match[0], text[match.end() : match.end() + AROUND]))
    return found


def filled(model: Model, tokenizer: Any, snapshot: Snapshot, gaps: Sequence[Gap]) -> dict[str, float]:
    """How often the likeliest words are those that stood in the gap, and bits per byte of these, where the model writes from left to right."""
    preset, hits, nats, size = snapshot.preset, 0, 0.0, 0
    filler = filler_of(model, tokenizer, preset, taught(snapshot))
    for gap in gaps:
        if filler is None:
            written = "".join(generate(model, tokenizer, gap.before, SURE))
        else:
            filling = filler.filling(f"{gap.before} {SHOWN}{gap.after}", SURE)
            list(filling)
            written = filling.filled[0]
        hits += written.split()[: len(gap.words.split())] == gap.words.split()
        nats, size = nats + gap_nats(model, tokenizer, filler, gap), size + len(gap.words.encode())
    bits = {} if preset.model.bidirectional != "off" else {"gap_bits_per_byte": nats / size / torch.tensor(2.0).log().item()}
    return {"gap_hits": hits / len(gaps), "gaps": len(gaps), **bits}


@torch.no_grad()
def gap_nats(model: Model, tokenizer: Any, filler: Any, gap: Gap) -> float:
    """Of the words of a gap, in the form in which the model was taught to write them; 0 for a model that does not write."""
    before, words, after = (encoded(tokenizer, text) for text in gap)
    if hasattr(filler, "mask"):
        return 0.0
    prompt = [tokenizer.bos_token_id, *before]
    if filler is not None:
        name = filler.tokens.gaps[0]
        prompt = [filler.tokens.modes[filler.mode], *prompt, name, *after, name]
    row = torch.tensor([*prompt, *words])
    hidden = model(row[None, :-1]).hidden[0, len(prompt) - 1 :]
    return float(linear_cross_entropy(hidden, model.readout, row[len(prompt) :])[0])


def quality() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = FOLDER / "results.jsonl"
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(line["arm"], line["seed"], line["tokens"]) for line in known}
    for seed in SEEDS:
        for arm in CHOSEN:
            if (arm, seed, TOKENS) not in done:
                line = {"arm": arm, "seed": seed, "tokens": TOKENS, **measured(preset_of(arm, seed))}
                with results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                known.append(line)
                print(json.dumps(line), flush=True)
    told([line for line in known if line["tokens"] == TOKENS])


def measured(preset: Preset) -> dict[str, Any]:
    """Train a life and measure it."""
    folder = FOLDER / f"{preset.name} {preset.train.seed} {TOKENS}"
    began = time.monotonic()
    train(preset, folder, TOKENS)
    took, snapshot = time.monotonic() - began, Snapshots(folder).newest()
    assert snapshot is not None
    tokenizer = tokenizer_from_json(snapshot.tokenizer)
    model = build_model(preset, len(tokenizer))
    model.load_state_dict(snapshot.model_weights)
    model.eval()
    texts = held_out()
    found, gaps = evaluate(model, tokenizer, {"held out": texts}, preset), gaps_of(texts)
    about = {"seconds": round(took), "pseudo": found.get("pseudo", False), "bits_per_byte": found["bits_per_byte"], "denoisers": found.get("denoisers", {})}
    return about | filled(model, tokenizer, snapshot, gaps)


def told(lines: Sequence[Mapping[str, Any]]) -> None:
    for arm in CHOSEN:
        own = [line for line in lines if line["arm"] == arm]
        for measure in ("bits_per_byte", "gap_bits_per_byte", "gap_hits"):
            values = [line[measure] for line in own if measure in line]
            if values:
                spread = f" +- {(max(values) - min(values)) / 2:.4f}" if len(values) > 1 else ""
                name = f"pseudo-{measure}" if own[0]["pseudo"] and measure == "bits_per_byte" else measure
                print(f"{arm:22} {name:24} {statistics.mean(values):8.4f}{spread}  ({len(values)} seeds, {own[0]['gaps']} gaps)", flush=True)


def main() -> None:
    parts = {"cost": cost, "quality": quality}
    for part in os.environ.get("OBJECTIVES_PARTS", "cost quality").split():
        parts[part]()


if __name__ == "__main__":
    main()
