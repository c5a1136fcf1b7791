"""The processes that torchrun starts: the first one asks a person, the others wait for the answer.

They wait on the store that torchrun keeps, outside any collective, so that a menu may stay open for days.
"""

import os
import signal
from datetime import timedelta
from functools import cached_property
from typing import Any

from lm.preset import Preset, preset_from_json

LONG = timedelta(days=20)  # milliseconds that still fit into 32 bits
QUIT = "quit"


class Company:
    """This process among those that were started together. It may serve the store, which then ends with it."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def tell(self, preset: Preset | None) -> None:
        """The choice for the others: what to train, or None to end. Nothing when there are no others."""
        if not self.is_alone:
            self._store.set(_key(), preset.model_dump_json() if preset else QUIT)

    def told(self) -> Preset | None:
        """Wait for the choice. Ctrl-C ends the wait and the process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # Python's own handler would not run inside the wait
        text = self._store.get(_key()).decode()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return None if text == QUIT else preset_from_json(text, "the preset from rank 0")

    @cached_property
    def _store(self) -> Any:
        from torch.distributed import TCPStore

        by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(address, port, self.size, is_master=self.is_first and not by_agent, timeout=LONG, multi_tenant=True)


def company_of(environment: dict[str, str]) -> Company:
    """Who this process is: torchrun says so in its environment."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(environment):
        return Company(0, 1)
    return Company(int(environment["RANK"]), int(environment["WORLD_SIZE"]))


def _key() -> str:
    return f"perennial/choice/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
