"""A model that was taught gaps, exported: what another program fills them with by the lines of the card is what chat fills them with."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from data_sources.special_tokens import OF_OBJECTIVES, special_ids, with_objective_tokens
from data_sources.tokenizer import tokenizer_from_json, tokenizer_to_json
from lm.export import export_snapshot
from lm.export.card import model_card
from lm.export.contents import generation_config
from lm.generation.infilling import filler_of
from lm.preset.generation import GenerationConfig
from tests.export.conftest import GENERATION, model_of, preset_of, snapshot_of

TAUGHT = {"R": 0, "S": 40, "X": 7}
TEXT = "It was ___ of ___ and so on."
GREEDY = {**GENERATION, "repetition_penalty": 1.0, "no_repeat_ngram": 0}
READER = """
import re, sys
from pathlib import Path
for block in re.findall(r"```python\\n(.*?)```", (Path(sys.argv[1]) / "README.md").read_text(encoding="utf-8"), re.S):
    exec(block, globals())
    print("---")
"""


def snapshot(tokenizer_json: str, **sections: Any) -> Any:
    gapped = tokenizer_to_json(with_objective_tokens(tokenizer_from_json(tokenizer_json)))
    return snapshot_of(preset_of("gapped", generation=GREEDY, train={"objective": "ul2"}, **sections), gapped, taught=TAUGHT)


def test_the_cards_lines_fill_gaps_as_chat_does(tokenizer_json: str, tmp_path: Path) -> None:
    gapped = snapshot(tokenizer_json)
    folder = export_snapshot(gapped, tmp_path / "exports")
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_ENDPOINT")}
    surroundings = {**kept, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    command = [os.environ.get("EXPORT_READER", sys.executable), "-c", READER, folder.name]
    done = subprocess.run(command, cwd=folder.parent, env=surroundings, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    _, written, rest = done.stdout.split("---\n")
    tokenizer = tokenizer_from_json(gapped.tokenizer)
    filling = filler_of(model_of(gapped), tokenizer, gapped.preset, TAUGHT).filling(TEXT, GenerationConfig(**GREEDY))
    whole = "".join(filling)
    assert written == f"{whole}\n" and rest == ""
    assert all(filling.filled) and not re.search(r"<\|", whole)


def test_every_token_of_objectives_ends_what_is_written(tokenizer_json: str) -> None:
    gapped = snapshot(tokenizer_json)
    tokenizer = tokenizer_from_json(gapped.tokenizer)
    ends = generation_config(gapped.preset.generation, gapped.tokenizer)["eos_token_id"]
    assert ends == sorted(special_ids(tokenizer)) and set(tokenizer.convert_tokens_to_ids(list(OF_OBJECTIVES))) < set(ends)


def test_the_card_tells_of_gaps_in_the_mode_that_was_taught(tokenizer_json: str) -> None:
    gapped = snapshot(tokenizer_json)
    assert '"<|X|>"' in model_card(gapped, "place", "<s>")
    gapped.life["taught"] = {"S": 40}
    assert "gap" not in model_card(gapped, "place", "<s>").split("## Open it")[1]
