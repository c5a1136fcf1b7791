"""A made-up but realistic run, as the events that an observer gets."""

import math
import random
from collections.abc import Iterator
from typing import Any

SHARES = {"wikipedia": 0.35, "fineweb_edu": 0.5, "natural_questions": 0.1, "installed_docs": 0.05}
FLOORS = {"wikipedia": 3.6, "fineweb_edu": 3.9, "natural_questions": 3.2, "installed_docs": 2.6}
HOSTILE = "[bold red]not markup[/] \x1b[2J\x1b]0;owned\x07 \x9b31m 東京 🌱 \u202egnp.exe\x00 \ud800 [/]"


def opening(names: list[str] | None = None, budget: int = 100_000_000) -> list[dict[str, Any]]:
    return [
        {"event": "phase", "text": "looking for the newest snapshot"},
        {"event": "phase", "text": "building the model"},
        {
            "event": "run",
            "preset": "best_general",
            "parameters": 10_491_136,
            "plan": "8 x (attention, swiglu)",
            "device": "CPU (2 threads), float32",
            "world_size": 1,
            "budget": budget,
            "tokens": 0,
            "life_tokens": 0,
            "sources": names or list(SHARES),
        },
        {"event": "resume", "from": "lm_current.pth", "tokens": 0, "life_tokens": 0, "exact": True, "text": "lm_current.pth: a new run on the same model"},
    ]


def step(number: int, tokens: int, chance: random.Random) -> dict[str, Any]:
    fall = 5.8 * math.exp(-0.45 * math.log10(tokens / 4096) ** 1.5)
    losses = {name: floor * 0.92 + fall + chance.gauss(0, 0.12) for name, floor in FLOORS.items()}
    loss = sum(SHARES[name] * value for name, value in losses.items())
    sources = {
        name: {
            "loss": losses[name] if chance.random() < 0.8 else None,
            "share": SHARES[name],
            "tokens": int(tokens * SHARES[name]),
            "state": "reading",
            "reason": "",
            "next_try": None,
            "epoch": 1 if name == "installed_docs" else 0,
            "documents": tokens // 700,
        }
        for name in SHARES
    }
    if 2_000_000 < tokens < 9_000_000:
        sources["fineweb_edu"] |= {"state": "waiting", "reason": "no route to huggingface.co", "next_try": 1_700_000_012.0}
    return {
        "event": "step",
        "step": number,
        "tokens": tokens,
        "life_tokens": tokens,
        "loss": loss,
        "losses": {"next_token": loss},
        "tokens_per_second": 4210 + chance.gauss(0, 60),
        "learning_rate": 3e-3,
        "gradient_norm": 0.42 + abs(chance.gauss(0, 0.1)),
        "memory_bytes": 1_340_000_000,
        "data_wait": 0.01,
        "skipped": 0,
        "batch_hash": "0" * 64,
        "sources": sources,
    }


def evaluation(tokens: int, cross_entropy: float) -> dict[str, Any]:
    def measured(nats: float) -> dict[str, float]:
        return {"cross_entropy": nats, "perplexity": math.exp(nats), "bits_per_byte": nats / 2.9, "tokens": 8192}

    return {
        "event": "evaluation",
        **measured(cross_entropy),
        "tokens": tokens,
        "sources": {name: measured(cross_entropy + FLOORS[name] - 3.6) for name in SHARES},
    }


def whole_run(until: int = 12_400_000) -> Iterator[dict[str, Any]]:
    """A run up to `until` tokens."""
    chance = random.Random(5)
    yield from opening()
    told = None
    for number, tokens in enumerate(range(4096, until + 1, 4096), start=1):
        event = step(number, tokens, chance)
        state = event["sources"]["fineweb_edu"]["state"]
        if told not in (None, state):
            yield {"event": "source", "name": "fineweb_edu", "state": state, "reason": event["sources"]["fineweb_edu"]["reason"]}
        told = state
        yield event
        if number % 488 == 0:
            yield {"event": "snapshot", "path": "checkpoints/lm_current.pth", "tokens": tokens, "seconds": 0.8, "bytes": 126_000_000}
            yield {"event": "phase", "text": "evaluating on held-out text"}
            yield evaluation(tokens, event["loss"])
        if number % 61 == 0:
            prompt = "The history of the city goes back to"
            text = " the early years of the war, when the first of the two rivers was used as a place for the trade of the people, and in the end the"
            yield {"event": "sample", "tokens": tokens, "prompt": prompt, "text": text}
