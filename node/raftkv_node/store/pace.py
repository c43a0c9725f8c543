"""How much of what waits is taken at a time, so that a backlog is worked off over seconds and not in one go.

A thread that catches up works in passes.  In each it takes what has come since the pass before, and of what waited even
then a share: so much as `CATCH_UP_SECONDS` contain of the time that has passed.  It keeps up with what comes, and a
backlog becomes smaller; after `CATCH_UP_SECONDS` a third of it is left.  Taken in one go, the backlog of a disk that
has stalled makes clients wait: everybody's disk comes back at the same moment, and each record that is committed gives
up the interpreter's lock and takes it back, which holds up the turn (docs/performance.md).

What came during one pass that took far longer than those before is a backlog, too.  Where passes go on taking long,
that is how it is, and a pass takes all that came in the one before: what counts as one pass's time at most doubles from
one to the next, and short passes in between are not taken for the end of it at once.
"""

from __future__ import annotations

CATCH_UP_SECONDS = 4.0
LEAST_BYTES = 512 << 10
"""So much is always taken: a small backlog is not worth several passes."""
USUAL_SECONDS = 0.2
"""A pass that takes no longer is never held for a stall."""
FORGET = 0.95
"""From pass to pass, of how long one may take: after 30 usual ones a fifth is left."""


class Pace:
    """The pace of one thread."""

    def __init__(self, now_seconds: float) -> None:
        self._added_bytes = 0
        self._at_seconds = now_seconds
        self._step_seconds = USUAL_SECONDS

    def take_bytes(self, added_bytes: int, done_bytes: int, now_seconds: float) -> int:
        """How much the pass that begins now is to take.  `added_bytes` and `done_bytes` are counted from the beginning:
        the difference waits.  It may be more than waits.
        """
        elapsed = max(now_seconds - self._at_seconds, 1e-6)
        step = min(elapsed, max(2 * self._step_seconds, USUAL_SECONDS))
        self._step_seconds = max(step, FORGET * self._step_seconds)
        came = added_bytes - max(self._added_bytes, done_bytes)
        left = max(self._added_bytes - done_bytes, 0)
        self._added_bytes, self._at_seconds = added_bytes, now_seconds
        return max(int(came * step / elapsed + left * step / CATCH_UP_SECONDS), LEAST_BYTES)
