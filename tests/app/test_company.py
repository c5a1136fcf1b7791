"""The choice that travels from the first process to the others, without torchrun's own store."""

import socket
import subprocess
import sys

import pytest

from lm.app.company import company_of
from lm.preset import preset_from_json
from tests.app.person import environment

PROGRAM = "import os; from lm.app.company import company_of; told = company_of(dict(os.environ)).told(); print(told.name)"


def test_one_process_is_alone():
    company = company_of({"RANK": "0"})
    assert company.is_first and company.is_alone
    company.tell(None)  # to nobody


@pytest.mark.timeout(60)
def test_a_store_of_its_own_stays_open_until_all_are_told(monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    around = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}
    for name, value in {**around, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    asking = subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment(**around, RANK="1"), cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    first = company_of({**around, "RANK": "0"})
    first.tell(preset_from_json('{"name": "travels", "data": {"sources": ["wikipedia"]}}', "test"))
    assert asking.communicate(timeout=50)[0].strip() == "travels" and asking.returncode == 0
