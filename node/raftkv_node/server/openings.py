"""What members know of each other's disks: the newest opening of each, kept durably, and told to the others (M5).

A member whose disk is older than one that it has shown before (a volume restored from a snapshot) has forgotten votes
and entries. Its peers find it out by the generation of its log, which only grows, and say so; it must then end for
good, since each start has a higher generation and would be believed at last.

An opening that was accepted is written by a worker, since the turn waits for no disk, and counts as *stored* once that
is done. Then everybody who is connected is told all that is stored here (:class:`Told`). So each member learns who has
stored its own opening, which `gate.py` waits for, and what others know of third ones: a member that comes later knows
the openings that were told before it came.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Full
from typing import Protocol

from raftkv_node.adr.files import Files, read_document, write_document
from raftkv_node.server.hello import HelloError
from raftkv_node.server.identity import IdentityError

FILE_NAME = "openings"
FILE_FORMAT = 1
MAX_TOLD = 4096
"""Ids in one list of a message; more make no sense in a cluster of 50 members."""
_HEAD = struct.Struct("<BQ")
_COUNT = struct.Struct("<H")
_OPENING = struct.Struct("<QQQ")

Opening = tuple[int, int]
"""Generation and nonce."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a member tells the others: who votes, as far as it knows, and the openings that it has stored durably."""

    asks: bool = False
    """The receiver is to answer with the same."""
    configuration_index: int = 0
    voters: frozenset[int] = frozenset()
    voters_outgoing: frozenset[int] = frozenset()
    openings: Mapping[int, Opening] = field(default_factory=dict)

    def encode(self) -> bytes:
        parts = [_HEAD.pack(self.asks, self.configuration_index)]
        for ids in (self.voters, self.voters_outgoing):
            parts += (_COUNT.pack(len(ids)), struct.pack(f"<{len(ids)}Q", *sorted(ids)))
        parts.append(_COUNT.pack(len(self.openings)))
        parts += [_OPENING.pack(one, *self.openings[one]) for one in sorted(self.openings)]
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Told:
        """Parse what ``encode`` gave. Raises :class:`HelloError` for anything else."""
        try:
            asks, index = _HEAD.unpack_from(data)
            offset = _HEAD.size
            sets = []
            for _ in range(2):
                number = _counted(data, offset)
                sets.append(frozenset(struct.unpack_from(f"<{number}Q", data, offset + _COUNT.size)))
                offset += _COUNT.size + 8 * number
            number = _counted(data, offset)
            offset += _COUNT.size
            end = offset + number * _OPENING.size
            if asks > 1 or end != len(data):
                raise HelloError("openings of another length than they say")
            found = {one: (generation, nonce) for one, generation, nonce in _OPENING.iter_unpack(data[offset:end])}
        except struct.error as error:
            raise HelloError(f"openings are cut short: {error}") from None
        return cls(bool(asks), index, sets[0], sets[1], found)


def _counted(data: bytes, offset: int) -> int:
    (number,) = _COUNT.unpack_from(data, offset)
    if number > MAX_TOLD:
        raise HelloError(f"{number} ids in one list")
    return int(number)


class Jobs(Protocol):
    """The part of the workers that is needed."""

    done: deque[Callable[[], None]]

    def submit(self, job: Callable[[], None]) -> None: ...


class Openings:
    """Member id to the newest opening heard, and what of it is on disk."""

    def __init__(self, folder: Path, workers: Jobs, stored: Callable[[], None], warn: Callable[[str], None]) -> None:
        """Reads the file; ``stored`` is called in the turn when more is on disk. Raises :class:`IdentityError`."""
        self._path = folder / FILE_NAME
        self._files = Files()
        self._workers = workers
        self._when_stored = stored
        self._warn = warn
        self._writing = threading.Lock()
        self._under_way = False
        self.known: dict[int, Opening] = {}
        try:
            document = read_document(self._path)
            if document is not None:
                if document["format"] != FILE_FORMAT:
                    raise ValueError("its format is not known")
                self.known = {int(one, 16): (int(at[0]), int(at[1], 16)) for one, at in document["members"].items()}
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise IdentityError(f"the file {self._path} is damaged: {error!r}") from None
        self.stored: Mapping[int, Opening] = dict(self.known)

    def note(self, member_id: int, generation: int, nonce: int) -> bool:
        """Remember an opening that was accepted, now and, soon, over a restart; whether it is a newer one."""
        if self.known.get(member_id) == (generation, nonce):
            return False
        self.known[member_id] = (generation, nonce)
        self.write()
        return True

    def forget(self, removed: Collection[int]) -> None:
        """Members that were removed are refused for that; nothing else needs to be known of them."""
        for one in removed:
            self.known.pop(one, None)

    def write(self) -> None:
        """Have a worker write what is known, if it is not on disk. One write at a time; to be called again later."""
        if self._under_way or self.known == self.stored:
            return
        try:
            self._workers.submit(partial(self._write, dict(self.known)))
            self._under_way = True
        except Full:
            self._warn("too much to do")

    def _write(self, openings: Mapping[int, Opening]) -> None:
        """On a worker."""
        members = {f"{one:016x}": [at[0], f"{at[1]:016x}"] for one, at in sorted(openings.items())}
        failure = ""
        with self._writing:
            try:
                write_document(self._files, self._path, {"format": FILE_FORMAT, "members": members})
            except OSError as error:
                failure = str(error)
        self._workers.done.append(partial(self._written, openings, failure))

    def _written(self, openings: Mapping[int, Opening], failure: str) -> None:
        """In the turn again. What could not be written is tried again with the next tick."""
        self._under_way = False
        if failure:
            self._warn(failure)
            return
        self.stored = openings
        self._when_stored()
        self.write()
