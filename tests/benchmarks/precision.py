"""Steps of the default preset in bfloat16 against float32, where the device has both: python -m tests.benchmarks.precision

The same batches in turns, with the preset's own optimizer, in one process; the median of the paired ratios counts. "auto" takes what a product that
is timed at the start of a run is clearly faster in (lm/training/distribution.py).
"""

import statistics
from collections.abc import Callable

from data_sources import Batch
from lm.preset import Preset, load_preset
from lm.training.distribution import chosen_precision
from tests.benchmarks.measures import paces, ratio
from tests.benchmarks.teaching import BUDGET_WITHOUT_END, on_what, teacher_of
from tests.benchmarks.text import local_batches

PAIRS, WARM = 12, 2


def taker(preset: Preset, precision: str, batches: list[Batch], vocab_size: int) -> Callable[[int], int]:
    """What takes a step of one."""
    train = preset.train.model_copy(update={"precision": precision})
    teacher, _ = teacher_of(preset.model_copy(update={"train": train}), vocab_size)
    return lambda number: teacher.step(batches[number], len(preset.data.sources), 0, BUDGET_WITHOUT_END, number).tokens


def main() -> None:
    preset = load_preset("configs/00_best_general.json")
    batches, tokenizer = local_batches(preset, WARM + PAIRS)
    found = paces({name: taker(preset, name, batches, len(tokenizer)) for name in ("float32", "bfloat16")}, PAIRS, WARM)
    speeds = ", ".join(f"{name} {1 / statistics.median(cost[name] for cost in found):,.0f}" for name in found[0])
    device = on_what(preset)["device"]
    print(f"{device}, tokens of a second: {speeds}; bfloat16 is {ratio(found, 'bfloat16', 'float32')} times as fast", end="; ")
    print(f'"auto" takes {chosen_precision("auto", device == "cuda")}')


if __name__ == "__main__":
    main()
