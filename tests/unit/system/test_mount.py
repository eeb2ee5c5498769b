from __future__ import annotations

from pathlib import Path

import pytest

from fusevol.model.errors import UserError
from fusevol.system.mount import mount_fuse, open_device, unmount


def test_a_missing_device_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fuse module is needed") as raised:
        open_device(tmp_path / "fuse")
    assert raised.value.exit_code == 1


@pytest.mark.root
def test_mounting_on_what_is_not_there_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory") as raised:
        mount_fuse(tmp_path / "missing", ["default_permissions"])
    assert raised.value.exit_code == 1


@pytest.mark.root
def test_unmounting_what_is_no_mount_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Invalid argument"):
        unmount(tmp_path, detach=False)
