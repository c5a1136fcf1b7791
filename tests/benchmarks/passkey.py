"""A pass key at a document's beginning, asked for 10,000 tokens later: python -m tests.benchmarks.passkey

The small sister of configs/03_valkyrie_long_context.json (S5 and Longformer in turn) is trained by the same `train` as any run on real text
in which a key of three digits stands first and is asked for last, most of the time soon, sometimes up to 12,000 tokens later, so that each
kind has its share of the tokens; only the answer is learned. Once with states that go on from row to row, once with every row read afresh.
Then keys are asked for at several distances: the share of digits that are the likeliest token, by chance 10 %. PASSKEY_TOKENS,
PASSKEY_SEEDS and PASSKEY_STATES ("carried afresh") say how much of it.
"""

import json
import math
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch

from data_sources.tokenizer import tokenizer_from_json
from lm.model import Model, build_model
from lm.preset import Preset
from lm.training import train
from lm.training.evaluation import encoded
from lm.training.snapshots import Snapshots

TOKENS = int(os.environ.get("PASSKEY_TOKENS", 6_000_000))
SEEDS = tuple(map(int, os.environ.get("PASSKEY_SEEDS", "0 1").split()))
STATES = [{"carried": True, "afresh": False}[word] for word in os.environ.get("PASSKEY_STATES", "carried afresh").split()]
ROW, CHUNK = 512, 256
LETTERS = 2.2  # of a token, about
FARTHEST, NEAR = 12_000, 40
DIGITS = 3  # one token each; were blanks and a full stop among them scored, too, little else would be learned
FAR_TOKENS = 0.3  # share of the tokens that stand in texts longer than NEAR
DISTANCES, ASKED = (100, 1_000, 10_000), 40
PROSE = " ".join(" ".join(text.split()) for text in topics.values())


def document(draw: random.Random, tokens: float) -> tuple[str, str]:
    """About `tokens` of prose with a key before it and a question behind it; and the answer."""
    key = "".join(draw.choice("0123456789") for _ in range(DIGITS))
    letters = round(tokens * LETTERS)
    start = draw.randrange(len(PROSE) - letters)
    return f"Key: {key}. {PROSE[start : start + letters]} Key: ", key


def documents(seed: int) -> Iterator[dict[str, str]]:
    draw = random.Random(seed)
    far = (FARTHEST - NEAR) / math.log(FARTHEST / NEAR)  # tokens of a far one, in the mean
    of_far = FAR_TOKENS * NEAR / (FAR_TOKENS * NEAR + (1 - FAR_TOKENS) * far)  # a near one has about NEAR, its key and its question counted
    while True:
        is_far = draw.random() < of_far
        question, answer = document(draw, math.exp(draw.uniform(math.log(NEAR), math.log(FARTHEST))) if is_far else draw.uniform(5, NEAR))
        yield {"q": question, "a": answer}


def sister(path: Path, seed: int, carries: bool) -> Preset:
    return Preset.model_validate(
        {
            "name": "carried" if carries else "afresh",
            "model": {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "seq_length": ROW, "rope_theta": 1e7},
            "s5": {"enabled": True, "layers": "even"},
            "longformer": {"enabled": True, "layers": "odd", "window": 64, "global_tokens": 16},
            "train": {
                "per_gpu_batch_size": 4,
                "seed": seed,
                "eval_tokens": 0,
                "snapshot_every_minutes": 1000,
                "sample_every_tokens": 10**9,
                "long_context": {"enabled": carries, "context_length": 2 * FARTHEST, "chunk_length": CHUNK, "backprop_chunks": 2},
            },
            "data": {
                "sources": [{"type": "files", "path": str(path), "fields": ["q", "a"], "format": "{q}{a}", "loss_on": "answer", "repeat": True}],
                "vocab_size": 512,
                "min_text_length": 1,
            },
        }
    )


@torch.no_grad()
def found(model: Model, tokenizer: Any, distance: int, carries: bool) -> float:
    """Share of the digits of ASKED keys that are the likeliest token `distance` tokens later."""
    draw, right = random.Random(f"asked {distance}"), 0
    for _ in range(ASKED):
        question, answer = document(draw, distance)
        read, asked = [tokenizer.bos_token_id, *encoded(tokenizer, question)], encoded(tokenizer, answer)
        tokens = torch.tensor([[*read, *asked]])
        state, logits = model.initial_state(1), []
        if not carries:  # rows begin anywhere: this is the most that one can hold
            tokens = tokens[:, -ROW:]
        for piece in tokens.split(CHUNK, 1):
            out = model(piece, state)
            state, logits = out.state, [*logits[-1:], out.logits]
        guesses = torch.cat(logits, 1)[0, -len(asked) - 1 : -1].argmax(-1).tolist()
        digits = [index for index, token in enumerate(asked) if tokenizer.decode([token]).strip().isdigit()]
        assert len(digits) == DIGITS
        right += sum(guesses[index] == asked[index] for index in digits)
    return right / (DIGITS * ASKED)


def main() -> None:
    for seed in SEEDS:
        for carries in STATES:
            with tempfile.TemporaryDirectory() as folder:
                path, rows, letters = Path(folder) / "keys.jsonl", documents(seed), 0
                with path.open("w") as file:
                    while letters < TOKENS * LETTERS:
                        row = next(rows)
                        letters += len(row["q"])
                        file.write(json.dumps(row) + "\n")
                checkpoints = Path(folder) / "checkpoints"
                loss = train(sister(path, seed, carries), checkpoints, TOKENS).loss
                snapshot = Snapshots(checkpoints).read("current")
            tokenizer = tokenizer_from_json(snapshot.tokenizer)
            model = build_model(snapshot.preset, len(tokenizer))
            model.load_state_dict(snapshot.model_weights)
            model.eval()
            shares = ", ".join(f"{distance:,} tokens later {found(model, tokenizer, distance, carries):.0%}" for distance in DISTANCES)
            print(f"seed {seed}, states {'carried' if carries else 'afresh in each row'}: loss {loss:.3f}; digits found: {shares}", flush=True)


if __name__ == "__main__":
    main()
