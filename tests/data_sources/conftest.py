"""Clocks that run fast enough for a test."""

import pytest

from data_sources import feed


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults are waited for, and asked about again, in tenths of a second."""
    for name, seconds in {"PATIENCE": 0.3, "FIRST_PATIENCE": 0.2, "FIRST_PAUSE": 0.05, "FIRST_RETRY": 0.3}.items():
        monkeypatch.setattr(feed, name, seconds)
