"""Reading the picture: objects from the cache or from the API, members by asking them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from raftkv_operator.api import constants
from raftkv_operator.api.types import Latch, Object
from raftkv_operator.observe.seams import MemberError, Members
from raftkv_operator.observe.views import (
    ClaimView,
    Configuration,
    NodeView,
    Observed,
    Operation,
    PodView,
    StatefulSetView,
    by_number,
    parse_time,
)

FRESH_IDS: Final = 8
"""Random ids offered to a decision; one would do, but for a collision with an id in use."""


@dataclass(frozen=True, slots=True)
class Objects:
    """The raw objects of one cluster."""

    cluster: Object
    sets: list[Object]
    pods: list[Object]
    claims: list[Object]


@dataclass(frozen=True, slots=True)
class Extras:
    """What only the caller knows: drift of shared objects, the wished template, names that are taken."""

    template: str = ""
    drift: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    taken_numbers: frozenset[int] = frozenset()
    name_conflict: str = ""
    zones: Mapping[str, str] = field(default_factory=dict)
    """Zones of hosts."""


async def observe(objects: Objects, members: Members | None, now: datetime, extras: Extras) -> Observed:
    """The picture of one cluster. Members that do not answer are missing in it, and that is all."""
    raw, meta = objects.cluster, objects.cluster["metadata"]
    status: Mapping[str, Any] = raw.get("status") or {}
    pods = by_number(PodView.read(o) for o in objects.pods)
    nodes: dict[int, NodeView] = {}
    conf: Configuration | None = None
    if members is not None:
        nodes = await describe_all(members, pods)
        conf = await read_configuration(members, pods, nodes)
    return Observed(
        now=now,
        name=meta["name"],
        namespace=meta["namespace"],
        uid=meta["uid"],
        generation=int(meta.get("generation", 1)),
        resource_version=meta["resourceVersion"],
        latch=Latch.parse(status),
        has_status="status" in raw,
        deleting_since=parse_time(meta.get("deletionTimestamp")),
        claims=by_number(ClaimView.read(o) for o in objects.claims),
        sets=by_number(StatefulSetView.read(o) for o in objects.sets),
        pods=pods,
        nodes=nodes,
        configuration=conf,
        drift=extras.drift,
        shared=extras.shared,
        taken_numbers=extras.taken_numbers,
        name_conflict=extras.name_conflict,
        zones=extras.zones,
        template=extras.template,
        unready_since=_unready_since(status),
        operation=_operation(status),
        fresh_ids=tuple(secrets.randbits(64) or 1 for _ in range(FRESH_IDS)),
    )


async def describe_all(members: Members, pods: Mapping[int, PodView]) -> dict[int, NodeView]:
    """What each running node says of itself, asked all at once."""
    asked = {n: p for n, p in pods.items() if p.ip and p.running}
    answers = await asyncio.gather(*(_describe(members, p) for p in asked.values()))
    return {n: view for n, view in zip(asked, answers, strict=True) if view is not None}


async def read_configuration(
    members: Members, pods: Mapping[int, PodView], nodes: Mapping[int, NodeView]
) -> Configuration | None:
    """The committed configuration, from the one that most lately heard-of leaders point at; None if none answers.

    Only the leader answers, and by a linearizable read: asking the wrong one costs a refusal and cannot mislead.
    """
    for number in _likely_leaders(nodes.items()):
        try:
            return await members.configuration(f"{pods[number].ip}:{constants.CLIENT_PORT}")
        except MemberError:
            continue
    return None


def _likely_leaders(nodes: Iterable[tuple[int, NodeView]]) -> list[int]:
    known = [(number, node) for number, node in nodes if node.member_id]
    if not known:
        return []
    term = max(node.term for _, node in known)
    named = {node.leader_id for _, node in known if node.term == term and node.leader_id}
    first = [number for number, node in known if node.member_id in named]
    itself = [number for number, node in known if node.leader_id == node.member_id and number not in first]
    return first + itself


async def _describe(members: Members, pod: PodView) -> NodeView | None:
    try:
        return await members.describe(f"{pod.ip}:{constants.CLIENT_PORT}")
    except MemberError:
        return None


def _unready_since(status: Mapping[str, Any]) -> dict[int, datetime]:
    found: dict[int, datetime] = {}
    for member in status.get("members", ()):
        since = parse_time(member.get("notReadySince"))
        if since is not None and not member.get("ready"):
            found[int(member["number"])] = since
    return found


def _operation(status: Mapping[str, Any]) -> Operation | None:
    raw = status.get("currentOperation")
    since = parse_time((raw or {}).get("startedAt"))
    if not raw or since is None:
        return None
    return Operation(raw["type"], raw.get("member", ""), since)
