"""Training: the loop, the learner, the optimizer, snapshots, the processes, and what they tell of it."""

from lm.training.loop import Halted, Summary, train

__all__ = ["Halted", "Summary", "train"]
