"""GOAWAY, which h2 takes for the end."""

from __future__ import annotations

from typing import NamedTuple

FRAME_HEADER = 9
GOAWAY = 7


class GoAway(NamedTuple):
    """The server takes no streams above `last_stream` any more; `code` 0 is an orderly end."""

    last_stream: int
    code: int


class GoAwayFilter:
    """Takes GOAWAY frames out of the received bytes.

    h2 closes its state machine at a GOAWAY and refuses every later frame. The protocol lets the streams that are
    open go on, and so does a kube-apiserver that shuts down.
    """

    def __init__(self) -> None:
        self._header = bytearray()  # of a frame whose header is not complete
        self._rest = 0  # bytes of the current frame's payload still to come
        self._farewell: bytearray | None = None  # the payload of a GOAWAY so far

    def feed(self, data: bytes | bytearray) -> tuple[bytes, list[GoAway]]:
        """What h2 is to see, and the GOAWAYs."""
        passed, farewells = bytearray(), []
        view = memoryview(data)
        while view:
            if not self._rest:
                missing = FRAME_HEADER - len(self._header)
                self._header += view[:missing]
                view = view[missing:]
                if len(self._header) < FRAME_HEADER:
                    break
                self._rest = int.from_bytes(self._header[:3], "big")
                if self._header[3] == GOAWAY:
                    self._farewell = bytearray()
                else:
                    passed += self._header
                self._header.clear()
            payload = view[: self._rest]
            view = view[self._rest :]
            self._rest -= len(payload)
            if self._farewell is None:
                passed += payload
            else:
                self._farewell += payload
                if not self._rest:
                    last = int.from_bytes(self._farewell[:4], "big") & 0x7FFFFFFF
                    farewells.append(GoAway(last, int.from_bytes(self._farewell[4:8], "big")))
                    self._farewell = None
        return bytes(passed), farewells
