"""The log window, and what counts as durable, against a model of a disk that may lose any suffix of its writes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raftkv_node.raft import Entry, Invariant, InvariantViolation
from raftkv_node.raft.log import UNKNOWN_TERM, Log


def make(terms: list[int], base: int = 0, base_term: int = 0) -> Log:
    entries = [Entry(term, base + position, 0, b"") for position, term in enumerate(terms, 1)]
    return Log(base, base_term, entries, base, base)


class Disk:
    """Writes reach it in order; a crash keeps any prefix of those that were not reported complete."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, list[Entry]]] = []
        self.completed = 0

    def content(self, writes: int) -> dict[int, int]:
        """Terms by index after the first `writes` writes."""
        found: dict[int, int] = {}
        for _, entries in self.writes[:writes]:
            for index in [index for index in found if index >= entries[0].index]:
                del found[index]
            found.update({entry.index: entry.term for entry in entries})
        return found

    def crash_states(self) -> list[dict[int, int]]:
        return [self.content(count) for count in range(self.completed, len(self.writes) + 1)]


actions = st.lists(
    st.tuples(st.sampled_from(["append", "overwrite", "emit", "complete"]), st.integers(0, 5), st.integers(1, 3)),
    max_size=40,
)


@settings(max_examples=400)
@given(actions)
def test_durable_survives_every_crash(steps: list[tuple[str, int, int]]) -> None:
    """D4 and the append-ABA case: whatever prefix of the pending writes a crash leaves, the entries up to `durable` are
    there; and once everything has completed all of them are durable."""
    log, disk, number, term = make([]), Disk(), 0, 1
    for action, where, count in steps:
        if action == "append":
            # a term may also be an old one again: an entry that was overwritten comes back under a third leader
            log_term = max(log.last_term, 1)
            log.append([Entry(log_term, log.last_index + 1 + offset, 0, b"") for offset in range(count)])
        elif action == "overwrite" and log.last_index:
            first = max(1, log.last_index - where)
            term = max(1, log.term_at(first - 1)) if count == 1 else term + 1
            term = max(term, log.term_at(first - 1))
            log.truncate(first)
            log.append([Entry(term, first + offset, 0, b"") for offset in range(count)])
        elif action == "emit":
            entries = log.take_unemitted()
            if entries:
                number += 1
                log.write_started(number, entries, 1, 0)
                disk.writes.append((number, entries))
        elif action == "complete" and disk.completed < len(disk.writes):
            disk.completed = min(len(disk.writes), disk.completed + count)
            log.writes_completed(disk.writes[disk.completed - 1][0])
        for state in disk.crash_states():
            assert all(state.get(index) == log.term_at(index) for index in range(1, log.durable + 1))
    entries = log.take_unemitted()
    if entries:
        log.write_started(number + 1, entries, 1, 0)
    log.writes_completed(number + 1)
    assert log.durable == log.last_index


def test_window() -> None:
    log = make([1, 1, 2, 2, 3])
    log.commit_to(5)
    assert [entry.index for entry in log.take_committed(5, 1)] == [1]
    assert [entry.index for entry in log.take_committed(4, 1 << 20)] == [2, 3, 4]
    log.applied_to(4)
    bytes_before = log.window_bytes
    assert log.compact(3) == 3
    assert log.window_bytes == bytes_before * 2 // 5
    assert [log.term_at(index) for index in range(2, 7)] == [UNKNOWN_TERM, 2, 2, 3, UNKNOWN_TERM]
    assert [entry.index for entry in log.slice(4, 5, 1 << 20)] == [4, 5]
    with pytest.raises(IndexError):
        log.slice(3, 5, 1 << 20)
    with pytest.raises(InvariantViolation) as violation:
        log.compact(5)
    assert violation.value.name == Invariant.WINDOW_BELOW_APPLIED


def test_block_is_shared_until_the_log_changes() -> None:
    log = make([1, 1])
    assert log.block(1, 100) is log.block(1, 100)
    before = log.block(1, 100)
    log.append([Entry(1, 3, 0, b"")])
    assert len(log.block(1, 100)) == 3
    log.truncate(3)
    log.append([Entry(2, 3, 0, b"")])
    assert log.block(1, 100).items[-1].term == 2
    assert len(before) == 2


@pytest.mark.parametrize(
    ("mine", "index", "term", "expected"),
    [
        ([1, 1, 4, 4, 5], 5, 5, (5, 5)),
        ([1, 1, 4, 4, 5], 9, 4, (4, 4)),
        ([1, 1, 4, 4, 5], 5, 3, (2, 1)),
        ([1, 1, 4, 4, 5], 3, 1, (2, 1)),
        ([4, 4], 2, 3, (0, 0)),
        ([], 7, 7, (0, 0)),
    ],
)
def test_where_logs_may_agree(mine: list[int], index: int, term: int, expected: tuple[int, int]) -> None:
    assert make(mine).last_at_or_below(index, term) == expected


def violation_of(action: str) -> Invariant:
    log = make([1, 1, 2])
    log.commit_to(2)
    with pytest.raises(InvariantViolation) as violation:
        if action == "gap":
            log.append([Entry(2, 5, 0, b"")])
        elif action == "term":
            log.append([Entry(1, 4, 0, b"")])
        elif action == "truncate":
            log.truncate(2)
        elif action == "back":
            log.commit_to(1)
        elif action == "beyond":
            log.commit_to(4)
        elif action == "applied":
            log.applied_to(1)
    return violation.value.name


@pytest.mark.parametrize(
    ("action", "name"),
    [
        ("gap", Invariant.LOG_MATCHING),
        ("term", Invariant.LOG_MATCHING),
        ("truncate", Invariant.LEADER_COMPLETENESS),
        ("back", Invariant.COMMIT_MONOTONIC),
        ("beyond", Invariant.COMMIT_MONOTONIC),
        ("applied", Invariant.STATE_MACHINE_SAFETY),
    ],
)
def test_invariants_of_the_log(action: str, name: Invariant) -> None:
    assert violation_of(action) == name
