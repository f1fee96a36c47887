"""The zarr store that results lie in: a local folder with an owner, that can move and close."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
import numpy as np
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.buffer import default_buffer_prototype
from zarr.storage import LocalStore

from accumulator._stores.files import system
from accumulator._stores.files.errors import SizeError, storage_error
from accumulator._stores.format.names import PATCHES
from accumulator._stores.format.stamps import NO_FILE, UNSURE, Stamps, opened, stamp_of
from accumulator.exceptions import AccumulatorError, ClosedError, StorageError, UnsavedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from accumulator._stores.files.temporary import TemporaryFolder
    from accumulator._stores.files.unsynced import Unsynced
    from accumulator._stores.format.stamps import Stamp

_PATIENCE_SECONDS: Final = 30  # with a file that is being written
_PAUSE_SECONDS: Final = 0.001


class Judge(Protocol):
    """Tells by checksums whether files are right, in a store that has them."""

    def covers(self, key: str) -> bool:
        """Whether a file holds rows."""

    async def find_right(self, key: str) -> tuple[dict[str, Stamp], Store | None]:
        """Return a file and those read with it, as they are now; DamagedError if they are not right.

        Those that are rightly not there are left out. A store is what the file is to be read from instead.
        """


@attrs.define(eq=False)
class _Place:
    """Where a group is; shared by all stores of it, so that all move and close together."""

    root: Path
    stamps: Stamps  # of its files, as this process has left them
    is_closed: bool = False
    most_nbytes: int | None = None  # of a file that is read
    judge: Judge | None = None


class FolderStore(LocalStore):
    """A local zarr store that keeps the temporary folder it lies in alive, and that can move.

    Every array opened from it holds it, so that the files outlive the last array. Once it is closed or
    its folder is gone, reading fails: zarr would take the missing chunks for zeros. So does reading a file
    that is gone or was changed since it was written, or since a judge (see `watch`) has found it right.

    ``folder`` is the temporary folder that ``root`` lies in, None for a store that stays. With ``unsynced``
    it survives crashes: files are synced before they get their name, and folders noted. ``stamps`` are those
    of another store of the same files.
    """

    # By these zarr 3.4 could read past the guard, and write past `files`: None says that there are none.
    get_sync: Any = None
    set_sync: Any = None
    delete_sync: Any = None

    def __init__(
        self,
        root: Path,
        *,
        read_only: bool = False,
        folder: TemporaryFolder | None = None,
        unsynced: Unsynced | None = None,
        stamps: Stamps | None = None,
    ) -> None:
        self.folder, self.unsynced = folder, unsynced
        root = root.absolute()  # wherever the process goes; a URL is made of it
        self._place = _Place(root, stamps or Stamps(root, is_strict=folder is not None))
        super().__init__(self._place.root, read_only=read_only)

    @property
    def root(self) -> Path:  # LocalStore asks it before whatever it does
        """The zarr group's folder; ClosedError says that it was closed, or removed by somebody."""
        root = self._open_root
        if not root.is_dir():
            raise ClosedError(f"the result's folder {root} is gone: it was removed or moved")
        return root

    @root.setter
    def root(self, root: Path) -> None:
        self._place.root = root

    @property
    def _open_root(self) -> Path:
        """The same, there or not; ClosedError says that it was closed."""
        root = self._place.root
        if self._place.is_closed:
            opens = "StitchedMap.load" if (root / PATCHES).is_dir() else "FullBatch.load"
            remedy = f"{opens} opens it again" if root.is_dir() else "save() it before close()"
            raise ClosedError(f"the result in {root} was closed: {remedy}")
        return root

    @property
    def root_folder(self) -> Path:
        """The same, whether it is there or not."""
        return self._place.root

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._place.is_closed

    def move_to(self, root: Path) -> None:
        """Rename the group's folder and serve it from there, where it stays; an OSError changes nothing."""
        system.rename(self.root, root)
        self.root = root
        self.stamps.move_to(root)
        folder, self.folder = self.folder, None
        if folder is not None:
            folder.remove()

    def keep(self) -> None:
        """Leave the folder to the caller from now on."""
        folder, self.folder = self.folder, None
        if folder is not None:
            folder.keep()

    def shut(self) -> None:
        """Refuse all reading from now on, and remove the temporary folder."""
        self._place.is_closed = True
        if self.folder is not None:
            self.folder.remove()

    def with_read_only(self, read_only: bool = False) -> FolderStore:  # noqa: FBT001, FBT002  zarr's signature
        """Return the same store, read-only or not."""
        store = FolderStore(self.root, read_only=read_only, folder=self.folder, unsynced=self.unsynced)
        store._place = self._place
        return store

    def limit(self, nbytes: int) -> None:
        """Refuse to read longer files from now on, which may be holes that no memory has room for."""
        self._place.most_nbytes = nbytes

    def watch(self, judge: Judge) -> None:
        """Have a judge look at every file of rows before it is read first, and when it was changed since."""
        self._place.judge = judge

    @property
    def stamps(self) -> Stamps:
        """Of its files, as this process has left them."""
        return self._place.stamps

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a key's bytes, as zarr asks for them."""
        prototype = prototype or default_buffer_prototype()
        judge, is_strict = self._place.judge, self.stamps.is_strict
        if not (is_strict if judge is None else judge.covers(key)):
            return (await asyncio.to_thread(self._read, key, prototype, byte_range))[0]
        try:
            return await self._get_right(key, prototype, byte_range)
        except OSError as cause:
            if isinstance(cause, AccumulatorError):
                raise
            raise storage_error(cause, f"{key} of {self} cannot be read") from cause

    async def get_ranges(self, key: str, *args: Any, **options: Any) -> AsyncIterator[Any]:
        """Yield parts of a file, where zarr has this; what `get` raises there comes in a group."""
        inherited: Any = super()
        try:
            async for part in inherited.get_ranges(key, *args, **options):
                yield part
        except BaseExceptionGroup as several:
            raise next((e for e in several.exceptions if isinstance(e, AccumulatorError)), several) from None

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of files, each looked at as by `get`."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def _get_right(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None
    ) -> Buffer | None:
        """Return bytes of a file that was right before and after they were read."""
        stamps, judge, deadline = self.stamps, self._place.judge, time.monotonic() + _PATIENCE_SECONDS
        is_doubtful = False  # whether it was seen not to be as this process has left it
        while time.monotonic() < deadline:
            known = stamps.get(key)
            if judge is not None and (is_doubtful or (known is None and not stamps.is_strict)):
                right, other = await judge.find_right(key)
                if other is not None:
                    return await other.get(key, prototype, byte_range)
                for name in (key, *right):
                    stamps.learn(name, right.get(name))
                known = stamps.get(key)
            try:
                data, found = await asyncio.to_thread(self._read, key, prototype, byte_range)
            except SizeError:
                data, found = None, UNSURE
            is_written = known == UNSURE or stamps.get(key) is not known  # by this process
            if not is_written:
                if found == known:
                    return data
                if judge is None:
                    raise stamps.damaged(self.root / key)
                is_doubtful = True
            await asyncio.sleep(_PAUSE_SECONDS)
        raise StorageError(errno.ESTALE, "it is being written to: read it again", str(self.root / key))

    def _read(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None
    ) -> tuple[Buffer | None, Stamp | None]:
        """Return what is in a file, and its stamp; None twice where there is none.

        SizeError tells of what is no file, or is longer than any may be.
        """
        path, most_nbytes = self._open_root / key, self._place.most_nbytes
        try:
            with opened(path) as file:
                status = os.fstat(file)
                if most_nbytes is not None and status.st_size > most_nbytes:
                    what = f"{key} has {status.st_size} bytes: no file here is that long"
                    raise SizeError(errno.EFBIG, what)
                start, nbytes = _span(byte_range, status.st_size)
                data = np.empty(nbytes, np.uint8).data
                system.read_at(file, data, start)
                stamp = stamp_of(os.fstat(file))
        except NO_FILE:
            _ = self.root  # which may be gone
            return None, None
        return prototype.buffer.from_bytes(data), stamp if stamp == stamp_of(status) else UNSURE

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file as a whole: zarr calls this for every key."""
        self._check_writable()
        await asyncio.to_thread(self._write, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a file that is not there: nobody else makes one meanwhile."""
        if not (self.root / key).exists():
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        """Remove a file."""
        self._check_writable()
        await asyncio.to_thread(system.remove, self.root / key)
        self.stamps.learn(key, None)

    async def delete_dir(self, prefix: str) -> None:
        """Remove a folder, if it is there, and all that is in it."""
        self._check_writable()
        if (self.root / prefix).is_dir():
            await asyncio.to_thread(system.remove_tree, self.root / prefix)
        self.stamps.forget_below(prefix)

    def _write(self, key: str, value: Buffer) -> None:
        with self.stamps.changing(self.root / key, key, is_whole=True):
            self._replace(key, value)
        if not self.stamps.is_strict:
            self.stamps.learn(key, None)  # what it held before, and was encoded again, may have been changed

    def _replace(self, key: str, value: Buffer) -> None:
        path, content = self.root / key, memoryview(value.as_buffer_like()).cast("B")
        is_synced = self.unsynced is not None
        try:
            system.replace(path, content, is_synced=is_synced)
        except FileNotFoundError:  # it is the first of its folder
            for folder in reversed(path.parents[: key.count("/")]):
                system.make_folder(folder)
                self._note(folder)
            system.replace(path, content, is_synced=is_synced)
        self._note(path)

    def _note(self, path: Path) -> None:
        if self.unsynced is not None:
            self.unsynced.add_folder(path.parent)

    def __str__(self) -> str:
        """Return the store as a URL, closed or not."""
        return self._place.root.as_uri()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy in another process needs: it checks what it reads.

        UnsavedError refuses a result in a temporary folder, which is removed while the copy may be read.
        """
        if self.folder is not None:
            raise UnsavedError(
                f"the result in {self} cannot be copied, or sent to another process: its temporary folder is "
                "removed with it here; save() it before, or send the path of a saved one, which "
                "FullBatch.load opens there"
            )
        place = attrs.evolve(self._place)
        return vars(self) | {"unsynced": None, "_place": place}


def _span(byte_range: ByteRequest | None, size: int) -> tuple[int, int]:
    """Return where in a file the bytes begin that zarr asks for, and how many there are."""
    start, stop = 0, size
    if isinstance(byte_range, RangeByteRequest):
        start, stop = byte_range.start, byte_range.end
    elif isinstance(byte_range, OffsetByteRequest):
        start = byte_range.offset
    elif isinstance(byte_range, SuffixByteRequest):
        start = max(0, size - byte_range.suffix)
    return start, max(0, min(stop, size) - start)
