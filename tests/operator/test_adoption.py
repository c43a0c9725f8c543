"""M3: the claims are witnesses. A cluster that lost its status goes on; a second one under its name never begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from operator_world import NAME, ViolationError, World, sample, settled
from raftkv_operator.api import constants
from raftkv_operator.api.types import hex_id
from raftkv_operator.observe.seams import CLAIMS, PODS, STATEFUL_SETS
from raftkv_operator.observe.views import ClaimView, NotedConfiguration


def created_again(replicas: int = 3, word: str = "", keep: int | None = None) -> World:
    """A cluster that was deleted with policy Retain and created again over the claims that were kept of it."""
    world = World(sample(replicas, whenDeleted="Retain"))
    world.settle()
    world.delete_cluster()
    world.settle()
    world.objects.pop(("raftkvclusters", NAME))
    for claim in world.of(CLAIMS)[keep:] if keep is not None else ():
        world.objects.pop((CLAIMS.plural, claim["metadata"]["name"]))
    world.apply({**sample(replicas), **({"bootstrap": {"identity": word}} if word else {})})
    return world


def stalled(world: World, passes: int = 8) -> str:
    """The message with which the cluster stalls, and that nothing was begun."""
    loop = world.operator()
    for _ in range(passes):
        world.step(loop)
    assert world.condition("Stalled")["reason"] == "IdentityConflict"
    assert "identity" not in world.status
    return str(world.condition("Stalled")["message"])


def only_cluster(world: World) -> int:
    (cluster_id,) = world.clusters
    return cluster_id


@pytest.mark.parametrize("replicas", [1, 3, 5])
def test_m3_a_cluster_created_again_over_kept_claims_is_adopted(replicas: int) -> None:
    world = created_again(replicas)
    before = {number: dict(disk.__dict__) for number, disk in world.disks.items()}
    world.settle()
    world.check_settled()
    assert world.status["clusterID"] == hex_id(only_cluster(world))
    assert {number: dict(disk.__dict__) for number, disk in world.disks.items()} == before, (
        "the same disks, as they were"
    )
    world.scale(replicas + 2)
    world.settle()
    world.check_settled()


def test_m3_a_cluster_that_lost_its_status_is_adopted() -> None:
    world = settled(3)
    world.cluster.pop("status")
    world.settle()
    world.check_settled()
    assert world.status["identity"]["phase"] == "Opened"
    assert world.status["identity"]["nextNumber"] == 4


def test_m3_a_majority_of_the_disks_is_enough_and_the_rest_is_replaced() -> None:
    world = created_again(3, keep=2)
    world.settle()
    assert world.status["clusterID"] == hex_id(only_cluster(world))
    assert {m["number"] for m in world.status["identity"]["members"]} == {1, 2, 4}, "number 3 was issued before"


def test_m3_fewer_disks_than_a_quorum_wait_for_a_person() -> None:
    world = created_again(3, keep=1)
    message = stalled(world)
    assert "only 1 of its 3 voters' disks are here, 2 are needed" in message
    assert "spec.bootstrap.identity" in message
    assert not world.of(STATEFUL_SETS)


def test_m3_claims_that_say_nothing_of_a_quorum_wait_for_a_person() -> None:
    world = created_again(3)
    for claim in world.of(CLAIMS):
        claim["metadata"]["annotations"].pop(constants.ANNOTATION_CONFIGURATION)
    assert "no claim says how many members make a quorum" in stalled(world)


def test_m3_claims_of_two_clusters_wait_for_a_person() -> None:
    world = created_again(3)
    world.of(CLAIMS)[0]["metadata"]["annotations"][constants.ANNOTATION_CLUSTER_ID] = f"{0xABC:016x}"
    assert "do not agree on one cluster" in stalled(world)


def test_m3_a_person_says_adopt() -> None:
    world = created_again(3)
    for claim in world.of(CLAIMS):
        claim["metadata"]["annotations"].pop(constants.ANNOTATION_CONFIGURATION)
    stalled(world)
    world.apply({**sample(3), "bootstrap": {"identity": f"Adopt {only_cluster(world):016x}"}})
    world.settle()
    world.check_settled()


def test_m3_a_person_wants_adopted_what_is_not_there() -> None:
    world = created_again(3, "Adopt 00000000000000ff")
    assert "no claim carries it" in stalled(world)


def test_m3_a_person_says_new_and_the_old_disks_are_left_alone() -> None:
    world = created_again(3, "New")
    old = only_cluster(world)
    kept = {claim["metadata"]["uid"] for claim in world.of(CLAIMS)}
    world.settle()
    identity = world.status["identity"]
    assert identity["clusterID"] != hex_id(old) and identity["superseded"] == [hex_id(old)]
    assert {m["number"] for m in identity["members"]} == {4, 5, 6}, "above every number seen"
    assert kept < {claim["metadata"]["uid"] for claim in world.of(CLAIMS)}
    world.apply(sample(3))
    world.settle()
    assert world.condition("Ready")["status"] == "True", "the word may be taken back"


def test_m3_new_is_obeyed_once() -> None:
    """``New`` stays in the spec, as it does under GitOps; a status that is lost later makes no third cluster of it."""
    world = created_again(3, "New")
    world.settle()
    mine = world.status["clusterID"]
    world.cluster.pop("status")
    world.settle()
    assert world.status["clusterID"] == mine
    assert len(world.clusters) == 2


def test_m3_new_begins_nothing_while_the_old_cluster_runs() -> None:
    world = settled(3)
    world.apply({**sample(3), "bootstrap": {"identity": "New"}})
    world.cluster.pop("status")
    world.settle()
    assert world.status["clusterID"] == hex_id(only_cluster(world))


def test_m3_a_claim_that_was_kept_of_a_removed_member_is_not_adopted() -> None:
    world = World(sample(5, whenDeleted="Retain", whenScaled="Retain"))
    loop = world.settle()
    world.scale(3)
    world.settle(loop)
    world.delete_cluster()
    world.settle(loop)
    world.objects.pop(("raftkvclusters", NAME))
    world.apply(sample(3, whenScaled="Retain"))
    world.settle()
    world.check_settled()
    assert len(world.of(CLAIMS)) == 5


def test_m3_planted_a_word_obeyed_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    world = created_again(3, "New")
    world.settle()
    world.cluster.pop("status")
    for resource in (STATEFUL_SETS, PODS):
        for body in world.of(resource):
            world.objects.pop((resource.plural, body["metadata"]["name"]))
    right = ClaimView.read

    def forgetful(raw: Any) -> ClaimView | None:
        found = right(raw)
        return None if found is None else replace(found, issued_for="")

    monkeypatch.setattr(ClaimView, "read", staticmethod(forgetful))
    with pytest.raises(ViolationError, match="a second cluster was bootstrapped"):
        world.settle()


@pytest.mark.parametrize("others", [frozenset[int](), frozenset({4, 1 << 63})])
def test_what_is_noted_on_a_claim_reads_back(others: frozenset[int]) -> None:
    voters = frozenset({1, 2, 3})
    noted = NotedConfiguration(6, 17, voters, voters | others)
    assert NotedConfiguration.parse(noted.encode()) == noted


@pytest.mark.parametrize("text", ["", "6 17", "6 17 x -", "6 x 1 -", "6 17 1,2 3 4"])
def test_what_a_person_wrote_on_a_claim_is_no_configuration(text: str) -> None:
    assert NotedConfiguration.parse(text) is None
