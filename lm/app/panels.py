"""The parts of the live screen. Each takes the facts and a size, and gives at most that many lines."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from lm.app.curve import draw
from lm.app.facts import Facts, SourceFacts, over_mean
from lm.app.text import ACCENT, LABEL, QUIET, TONES, Lines, apart, filled, fitted, packed, spans, title, wrapped
from lm.app.words import AS_TRAINED, NOTHING, counted, denoisers_in_words, duration, figure, milliseconds, one_line, rate, size

STATE_STYLES = {"reading": "green", "waiting": "yellow", "given up": "red", "finished": "dim"}
IDLE = 0.0005  # share of the gradient below which a loss does nothing
BARS = "▁▂▃▄▅▆▇█"


def head(facts: Facts, width: int) -> Lines:
    """Who is learning, how far it has come, and an empty line."""
    about = [spans((" · ".join(words), QUIET)) for words in [_about(facts)] if words]
    left = spans(("Perennial", f"bold {ACCENT}"), ("  " + facts.preset, "bold"), "  ", *about)
    return [apart(left, _state(facts), width), progress(facts, width), Text("")]


def _about(facts: Facts) -> list[str]:
    parameters = [f"{counted(facts.parameters)} parameters"] if facts.parameters else []
    return [*parameters, *([facts.device] if facts.device else [])]


def _state(facts: Facts) -> Text:
    if facts.stopping:
        return spans(("● ", "yellow"), ("stopping and saving", "yellow"))
    return spans(("● ", ACCENT if facts.is_training else "yellow"), facts.phase)


def progress(facts: Facts, width: int) -> Text:
    """A bar to the run's budget, with numbers on both sides."""
    if not facts.budget:
        return spans(("the run begins", QUIET))
    share = min(facts.tokens / facts.budget, 1.0)
    left = spans((counted(facts.tokens), "bold"), (f" of {counted(facts.budget)} tokens ", QUIET))
    right = spans(f" {100 * share:.1f}%", (f" · {time_left(facts)}", QUIET))
    room = max(width - left.cell_len - right.cell_len, 4)
    done = min(int(2 * room * share), 2 * room)
    full, half = divmod(done, 2)
    bar = spans(("━" * full + "╸" * half, ACCENT), ("─" * (room - full - half), QUIET))
    return Text.assemble(left, bar, right, no_wrap=True, end="")


def time_left(facts: Facts) -> str:
    seconds = facts.seconds_left
    return "time left unknown" if seconds is None else f"{duration(seconds)} left"


def loss(facts: Facts, width: int, height: int) -> Lines:
    """The loss curve under its title."""
    points = facts.curve.points
    by_denoiser = "".join(f" · {kind} {figure(loss, 2)}" for kind, loss in sorted(facts.denoisers.items()))
    heading = title("loss", width, "" if facts.loss is None else f"{figure(facts.loss, 3)} nats a token{by_denoiser}")
    if len(points) < 2 or height < 4:
        waiting = spans((facts.phase if not facts.step else "the curve begins with the next steps", QUIET))
        return filled([heading, waiting], max(height, 1))
    drawing = draw(points, width, height - 1)
    rows = [spans((label, LABEL), (row, ACCENT)) for label, row in zip(drawing.labels, drawing.rows, strict=True)]
    return [heading, *rows, spans((drawing.axis, LABEL)), spans((drawing.below, LABEL))][:height]


def numbers(facts: Facts, width: int, height: int) -> Lines:
    """The numbers of the last step."""
    step = facts.step
    saved = NOTHING if facts.saved_at is None else f"{duration(max(facts.clock() - facts.saved_at, 0))} ago"
    rows = [
        ("speed", NOTHING if facts.pace is None else f"{figure(facts.pace, 0)} tokens/s", ""),
        ("of peak speed (MFU)", NOTHING if facts.device_share is None else f"{100 * facts.device_share:.0f}%", ""),
        ("learning rate", rate(step.get("learning_rate")), ""),
        ("gradient", figure(step.get("gradient_norm"), 3), ""),
        ("memory", size(step.get("memory_bytes")), ""),
        ("step", f"{step['step']:,}" if step else NOTHING, ""),
        ("life", NOTHING if facts.life_tokens is None else f"{counted(facts.life_tokens)} tokens", ""),
        ("saved", saved, ""),
        ("data wait", f"{100 * step['data_wait']:.0f}%" if step else NOTHING, ""),
        ("skipped steps", str(step.get("skipped", 0)), "yellow"),
    ]
    shown = rows if step.get("skipped") else rows[:-1]
    shown = shown if height > len(shown) else [*shown[: height - 1]]
    return [title("now", width), *(apart(spans((name, LABEL)), spans((value, style)), width) for name, value, style in shown)][:height]


def sources(facts: Facts, width: int, height: int) -> Lines:
    """A line for each source: loss, share, tokens, and its state in words. Those that need a look come first when room is short."""
    room = height - 1
    known = list(facts.sources.values())
    urgent = sorted(known, key=lambda source: source.state in ("reading", "", "finished"))
    shown = known if len(known) <= room else [source for source in known if source in urgent[: room - 1]]
    name_width = min(max((len(source.name) for source in known), default=0), max(width // 4, 17))  # the longest built-in name
    after = f"{'':{max(name_width - 7, 0)}}{'loss':>7}{'share':>7}{'tokens':>9}"
    heading = spans(("sources", f"bold {ACCENT}"), (after, LABEL), ("  ", ""))
    heading.append("─" * max(width - heading.cell_len, 0), style=QUIET)
    rows = [_source_line(facts, source, name_width) for source in shown]
    more = len(known) - len(shown)
    return [heading, *rows, *([spans((f"and {more} more", QUIET))] if more else [])]


def _source_line(facts: Facts, source: SourceFacts, name_width: int) -> Text:
    name = fitted(Text(source.name), name_width)
    share = f"{100 * source.share:.0f}%" if source.tokens else NOTHING
    figures = f"{figure(source.loss, 3):>7}{share:>7}{counted(source.tokens):>9}"
    around = f"  (epoch {source.epoch + 1})" if source.epoch else ""
    state = STATE_STYLES.get(source.state, QUIET)
    return spans(name, figures, "  ", ("● ", state), (facts.state_of(source), "" if state == "green" else state), (around, QUIET))


def experts(facts: Facts, width: int, height: int) -> Lines:
    """How evenly experts are used: in the heading the busiest of all, below it each layer's loads in bars. Nothing without experts."""
    if facts.busiest is None or height < 1:
        return []
    layer, times = facts.busiest
    loads = facts.loads
    drawn = f" {bars(loads[layer], 16)}" if height == 1 else ""
    heading = title("experts", width, f"the busiest reads {times:.2f} times the mean, in layer {layer}{drawn}")
    cells = [f"{layer:>3} {bars(load, max(width - 11, 1))} {over_mean(load):.2f}   " for layer, load in loads.items()]
    columns = max((width + 3) // max(map(len, cells)), 1)
    return [heading, *(spans("".join(cells[at : at + columns])) for at in range(0, len(cells), columns))][:height]


def memory(facts: Facts, width: int, height: int) -> Lines:
    """The memory of what was read in a line: its chunks, what it takes, and what held-out text loses without it, where that is known."""
    if facts.memory is None or height < 1:
        return []
    told = facts.memory
    took = f"asks {milliseconds(told['asked_seconds'])}, adds {milliseconds(told['added_seconds'])} a step"
    without = facts.evaluation.get("without_memory")
    held_out = [f"{figure(without['bits_per_byte'], 3)} bits/byte without"] if without else []
    return [title("memory", width, " · ".join([f"{counted(told['chunks'])} chunks", took, *held_out]))]


def losses(facts: Facts, width: int, height: int) -> Lines:
    """What is learned beside the next token: of each loss its mean, its weight and its share of the trunk's gradient, and in the heading the share
    that the next token's own has. Those that do nothing come first, then the largest. Nothing where there are none."""
    if not facts.weights or height < 1:
        return []
    own = facts.shares.get("next_token")
    heading = title("losses", width, "" if own is None else f"next token {100 * own:.1f}% of the gradient")
    shares = {name: facts.shares.get(name) for name in facts.weights}
    names = sorted(shares, key=lambda name: -(1 + IDLE if shares[name] is None else 2 if shares[name] < IDLE else shares[name]))
    return [heading, *packed([_loss(facts, name, shares[name]) for name in names], width)][:height]


def _loss(facts: Facts, name: str, share: float | None) -> Text:
    """ "latent consistency 0.123×0.05 1.2%"."""
    value = facts.losses.get(name)
    told = NOTHING if value is None else f"{value:.3g}"
    part = ("", "") if share is None else (" idle", "yellow") if share < IDLE else (f" {100 * share:.1f}%", ACCENT)
    return spans((one_line(name).replace("_", " "), LABEL), f" {told}", (f"×{facts.weights[name]:g}", QUIET), part)


def bars(load: list[float], width: int) -> str:
    """A bar for each expert, half high at the mean and full at twice that; "·" for none. Where there is no room for all, neighbours share one."""
    together = -(-len(load) // width)
    highest = [max(load[at : at + together]) for at in range(0, len(load), together)]
    unit = sum(load) / len(load) / 4
    return "".join(BARS[min(max(round(value / unit), 1), 8) - 1] if value else "·" for value in highest)


def held_out_line(facts: Facts, width: int) -> Lines:
    """The last evaluation in a line; nothing before the first."""
    if not facts.evaluation:
        return []
    by_source = [f"{one_line(name)} {figure(values['bits_per_byte'], 2)}" for name, values in facts.evaluation["sources"].items()]
    pseudo = "pseudo-" * facts.evaluation.get("pseudo", False)
    return [
        spans(
            ("held-out", f"bold {ACCENT}"),
            f"  {pseudo}perplexity {figure(facts.evaluation['perplexity'], 1)}",
            (f"  {pseudo}bits per byte {figure(facts.evaluation['bits_per_byte'], 3)}{_without_average(facts.evaluation)}", ""),
            (f" ({', '.join(by_source)})" if len(by_source) > 1 else "", QUIET),
        )
    ]


def _without_average(measured: Mapping[str, Any]) -> str:
    """What the weights come to by themselves, where their average was measured: " (2.346 not averaged)"."""
    found = measured.get("without_average")
    return f" ({figure(found['bits_per_byte'], 3)} {AS_TRAINED})" if found else ""


def held_out_table(facts: Facts, width: int, height: int) -> Lines:
    """The last evaluation by source; nothing before the first."""
    if not facts.evaluation:
        return []
    rows = [(one_line(name), values) for name, values in facts.evaluation["sources"].items()]
    pseudo = facts.evaluation.get("pseudo", False)
    heading = title("held-out text" + ", pseudo" * pseudo, width, f"after {counted(facts.evaluation['after'])} tokens")
    columns = spans((f"{'pseudo-' * pseudo + 'perplexity':>{width - 11}}{'bits/byte':>11}", LABEL))
    total = _measures("all", facts.evaluation, width, "bold")
    beside, by_denoiser = facts.evaluation.get("without_average"), denoisers_in_words(facts.evaluation)
    itself = [_measures(AS_TRAINED, beside, width, "")] if beside else []
    gaps = [apart(spans(("gaps", LABEL)), spans(by_denoiser), width)] if by_denoiser else []
    return [heading, columns, *(_measures(name, values, width, "") for name, values in rows), total, *itself, *gaps][:height]


def _measures(name: str, values: Mapping[str, float], width: int, style: str) -> Text:
    figures = f"{figure(values['perplexity'], 1):>11}{figure(values['bits_per_byte'], 3):>11}"
    return apart(spans((name, style or LABEL)), spans((figures, style)), width)


def samples(facts: Facts, width: int, height: int) -> Lines:
    """What the model wrote: its newest sample and, where there is room, earlier ones to compare it with. Nothing before the first."""
    if not facts.samples or height < 2:
        return []
    newest, *earlier = facts.samples
    lines = [title("it writes", width, _when(newest)), *wrapped(_written(newest), width, height - 1)]
    for sample in earlier:
        text = [spans((_when(sample), QUIET)), *wrapped(_written(sample), width, height)]
        if len(lines) + 1 + len(text) > height:
            break
        lines += [Text(""), *text]
    return lines


def _when(sample: Mapping[str, Any]) -> str:
    return f"after {counted(sample['tokens'])} tokens"


def _written(sample: Mapping[str, Any]) -> Text:
    return spans((sample["prompt"], QUIET), (" " if sample["prompt"] else ""), sample["text"])


def log(facts: Facts, width: int, height: int) -> Lines:
    """The newest lines of the log, the last of them to its end where there is room."""
    lines = [spans((f"{line.clock}  ", LABEL), (line.text, TONES[line.tone])) for line in list(facts.log)[-(height - 1) :]]
    return [title("log", width), *[*lines[:-1], *wrapped(lines[-1], width, height - 1)][-(height - 1) :]] if lines else []


def small(facts: Facts, width: int) -> Lines:
    """The least there is to say, for a terminal with little room."""
    share = 100 * facts.tokens / facts.budget if facts.budget else 0.0
    state = "stopping" if facts.stopping else facts.phase
    return [
        spans(("Perennial ", f"bold {ACCENT}"), (state, QUIET)),
        spans(f"{counted(facts.tokens)} tokens", (f" {share:.1f}%", QUIET)),
        spans("loss ", (figure(facts.loss, 3), ACCENT)),
        spans((f"{figure(facts.pace, 0)} tokens/s", QUIET)),
        spans((time_left(facts), QUIET)),
    ]
