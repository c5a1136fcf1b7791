"""Long text, cut where a reader would pause: after a paragraph, else a sentence, else a word, else anywhere.

Each cut looks at one window of `high - low` characters and at nothing else, so the time is linear in the text whatever it
holds. Nothing is lost but the white space at a cut, and of that the indent of the line that follows is kept.
"""

import re

# From the best place for a cut to the worst. A match ends where the piece ends. None of them looks at a character twice.
PAUSES = (
    re.compile(r"(?=\n[^\S\n]*\n)"),  # a paragraph
    re.compile(r"[.!?…][\"'”’»)\]*_`]{0,3}(?=\s)|[。！？]"),  # a sentence
    re.compile(r"(?=\s)"),  # a word
)
GAP = re.compile(r"\s*\n|\s*")
OPENING, HEADING = 1000, 60  # characters in which a heading is looked for, and that it has


def chunks(text: str, low: int = 3000, high: int = 5000) -> list[str]:
    """`text` in pieces of `low` to `high` characters; the last may be shorter. A text of up to `high` stays whole, a blank one gives none."""
    if not 0 < low <= high:
        raise ValueError(f"pieces of {low} to {high} characters can't be cut; 0 < low <= high")
    if not text or text.isspace():
        return []
    pieces, start = [], 0
    while len(text) - start > high:
        cut = _best_cut(text, start, low, high)
        piece = text[start:cut].rstrip()
        if piece:
            pieces.append(piece)
        start = GAP.match(text, cut).end()
    if start < len(text):
        pieces.append(text[start:])
    return pieces


def heading(text: str) -> str:
    """The beginning of `text` on one line."""
    line = " ".join(text[:OPENING].split())
    return line if len(line) <= HEADING else f"{line[:HEADING].rstrip()}..."


def _best_cut(text: str, start: int, low: int, high: int) -> int:
    """Where the piece that begins at `start` ends. Room is left for a last piece that is worth having: half of `low`."""
    first = start + low
    last = max(first, min(start + high, len(text) - low // 2))
    for pause in PAUSES:
        cut = max((match.end() for match in pause.finditer(text, first, last)), default=None)
        if cut is not None:
            return cut
    return last
