"""What members say to each other first."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftkv_node.server.hello import Hello, HelloError, HelloKind, Judge

HELLO = Hello(HelloKind.MEMBER, 0xC1, 2, 1, b"d" * 16, 7, 99, "http://b:2380")
JUDGE = Judge(0xC1, 1, frozenset({5}), {2: b"d" * 16}, {2: (7, 99)})


@given(
    st.builds(
        Hello,
        st.sampled_from(HelloKind),
        *(st.integers(0, 2**64 - 1),) * 3,
        st.binary(min_size=16, max_size=16),
        *(st.integers(0, 2**64 - 1),) * 2,
        st.text(max_size=100),
        *(st.integers(0, 2**64 - 1),) * 2,
    )
)
def test_a_hello_comes_back_as_it_was(hello: Hello) -> None:
    assert Hello.decode(hello.encode()) == hello


@given(st.one_of(st.binary(), st.binary(max_size=120).map(lambda tail: HELLO.encode()[:20] + tail)))
def test_arbitrary_bytes_are_refused_or_read(data: bytes) -> None:
    try:
        hello = Hello.decode(data)
    except HelloError:
        return
    assert hello.encode() == data


def test_another_version_is_refused() -> None:
    data = bytearray(HELLO.encode())
    data[4] += 1
    with pytest.raises(HelloError, match="version 3 is not known"):
        Hello.decode(bytes(data))


def test_m4_a_member_with_the_right_binding_is_heard() -> None:
    assert JUDGE.refusal(HELLO) is None


def test_m4_an_unknown_member_of_the_same_cluster_is_heard() -> None:
    """M4: a lagging member must not block a live quorum."""
    assert JUDGE.refusal(replace(HELLO, from_id=9, disk_uuid=b"x" * 16)) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cluster_id": 0xC2}, "cluster ID mismatch: c2 is not c1"),
        ({"to_id": 3}, "this is member 1, not 3"),
        ({"from_id": 1}, "this member's own"),
        ({"from_id": 5}, "has been permanently removed from the cluster"),
        ({"disk_uuid": b"e" * 16}, "has already been bootstrapped, and is bound to another disk"),
        ({"generation": 6}, "older disk"),
        ({"nonce": 98}, "runs twice"),
    ],
)
def test_m4_m5_who_is_not_heard(change: dict[str, int], reason: str) -> None:
    """M4, M5."""
    refusal = JUDGE.refusal(replace(HELLO, **change))  # type: ignore[arg-type]
    assert refusal is not None
    assert reason in refusal


def test_m5_a_later_opening_is_heard() -> None:
    """M5."""
    assert JUDGE.refusal(replace(HELLO, generation=8, nonce=1)) is None


@pytest.mark.parametrize(
    ("term", "last_index", "heard"),
    [(4, 50, False), (5, 29, False), (5, 30, True), (5, 31, True), (6, 3, True)],
)
def test_m5_what_a_member_has_promised_here_its_disk_must_have(term: int, last_index: int, heard: bool) -> None:
    """A copy of a disk that was taken in the middle of an opening has no lower generation, but a shorter memory. Only a
    leader of a later term takes entries away."""
    judge = replace(JUDGE, receipts={2: (7, 5, 30)})
    refusal = judge.refusal(replace(HELLO, generation=8, nonce=1, term=term, last_index=last_index))
    assert (refusal is None) == heard
    assert heard or "older disk" in str(refusal)
    same_opening = replace(HELLO, term=term, last_index=last_index)
    assert judge.refusal(same_opening) is None, "a hello says how the log was opened; promises have been made since"
