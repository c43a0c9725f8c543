"""Log lines: one event, one line, as text or as JSON. Nothing on the way of a request is logged."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

_LEVELS = {"debug": 0, "info": 1, "warn": 2, "error": 3}


class Logger:
    """Writes events with their fields: ``time LEVEL event key=value ...`` or one JSON object."""

    def __init__(
        self,
        level: str = "info",
        form: str = "text",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._threshold = _LEVELS[level]
        self._json = form == "json"
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock

    def debug(self, event: str, **fields: Any) -> None:
        self._write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warn(self, event: str, **fields: Any) -> None:
        self._write("warn", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if _LEVELS[level] < self._threshold:
            return
        moment = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._json:
            line = json.dumps({"time": moment, "level": level, "event": event, **fields}, default=str)
        else:
            words = "".join(f" {name}={_word(value)}" for name, value in fields.items())
            line = f"{moment} {level.upper():5} {event}{words}"
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, RuntimeError):
            # nobody reads the log any more (a closed pipe, a full disk), or a signal's handler writes in the middle of
            # a line ("reentrant call"): that must not stop the node
            pass


def _word(value: Any) -> str:
    text = str(value)
    plain = text and text.isprintable() and not any(character in text for character in ' "=')
    return text if plain else json.dumps(text)


def member(identifier: int) -> str:
    """A member's or cluster's id as etcd writes it."""
    return f"{identifier:x}"
