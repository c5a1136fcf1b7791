"""What looking ahead brings, by text that the model has never seen: python -m tests.benchmarks.planning

The same model goes on from held-out beginnings: plainly, with drafts, steered by the policy, with temperatures by difficulty, and with planners that
commit tokens or pieces. No way is judged by the model itself. Told of each way:

- nats a token of the true continuation under the way's own distribution of the next token, at temperature 1 and without nucleus or penalties, and by
  how much that is above or below the model's (with its standard error over beginnings). A planner gives most of the vocabulary no chance, so of its
  distribution one part in twenty is the model's. Drafts have the model's distribution; pieces have none of a next token.
- texts written at the shipped settings, each way with the same processor time as plain sampling took for PLANNING_TEXTS: ROUGE-L (Lin 2004) with the
  true continuation, the mean over all texts and that of the best of what a way had time for; the part of their pairs of tokens that are different
  ones (Li et al. 2016; the true continuations' own stands in the first line), and how many texts there were.
- answers to held-out questions of a source (PLANNING_QUESTIONS names it, such as natural_questions), in the form that the model was taught in: the
  same, and how many match exactly.

A line is printed as soon as it is known. PLANNING_SEEDS ("0 1"), PLANNING_PROMPTS (36: beginnings, and questions), PLANNING_TEXTS (2), PLANNING_TOKENS
(48). The model: tests/benchmarks/foretelling.py; ways that ask for a head it does not have are left out, so "policy" needs a FORETELLING_PRESET
with auxiliary.enable_policy.
"""

import os
import re
import statistics
import time
from typing import NamedTuple

import torch

from data_sources.special_tokens import special_ids
from lm.app.partner import Partner
from lm.generation.choosing import Chooser
from lm.generation.writing import Writing, beginning, prompt_tokens
from lm.preset.generation import GenerationConfig, PlannerConfig
from tests.benchmarks.foretelling import beginnings, taught

PROMPT = 32  # tokens
PROMPTS, TEXTS, TOKENS = (int(os.environ.get(f"PLANNING_{name}", value)) for name, value in (("PROMPTS", 36), ("TEXTS", 2), ("TOKENS", 48)))
SEEDS = [int(word) for word in os.environ.get("PLANNING_SEEDS", "0 1").split()]
QUESTIONS = os.environ.get("PLANNING_QUESTIONS", "")
MIXED = 0.05  # of the model's own distribution in a planner's
PLAIN = GenerationConfig(max_new_tokens=TOKENS)
BARE = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}
PLANNERS = {
    "planner, tokens": PlannerConfig(enabled=True),
    "planner, tokens, no value": PlannerConfig(enabled=True, value_weight=0.0),
    "planner, tokens, policy": PlannerConfig(enabled=True, policy_weight=0.5),
    "planner, pieces": PlannerConfig(enabled=True, commit="piece", candidates=4),
}
WAYS = {
    "plain": PLAIN,
    "drafts": PLAIN.model_copy(update={"draft_length": 4}),
    "policy": PLAIN.model_copy(update={"policy_weight": 0.5}),
    "difficulty": PLAIN.model_copy(update={"difficulty_temperature": -0.5}),
    "difficulty, the other way": PLAIN.model_copy(update={"difficulty_temperature": 0.5}),
} | {name: PLAIN.model_copy(update={"planner": planner}) for name, planner in PLANNERS.items()}


class Task(NamedTuple):
    """A beginning, and how it goes on."""

    prompt: list[int]
    truth: list[int]


@torch.no_grad()
def nats(partner: Partner, task: Task, settings: GenerationConfig) -> float:
    """Nats a token of the truth, given all before each, under the distribution that it would be drawn from."""
    specials, tokens = special_ids(partner.tokenizer), [*task.prompt, *task.truth]
    chooser = Chooser(settings.model_copy(update=BARE), 0, partner.model, partner.heads, specials)
    out, total = partner.model(torch.tensor([tokens[:-1]])), 0.0
    for place in range(len(task.prompt), len(tokens)):
        scores, token = out.logits[0, place - 1], tokens[place]
        chance = chooser.chances(scores, out.hidden[0, place - 1], [told for told in tokens[:place] if told not in specials])[token]
        if settings.planner.enabled:
            chance = (1 - MIXED) * chance + MIXED * scores.softmax(-1)[token]
        total -= float(chance.log())
    return total / len(task.truth)


def written(partner: Partner, prompt: list[int], settings: GenerationConfig, seed: int) -> tuple[int, ...]:
    writing = Writing(partner.model, partner.tokenizer, prompt, settings, seed=seed, heads=partner.heads)
    for _ in writing:
        pass
    return writing.tokens


def texts_within(partner: Partner, prompt: list[int], settings: GenerationConfig, seed: int, seconds: float | None) -> tuple[list[tuple[int, ...]], float]:
    """TEXTS of them where no time is given, else as many as are whole within `seconds` of the processor, at least one; and how long it took."""
    began, found = time.process_time(), []
    while len(found) < TEXTS if seconds is None else not found or time.process_time() - began < seconds * len(found) / (len(found) + 1):
        found.append(written(partner, prompt, settings, 1000 * seed + len(found)))
    return found, time.process_time() - began


def distinct(texts: list[tuple[int, ...]], size: int) -> float:
    """Of all runs of `size` tokens, the part that are different ones, text by text."""
    runs = [[text[at : at + size] for at in range(len(text) - size + 1)] for text in texts]
    parts = [len(set(each)) / len(each) for each in runs if each]
    return statistics.mean(parts) if parts else float("nan")


def longest_common(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for at, there in enumerate(other, start=1):
            before, row[at] = row[at], before + 1 if word == there else max(row[at], row[at - 1])
    return row[-1]


def rouge_l(found: str, truth: str) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004)."""
    one, other = (re.findall(r"\w+", text.lower()) for text in (found, truth))
    common = longest_common(one, other)
    return 2 * common / (len(one) + len(other)) if common else 0.0


def matches(found: str, truth: str) -> bool:
    """Word for word, without regard to case and punctuation."""
    return re.findall(r"\w+", found.lower()) == re.findall(r"\w+", truth.lower())


def mean_and_error(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):+.4f} +- {error:.4f}"


def compared(partner: Partner, tasks: list[Task], ways: dict[str, GenerationConfig]) -> None:
    """The true continuation by each way's distribution."""
    plain: list[float] = []
    for name, settings in ways.items():
        if settings.draft_length or settings.planner.commit == "piece":
            continue
        found = [nats(partner, task, settings) for task in tasks]
        plain = plain or found
        apart = mean_and_error([one - other for one, other in zip(found, plain, strict=True)])
        print(f"  {name}: {statistics.mean(found):.4f} nats a token of the truth, {apart} against plain", flush=True)


def wrote(partner: Partner, tasks: list[Task], ways: dict[str, GenerationConfig], seed: int, answers: bool) -> None:
    """What each way writes in the time that plain sampling takes. answers: whether a match counts."""
    budgets: list[float] = []
    truths = [partner.tokenizer.decode(task.truth, skip_special_tokens=True) for task in tasks]
    for name, settings in ways.items():
        every, means, bests, exact = [], [], [], []
        for number, (task, truth) in enumerate(zip(tasks, truths, strict=True)):
            found, seconds = texts_within(partner, task.prompt, settings, seed, budgets[number] if name != "plain" else None)
            budgets += [seconds] * (name == "plain")
            texts = [partner.tokenizer.decode(text, skip_special_tokens=True) for text in found]
            likeness = [rouge_l(text, truth) for text in texts]
            means, bests = [*means, statistics.mean(likeness)], [*bests, max(likeness)]
            exact.append(statistics.mean(matches(text, truth) for text in texts))
            every += found
        told = f"ROUGE-L {statistics.mean(means):.4f}, of the best {statistics.mean(bests):.4f}; distinct pairs {distinct(every, 2):.3f}"
        told += f"; {len(every) / len(tasks):.1f} texts" + (f"; exact match {statistics.mean(exact):.4f}" if answers else "")
        print(f"  seed {seed}, {name}: {told}", flush=True)


def tasks_of(partner: Partner, texts: dict[str, list[str]]) -> dict[str, list[Task]]:
    """Beginnings of held-out texts, and held-out questions, with what comes after them."""
    start, tokenizer = beginning(partner.tokenizer), partner.tokenizer
    plain = {name: kept for name, kept in texts.items() if name != QUESTIONS}
    rows = [row for kept in plain.values() for row in beginnings(kept, tokenizer, PROMPT + TOKENS, -(-PROMPTS // len(plain)))][:PROMPTS]
    asked = [text.removeprefix("Q: ").partition("\nA:") for text in texts.get(QUESTIONS, [])][:PROMPTS]
    pairs = ((prompt_tokens(tokenizer, f"Q: {question}\nA:"), prompt_tokens(tokenizer, answer)[:TOKENS]) for question, _, answer in asked)
    found = {"beginnings": [Task([start, *row[:PROMPT]], row[PROMPT:]) for row in rows]}
    return found | {"questions": [Task([start, *question], answer) for question, answer in pairs if answer]}


def main() -> None:
    torch.set_num_threads(1)
    partner, texts = taught()
    refused = {name: settings.without_head(set(partner.heads)) for name, settings in WAYS.items()}
    for name, why in refused.items():
        if why:
            print(f"{name} is left out: {why}", flush=True)
    ways = {name: settings for name, settings in WAYS.items() if not refused[name]}
    for kind, tasks in tasks_of(partner, texts).items():
        if tasks:
            pairs = distinct([tuple(task.truth) for task in tasks], 2)
            print(f"{len(tasks)} held-out {kind}; distinct pairs in what is true {pairs:.3f}", flush=True)
            compared(partner, tasks, ways)
            for seed in SEEDS:
                wrote(partner, tasks, ways, seed, kind == "questions")


if __name__ == "__main__":
    main()
