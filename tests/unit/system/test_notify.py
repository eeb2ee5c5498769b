from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fusevol.system.notify import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_is_told(tmp_path: Path, abstract: bool) -> None:
    address = f"@fusevol-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1))
        manager.settimeout(5)
        assert notify("READY=1", "STATUS=serving", address=address)
        assert manager.recv(4096) == b"READY=1\nSTATUS=serving"


def test_no_manager_and_a_dead_one_are_no_failure(tmp_path: Path) -> None:
    assert not notify("READY=1", address="")
    assert not notify("READY=1", address=str(tmp_path / "nobody"))
