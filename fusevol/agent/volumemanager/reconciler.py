"""The reconciler: compares desired and actual state where something changed, and starts operations.

kubelet looks at everything each 100 ms; this one is told what changed (`mark`) and looks at that at once. The rules are
kubelet's: one operation at a time per volume, unmounts before mounts, nothing unmounted before the source has synced,
failed ones again after 0.5, 1, 2 … 122 s or as soon as they are marked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from enum import Enum
from typing import NamedTuple

import structlog
import trio

from fusevol.agent.publisher.connection import RequestFailed
from fusevol.agent.volumemanager.actual_state import ActualState
from fusevol.agent.volumemanager.backoff import FIRST, Backoff
from fusevol.agent.volumemanager.desired_state import DesiredState
from fusevol.agent.volumemanager.operations import Held, Operations
from fusevol.model.errors import ObjectNotKnown, ServerGone, VolumeError
from fusevol.model.refs import VolumeRef

log = structlog.get_logger()

HELD_POLL = 1.0
"""Seconds between two looks at the mounts that keep a volume from being torn down: the kernel tells of none."""


class Action(Enum):
    TEAR_DOWN = "tear down"
    SET_UP = "set up"


class Operation(NamedTuple):
    action: Action
    ref: VolumeRef


def plan(
    marked: Iterable[VolumeRef],
    desired: Collection[VolumeRef],
    actual: Collection[VolumeRef],
    busy: Collection[VolumeRef],
    may_tear_down: bool,
) -> list[Operation]:
    """The operations to start now. What is busy stays marked and is planned when its operation ends."""
    free = sorted(ref for ref in marked if ref not in busy)
    tear_down = [ref for ref in free if ref not in desired and ref in actual] if may_tear_down else []
    set_up = [ref for ref in free if ref in desired]
    return [Operation(Action.TEAR_DOWN, ref) for ref in tear_down] + [Operation(Action.SET_UP, ref) for ref in set_up]


class Reconciler:
    """Calls `failed(ref, message)` for each failure that its Pod should hear of, `changed` when an operation ends."""

    def __init__(
        self,
        operations: Operations,
        desired: DesiredState,
        actual: ActualState,
        *,
        failed: Callable[[VolumeRef, str], None],
        changed: Callable[[], None],
    ) -> None:
        self.may_tear_down = False
        self._operations = operations
        self._desired = desired
        self._actual = actual
        self._failed = failed
        self._changed = changed
        self._marked: set[VolumeRef] = set()
        self._busy: set[VolumeRef] = set()
        self._timers: dict[VolumeRef, trio.CancelScope] = {}  # one each: an earlier attempt replaces the later
        self._backoff = Backoff()
        self._met: dict[VolumeRef, str] = {}  # what failed the last attempt
        self._wake = trio.Event()

    def mark(self, refs: Iterable[VolumeRef]) -> None:
        """Look at these volumes now, whatever their back-off says."""
        self._marked.update(refs)
        self._wake.set()

    def mark_all(self) -> None:
        self.mark([*self._desired.volumes, *(volume.ref for volume in self._actual)])

    def working(self, ref: VolumeRef) -> bool:
        """Whether an operation on the volume runs or is about to."""
        return ref in self._busy or ref in self._marked

    async def run(self) -> None:
        """Until cancelled; operations under way are cancelled with it."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                operations = plan(
                    self._marked, self._desired.volumes, self._actual.refs, self._busy, self.may_tear_down
                )
                self._marked &= self._busy
                for operation in operations:
                    self._busy.add(operation.ref)
                    nursery.start_soon(self._operate, nursery, operation)

    async def _operate(self, nursery: trio.Nursery, operation: Operation) -> None:
        action, ref = operation
        self._stop_timer(ref)
        retry: float | None = None
        try:
            if action is Action.SET_UP:
                await self._operations.set_up(ref)
            else:
                await self._operations.tear_down(ref)
            self._backoff.succeeded(ref)
            self._met.pop(ref, None)
        except (ObjectNotKnown, ServerGone):
            pass  # marked again by the delivery, by the next connection
        except Held as held:
            log.debug("not torn down yet", volume=str(ref), held=str(held))
            retry = HELD_POLL
        except (VolumeError, OSError, RequestFailed) as error:
            retry = self._fail(operation, error)
        except Exception as error:
            # a fault of ours in one volume is not the end of all others
            log.exception("operation failed unexpectedly", action=action.value, volume=str(ref))
            retry = self._fail(operation, VolumeError(f"{type(error).__name__} in fusevol, see its log"))
        finally:
            self._busy.discard(ref)
            if ref in self._marked:
                self._wake.set()
            self._changed()
        if retry is not None:
            scope = self._timers[ref] = trio.CancelScope()
            nursery.start_soon(self._retry, ref, retry, scope)

    def _fail(self, operation: Operation, error: Exception) -> float:
        """Returns the seconds before the next attempt.

        What keeps a volume from being planned is told when it still does at the next attempt, which is soon: kubelet
        looks only a while after a change, and an object that comes right behind its Pod, or the second of two that were
        missing, raises no Event there.
        """
        action, ref = operation
        retry = self._backoff.failed(ref)
        if ref not in self._desired.volumes and action is Action.SET_UP:
            return retry  # its Pod went meanwhile
        new = isinstance(error, VolumeError) and self._met.get(ref) != str(error)
        self._met[ref] = str(error)
        retry = FIRST if new else retry
        log.warning("operation failed", action=action.value, volume=str(ref), error=str(error), retry=retry)
        if action is Action.TEAR_DOWN:
            self._actual.tearing_down(ref, held=str(error))
            return retry
        self._actual.failed(ref, str(error))
        if not new and not isinstance(error, RequestFailed):
            self._failed(ref, f'MountVolume.SetUp failed for volume "{ref.name}" : {error}')
        return retry

    async def _retry(self, ref: VolumeRef, delay: float, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep(delay)
            self.mark([ref])

    def _stop_timer(self, ref: VolumeRef) -> None:
        if timer := self._timers.pop(ref, None):
            timer.cancel()
