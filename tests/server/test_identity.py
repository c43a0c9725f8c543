"""Identity: derived as etcd derives it, or issued once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftkv_node.server.identity import (
    FILE_NAME,
    Identity,
    IdentityError,
    Peer,
    cluster_id,
    load_or_format,
    member_id,
    save,
)

DISK = bytes(range(16))
ISSUED = Identity(
    disk_uuid=DISK,
    number=2,
    name="demo-2",
    cluster_id=0xC1,
    member_id=0xA2,
    peer_url="http://demo-2:2380",
    client_urls=("http://demo-2:2379",),
    zone="a",
    operated=True,
    founding=b"\x01\x02",
    peers=(Peer(0xA1, "http://demo-1:2380", bytes(16)),),
    bindings={0xA1: bytes(16)},
)


def test_ids_are_etcds() -> None:
    """The ids that an etcd shows that was started without flags."""
    member = member_id(["http://localhost:2380"], "etcd-cluster")
    assert f"{member:x}" == "8e9e05c52164694d"
    assert f"{cluster_id([member]):x}" == "cdf818194e3a8c32"


def test_a_later_member_has_an_id_of_its_own_time() -> None:
    assert member_id(["http://a:1"], "t", 1) != member_id(["http://a:1"], "t", 2) != member_id(["http://a:1"], "t")


def test_the_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    save(tmp_path, ISSUED)
    assert load_or_format(tmp_path, 9, "other") == ISSUED


def test_an_empty_folder_is_formatted_once(tmp_path: Path) -> None:
    first = load_or_format(tmp_path, 1, "one")
    assert not first.issued
    assert len(first.disk_uuid) == 16
    assert load_or_format(tmp_path, 1, "one") == first


def test_a_folder_with_content_but_no_identity_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "manifest").write_bytes(b"x")
    with pytest.raises(IdentityError, match="holds manifest but no identity"):
        load_or_format(tmp_path, 1, "one")
    assert not (tmp_path / FILE_NAME).exists()


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_damage_passes(position: int, flip: int) -> None:
    data = bytearray(ISSUED.encode())
    data[position % len(data)] ^= flip
    with pytest.raises(IdentityError):
        Identity.decode(bytes(data))


@given(st.binary())
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IdentityError):
        Identity.decode(data)


def test_the_same_identity_is_accepted_again_and_no_other() -> None:
    """M1."""
    empty = Identity(disk_uuid=DISK, number=2, name="demo-2")
    issued = empty.issue(ISSUED)
    assert issued.member_id == ISSUED.member_id
    assert issued.issue(ISSUED) == issued
    assert issued.issue(replace(ISSUED, peers=())) == issued
    for other in (
        replace(ISSUED, member_id=0xA3),
        replace(ISSUED, cluster_id=0xC2),
        replace(ISSUED, founding=b""),
        replace(ISSUED, peer_url="http://elsewhere:2380"),
    ):
        with pytest.raises(IdentityError, match="already is member a2"):
            issued.issue(other)


def test_an_identity_for_another_disk_or_number_is_refused() -> None:
    """M1: Bootstrap and Join name the target's disk and number."""
    empty = Identity(disk_uuid=DISK, number=2)
    with pytest.raises(IdentityError, match="this disk is"):
        empty.issue(replace(ISSUED, disk_uuid=bytes(16)))
    with pytest.raises(IdentityError, match="number 2, not 3"):
        empty.issue(replace(ISSUED, number=3))
