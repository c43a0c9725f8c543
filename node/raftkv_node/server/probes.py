"""The plain HTTP endpoints in the turn: what is true of health and probes, and who waits for the quorum's answer."""

from __future__ import annotations

from queue import Full
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from raftkv_node.adr import ALARM_FULL
from raftkv_node.api.http import (
    HealthQuery,
    HttpReply,
    MetricsQuery,
    ProbeQuery,
    VersionQuery,
    alarm_reason,
    parse,
    render_health,
    render_probe,
    render_version,
)
from raftkv_node.server import versions
from raftkv_node.store.errors import EtcdError

if TYPE_CHECKING:
    from raftkv_node.server.node import Node

BUSY = HttpReply(503, "text/plain; charset=utf-8", b"too many requests\n")


METRICS_TRIES = 5
"""How often the figures are read anew when the turn changed them in the middle of it."""


def render_metrics(registry: CollectorRegistry) -> HttpReply:
    """The text of all figures. They are read beside the turn: a dictionary that grew meanwhile is read again, and no
    scrape ever ends the node."""
    reason = ""
    for _ in range(METRICS_TRIES):
        try:
            return HttpReply(200, CONTENT_TYPE_LATEST, generate_latest(registry))
        except RuntimeError as error:
            reason = str(error)
    return HttpReply(500, "text/plain; charset=utf-8", f"the figures cannot be read: {reason}\n".encode())


class Probes:
    """Answers EV_HTTP."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def handle(self, call_id: int, method: str, target: str, now: float) -> None:
        """One HTTP request."""
        query = parse(method, target)
        match query:
            case HttpReply():
                self._reply(call_id, query)
            case VersionQuery():
                self._reply(call_id, render_version(versions.ETCD_VERSION, versions.CLUSTER_VERSION))
            case MetricsQuery():
                self._metrics(call_id)
            case HealthQuery():
                self._health(call_id, query, now)
            case ProbeQuery():
                self._probe(call_id, query, now)

    def _reply(self, call_id: int, reply: HttpReply) -> None:
        self._node.engine.http_reply(call_id, reply.status, reply.content_type, reply.body, reply.headers)

    def _metrics(self, call_id: int) -> None:
        """The text is made on a worker: it takes milliseconds."""
        node = self._node

        def job() -> None:
            reply = render_metrics(node.registry)
            node.engine.http_reply(call_id, reply.status, reply.content_type, reply.body, reply.headers)

        try:
            node.workers.submit(job)
        except Full:
            self._reply(call_id, BUSY)

    def _health(self, call_id: int, query: HealthQuery, now: float) -> None:
        node, member = self._node, self._node.member

        def answer(reason: str) -> None:
            if reason:
                node.metrics.health_failures += 1
            else:
                node.metrics.health_success += 1
            self._reply(call_id, render_health(reason))

        if member is None or not member.opened:
            answer("NOT OPEN")
            return
        # Reads go on with a full log buffer, writes do not: that, and no less, is this member's bad health.
        reason = alarm_reason(member.log.alarms().keys() & {ALARM_FULL}, query.exclude)
        if reason or query.serializable:
            answer(reason)
        elif not member.leader_id:
            answer("RAFT NO LEADER")
        else:
            member.reads.add(lambda error: answer("" if error is None else f"RANGE ERROR:{error.message}"), now)

    def _probe(self, call_id: int, query: ProbeQuery, now: float) -> None:
        """The checks that need no quorum now, ``linearizable_read`` when the quorum has answered."""
        failures = {check: reason for check in query.checks if (reason := self._local(check))}
        member = self._node.member
        if "linearizable_read" not in query.checks or "linearizable_read" in failures or member is None:
            self._reply(call_id, render_probe(query, failures))
            return

        def answer(error: EtcdError | None) -> None:
            if error is not None:
                failures["linearizable_read"] = error.message
            self._reply(call_id, render_probe(query, failures))

        member.reads.add(answer, now)

    def _local(self, check: str) -> str:
        """Why a check fails as far as this node knows; empty if it does not."""
        member = self._node.member
        if check == "serializable_read":
            return ""
        if member is None:
            return "the node has no identity yet"
        if check == "linearizable_read":
            if not member.opened:
                return "the cluster is not open to clients yet"
            return "" if member.leader_id else "etcdserver: no leader"
        if check == "non_learner" and member.is_learner:
            return "the member is a learner"
        return ""
