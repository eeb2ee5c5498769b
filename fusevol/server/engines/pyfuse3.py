"""The portable engine: pyfuse3 on libfuse's low-level API, on any kernel (FUSE.md 3).

A translation only. Names are bytes on the kernel's side and str in the core; errors of the core become their errno, and
what nobody expected becomes EIO for that one request and a logged error.

Everything is answered on trio's thread without a checkpoint, but for what may wait for a disk: large reads and writes,
fsync and fsyncdir of `blocking` handles run in a few threads.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio

from fusevol.model.errors import FileSystemError
from fusevol.server.filesystem import FileSystem
from fusevol.server.handles import FileHandle
from fusevol.server.inodes import Attr, Caller, SetAttr
from fusevol.server.notifications import AttributesChanged, EntryGone, Notification, PagesStale

log = logging.getLogger(__name__)

LARGE = 64 << 10
"""Bytes from which a read or write of a blocking handle is worth a thread (77 µs, FUSE.md 1)."""

THREADS = 4
"""Threads for what may wait for a disk; further requests of this kind wait for one of them."""

P = ParamSpec("P")
Answer = TypeVar("Answer")


class Engine:
    """Serves `filesystem` on `fuse_fd`, an open /dev/fuse that is mounted already. One per process."""

    def __init__(self, filesystem: FileSystem, fuse_fd: int) -> None:
        # a blocking read of a request that was taken back meanwhile would freeze the process with the GIL held
        os.set_blocking(fuse_fd, False)
        pyfuse3._session_loop = _session_loop  # type: ignore[attr-defined]
        # libfuse takes the descriptor over; it neither mounts nor unmounts a mount point of this form
        pyfuse3.init(_Handlers(filesystem), f"/dev/fd/{fuse_fd}", set())

    async def run(self) -> None:
        """Answers requests until the mount is gone or `stop` is called."""
        try:
            await pyfuse3.main()
        finally:
            pyfuse3.close(unmount=False)

    def stop(self) -> None:
        pyfuse3.terminate()

    def send(self, notification: Notification) -> None:
        """Tells the kernel; may wait, so never on trio's thread. Raises OSError."""
        match notification:
            case EntryGone(parent, name, nodeid):
                pyfuse3.invalidate_entry(parent, _encoded(name), nodeid)
            case AttributesChanged(nodeid):
                pyfuse3.invalidate_inode(nodeid, attr_only=True)
            case PagesStale(nodeid):
                pyfuse3.invalidate_inode(nodeid)


_pyfuse3_session_loop = pyfuse3._session_loop  # type: ignore[attr-defined]


async def _session_loop(nursery: trio.Nursery, min_tasks: int, max_tasks: int) -> None:
    """pyfuse3's loop on a non-blocking descriptor: the request that made it readable may be gone, its caller killed."""
    while True:
        try:
            return await _pyfuse3_session_loop(nursery, min_tasks, max_tasks)  # type: ignore[no-any-return]
        except BlockingIOError:
            pass


def _guarded(handler: Callable[P, Coroutine[Any, Any, Answer]]) -> Callable[P, Coroutine[Any, Any, Answer]]:
    """Every handler's errors become an errno here: any other exception would end the session (FUSE.md 3)."""

    @functools.wraps(handler)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> Answer:
        try:
            return await handler(*args, **kwargs)
        except (FileSystemError, OSError) as error:
            number = error.errno or errno.EIO
        except Exception:
            log.exception("%s failed", handler.__name__)
            number = errno.EIO
        raise pyfuse3.FUSEError(number)

    return guarded


class _Handlers(pyfuse3.Operations):
    """flush, access and poll are left to pyfuse3: ENOSYS tells the kernel once that there is nothing to ask."""

    supports_dot_lookup = False
    enable_acl = True  # else the kernel would store what an ACL denies and allow it all the same
    enable_writeback_cache = False

    def __init__(self, filesystem: FileSystem) -> None:
        super().__init__()
        self._fs = filesystem
        self._threads = trio.CapacityLimiter(THREADS)

    # ---------------------------------------------------------------------------------------- names

    @_guarded
    async def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return _attributes(self._fs.lookup(parent, _decoded(name), _caller(ctx)))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        # not guarded: FORGET has no answer, not even an error
        for nodeid, count in inode_list:
            try:
                self._fs.forget(nodeid, count)
            except Exception:
                log.exception("forget failed")

    @_guarded
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return _attributes(self._fs.mkdir(parent, _decoded(name), mode & 0o7777, _caller(ctx)))

    @_guarded
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _attributes(self._fs.mknod(parent, _decoded(name), mode, rdev, _caller(ctx)))

    @_guarded
    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _attributes(self._fs.symlink(parent, _decoded(name), _decoded(target), _caller(ctx)))

    @_guarded
    async def link(self, nodeid: int, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return _attributes(self._fs.link(nodeid, parent, _decoded(name), _caller(ctx)))

    @_guarded
    async def unlink(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._fs.unlink(parent, _decoded(name), _caller(ctx))

    @_guarded
    async def rmdir(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._fs.rmdir(parent, _decoded(name), _caller(ctx))

    @_guarded
    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: pyfuse3.RequestContext
    ) -> None:
        self._fs.rename(parent, _decoded(name), new_parent, _decoded(new_name), flags, _caller(ctx))

    # ---------------------------------------------------------------------------------------- nodes

    @_guarded
    async def getattr(self, nodeid: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return _attributes(self._fs.getattr(nodeid))

    @_guarded
    async def setattr(
        self,
        nodeid: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        changes = SetAttr(
            mode=attr.st_mode & 0o7777 if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return _attributes(self._fs.setattr(nodeid, changes, fh, _caller(ctx)))

    @_guarded
    async def readlink(self, nodeid: int, ctx: pyfuse3.RequestContext) -> bytes:
        return _encoded(self._fs.readlink(nodeid))

    @_guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        statfs, data = self._fs.statfs(), pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = statfs.block_size
        data.f_blocks = statfs.blocks
        data.f_bfree = statfs.blocks_free
        data.f_bavail = statfs.blocks_available
        data.f_files = statfs.files
        data.f_ffree = data.f_favail = statfs.files_free
        data.f_namemax = statfs.name_max
        return data

    # ---------------------------------------------------------------------------------------- extended attributes

    @_guarded
    async def getxattr(self, nodeid: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return self._fs.getxattr(nodeid, _decoded(name))

    @_guarded
    async def listxattr(self, nodeid: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        return [_encoded(name) for name in self._fs.listxattr(nodeid)]

    @_guarded
    async def setxattr(self, nodeid: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._fs.setxattr(nodeid, _decoded(name), value)

    @_guarded
    async def removexattr(self, nodeid: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._fs.removexattr(nodeid, _decoded(name))

    # ---------------------------------------------------------------------------------------- files

    @_guarded
    async def open(self, nodeid: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return _file_info(*self._fs.open(nodeid, flags, _caller(ctx)))

    @_guarded
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        attr, fh, handle = self._fs.create(parent, _decoded(name), mode & 0o7777, flags, _caller(ctx))
        return _file_info(fh, handle), _attributes(attr)

    @_guarded
    async def read(self, fh: int, offset: int, size: int) -> bytes | memoryview:  # type: ignore[override]
        handle = self._fs.file(fh)
        if handle.blocking and size >= LARGE:
            return await self._in_thread(handle.read, offset, size)
        return handle.read(offset, size)

    @_guarded
    async def write(self, fh: int, offset: int, data: bytes) -> int:
        handle = self._fs.file(fh)
        if handle.blocking and len(data) >= LARGE:
            return await self._in_thread(handle.write, offset, data)
        return handle.write(offset, data)

    @_guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        handle = self._fs.file(fh)
        if handle.blocking:
            await self._in_thread(handle.fsync, datasync)

    @_guarded
    async def release(self, fh: int) -> None:
        self._fs.release(fh)

    # ---------------------------------------------------------------------------------------- directories

    @_guarded
    async def opendir(self, nodeid: int, ctx: pyfuse3.RequestContext) -> int:
        return self._fs.opendir(nodeid, _caller(ctx))

    @_guarded
    async def readdir(self, fh: int, offset: int, token: pyfuse3.ReaddirToken) -> None:
        def emit(name: str, attr: Attr, after: int) -> bool:
            return bool(pyfuse3.readdir_reply(token, _encoded(name), _attributes(attr), after))

        self._fs.readdir(fh, offset, emit)

    @_guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        handle = self._fs.directory(fh)
        if handle.blocking:
            await self._in_thread(handle.fsync, datasync)

    @_guarded
    async def releasedir(self, fh: int) -> None:
        self._fs.releasedir(fh)

    async def _in_thread(self, function: Callable[..., Answer], *arguments: object) -> Answer:
        return await trio.to_thread.run_sync(function, *arguments, limiter=self._threads)


def _decoded(name: bytes) -> str:
    return os.fsdecode(name)


def _encoded(name: str) -> bytes:
    return os.fsencode(name)


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid, ctx.umask)


def _file_info(fh: int, handle: FileHandle) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(fh=fh, direct_io=handle.direct_io, keep_cache=handle.keep_cache)


def _attributes(attr: Attr) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = attr.nodeid
    entry.st_mode = attr.mode
    entry.st_nlink = attr.nlink
    entry.st_uid = attr.uid
    entry.st_gid = attr.gid
    entry.st_rdev = attr.rdev
    entry.st_size = attr.size
    entry.st_blksize = attr.block_size
    entry.st_blocks = attr.blocks
    entry.st_atime_ns = attr.atime_ns
    entry.st_mtime_ns = attr.mtime_ns
    entry.st_ctime_ns = attr.ctime_ns
    entry.entry_timeout = attr.entry_timeout
    entry.attr_timeout = attr.attr_timeout
    return entry
