"""Events: on transitions only, one object per transition, so that a cluster at rest is silent.

A transition is read off the status itself (the old one is what was last told), so that a restarted operator repeats
nothing. An Event's name is derived from what it says and from the transition's time: telling it twice is a conflict
and not a second Event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from raftkv_operator.api import constants
from raftkv_operator.api.types import Object
from raftkv_operator.observe.views import Observed, format_time


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    reason: str
    message: str
    warning: bool = False


_TOLD: Final[dict[tuple[str, str], tuple[str, bool]]] = {
    ("Available", "True"): ("Available", False),
    ("Ready", "True"): ("AsWished", False),
    ("Stalled", "True"): ("Stalled", True),
    ("Degraded", "True"): ("MembersNotReady", True),
    ("LogBufferReady", "False"): ("LogBufferNotReady", True),
}
_QUORUM: Final[dict[str, str]] = {"Critical": "QuorumCritical", "Lost": "QuorumLost"}


def transitions(status: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[Event]:
    """The Events that the step from the old status to the new one is worth."""
    before = {c["type"]: c for c in old.get("conditions", ())}
    buffer: Mapping[str, Any] = next((c for c in status.get("conditions", ()) if c["type"] == "LogBufferReady"), {})
    for condition in status.get("conditions", ()):
        kind, word = condition["type"], condition["status"]
        was = before.get(kind, {})
        told = _TOLD.get((kind, word))
        # A condition that stays, for another reason, is news as well where the reason is what a person acts on.
        news = was.get("status") != word or (
            kind in ("Stalled", "LogBufferReady") and was["reason"] != condition["reason"]
        )
        # What LogBufferReady has said, or says now, needs no second Event when the cluster stalls for it.
        if kind == "Stalled" and buffer.get("status") == "False" and buffer.get("reason") == condition["reason"]:
            continue
        if told is not None and news:
            reason, warning = told
            specific = condition["reason"] if kind in ("Stalled", "LogBufferReady") else reason
            yield Event(specific, condition["message"], warning)
    quorum, was_quorum = status.get("quorum"), old.get("quorum")
    # A cluster of one voter is always one loss away: that is its size and no news. So is a cluster that is growing.
    if (quorum in _QUORUM and was_quorum == "Safe") or (quorum == "Lost" and was_quorum == "Critical"):
        text = next((c["message"] for c in status["conditions"] if c["type"] == "QuorumSafe"), "")
        yield Event(_QUORUM[str(quorum)], text or "No quorum of voters answers", True)


def event_object(event: Event, seen: Observed, moment: datetime) -> Object:
    """The Event as an API object, owned by nothing, about the custom resource."""
    digest = hashlib.sha256(f"{seen.uid}/{event.reason}/{event.message}/{format_time(moment)}".encode()).hexdigest()[
        :16
    ]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{seen.name}.{digest}", "namespace": seen.namespace},
        "involvedObject": {
            "apiVersion": constants.API_VERSION,
            "kind": constants.KIND,
            "name": seen.name,
            "namespace": seen.namespace,
            "uid": seen.uid,
        },
        "reason": event.reason,
        "message": event.message[:1024],
        "type": "Warning" if event.warning else "Normal",
        "count": 1,
        "firstTimestamp": format_time(moment),
        "lastTimestamp": format_time(moment),
        "source": {"component": constants.FIELD_MANAGER},
        "reportingComponent": constants.FIELD_MANAGER,
        "reportingInstance": constants.FIELD_MANAGER,
    }
