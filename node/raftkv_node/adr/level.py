"""The durability levels, from the weakest to the strongest (D12). `levels` says what each means, and finds them out."""

from __future__ import annotations

from enum import StrEnum


class Level(StrEnum):
    PROCESS = "process"
    KERNEL = "kernel"
    POWER = "power"

    @property
    def rank(self) -> int:
        return list(Level).index(self)
