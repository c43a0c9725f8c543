"""Writes and reads on their way, without a node: batching, bounds, and every way in which they end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from raftkv_node.raft import ReadFailureReason
from raftkv_node.server.reads import MAX_TRIES_IN_FLIGHT, Reads
from raftkv_node.server.writes import WriteLimits, Writes
from raftkv_node.store.commands import DELETE_RANGE, PUT
from raftkv_node.store.errors import (
    LEADER_CHANGED,
    STOPPED,
    TIMEOUT,
    TIMEOUT_LEADER_FAILURE,
    TIMEOUT_WAITING_FOR_APPLIED_INDEX,
    TOO_MANY_REQUESTS,
    EtcdError,
)

SMALL = WriteLimits(max_batch_requests=4, max_batch_bytes=100, max_entries_in_flight=2, max_waiting_requests=10)


def writes(limits: WriteLimits = SMALL) -> Writes:
    return Writes(1000, limits, 7.0)


def test_writes_of_a_turn_become_one_entry_with_consecutive_numbers() -> None:
    queue = writes()
    queue.accept(PUT, [1, 2], [b"a", b"b"], 0.0)
    queue.accept(DELETE_RANGE, [3], [b"c"], 0.5)
    first = queue.take(1.0)
    assert (first.first_seq, first.call_ids, first.kinds, first.payloads) == (
        1000, [1, 2, 3], bytes((PUT, PUT, DELETE_RANGE)), [b"a", b"b", b"c"],
    )  # fmt: skip
    assert (first.received, first.proposed) == (0.0, 1.0)
    queue.accept(PUT, [4], [b"d"], 2.0)
    assert queue.take(2.0).first_seq == 1003
    assert (queue.waiting, queue.pending) == (0, 4)


def test_an_entry_is_larger_than_its_bound_only_where_one_request_is() -> None:
    """The log buffer relies upon it: what does not fit into the rest of an entry waits for the next one."""
    queue = writes()
    queue.accept(PUT, [1], [b"a" * 60], 0.0)
    queue.accept(DELETE_RANGE, [2], [b"b" * 90], 0.0)
    queue.accept(PUT, [3], [b"c" * 300], 0.0)
    assert [queue.take(0.0).call_ids, queue.take(0.0).call_ids] == [[1], [2]]
    assert queue.take(0.0).call_ids == [3]


def test_entries_in_flight_hold_back_the_next_one() -> None:
    queue = writes()
    queue.accept(PUT, list(range(10)), [b"x"] * 10, 0.0)
    first, second = queue.take(0.0), queue.take(0.0)
    assert not queue.may_propose()
    assert queue.settle(first.first_seq) is first
    assert queue.may_propose()
    assert queue.settle(first.first_seq) is None
    assert [len(one.call_ids) for one in (first, second, queue.take(0.0))] == [4, 4, 2]


def test_more_than_may_wait_is_refused() -> None:
    queue = writes()
    assert queue.accept(PUT, list(range(8)), [b"x"] * 8, 0.0) == []
    assert queue.accept(PUT, [8, 9, 10, 11], [b"x"] * 4, 0.0) == [(10, TOO_MANY_REQUESTS), (11, TOO_MANY_REQUESTS)]
    assert queue.waiting == 10


@given(st.lists(st.lists(st.integers(0, 150), min_size=1, max_size=6), min_size=1, max_size=6))
def test_entries_hold_every_write_once_in_order_and_within_the_bounds(groups: list[list[int]]) -> None:
    limits = WriteLimits(max_batch_requests=4, max_batch_bytes=100, max_entries_in_flight=1000)
    queue = writes(limits)
    number = 0
    for group in groups:
        ids = list(range(number, number + len(group)))
        queue.accept(PUT, ids, [bytes(size) for size in group], 0.0)
        number += len(group)
    taken: list[int] = []
    while queue.may_propose():
        entry = queue.take(0.0)
        sizes = [len(payload) for payload in entry.payloads]
        assert 1 <= len(sizes) <= 4
        assert sum(sizes[:-1]) <= 100 or len(sizes) == 1
        taken += entry.call_ids
    assert taken == list(range(number))
    assert queue.waiting == 0


def test_a_full_buffer_makes_entries_smaller() -> None:
    queue = writes(WriteLimits(max_batch_requests=64))
    queue.accept(PUT, list(range(64)), [b"x"] * 64, 0.0)
    assert len(queue.take(0.0, small=True).call_ids) == 8


def test_a_refused_proposal_is_certainly_lost_and_says_so() -> None:
    queue = writes()
    queue.accept(PUT, [1, 2], [b"a", b"b"], 0.0)
    entry = queue.take(0.0)
    assert queue.refused(entry.first_seq) == [(1, LEADER_CHANGED), (2, LEADER_CHANGED)]
    assert queue.settle(entry.first_seq) is None
    assert queue.pending == 0


def test_m16_what_a_later_term_passes_over_is_proposed_again_and_nothing_else() -> None:
    """An entry of a later term is applied: what was handed over before, and not applied, is not in the log."""
    queue = writes()
    queue.passed_index = 9
    queue.accept(PUT, [1, 2], [b"a", b"b"], 0.0)
    queue.accept(DELETE_RANGE, [3], [b"c"], 0.0)
    forwarded = queue.take(0.0)
    forwarded.handed_term = 3
    queue.accept(PUT, [4], [b"d"], 1.0)
    own = queue.take(1.0)
    queue.appended(own, term=3, index=12)
    queue.accept(PUT, [5], [b"e"], 2.0)
    assert queue.passed(10, term=3) == []
    assert (queue.pending, queue.waiting) == (4, 1), "an entry of the same term tells nothing"
    assert queue.passed(11, term=3) == []
    assert queue.settle(own.first_seq) is own
    assert queue.passed(12, term=3) == []
    assert queue.passed(13, term=4) == []
    assert (queue.pending, queue.waiting) == (0, 4)
    assert queue.settle(forwarded.first_seq) is None
    again = queue.take(3.0)
    assert (again.call_ids, again.payloads, again.received) == ([1, 2, 3, 5], [b"a", b"b", b"c", b"e"], 0.0)
    assert again.kinds == bytes((PUT, PUT, DELETE_RANGE, PUT))
    assert again.first_seq not in (forwarded.first_seq, own.first_seq)


def test_m16_what_was_handed_over_in_this_term_or_not_yet_waits_for_its_fate() -> None:
    queue = writes()
    queue.accept(PUT, [1], [b"a"], 0.0)
    entry = queue.take(0.0)
    assert queue.passed(1, term=8) == []
    entry.handed_term = 8
    assert queue.passed(2, term=8) == []
    assert queue.settle(entry.first_seq) is entry


def test_m16_where_entries_are_skipped_nobody_can_know_the_fate() -> None:
    """A snapshot may have the effect of what was handed over: it is not proposed again."""
    queue = writes()
    queue.passed_index = 9
    queue.accept(PUT, [1, 2], [b"a", b"b"], 0.0)
    entry = queue.take(0.0)
    entry.handed_term = 3
    assert queue.passed(50, term=4) == [(1, TIMEOUT_LEADER_FAILURE), (2, TIMEOUT_LEADER_FAILURE)]
    assert (queue.pending, queue.waiting) == (0, 0)
    assert queue.settle(entry.first_seq) is None


def test_writes_end_when_their_time_is_up() -> None:
    queue = writes()
    queue.accept(PUT, [1], [b"a"], 0.0)
    queue.take(0.0)
    queue.accept(PUT, [2], [b"b"], 3.0)
    assert queue.expire(6.9, has_leader=True) == []
    assert queue.expire(7.0, has_leader=True) == [(1, TIMEOUT)]
    assert queue.expire(10.0, has_leader=False) == [(2, TIMEOUT_LEADER_FAILURE)]
    assert (queue.waiting, queue.pending) == (0, 0)


def test_writes_whose_caller_is_gone_are_dropped_before_they_are_proposed() -> None:
    queue = writes()
    queue.accept(PUT, [1, 2, 3], [b"a", b"b", b"c"], 0.0)
    queue.cancel({2, 99})
    assert queue.waiting == 2
    assert queue.take(0.0).payloads == [b"a", b"c"]
    queue.accept(PUT, [4], [b"d"], 0.0)
    queue.cancel({4})
    assert not queue.may_propose()


def test_everything_ends_at_the_end() -> None:
    queue = writes()
    queue.accept(PUT, list(range(6)), [b"x"] * 6, 0.0)
    queue.take(0.0)
    assert sorted(queue.abandon(STOPPED)) == [(number, STOPPED) for number in range(6)]
    assert (queue.waiting, queue.pending) == (0, 0)


class Answered:
    """Keeps what resumed reads were told."""

    def __init__(self) -> None:
        self.told: list[EtcdError | None] = []

    def __call__(self, error: EtcdError | None) -> None:
        self.told.append(error)


def test_reads_of_a_turn_share_one_question_and_wait_for_the_applied_index() -> None:
    reads, first, second = Reads(7.0), Answered(), Answered()
    reads.add(first, 0.0)
    reads.add(second, 0.0)
    context = reads.next_try(0.0, has_leader=True)
    assert context is not None
    assert reads.next_try(0.0, has_leader=True) is None
    assert reads.confirmed(context, index=5, now=0.25) == 0.25
    reads.serve(applied=4)
    assert first.told == []
    reads.serve(applied=5)
    assert first.told == second.told == [None]
    assert reads.waiting == 0


def test_a_late_answer_to_an_earlier_try_is_nobodys() -> None:
    """A context is never used twice: an answer may be older than the read that it would be taken for."""
    reads, answered = Reads(7.0), Answered()
    reads.add(answered, 0.0)
    first = reads.next_try(0.0, has_leader=True)
    assert first is not None
    reads.failed(first, ReadFailureReason.LEADER_CHANGED, 0.0)
    second = reads.next_try(0.0, has_leader=True)
    assert second is not None
    assert second != first
    assert reads.confirmed(first, index=1, now=0.0) is None
    reads.serve(applied=9)
    assert answered.told == []
    assert reads.confirmed(second, index=2, now=0.0) is not None
    reads.serve(applied=9)
    assert answered.told == [None]


def test_reads_are_asked_again_until_their_time_is_up() -> None:
    reads, answered = Reads(7.0), Answered()
    reads.add(answered, 0.0)
    assert reads.next_try(0.0, has_leader=False) is None
    contexts = set()
    for second in range(7):
        reads.expire(float(second))
        context = reads.next_try(float(second), has_leader=True)
        assert context is not None
        contexts.add(context)
    assert len(contexts) == 7
    assert answered.told == []
    reads.expire(7.0)
    assert answered.told == [TIMEOUT]
    assert reads.waiting == 0


def test_few_questions_are_under_way_at_once() -> None:
    reads = Reads(7.0)
    for number in range(MAX_TRIES_IN_FLIGHT + 2):
        reads.add(Answered(), 0.0)
        assert (reads.next_try(0.0, has_leader=True) is not None) == (number < MAX_TRIES_IN_FLIGHT)


def test_reads_that_wait_for_the_applied_index_end_in_time_too() -> None:
    reads, answered = Reads(7.0), Answered()
    reads.add(answered, 0.0)
    context = reads.next_try(0.0, has_leader=True)
    assert context is not None
    reads.confirmed(context, index=100, now=0.0)
    reads.expire(7.0)
    assert answered.told == [TIMEOUT_WAITING_FOR_APPLIED_INDEX]
    reads.serve(applied=100)
    assert len(answered.told) == 1
