"""Perennial: menu -> train | chat | evaluate | what it has read | presets | compare | go back | export | quit.

Everything a person can change is a line of JSON in configs/. There are no arguments.
"""

import os
import sys


def main() -> int:
    """The exit status: 0 when all is well, 1 when training halted, 2 for arguments, 130 for a second Ctrl-C."""
    if len(sys.argv) > 1:
        print("main.py takes no arguments: run it as it is, and change presets in configs/", file=sys.stderr)
        return 2
    os.chdir(os.path.dirname(os.path.realpath(__file__)))
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
    from lm.app.waiting import sleep_soon

    sleep_soon(os.environ)
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
