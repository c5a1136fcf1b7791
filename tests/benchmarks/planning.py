"""What planning brings at equal time: python -m tests.benchmarks.planning

The same model writes on from held-out beginnings: plainly, with drafts, steered by the policy, with temperatures by difficulty, and with planners
that commit tokens or pieces. All get the same processor time in each run as plain sampling took, drawing on with further seeds, and of what they wrote
the text that the model itself thinks likeliest (nats a token, read afresh) is taken: so a way that is twice as fast may choose among twice as many. Told:
nats a token of the text taken and of all texts, distinct words and pairs of tokens in them (Li et al. 2016), and texts a way had time for.

Questions: held-out ones of a source with answers (PLANNING_QUESTIONS names it, such as natural_questions), in the form that the model was taught in;
exact match and ROUGE-L (Lin 2004) of the answer taken, against the one that is held out. Without one, what stands is measured on text alone.

PLANNING_PROMPTS (12), PLANNING_TEXTS (2: texts plain sampling has time for), PLANNING_TOKENS (48). The model: tests/benchmarks/foretelling.py.
"""

import os
import re
import statistics
import time
from typing import NamedTuple

import torch

from lm.app.partner import Partner
from lm.generation.writing import Writing, beginning, prompt_tokens
from lm.preset.generation import GenerationConfig, PlannerConfig
from tests.benchmarks.foretelling import beginnings, taught

PROMPT = 32  # tokens
PROMPTS, TEXTS, TOKENS = (int(os.environ.get(f"PLANNING_{name}", value)) for name, value in (("PROMPTS", 12), ("TEXTS", 2), ("TOKENS", 48)))
QUESTIONS = os.environ.get("PLANNING_QUESTIONS", "")
PLAIN = GenerationConfig(max_new_tokens=TOKENS)
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


class Text(NamedTuple):
    """What was written, and its nats a token under the model."""

    tokens: tuple[int, ...]
    nats: float


def written(partner: Partner, prompt: list[int], settings: GenerationConfig, seed: int) -> Text:
    writing = Writing(partner.model, partner.tokenizer, prompt, settings, seed=seed, heads=partner.heads)
    for _ in writing:
        pass
    return Text(writing.tokens, 0.0)


@torch.no_grad()
def judged(partner: Partner, prompt: list[int], text: Text) -> Text:
    """With the nats that the model itself gives it, without any rule of sampling; the end counts where it ended by itself."""
    ends = [partner.tokenizer.eos_token_id] * (len(text.tokens) < TOKENS)
    tokens = torch.tensor([[*prompt, *text.tokens, *ends]])
    logs = partner.model(tokens[:, :-1]).logits[0, len(prompt) - 1 :].log_softmax(-1)
    return text._replace(nats=-float(logs.gather(1, tokens[0, len(prompt) :, None]).mean()))


def texts_within(partner: Partner, prompt: list[int], settings: GenerationConfig, seconds: float | None) -> tuple[list[Text], float]:
    """TEXTS of them where no time is given, else as many as are whole within `seconds` of the processor, at least one; and how long it took."""
    began, found = time.process_time(), []
    while len(found) < TEXTS if seconds is None else not found or time.process_time() - began < seconds * len(found) / (len(found) + 1):
        found.append(written(partner, prompt, settings, len(found)))
    return found, time.process_time() - began


def distinct(texts: list[tuple[int, ...]], size: int) -> float:
    """Of all runs of `size` tokens, the part that are different ones, text by text."""
    runs = [[text[at : at + size] for at in range(len(text) - size + 1)] for text in texts]
    return statistics.mean(len(set(each)) / len(each) for each in runs if each)


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


def compared(partner: Partner, prompts: list[list[int]], truths: list[str] | None) -> None:
    """A line for each way."""
    budgets: list[float] = []
    for name, settings in WAYS.items():
        best, every = [], []
        for number, prompt in enumerate(prompts):
            found, seconds = texts_within(partner, prompt, settings, budgets[number] if name != "plain" else None)
            budgets += [seconds] * (name == "plain")
            weighed = [judged(partner, prompt, text) for text in found]
            every += weighed
            best.append(min(weighed, key=lambda text: text.nats))
        tokens = [text.tokens for text in best]
        told = f"{statistics.mean(text.nats for text in best):.3f} nats a token of the best, {statistics.mean(text.nats for text in every):.3f} of all"
        told += f"; distinct tokens {distinct(tokens, 1):.3f}, pairs {distinct(tokens, 2):.3f}; {len(every) / len(prompts):.1f} texts"
        if truths:
            answers = [partner.tokenizer.decode(text, skip_special_tokens=True) for text in tokens]
            pairs = list(zip(answers, truths, strict=True))
            told += f"; exact match {statistics.mean(matches(*pair) for pair in pairs):.3f}, ROUGE-L {statistics.mean(rouge_l(*pair) for pair in pairs):.4f}"
        print(f"  {name}: {told}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    partner, texts = taught()
    start = beginning(partner.tokenizer)
    plain = {name: kept for name, kept in texts.items() if name != QUESTIONS}
    rows = [row for kept in plain.values() for row in beginnings(kept, partner.tokenizer, PROMPT, -(-PROMPTS // len(plain)))][:PROMPTS]
    print(f"{len(rows)} held-out beginnings", flush=True)
    compared(partner, [[start, *row] for row in rows], None)
    asked = [text.removeprefix("Q: ").partition("\nA: ") for text in texts.get(QUESTIONS, [])][:PROMPTS]
    if asked:
        print(f"{len(asked)} held-out questions of {QUESTIONS}", flush=True)
        prompts = [[start, *prompt_tokens(partner.tokenizer, f"Q: {question}\nA:")] for question, _, _ in asked]
        compared(partner, prompts, [answer for _, _, answer in asked])


if __name__ == "__main__":
    main()
