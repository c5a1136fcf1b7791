"""Time a few steps of a preset before any run."""

import json
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lm.app.company import company_of
from lm.app.terminal import CHECKPOINTS, quieted
from lm.app.text import ACCENT, QUIET
from lm.app.words import one_line
from lm.preset import Preset
from lm.preset.holding import expected_vocabulary
from lm.training.paces import Pace, keep_pace

ROOT = Path(__file__).resolve().parents[2]


def time_steps(preset: Preset, vocab_size: int | None) -> str:
    """What the steps took, in a line, and for the menu from now on. `vocab_size` is the living model's, when there is one."""
    vocabulary = vocab_size or expected_vocabulary(preset)
    if not vocabulary:
        return f"{preset.name}: how many words {one_line(preset.data.tokenizer)} has is known once it was fetched: the first steps of a run tell its pace."
    if not company_of(dict(os.environ)).is_alone:
        return "Several processes were started together: the first steps of a run tell their pace."
    console = Console(highlight=False, markup=False, emoji=False)
    console.clear()
    asked = json.dumps({"preset": preset.model_dump(mode="json"), "vocab_size": vocabulary})
    with console.status(Text(f"timing a few steps of {one_line(preset.name)} (Ctrl-C goes back)", style=QUIET), spinner_style=ACCENT), quieted():
        try:
            done = subprocess.run([sys.executable, "-m", "lm.training.trial"], input=asked, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
        except KeyboardInterrupt:
            return ""
    if done.returncode:
        ended = "the system ended them, as it does where memory is short" if done.returncode < 0 else "checkpoints/perennial.log says why"
        return f"{preset.name}: the steps could not be taken: {ended}"
    found = json.loads(done.stdout.splitlines()[-1])  # a library may have something to say before
    text = found.pop("text")
    if found["tokens_per_second"]:
        keep_pace(CHECKPOINTS, preset, Pace(**found))
    return f"{preset.name}: {text}"
