"""Numbers and foreign text in words for the screen. Text from outside (samples, names, reasons) is made harmless here."""

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

NOTHING = "–"
AS_TRAINED = "not averaged"  # of measures of the weights themselves, beside those of their average

ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor moves
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # titles, links, device strings
    r"|\x1b[ -/]*[0-~]?"
)
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # controls, direction marks, half characters, what no font has


def clean(text: str) -> str:
    """`text` without escapes and control characters; line breaks and tabs stay."""
    return "".join(char for char in ESCAPES.sub("", text) if char in "\n\t" or unicodedata.category(char) not in HIDDEN)


def one_line(text: str) -> str:
    """`text` made harmless, on one line."""
    return " ".join(clean(text).split())


def counted(number: int) -> str:
    """A count in few characters: 950, 8,192, 12.4k, 3.25M, 100M."""
    if number < 10_000:
        return f"{number:,}"
    power = min(int(math.log10(number * 1.0005)) // 3, 4)
    scaled = number / 1000**power
    digits = 0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    text = f"{scaled:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if digits and float(text) == scaled else text}{'kMBT'[power - 1]}"


def figure(number: float | None, digits: int) -> str:
    """A number with `digits` after the point, or a dash where there is none."""
    if number is None or not math.isfinite(number):
        return NOTHING
    return f"{number:,.{digits}f}"


def denoisers_in_words(evaluation: Mapping[str, Any]) -> str:
    """An evaluation's losses by denoiser: "R 3.201, S 3.512"; empty where there are none."""
    return ", ".join(f"{kind} {figure(loss, 3)}" for kind, loss in evaluation.get("denoisers", {}).items())


def rate(number: float | None) -> str:
    """A small number such as a learning rate: 3.0e-3."""
    if number is None or not math.isfinite(number):
        return NOTHING
    mantissa, _, exponent = f"{number:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def size(count: int | None) -> str:
    """Bytes: 812 MB, 1.2 GB."""
    if count is None:
        return NOTHING
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def milliseconds(seconds: float | None) -> str:
    """A short time: 0.4 ms, 12 ms, 1,200 ms."""
    return NOTHING if seconds is None else f"{figure(1000 * seconds, 0 if seconds >= 0.00995 else 1)} ms"


def duration(seconds: float) -> str:
    """A stretch of time in at most two units: 45 s, 12 min, 3 h 12 min, 2 d 5 h."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{int(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
