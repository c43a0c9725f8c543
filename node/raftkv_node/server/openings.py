"""The newest opening of each other member that this one has heard of, kept over restarts (M5).

A member whose disk is older than one that it has shown before (a volume restored from a snapshot) has forgotten votes
and entries. Its peers find it out by the generation of its log, which only grows, and say so; it must then end for
good, since each start has a higher generation and would be believed at last. The file is written by a worker, since the
turn waits for no disk: what was heard in the last moment before a crash may be missing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from queue import Full

from raftkv_node.adr.files import Files, read_document, write_document
from raftkv_node.server.identity import IdentityError

FILE_NAME = "openings"
FILE_FORMAT = 1


class Openings:
    """Member id to the newest (generation, nonce) heard."""

    def __init__(self, folder: Path, submit: Callable[[Callable[[], None]], None], warn: Callable[[str], None]) -> None:
        """Reads the file. Raises :class:`IdentityError` when it is damaged."""
        self._path = folder / FILE_NAME
        self._submit = submit
        self._warn = warn
        self._writing = threading.Lock()
        self.known: dict[int, tuple[int, int]] = {}
        try:
            document = read_document(self._path)
            if document is not None:
                if document["format"] != FILE_FORMAT:
                    raise ValueError("its format is not known")
                self.known = {int(one, 16): (int(at[0]), int(at[1], 16)) for one, at in document["members"].items()}
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise IdentityError(f"the file {self._path} is damaged: {error!r}") from None

    def note(self, member_id: int, generation: int, nonce: int) -> None:
        """Remember an opening that was accepted, now and, soon, over a restart."""
        if self.known.get(member_id) == (generation, nonce):
            return
        self.known[member_id] = (generation, nonce)
        try:
            self._submit(self._write)
        except Full:
            self._warn("too much to do")

    def _write(self) -> None:
        """On a worker; the last one to write writes all."""
        with self._writing:
            members = {f"{one:016x}": [at[0], f"{at[1]:016x}"] for one, at in sorted(dict(self.known).items())}
            try:
                write_document(Files(), self._path, {"format": FILE_FORMAT, "members": members})
            except OSError as error:
                self._warn(str(error))
