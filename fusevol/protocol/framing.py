"""Frames of the control socket: four bytes of length (big-endian), then one msgpack message."""

from __future__ import annotations

import struct

import msgspec

from fusevol.model.errors import ProtocolError
from fusevol.protocol.messages import Reply, Request

MAX_FRAME = 64 << 20
"""Bytes. An object is at most 1 MiB and a tree some hundred bytes a file; more is a mistake."""

HEADER = struct.Struct(">I")

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode(message: Request | Reply) -> bytearray:
    """One whole frame. It is the caller's to wipe when the message carried contents."""
    frame = bytearray(HEADER.size)
    _encoder.encode_into(message, frame, HEADER.size)
    HEADER.pack_into(frame, 0, len(frame) - HEADER.size)
    return frame


def length(header: bytes | bytearray | memoryview) -> int:
    """Bytes of the message that follows a header. Raises ProtocolError if it is absurd."""
    (size,) = HEADER.unpack(header)
    if size > MAX_FRAME:
        raise ProtocolError(f"a frame of {size} bytes")
    return int(size)


def decode_request(body: bytes | bytearray | memoryview) -> Request:
    """Contents in the request are views into `body`. Raises ProtocolError."""
    try:
        return _requests.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a request: {error}") from None


def decode_reply(body: bytes | bytearray | memoryview) -> Reply:
    """Raises ProtocolError."""
    try:
        return _replies.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a reply: {error}") from None
