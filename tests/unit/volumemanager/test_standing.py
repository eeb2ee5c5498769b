"""Who stands on a volume; and not being able to look is not "nobody"."""

from __future__ import annotations

import pytest
import trio

from fusevol.agent.volumemanager.standing import OurMounts, StandingMounts
from fusevol.model.refs import VolumeRef
from fusevol.system.mounts import MountRoot

VOLUME = VolumeRef("uid", "kubernetes.io/configmap", "a")


async def test_a_mount_of_the_volume_holds_it() -> None:
    standing = StandingMounts(lambda: [MountRoot(7, "/", "/mnt"), MountRoot(8, f"/{VOLUME.path}", "/etc/config")])
    assert await standing.holder(VOLUME) == "mounted at /etc/config (pid 8)"
    assert await standing.holder(VolumeRef("uid", "kubernetes.io/configmap", "b")) is None


async def test_a_look_that_failed_is_never_answered_with_an_older_one() -> None:
    looks = 0

    def look() -> list[MountRoot]:
        nonlocal looks
        looks += 1
        if looks > 1:
            raise OSError(24, "Too many open files")
        return []

    standing = StandingMounts(look)
    assert await standing.holder(VOLUME) is None
    failures = 0

    async def ask() -> None:
        nonlocal failures
        try:
            await standing.holder(VOLUME)
        except OSError:
            failures += 1

    await trio.sleep(0.001)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert failures == 3


async def test_one_look_answers_all_who_asked_before_it_began() -> None:
    looks = 0

    def look() -> list[MountRoot]:
        nonlocal looks
        looks += 1
        return []

    standing = StandingMounts(look)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(standing.holder, VOLUME)
    assert looks <= 2


def test_a_mount_that_was_never_seen_cannot_be_looked_for(tmp_path) -> None:  # type: ignore[no-untyped-def]
    ours = OurMounts(tmp_path)
    assert not ours.at_their_place()
    with pytest.raises(OSError, match="the mount is not at its place"):
        ours()
