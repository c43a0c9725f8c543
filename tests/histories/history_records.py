"""What clients saw of a cluster: operations with their times and answers, and all that watches were told.

Requests and answers are etcd's own messages, so that a recorder copies nothing and loses nothing. Times are seconds of
one clock that all clients share and that never jumps; only their order counts.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from google.protobuf.message import Message
from raftkv_node.pb import rpc_pb2

NEVER = math.inf


class Outcome(enum.Enum):
    OK = "ok"
    """It was answered, so it took effect between invocation and answer."""
    FAILED = "failed"
    """It was refused: it never takes effect."""
    UNKNOWN = "unknown"
    """It may have taken effect, or may do so at any later time, or never."""


@dataclass(slots=True, eq=False)
class Operation:
    """One call of a client."""

    client: str
    request: Message
    """Put, DeleteRange, Txn, Range or Compaction request."""
    invoked: float
    returned: float = NEVER
    outcome: Outcome = Outcome.UNKNOWN
    response: Message | None = None
    error: str = ""
    """The text of the answer's status, as etcd words it."""
    session: str = ""
    """Serializable reads of one session never go back: one client, one member, one life of its process. Empty: none."""

    def describe(self) -> str:
        """One line for a person."""
        until = "never" if self.returned == NEVER else f"{self.returned:.6f}"
        text = " ".join(str(self.request).split())
        answer = self.error if self.response is None else " ".join(str(self.response).split())
        kind = type(self.request).__name__.removesuffix("Request")
        return f"{self.client} [{self.invoked:.6f}, {until}] {kind} {{{text}}} {self.outcome.value}: {answer[:400]}"


@dataclass(slots=True, eq=False)
class Watch:
    """One watch from its creation to its end. Whoever resumes makes a new one, with a start revision."""

    client: str
    request: rpc_pb2.WatchCreateRequest
    responses: list[tuple[float, rpc_pb2.WatchResponse]] = field(default_factory=list)
    """All responses with their times, in the order of their arrival: the one that says *created* is the first."""
    complete_to: int = 0
    """The recorder vouches that it waited long enough: every event up to this revision must be there. 0: no promise."""

    def describe(self) -> str:
        """One line for a person."""
        return f"watch of {self.client} {{{' '.join(str(self.request).split())}}}"


@dataclass(slots=True, eq=False)
class History:
    """All that was seen of one cluster since its key space was empty (revision 1)."""

    operations: list[Operation] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)
