"""Bugs that other Rafts have had, each under its number there, as stories that must end well here.

The list is docs/known-bugs.md; those of the key space are in `tests/store/test_known_store_bugs.py`. The text of each
story is in the format of `raft_script`; what it must say is written below it.
"""

from __future__ import annotations

from raft_script import run_script


def seen(story: str) -> list[str]:
    """The lines that a story's commands produce."""
    told = run_script(story.strip() + "\n----\n")
    return told.split("\n----\n", 1)[1].strip().splitlines()


def test_etcd_14370_a_single_member_acknowledges_only_what_is_durable() -> None:
    """A cluster of one counted its own entry before it was saved, and lost acknowledged writes in a crash."""
    begin = "cluster 1\ncampaign 1\nrun silent\nasync 1\npropose 1 a\nrun quiet\n"
    assert "1 applies 1/2=a" not in seen(begin)
    assert "1 applies 1/2=a" in seen(begin + "persist 1\nrun quiet")
    after = seen(begin + "crash 1\nrestart 1\ncampaign 1\nrun quiet\nstatus 1")
    assert "last 1 durable 1 commit 1" in after[-1] and "1 applies 1/2=a" not in after, "lost, and never promised"


def test_raft_397_an_answer_to_an_earlier_read_confirms_no_later_one() -> None:
    """A context used again let the answer to a try before a leader change confirm a read after it (#20418)."""
    story = """
cluster 1 2 3
campaign 1
run silent
read 3 r
process 3
deliver 3->1
process 1
deliver 1->2
process 2
deliver 2->1
process 1
hold READ_INDEX_RESPONSE
drop 1->3
transfer 1 2
run silent
propose 2 newer
run silent
read 3 r
process 3
release
deliver 1->3
process 3
"""
    lines = seen(story)
    assert not [line for line in lines if line.startswith("3 may read r")], "the old answer serves nobody"
    rest = seen(story + "run quiet")
    served = [line for line in rest if line.startswith("3 may read r")]
    assert served == ["3 may read r at 3"], rest


def test_raft_397_an_answer_to_an_earlier_round_confirms_no_later_read() -> None:
    """The same within one term: an answer to the round of an earlier read arrives (again) after a later read began."""
    begin = "cluster 1 2 3\nisolate 3\ncampaign 1\nrun silent\n"
    first = begin + "read 1 a\nprocess 1\ndeliver 1->2\nprocess 2\nhold 2->1\nrelease\nrun quiet\n"
    assert "1 may read a at 1" in seen(first)
    second = first + "read 1 b\nprocess 1\ndrop 1->\nrelease\nrun quiet\n"
    assert not [line for line in seen(second) if "may read b" in line]
    assert "1 may read b at 1" in seen(second + "elapse 2")


def test_raft_397_an_answer_to_an_earlier_request_serves_no_later_one() -> None:
    """The same for a member that forwards: the leader's answer is doubled, and comes again when a later read waits."""
    first = "cluster 1 2 3\ncampaign 1\nrun silent\nread 3 a\nprocess 3\ndeliver 3->1\nprocess 1\ndeliver 1->2\n"
    first += "process 2\ndeliver 2->1\nprocess 1\nhold READ_INDEX_RESPONSE\nrelease\nrun quiet\n"
    assert "3 may read a at 1" in seen(first)
    second = first + "isolate 3\npropose 1 x\nrun silent\nheal\nread 3 b\nprocess 3\ndrop 3->1\nrelease\nrun quiet\n"
    assert not [line for line in seen(second) if "may read b" in line], "it would not see x"


def test_raft_80_no_second_change_while_one_is_in_flight() -> None:
    """Two changes of the membership at once have majorities that need not meet."""
    lines = seen("cluster 1 2 3\nnode 4\nnode 5\ncampaign 1\nrun silent\nchange 1 add=4\nchange 1 add=5")
    assert lines[0].startswith("proposed") and "refused CHANGE_IN_FLIGHT" in lines[1], lines


def test_raft_83_a_leader_that_was_removed_leads_no_longer() -> None:
    """A leader that had removed itself went on leading; it steps down when its removal is committed."""
    lines = seen("cluster 1 2 3\ncampaign 1\nrun silent\nchange 1 remove=1\nrun quiet\nelapse 40\nstatus")
    assert any(line.startswith("1 is FOLLOWER") for line in lines), lines
    final = lines[-3:]
    assert not final[0].startswith("1 is LEADER")
    assert sum(line.split(" of ")[0].endswith("LEADER") for line in final[1:]) == 1


def test_thesis_4_2_3_a_removed_member_that_does_not_know_it_disrupts_nobody() -> None:
    """A member that was removed while it was away campaigns for ever; the others neither vote nor lose their leader."""
    lines = seen(
        "cluster 1 2 3\ncampaign 1\nrun silent\nisolate 3\nchange 1 remove=3\nrun silent\ntick 3 times=40\nheal"
        "\nelapse 60\nstatus"
    )
    assert "1 is LEADER of term 1" in lines[-3] and "term 1" in lines[-2], lines


def test_etcd_15247_a_leader_that_a_quorum_does_not_hear_stops_leading() -> None:
    """A leader stuck on its disk went on acting as one. One whose answers nobody hears steps down by itself, though its
    own process runs, and confirms no read in between."""
    lines = seen("cluster 1 2 3\ncampaign 1\nrun silent\nisolate 1\nread 1 r\ntick 1 times=25\nrun quiet\nstatus 1")
    assert not [line for line in lines if "may read" in line]
    assert any("read r failed" in line for line in lines)
    assert lines[-1].startswith("1 is FOLLOWER") or lines[-1].startswith("1 is PRE_CANDIDATE"), lines
