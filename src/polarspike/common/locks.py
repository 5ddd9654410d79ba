"""Something that one process does at a time: a lock on a file, which a process that dies lets go."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import weakref
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on this system: processes must be kept apart by their directories
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of ``path`` within this context.

    Args:
        path: of the lock, an empty file that stays.
        wait: until another process lets it go; otherwise the context is entered at once.

    Returns:
        Whether it is held; always with ``wait``, and where the system, or the file system, has no such locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            _take(handle, wait)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)  # lets it go


class Hold:
    """A lock that this process has until nobody in it keeps this object any more, or it ends; made by :func:`hold`."""

    def __init__(self, path: Path, handle: int) -> None:
        self._handle = [handle]  # empty once it is closed
        weakref.finalize(self, _let_go, path, self._handle)

    def forget(self) -> None:
        """Close the file and leave the lock to the process that this one was forked from."""
        while self._handle:
            os.close(self._handle.pop())


def hold(path: Path) -> Hold | None:
    """Take the lock of ``path`` for as long as the answer is kept; the same answer if this process has it already.

    The file says who holds it, and goes when the lock is let go.

    Returns:
        None where the system, or the file system, has no such locks.

    Raises:
        BlockingIOError: another process has it; the message is who.
        OSError: the file cannot be opened.
    """
    if fcntl is None:
        return None  # and leave no file
    path = path.absolute()  # it is removed at last, when the working directory may be another
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        taken = False
        try:
            key = _identity(os.fstat(handle))
            if (there := _HELD.get(key)) is not None:  # a second description of the file would be refused by the first
                return there
            try:
                if not _take(handle, wait=False):
                    return None
            except BlockingIOError:
                said = os.pread(handle, 1000, 0).decode(errors="replace").strip()
                raise BlockingIOError(said or "another process") from None
            if taken := _is_at(path, key):  # else who had it has removed the file between the two calls
                held = _HELD[key] = Hold(path, handle)
                os.ftruncate(handle, 0)
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                os.pwrite(handle, f"process {os.getpid()} on {platform.node()}, since {now}\n".encode(), 0)
                return held
        finally:
            if not taken:
                os.close(handle)


def _take(handle: int, wait: bool) -> bool:
    """Lock an open file; False where nothing can.

    Raises:
        BlockingIOError: another process has it, and nobody waits.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:  # ENOLCK, ENOSYS, EOPNOTSUPP: NFS, Lustre and others, as they are mounted
        return False
    return True


# A lock belongs to the process, and so does the list of those it has: by it, who asks twice is not kept out by itself.
_HELD: weakref.WeakValueDictionary[tuple[int, int], Hold] = weakref.WeakValueDictionary()


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino


def _is_at(path: Path, key: tuple[int, int]) -> bool:
    try:
        return _identity(os.stat(path)) == key
    except FileNotFoundError:
        return False


def _let_go(path: Path, handle: list[int]) -> None:
    if not handle:
        return
    with contextlib.suppress(OSError):  # the folder has gone, or may not be written any more
        if _is_at(path, _identity(os.fstat(handle[0]))):
            os.unlink(path)  # before the lock goes: afterwards it might be another's
    os.close(handle.pop())


def _forget_all() -> None:
    for held in list(_HELD.values()):
        held.forget()
    _HELD.clear()


# A lock goes with the last copy of its descriptor, and a fork makes one: a worker that outlives its parent would keep it.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
