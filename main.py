"""Perennial: menu -> train | chat | evaluate | presets | quit.

Everything a person can change is a line of JSON in configs/. There are no arguments.
"""

import os
import sys
from pathlib import Path

# Threads that wait for each other spin so often before they sleep. As libgomp comes it is 300,000 times, in which a core that another program wants
# is lost for both: on two cores, beside one busy process, a step took 18 times as long as alone, and so it takes 3.6 times (tests/benchmarks/waiting.py).
SPINS = "10000"


def main() -> int:
    """The exit status: 0 when all is well, 1 when training halted, 2 for arguments, 130 for a second Ctrl-C."""
    if len(sys.argv) > 1:
        print("main.py takes no arguments: run it as it is, and change presets in configs/", file=sys.stderr)
        return 2
    os.chdir(Path(__file__).resolve().parent)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # before torch is loaded, which reads it once
    try:
        return door()
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        print(f"The package {package} is not installed here: pip install -r requirements.txt", file=sys.stderr)
        return 1


def door() -> int:
    """The menu, and through it into the rooms, until a person leaves. The exit status."""
    from lm.app.company import company_of
    from lm.app.terminal import is_terminal
    from lm.app.unasked import follow, train_default

    company = company_of(dict(os.environ))
    if not company.is_first:
        return follow(company)
    if not is_terminal():
        return train_default(company)

    from lm.app.screens import ask, settled, show, train

    said = ""
    while (choice := ask(said)).action != "quit":
        if choice.preset is None:
            said = show(choice.action)
            continue
        if (refused := settled(choice.preset)) is not None:
            said = refused
            continue
        company.tell(choice.preset)
        outcome = train(choice.preset, company.is_alone)
        if outcome.ends or not company.is_alone:
            print(outcome.line)
            return outcome.status
        said = outcome.line
    company.tell(None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
