"""A few threads for what must not hold up the turn: cold reads, old log entries, hashes, the text of /metrics.

Jobs are plain functions. What they find they put where the turn looks, or hand to the engine, which takes calls from
any thread; then the turn is woken. A job's failure is kept for the turn, which decides whether the node can go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import Full, SimpleQueue

from raftkv_node.threads import daemon

MAX_QUEUED_JOBS = 10_000
"""Jobs that wait for a thread; one more is refused (``queue.Full``)."""

Job = Callable[[], None]


class Workers:
    """A bounded pool."""

    def __init__(self, threads: int, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self.failures: deque[Exception] = deque()
        """Unexpected errors of jobs."""
        self.done: deque[Callable[[], None]] = deque()
        """What jobs want to be done in the turn."""
        self._threads = [daemon(f"worker-{number}", self._run) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queues a job. Raises ``queue.Full`` at the limit."""
        if self._queue.qsize() >= MAX_QUEUED_JOBS:
            raise Full
        self._queue.put(job)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                job()
            except Exception as error:
                self.failures.append(error)
            self._wake()

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Ends the threads after the jobs that are queued."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout_seconds)
