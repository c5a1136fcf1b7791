"""For all tests: one thread of torch, since the tensors are tiny and the machine may be shared; and a Hub of their own in place of the real one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.loopback_hub import LoopbackHub

torch.set_num_threads(1)


@pytest.fixture
def point_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Points huggingface_hub and datasets at an endpoint, as HF_ENDPOINT does for a new process, with an empty cache."""

    import datasets  # which takes seconds, and few tests want it
    import huggingface_hub

    def point(endpoint: str) -> None:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
        monkeypatch.setattr(datasets.config, "HUB_DATASETS_URL", endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets_cache"))
        monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules_cache"))
        huggingface_hub.HfFileSystem.clear_instance_cache()

    return point


@pytest.fixture
def hub(tmp_path: Path, point_at: Callable[[str], None]) -> Iterator[LoopbackHub]:
    """A running Hub over tmp_path / "hub". A test may set `hub._server.fault`."""
    (tmp_path / "hub").mkdir()
    with LoopbackHub(tmp_path / "hub") as server:
        point_at(server.endpoint)
        yield server
