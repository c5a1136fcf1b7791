"""Whether models learn to read their neighbours, and what that costs: python -m tests.benchmarks.neighbours

    copying  models of the same first weights, taught on the same real text. To one come, after each chunk, two neighbours of which one is that
             chunk and what follows it, with a share of its tokens replaced by others; to one two that belong elsewhere; to one none. Held-out
             nats a token past the first chunk of rows, and what the first one says when it is handed the others' neighbours, or none
    time     a forward and backward pass of one layer's cross-attention, against the same with dense attention to all neighbours of the row
             under a mask, and against causal attention; and of a model with neighbours against the model without
    preset   a pass of configs/11_retro_memory.json over its micro-batch, its output loss included, with neighbours for each chunk, with none, and
             with smaller encoders, against the same model without a memory

NEIGHBOURS_PARTS="time" leaves the others out. NEIGHBOURS_TOKENS (1,200,000) and NEIGHBOURS_SEEDS ("0 1") belong to the first. Text: Python's own
language reference, every tenth topic of which is held out.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from data_sources import Batch
from data_sources.batch import Arrivals
from data_sources.packed import Rows
from data_sources.tokenizer import trained_bpe
from lm.model import Context, Model, build_model
from lm.preset import Preset, count_parameters, load_preset
from lm.preset.mechanisms import RetroConfig
from lm.training.learner import Learner
from lm.units.retro import Neighbours
from tests.benchmarks.measures import factor
from tests.benchmarks.peers import stepper
from tests.benchmarks.unit_card import DEVICE, UNIT_PEERS, reader, unit_of

PARTS = os.environ.get("NEIGHBOURS_PARTS", "copying time preset").split()
TOKENS = int(os.environ.get("NEIGHBOURS_TOKENS", 1_200_000))
SEEDS = tuple(map(int, os.environ.get("NEIGHBOURS_SEEDS", "0 1").split()))
MODEL = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "seq_length": 128}
RETRO = {"enabled": True, "chunk_size": 16, "num_neighbors": 2, "encoder_layers": 1}
ROWS, HELD_OUT_BATCHES, RATE, VOCABULARY, REPLACED = 16, 8, 4e-3, 512, 0.15
LENGTHS, READINGS = (1024, 4096), 9
Source = Callable[[Batch, torch.Generator], Neighbours | None]


def chunks_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """Where neighbours come (B * (M - 1),), behind each chunk but the last of a row, and that chunk with the next (B * (M - 1), R)."""
    size, (rows, length) = RETRO["chunk_size"], batch.tokens.shape
    at = torch.arange(rows)[:, None] * length + torch.arange(size, length, size)
    return at.flatten(), batch.tokens.unfold(1, 2 * size, size).flatten(0, 1)


def elsewhere(batch: Batch, generator: torch.Generator) -> Neighbours:
    """Real chunks, all of them of other rows."""
    at, found = chunks_of(batch)
    each, rows = len(found) // len(batch.tokens), len(batch.tokens)
    other = torch.randint(1, rows, (len(at), 2), generator=generator) + torch.arange(rows).repeat_interleave(each)[:, None]
    tokens = found[other % rows * each + torch.randint(each, other.shape, generator=generator)]
    return Neighbours(at, tokens, torch.full(other.shape, tokens.shape[2]))


def answers(batch: Batch, generator: torch.Generator) -> Neighbours:
    """One of the two, by chance, is what stands there, with tokens replaced by any of the text's."""
    memory, (_, found) = elsewhere(batch, generator), chunks_of(batch)
    some = batch.tokens.flatten()[torch.randint(batch.tokens.numel(), found.shape, generator=generator)]
    noisy = torch.where(torch.rand(found.shape, generator=generator) < REPLACED, some, found)
    which = torch.randint(2, (len(found), 1), generator=generator) == torch.arange(2)
    return memory._replace(tokens=torch.where(which[..., None], noisy[:, None], memory.tokens))


def nothing(batch: Batch, generator: torch.Generator) -> None:
    return None


SOURCES: dict[str, Source] = {"answers": answers, "elsewhere": elsewhere, "none": nothing}


class Reads(nn.Module):
    """A model's loss past the first chunk of rows, with neighbours of a source."""

    def __init__(self, model: Model, source: Source, seed: int) -> None:
        super().__init__()
        self.model, self.source, self.generator = model, source, torch.Generator().manual_seed(seed)

    def forward(self, batch: Batch) -> Tensor:
        memory = self.source(batch, self.generator)
        context = Context(restart=batch.restart, cu_seqlens=batch.cu_seqlens, any_restart=batch.any_restart, memory=memory)
        first = RETRO["chunk_size"]
        return F.cross_entropy(self.model(batch.tokens, None, context).logits[:, first:].flatten(0, 1), batch.targets[:, first:].flatten())


@torch.no_grad()
def measured(model: Model, source: Source, held: list[Batch]) -> float:
    reads = Reads(model, source, seed=7)
    return statistics.mean(float(reads(batch)) for batch in held)


def preset_of(**sections: Any) -> Preset:
    return Preset.model_validate({"model": MODEL, "data": {"sources": ["c4"]}, **sections})


def text_of(topics_read: list[str], tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Tokens of all of them, one after the other (M,), and where each begins (M,)."""
    each = [[tokenizer.bos_token_id, *tokenizer.encode(topic, add_special_tokens=False)] for topic in topics_read]
    return torch.tensor([token for tokens in each for token in tokens]), torch.tensor([place == 0 for tokens in each for place in range(len(tokens))])


def batch_of(text: tuple[Tensor, Tensor], starts: Tensor) -> Batch:
    """Rows of the text from `starts` (B,) on."""
    at = starts[:, None] + torch.arange(MODEL["seq_length"])
    tokens, restart = text
    arrays = (tokens[at], tokens[at + 1], restart[at], torch.zeros_like(at), torch.arange(len(starts)))
    return Batch.of(Rows(*(array.numpy() for array in arrays)))


def copying() -> None:
    told = list(topics.values())
    tokenizer = trained_bpe(iter(told), VOCABULARY)
    preset, length, steps = preset_of(retro=RETRO), MODEL["seq_length"], TOKENS // (ROWS * MODEL["seq_length"])
    text, others = (text_of(part, tokenizer) for part in ([topic for n, topic in enumerate(told) if n % 10], told[::10]))
    places = torch.arange(0, len(others[0]) - length - 1, length)
    held = [batch_of(others, starts) for starts in places[: HELD_OUT_BATCHES * ROWS].split(ROWS) if len(starts) > 1]
    print(f"{len(text[0]):,} tokens to read, {sum(batch.tokens.numel() for batch in held):,} held out, vocabulary {len(tokenizer):,}", flush=True)
    for seed in SEEDS:
        models, takers = {}, {}
        for name, source in SOURCES.items():
            torch.manual_seed(seed)
            models[name] = build_model(preset, len(tokenizer))
            reads = Reads(models[name], source, seed)
            takers[name] = stepper(reads, reads, RATE)
        draws = torch.Generator().manual_seed(seed)
        for index in range(steps):
            batch = batch_of(text, torch.randint(len(text[0]) - length, (ROWS,), generator=draws))
            for take in takers.values():
                take(batch, factor(index, steps))
            if (index + 1) % max(steps // 6, 1) == 0:
                found = ", ".join(f"{name} {measured(models[name], SOURCES[name], held):.3f}" for name in models)
                print(f"seed {seed}, {(index + 1) * ROWS * length:,} tokens, nats a token: {found}", flush=True)
        found = ", ".join(f"{name} {measured(models['answers'], source, held):.3f}" for name, source in SOURCES.items())
        print(f"seed {seed}: the one taught with answers, handed {found}", flush=True)


def timed(read: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    read().square().mean().backward()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def against(reads: dict[str, Callable[[], Tensor]]) -> dict[str, list[float]]:
    """Seconds of each, in turns."""
    for read in reads.values():
        timed(read)
    found = [{name: timed(read) for name, read in reads.items()} for _ in range(READINGS)]
    return {name: [each[name] for each in found] for name in reads}


def times() -> None:
    for length in LENGTHS:
        x = torch.randn(1, length, 256, device=DEVICE, requires_grad=True)
        preset, unit = unit_of("retro")
        _, attention = unit_of("attention")
        dense = UNIT_PEERS["retro"](preset).to(DEVICE)
        readers = {"retro": reader(unit, "retro"), "dense": dense, "attention": reader(attention, "attention")}
        told(length, against({name: partial(read, x) for name, read in readers.items()}), "retro")
    for length in LENGTHS:
        sizes = {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "seq_length": length}
        tokens, at = torch.randint(VOCABULARY, (1, length), device=DEVICE), torch.arange(64, length, 64)
        memory = Neighbours(at, torch.randint(VOCABULARY, (len(at), 2, 128)), torch.full((len(at), 2), 128)).to(DEVICE)
        reads = {}
        for name, section, handed in (("with", {"retro": {"enabled": True}}, memory), ("without", {}, None)):
            preset = preset_of(**section, model=sizes)
            reads[name] = partial(hidden, build_model(preset, VOCABULARY).to(DEVICE), tokens, handed)
            print(f"model {name} neighbours: {count_parameters(preset, VOCABULARY).total:,} parameters")
        told(length, against(reads), "without")


ENCODERS: dict[str, dict[str, Any]] = {"as it is": {}, "of one layer": {"encoder_layers": 1}, "64 wide": {"encoder_size": 64}}


def preset_times() -> None:
    preset = load_preset("configs/11_retro_memory.json")
    vocabulary, (rows, length), size = preset.data.vocab_size, (preset.train.per_gpu_batch_size, preset.model.seq_length), preset.retro.chunk_size
    tokens = torch.randint(vocabulary, (rows, length))
    batch = Batch.of(Rows(*(part.numpy() for part in (tokens, tokens, torch.arange(length).expand(rows, -1) == 0, tokens * 0, torch.arange(rows)))))
    at = (torch.arange(rows)[:, None] * length + torch.arange(size, length, size)).flatten()
    found = (len(at), preset.retro.num_neighbors)
    answered = replace(batch, answers=Arrivals(at, torch.randint(vocabulary, (*found, 2 * size)), torch.full(found, 2 * size)))
    without = Learner(build_model(preset.model_copy(update={"retro": RetroConfig()}), vocabulary)).to(DEVICE)
    reads = {"without": partial(loss_of, without, batch)}
    for name, section in ENCODERS.items():
        learner = Learner(build_model(preset.model_copy(update={"retro": preset.retro.model_copy(update=section)}), vocabulary)).to(DEVICE)
        reads |= {f"encoder {name}": partial(loss_of, learner, answered)} | ({} if section else {"none came": partial(loss_of, learner, batch)})
    told(length, against(reads), "without")


def loss_of(learner: Learner, batch: Batch) -> Tensor:
    return learner([batch.to(DEVICE)]).losses["next_token"]


def hidden(model: Model, tokens: Tensor, memory: Neighbours | None) -> Tensor:
    return model(tokens, None, Context(memory=memory)).hidden


def told(length: int, seconds: dict[str, list[float]], base: str) -> None:
    for name, each in seconds.items():
        ratios = [one / other for one, other in zip(each, seconds[base], strict=True)]
        print(f"T {length:,}: {name:10} {1e3 * statistics.median(each):8.1f} ms, {statistics.median(ratios):5.2f} times {base}", flush=True)


def main() -> None:
    print(f"{DEVICE.type}, float32, {torch.get_num_threads()} threads", flush=True)
    for part, measure in {"copying": copying, "time": times, "preset": preset_times}.items():
        if part in PARTS:
            measure()


if __name__ == "__main__":
    main()
