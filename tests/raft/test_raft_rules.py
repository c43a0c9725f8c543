"""Single rules of the core, each a short story about the one thing that it forbids."""

from __future__ import annotations

import pytest
from raft_script import run_script


def seen(story: str) -> list[str]:
    """What a story's commands produce."""
    lines = run_script(story.strip() + "\n----\n").split("\n----\n", 1)[1].strip().splitlines()
    assert not [line for line in lines if "refused" in line], lines
    return lines


def test_m15_a_commit_index_covers_no_more_than_the_append_has_verified() -> None:
    """The tail behind what an append compares may be an older leader's: that the cluster has committed so many entries
    does not say that it is these."""
    story = """
cluster 1 2 3
send APPEND 2->1 term=1 index=0 log_term=0 commit=1 entries=1,1,1,1
send APPEND 3->1 term=2 index=1 log_term=1 commit=4
run silent
status 1"""
    assert "last 4 durable 4 commit 1 " in seen(story)[-1]
    one_more = story.replace("commit=4", "commit=4 entries=1")
    assert "last 4 durable 4 commit 2 " in seen(one_more)[-1]


ENTERING = """
cluster 1 2 3
node 4
node 5
campaign 1
run silent
change 1 add=4,5
run silent
elapse 5
change 1 voters=1,4,5
isolate {0} {1}
run silent
"""
"""1, 2, 3 are becoming 1, 4, 5, but one side is cut off: the change is in the log and cannot be committed."""

SIDES = pytest.mark.parametrize("lost", [(2, 3), (4, 5)], ids=["without the old voters", "without the new ones"])


@SIDES
def test_m8_a_read_between_two_sets_of_voters_needs_a_quorum_of_both(lost: tuple[int, int]) -> None:
    """The old voters alone may elect another leader as long as the change is not committed, and so may the new ones if
    it is: neither can vouch for this leader."""
    story = ENTERING.format(*lost) + "read 1 r\nelapse 3\n"
    assert not [line for line in seen(story) if "may read" in line]
    healed = seen(story + "heal\nelapse 3\nrun quiet")
    assert [line for line in healed if line.startswith("1 may read r")], healed


@SIDES
def test_m8_a_leader_between_two_sets_of_voters_leads_only_while_a_quorum_of_both_answers(
    lost: tuple[int, int],
) -> None:
    lines = seen(ENTERING.format(*lost) + "elapse 30\nstatus 1")
    assert not lines[-1].startswith("1 is LEADER"), lines
