"""What waits for a commit of the backend: one step's changes, and how the turn fills them in.

Apart from `backend`, because this is the turn's: a chunk is made, filled and closed for each entry that is applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from mypy_extensions import mypyc_attr


@final
@mypyc_attr(acyclic=True)
class Chunk:
    """What one step (an entry of the log, or a slice of a compaction) changes in the backend.  Once queued it never
    changes.
    """

    __slots__ = (
        "compact_revision",
        "configuration",
        "deletes",
        "first",
        "index",
        "members",
        "record_bytes",
        "records",
        "revision",
        "term",
    )

    def __init__(self, index: int, term: int, first: int) -> None:
        self.index: Final = index
        self.term: Final = term
        self.first: Final = first
        """A bound: revisions of this chunk's records are not below it, those of earlier chunks are."""
        self.records: Final[dict[bytes, bytes]] = {}
        self.record_bytes = 0
        self.deletes: Sequence[bytes] = ()
        self.revision = 0
        """The store's revision afterwards, and its compact revision; 0: neither has changed."""
        self.compact_revision = 0
        self.configuration = b""
        """The membership configuration as it is stored; empty: unchanged."""
        self.members: dict[int, bytes | None] | None = None
        """Attributes of members that have changed, by id; `None` for a member: it has gone."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is changed by it but the applied index."""
        return not (self.record_bytes or self.deletes or self.revision or self.configuration or self.members)
