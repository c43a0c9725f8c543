"""Bugs planted on purpose that no crash shows (those that a crash shows: `crash_plants.py`): each must be found.

A test here that finds nothing means that the tests are blind, not that the bug is harmless.
"""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from adr_harness import Member, durably, entries
from raftkv_node._engine import LogCorrupt
from raftkv_node.adr import Refused, entry
from raftkv_node.adr import opening as opening_module
from raftkv_node.adr.ringlog import RingLog


def test_a_drain_past_what_is_durable_is_found(member: Member) -> None:
    """What is not fenced is not looked at; a drain that goes on nevertheless finds no record there, and fails."""
    log, _ = member.open()
    durably(log, entries(1, 1, 2))
    assert isinstance(log, RingLog)
    ring = log._ring
    end = ring.durable_lsn

    class Ahead:
        durable_lsn = end + 64

        def __getattr__(self, name: str) -> Any:
            return getattr(ring, name)

    log._ring = Ahead()  # type: ignore[assignment]
    try:
        with pytest.raises((AssertionError, LogCorrupt)):
            log.drain()
    finally:
        log._ring = ring
        log.close(clean=False)


# --- rules that only copies of disks and rings can show: the row's scenario must fail with the bug ---


def row_5(member: Member) -> None:
    log, _ = member.open()
    durably(log, entries(1, 1, 2))
    log.close()
    copy = member.folder / "copy"
    shutil.copytree(member.data, copy)
    log, _ = member.open()
    durably(log, [entry(1, 3, 0, b"forgotten")])
    log.close(clean=False)
    shutil.rmtree(member.data)
    copy.rename(member.data)
    with pytest.raises(Refused):
        member.open()


def test_no_generation_bump_is_found(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    following = opening_module._next_manifest

    def same(opened: Any, findings: Any, mode: Any) -> Any:
        manifest = following(opened, findings, mode)
        if findings.previous is None:
            return manifest
        # The same generation again, in the same ring.
        old = findings.previous
        return manifest.replace(generation=old.generation, ring_uuid=old.ring_uuid)

    monkeypatch.setattr(opening_module, "_next_manifest", same)
    with pytest.raises(pytest.fail.Exception):
        row_5(member)


def test_the_scenario_of_row_5_passes_without_the_bug(member: Member) -> None:
    row_5(member)
