"""What can go wrong with the log, and the exit code that a node ends with for each (docs/durability.md).

The four refusals of rule D10 are told apart by operators and by programs: an absent ring is waited for, a lost one is
replaced, a corrupt one is replaced and kept, a mismatch needs a person.
"""

from __future__ import annotations

from enum import StrEnum


class Refusal(StrEnum):
    """Why a member may not take part (D10)."""

    ABSENT = "absent"
    PROVEN_LOST = "proven lost"
    CORRUPT = "corrupt"
    MISMATCH = "mismatch"


EXIT_ABSENT = 65
EXIT_PROVEN_LOST = 66
EXIT_CORRUPT = 67
EXIT_MISMATCH = 68
EXIT_DURABILITY = 69
EXIT_UNUSABLE = 70
EXIT_OWNED = 71

EXIT_CODES = {
    Refusal.ABSENT: EXIT_ABSENT,
    Refusal.PROVEN_LOST: EXIT_PROVEN_LOST,
    Refusal.CORRUPT: EXIT_CORRUPT,
    Refusal.MISMATCH: EXIT_MISMATCH,
}


class LogError(Exception):
    """The log cannot be opened or used. The text is one sentence for the person who runs the node."""

    exit_code = EXIT_UNUSABLE


class Refused(LogError):
    """Ring and disk do not prove that this member may vote. Nothing was changed.

    `row` is the row of the decision table (0: found outside of it, while the log was read).
    """

    def __init__(self, kind: Refusal, message: str, row: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.row = row
        self.exit_code = EXIT_CODES[kind]


class DurabilityTooLow(LogError):
    """What was found is weaker than the minimum durability asked for."""

    exit_code = EXIT_DURABILITY


class Unusable(LogError):
    """A folder cannot be read or written, a size is out of bounds, the disk is full: fix it and start again."""

    exit_code = EXIT_UNUSABLE


class Owned(LogError):
    """Another process has the ring or the data folder (D11)."""

    exit_code = EXIT_OWNED


class LogFailed(LogError):
    """A flush or drain failed for good, or the log is closed: nothing more can be made durable. The node must stop."""
