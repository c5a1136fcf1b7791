"""Training where nobody can be asked: without a terminal, and in the processes that help the first one."""

import sys

from lm.app.company import Company
from lm.app.life import read_life
from lm.app.shelf import CONFIGS, default_of, read_shelf
from lm.app.terminal import CHECKPOINTS


def train_default(company: Company) -> int:
    """Train the preset of the last run, or the default one, and print lines. The exit status."""
    default = default_of(read_shelf(), read_life(CHECKPOINTS).last_preset)
    company.tell(default.preset if default else None)
    if default is None or default.preset is None:
        print(f"{CONFIGS}: no preset there can be trained; `python main.py` in a terminal shows why", file=sys.stderr)
        return 1
    from lm.app.run_screen import train_with_lines

    return train_with_lines(default.preset).status


def follow(company: Company) -> int:
    """Wait for the first process's choice, and help it train. The exit status."""
    preset = company.told()
    if preset is None:
        return 0
    from lm.app.run_screen import train_unseen

    return train_unseen(preset).status
