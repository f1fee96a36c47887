"""Heads in order, whether they came as a list or as a dict by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_T = TypeVar("_T")
_Other = TypeVar("_Other")
LOCATION: Final = "location"
_SPATIAL: Final = ("z", "y", "x")
_CHANNEL: Final = "channel"


def plain_key(key: Any) -> Any:
    """Return a head's name as plain text, whatever kind of text it is, such as a member of an enumeration.

    Of all spellings that such text may have it is the one that equals it; what is no text stays as it is.
    """
    return str.__str__(key) if isinstance(key, str) else key


@attrs.define(eq=False)
class Heads(Generic[_T]):
    """One value a head, an array or what is known of it; none before heads are known."""

    values: tuple[_T, ...] = ()
    names: tuple[str, ...] | None = None  # None where heads came as a list

    @classmethod
    def of(cls, given: Mapping[str, _T] | Iterable[_T]) -> Heads[_T]:
        """Return the heads of a list or dict."""
        if isinstance(given, Mapping):
            names = tuple(given)
            if any(type(name) is not str for name in names):
                names = tuple(map(plain_key, names))
            return cls(tuple(given.values()), names)
        return cls(tuple(given))

    def like(self, values: Iterable[_Other]) -> Heads[_Other]:
        """Return other values of the same heads."""
        return Heads(tuple(values), self.names)

    def some(self, numbers: Sequence[int]) -> Heads[_T]:
        """Return some of the heads; without names they are numbered anew."""
        names = None if self.names is None else tuple(self.names[number] for number in numbers)
        return Heads(tuple(self.values[number] for number in numbers), names)

    def as_given(self) -> list[_T] | dict[str, _T]:
        """Return a list, or a dict where heads have names."""
        return list(self.values) if self.names is None else self.by_name()

    def by_name(self) -> dict[str, _T]:
        """Return a dict in any case: without names by their numbers as text."""
        names = self.names or map(str, range(len(self.values)))
        return dict(zip(names, self.values, strict=True))

    @property
    def keys(self) -> tuple[int | str, ...]:
        """What a user calls each head: its name, or its number."""
        return tuple(range(len(self.values))) if self.names is None else self.names

    def label(self, position: int) -> str:
        """Return how to call a head in a message."""
        return f"head {(position if self.names is None else self.names[position])!r}"

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[_T]:
        return iter(self.values)


def dimension_names(shapes: Heads[tuple[int, ...]], n_spatial: int | None = None) -> Heads[tuple[str, ...]]:
    """Return what each head's axes are called, as zarr and xarray name dimensions.

    Heads are ``(N, H, W, C)`` and alike; maps, of which the number of spatial axes is known, ``(H, W, C)``. A
    dimension has one length, and no variable's name: else it is that of its head alone.
    """
    plain = shapes.like(_axes(len(shape), n_spatial) for shape in shapes)
    lengths: dict[str, set[int]] = {}
    for names, shape in zip(plain, shapes, strict=True):
        for name, length in zip(names, shape, strict=True):
            lengths.setdefault(name, set()).add(length)
    own = {name for name, found in lengths.items() if len(found) > 1 or name in shapes.by_name()} - {LOCATION}
    return shapes.like(
        tuple(f"{head}_{name}" if name in own else name for name in names)
        for head, names in plain.by_name().items()
    )


def _axes(n: int, n_spatial: int | None) -> tuple[str, ...]:
    if n_spatial is None:  # (N, C), (N, H, W), (N, H, W, C) and (N, D, H, W, C)
        return (LOCATION, *_axes(n - 1, {1: 0, 2: 2, 3: 2, 4: 3}.get(n - 1, 0)))
    spatial, n_more = _SPATIAL[len(_SPATIAL) - n_spatial :], n - n_spatial
    return spatial + ((_CHANNEL,) if n_more == 1 else tuple(f"axis_{n_spatial + k}" for k in range(n_more)))
