"""Contents: shared where equal, counted, wiped."""

from __future__ import annotations

import pytest

from fusevol.model.tree import ContentRef, Literal
from fusevol.server.content import Content, ContentMissing, ContentStore
from tests.support.core import config_map

REF = config_map("cm")


def put(store: ContentStore, version: str, **data: bytes) -> None:
    store.put(REF, version, {key: memoryview(value) for key, value in data.items()})


def acquire(store: ContentStore, version: str, key: str) -> Content:
    return store.acquire(ContentRef(REF, version, key, ""))


def test_a_content_is_what_was_put_and_not_the_buffer_it_came_in() -> None:
    store, buffer = ContentStore(), bytearray(b"value")
    store.put(REF, "1", {"key": memoryview(buffer)})
    buffer[:] = b"wiped"
    assert bytes(acquire(store, "1", "key").view) == b"value"


def test_equal_bytes_of_the_next_version_share_memory_and_others_do_not() -> None:
    store = ContentStore()
    put(store, "1", same=b"same", other=b"before")
    same, other = acquire(store, "1", "same"), acquire(store, "1", "other")
    put(store, "2", same=b"same", other=b"after!")
    assert acquire(store, "2", "same") is same
    assert acquire(store, "2", "other") is not other
    assert bytes(other.view) == b"before"


def test_a_content_is_wiped_when_the_last_reference_goes() -> None:
    store = ContentStore()
    put(store, "1", key=b"value")
    content = acquire(store, "1", "key")
    view = content.view
    store.drop(REF)
    assert bytes(view) == b"value"
    content.release()
    assert bytes(view) == bytes(5)


@pytest.mark.parametrize("change", ["replaced", "dropped"])
def test_what_nobody_shows_is_wiped_at_once(change: str) -> None:
    store = ContentStore()
    put(store, "1", key=b"value")
    content = acquire(store, "1", "key")
    content.release()
    view = content.view
    if change == "replaced":
        put(store, "2", key=b"other")
    else:
        store.drop(REF)
    assert bytes(view) == bytes(5)


def test_a_wiped_content_cannot_be_acquired_again() -> None:
    content = Content(b"value")
    content.release()
    with pytest.raises(AssertionError):
        content.acquire()


def test_what_is_not_there_is_missing_by_object_version_and_key() -> None:
    store = ContentStore()
    with pytest.raises(ContentMissing, match="is not here"):
        acquire(store, "1", "key")
    put(store, "1", key=b"value")
    with pytest.raises(ContentMissing, match="in version 1, not 2"):
        acquire(store, "2", "key")
    with pytest.raises(ContentMissing, match="has no key 'gone'"):
        acquire(store, "1", "gone")


def test_no_repr_and_no_error_shows_a_content() -> None:
    content = Content(b"sesame")
    assert "sesame" not in repr(content)


def test_literals_have_a_content_of_their_own() -> None:
    store = ContentStore()
    assert bytes(store.acquire(Literal(b"label")).view) == b"label"


def test_views_cannot_be_written_to() -> None:
    with pytest.raises(TypeError):
        Content(b"value").view[0] = 0


def test_dropping_an_unknown_object_is_harmless_and_refs_tell_what_is_there() -> None:
    store = ContentStore()
    store.drop(REF)
    put(store, "1", key=b"value")
    assert store.refs == (REF,)
    store.drop(REF)
    assert store.refs == ()
