"""The zarr store that results lie in: a local folder with an owner, that can move and close."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING, Any

import attrs
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore

from accumulator._stores.files import system
from accumulator._stores.files.errors import SizeError
from accumulator.exceptions import ClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from accumulator._stores.files.temporary import TemporaryFolder
    from accumulator._stores.files.unsynced import Unsynced


@attrs.define(eq=False)
class _Place:
    """Where a group is; shared by all stores of it, so that all move and close together."""

    root: Path
    is_closed: bool = False
    most_nbytes: int | None = None  # of a file that is read
    guard: Callable[[str], Awaitable[Store | None]] | None = None


class FolderStore(LocalStore):
    """A local zarr store that keeps the temporary folder it lies in alive, and that can move.

    Every array opened from it holds it, so that the files outlive the last array. Once it is closed or
    its folder is gone, reading fails: zarr would take the missing chunks for zeros.

    ``folder`` is the temporary folder that ``root`` lies in, None for a store that stays. With ``unsynced``
    it survives crashes: files are synced before they get their name, and folders noted.
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
    ) -> None:
        self.folder, self.unsynced = folder, unsynced
        self._place = _Place(root.absolute())  # wherever the process goes; a URL is made of it
        super().__init__(self._place.root, read_only=read_only)

    @property
    def root(self) -> Path:  # LocalStore asks it before whatever it does
        """The zarr group's folder; ClosedError says that it was closed, or removed by somebody."""
        if self._place.is_closed:
            kept = self._place.root.is_dir()
            remedy = "FullBatch.load opens it again" if kept else "save() it before close()"
            raise ClosedError(f"the result in {self._place.root} was closed: {remedy}")
        if not self._place.root.is_dir():
            raise ClosedError(f"the result's folder {self._place.root} is gone: it was removed or moved")
        return self._place.root

    @root.setter
    def root(self, root: Path) -> None:
        self._place.root = root

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

    def watch(self, guard: Callable[[str], Awaitable[Store | None]]) -> None:
        """Have every key looked at before it is read, by a function that raises where it is damaged.

        It may return another store, to read this key from.
        """
        self._place.guard = guard

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a key's bytes, as zarr asks for them."""
        if self._place.guard is not None:
            other = await self._place.guard(key)
            if other is not None:
                return await other.get(key, prototype or default_buffer_prototype(), byte_range)
        if self._place.most_nbytes is not None:
            with contextlib.suppress(FileNotFoundError):
                size = (self.root / key).lstat().st_size
                if size > self._place.most_nbytes:
                    raise SizeError(errno.EFBIG, f"{key} has {size} bytes: no file here is that long")
        return await super().get(key, prototype, byte_range)

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

    async def delete_dir(self, prefix: str) -> None:
        """Remove a folder, if it is there, and all that is in it."""
        self._check_writable()
        if (self.root / prefix).is_dir():
            await asyncio.to_thread(system.remove_tree, self.root / prefix)

    def _write(self, key: str, value: Buffer) -> None:
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
        """Return what a copy in another process needs: it checks what it reads, and the folder stays here."""
        place = attrs.evolve(self._place)
        return vars(self) | {"folder": None, "unsynced": None, "_place": place}
