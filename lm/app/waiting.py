"""How long threads of a processor that wait for each other spin before they sleep.

As libgomp comes it is 300,000 times, in which a core that another program wants is lost for both: on two cores, beside one busy process, a step took
18 times as long as alone, and so it takes 3.6 times (tests/benchmarks/waiting.py).
"""

from collections.abc import MutableMapping

SPINS = "10000"


def sleep_soon(environment: MutableMapping[str, str]) -> None:
    """Say so where nobody said otherwise. To be called before torch is loaded, which reads it once."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)
