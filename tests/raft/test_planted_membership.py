"""Planted bugs of the membership rules that stories tell best: each is found, beside the rule that prevents it."""

from __future__ import annotations

import pytest
from raft_script import run_script
from raftkv_node.raft import Raft
from raftkv_node.server.hello import Hello, HelloKind, Judge


def seen(story: str) -> list[str]:
    """What happens in a story."""
    return run_script(story + "\n----\n").partition("----\n")[2].strip().splitlines()


INTO_A_DEAD_QUORUM = """cluster 1 2 3 learners=4,5
campaign 1
run silent
isolate 4
isolate 5
elapse 30
change 1 voters=1,4,5
run silent
propose 1 a
run silent
elapse 5
status"""


def stuck(lines: list[str]) -> bool:
    """Whether nobody can commit any more."""
    return not any("LEADER" in line and line.endswith("commit 2 applied 2") for line in lines)


def test_m9_a_change_into_a_dead_quorum_is_refused() -> None:
    lines = seen(INTO_A_DEAD_QUORUM)
    assert "refused DEAD_QUORUM" in lines[0], lines
    assert not stuck(lines), lines


@pytest.mark.interpreted("plants a bug")
def test_m9_planted_change_into_a_dead_quorum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Raft, "_new_quorum_lives", lambda self, voters: True)
    lines = seen(INTO_A_DEAD_QUORUM)
    assert lines[0].startswith("proposed"), lines
    assert stuck(lines), lines


WIPED = """cluster 1 2 3
campaign 1
run silent
isolate 3
propose 1 x
run silent
crash 2
restart 2 keep=0
isolate 1
heal
isolate 1
elapse 40
status"""


def test_m1_planted_identity_from_the_url_after_a_wipe_loses_a_committed_entry() -> None:
    """Member 2 has acknowledged x, is wiped, and comes back under its old id: with 3, which never had x, it elects a
    leader that lacks it. That is what hearing it would mean; the binding of id and disk is why it is not heard."""
    lines = seen(WIPED)
    leader = next(line for line in lines if "LEADER" in line and not line.startswith("1 is") and "last" in line)
    assert "last 2" in leader, "x was entry 2 of term 1; this leader's second entry is its own empty one"
    wiped = Hello(HelloKind.MEMBER, 0xC1, 2, 3, b"new disk" * 2, 1, 1, "http://b:2380")
    known = Judge(0xC1, 3, frozenset(), {2: b"old disk" * 2}, {})
    assert "bootstrapped" in str(known.refusal(wiped))
    planted = Judge(0xC1, 3, frozenset(), {}, {})
    assert planted.refusal(wiped) is None
