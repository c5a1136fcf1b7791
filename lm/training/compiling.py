"""torch.compile for the parts of a model that it takes cleanly: plain feed-forwards with their norms, and what attention does before tokens look at each other.

Both are the same for every token, so that neither the documents of a row nor the host decide anything in them: one graph serves all layers, and another
all lengths and numbers of rows once there is a second. What reads by documents would be compiled anew for every batch that is packed otherwise.

Compiled forms stand in for methods while a step computes its gradients, and at no other time: evaluation, samples and snapshots know nothing of them.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from lm.model import Model, Residual
from lm.training.distribution import is_out_of_memory
from lm.units.attention import Attention
from lm.units.relu2 import Relu2
from lm.units.swiglu import SwiGLU

LONGEST_REASON = 200  # characters of what a compiler says
Found = TypeVar("Found")


def compiles(asked: str, device: torch.device) -> bool:
    """ "auto" means GPUs."""
    return device.type == "cuda" if asked == "auto" else asked == "on"


class Compiled:
    """The compiled forms of one model, none where it is not to be. Nothing is compiled before it is called."""

    def __init__(self, model: Model, is_on: bool) -> None:
        self._forms = [(module, name, torch.compile(getattr(module, name))) for module, name in parts_of(model)] if is_on else []
        self._news: dict[str, Any] | None = None
        self._is_proven = False

    @property
    def is_on(self) -> bool:
        return bool(self._forms)

    def done(self, work: Callable[[], Found], begin_again: Callable[[], None]) -> Found:
        """What `work` gives, with compiled forms. Where that fails, it is done without them, then and from then on: what is no fault of the compiler's
        fails again. Memory that is short is not dealt with here."""
        if self._forms:
            began = time.monotonic()
            try:
                with self.in_place():
                    found = work()
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
                self._forms, self._news = [], {"compiled": False, "text": f"training goes on without compiling, which failed: {reason}"}
                begin_again()
            else:
                self._note(time.monotonic() - began)
                return found
        return work()

    def _note(self, seconds: float) -> None:
        if not self._is_proven:
            text = f"parts of the layers are compiled; with that the first step took {seconds:.0f} seconds"
            self._is_proven, self._news = True, {"compiled": True, "seconds": seconds, "text": text}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """In here the model computes with them."""
        for module, name, form in self._forms:
            setattr(module, name, form)
        try:
            yield
        finally:
            for module, name, _ in self._forms:
                delattr(module, name)

    def news(self) -> dict[str, Any] | None:
        """What became of compiling, told once."""
        news, self._news = self._news, None
        return news


def parts_of(model: Model) -> Iterator[tuple[nn.Module, str]]:
    """Modules, and the method of each that is compiled."""
    for module in model.modules():
        if type(module) is Residual and type(module.unit) in (SwiGLU, Relu2):
            yield module, "forward"
        elif type(module) is Attention:
            yield module, "projected"
