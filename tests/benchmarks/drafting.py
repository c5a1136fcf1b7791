"""What drafts bring: python -m tests.benchmarks.drafting

The same model writes on from the same held-out beginnings, plainly and with drafts in turn, at several temperatures: the part of the drafts that was
kept, tokens a pass, and how many times as fast a token is, the median over pairs with the quarter below and above. Seconds are those of the
processor, since others may be at work on the machine. Greedy texts are compared, too: in float32 passes of different lengths round differently, and a
tie may fall the other way. After each seed stands what was kept at each temperature, of how many drafts.

DRAFTING_SEEDS ("0 1") are those of the draws. DRAFTING_LENGTHS ("4"), DRAFTING_ENTROPIES ("null", or nats), DRAFTING_VOCABULARIES ("2048"),
DRAFTING_TEMPERATURES ("0 0.5 0.8 1"), DRAFTING_PROMPTS (16) and DRAFTING_TOKENS (96) say what is tried. The model: tests/benchmarks/foretelling.py.
"""

import itertools
import os
import statistics
import time
from typing import NamedTuple

import torch

from lm.app.partner import Partner
from lm.generation.drafting import Pace, Paces
from lm.generation.writing import Writing, beginning
from lm.preset.generation import GenerationConfig
from tests.benchmarks.foretelling import beginnings, taught


def numbers(name: str, default: str) -> list[float]:
    return [float(word) for word in os.environ.get(f"DRAFTING_{name}", default).split()]


PROMPTS, PROMPT, TOKENS = int(numbers("PROMPTS", "16")[0]), 32, int(numbers("TOKENS", "96")[0])


class Written(NamedTuple):
    """One text: its tokens, seconds of a token, and what came of drafts."""

    tokens: tuple[int, ...]
    seconds: float
    paces: Paces


def written(partner: Partner, prompt: list[int], settings: GenerationConfig, seed: int) -> Written:
    """The prompt is read before the clock runs."""
    writing = Writing(partner.model, partner.tokenizer, [beginning(partner.tokenizer), *prompt], settings, seed=seed, heads=partner.heads)
    writing._now = writing._prompt_read()
    began = time.process_time()
    for _ in writing:
        pass
    return Written(writing.tokens, (time.process_time() - began) / max(len(writing.tokens), 1), writing.paces)


def measured(partner: Partner, prompts: list[list[int]], settings: GenerationConfig, draws: int) -> tuple[str, Pace]:
    """In words, and what came of the drafts. draws: the seed."""
    plain = settings.model_copy(update={"draft_length": 0})
    ratios, paces, alike = [], Paces(), 0
    for seed, prompt in enumerate(prompts, start=1000 * draws):
        order = (plain, settings) if seed % 2 else (settings, plain)
        pair = {each.draft_length: written(partner, prompt, each, seed) for each in order}
        one, other = pair[0], pair[settings.draft_length]
        if min(len(one.tokens), len(other.tokens)) >= TOKENS // 4:
            ratios.append(one.seconds / other.seconds)
        alike += one.tokens == other.tokens
        paces = paces.plus(other.paces)
    drafted = paces.drafted
    quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [float("nan")] * 3
    passes, tokens = (sum(getattr(pace, name) for pace in paces) for name in ("passes", "tokens"))
    kept = f"{100 * drafted.kept / max(drafted.drafts, 1):.0f} % of {drafted.drafts:,} drafts kept, {tokens / max(passes, 1):.2f} tokens a pass"
    same = f"; {alike} of {len(prompts)} texts the same" if settings.temperature == 0 else ""
    return f"{kept}, {quarters[1]:.2f} times as fast ({quarters[0]:.2f} to {quarters[2]:.2f}, {len(ratios)} pairs){same}", drafted


def main() -> None:
    torch.set_num_threads(1)
    partner, texts = taught()
    each = -(-PROMPTS // len(texts))
    prompts = [row for kept in texts.values() for row in beginnings(kept, partner.tokenizer, PROMPT, each)][:PROMPTS]
    entropies = [None if word == "null" else float(word) for word in os.environ.get("DRAFTING_ENTROPIES", "null").split()]
    choices = (numbers("LENGTHS", "4"), entropies, numbers("VOCABULARIES", "2048"), numbers("TEMPERATURES", "0 0.5 0.8 1"))
    for seed in map(int, numbers("SEEDS", "0 1")):
        kept: dict[float, Pace] = {}
        for length, entropy, vocabulary, temperature in itertools.product(*choices):
            settings = GenerationConfig(
                draft_length=int(length), draft_entropy=entropy, draft_vocabulary=int(vocabulary), temperature=temperature, max_new_tokens=TOKENS
            )
            words, drafted = measured(partner, prompts, settings, seed)
            kept[temperature] = kept.get(temperature, Pace()).plus(drafted)
            told = f"length {int(length)}, entropy {entropy}, vocabulary {int(vocabulary)}, temperature {temperature:g}"
            print(f"seed {seed}, {told}: {words}", flush=True)
        shares = (f"{temperature:g}: {pace.kept / max(pace.drafts, 1):.3f} of {pace.drafts:,}" for temperature, pace in kept.items())
        print(f"seed {seed}, kept by temperature: {'; '.join(shares)}", flush=True)


if __name__ == "__main__":
    main()
