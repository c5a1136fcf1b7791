"""How long from the start of the process to the menu: python -m tests.benchmarks.menu_time"""

import time

from tests.app.person import MAIN, ROOT, Person


def seconds_to_the_menu() -> float:
    started = time.perf_counter()
    with Person(MAIN, ROOT) as person:
        person.child.expect("q quit", timeout=30)
        return time.perf_counter() - started


if __name__ == "__main__":
    times = sorted(seconds_to_the_menu() for _ in range(11))
    print(f"menu on the screen after {times[5]:.3f} s (median of 11; fastest {times[0]:.3f}, slowest {times[-1]:.3f})")
