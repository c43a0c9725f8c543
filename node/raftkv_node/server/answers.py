"""Answers of a turn, gathered and handed to the engine in one call each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from raftkv_node.store.errors import EtcdError


class Replier(Protocol):
    """The part of the engine that answers calls."""

    def reply(self, call_ids: Sequence[int], messages: Sequence[bytes]) -> None: ...
    def reply_errors(self, errors: Sequence[tuple[int, int, str]]) -> None: ...


class Answers:
    """Replies and errors until :meth:`flush`. Calls that are gone meanwhile are the engine's to ignore."""

    def __init__(self, engine: Replier) -> None:
        self._engine = engine
        self._ids: list[int] = []
        self._messages: list[bytes] = []
        self._errors: list[tuple[int, int, str]] = []

    def ok(self, call_ids: Sequence[int], messages: Sequence[bytes]) -> None:
        """Answers calls with OK."""
        self._ids += call_ids
        self._messages += messages

    def error(self, call_id: int, error: EtcdError) -> None:
        """Ends a call with an error."""
        self._errors.append((call_id, error.grpc_code, error.message))

    def errors(self, errors: Sequence[tuple[int, EtcdError]]) -> None:
        """Ends calls with errors."""
        self._errors += [(call_id, error.grpc_code, error.message) for call_id, error in errors]

    def ok_now(self, call_id: int, message: bytes) -> None:
        """Answers a call at once; from any thread."""
        self._engine.reply((call_id,), (message,))

    def error_now(self, call_id: int, error: EtcdError) -> None:
        """Ends a call at once; from any thread."""
        self._engine.reply_errors([(call_id, error.grpc_code, error.message)])

    def flush(self) -> None:
        """Hands everything to the engine."""
        if self._ids:
            self._engine.reply(self._ids, self._messages)
            self._ids, self._messages = [], []
        if self._errors:
            self._engine.reply_errors(self._errors)
            self._errors = []
