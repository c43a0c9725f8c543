"""What a node says of itself when its metrics are scraped. Runs on a worker: it only reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftkv_node.adr import ALARM_STALLED
from raftkv_node.pb import admin_pb2
from raftkv_node.server import versions
from raftkv_node.server.admin import own_role, ring_bytes
from raftkv_node.server.members import role_settings
from raftkv_node.server.metrics import ETCD_BUCKETS, Gauges, Histogram
from raftkv_node.server.preference import MoveCause
from raftkv_node.server.roles import Cause, wished_number

if TYPE_CHECKING:
    from raftkv_node.server.member import Member
    from raftkv_node.server.node import Node

_ROLES = {"voter": admin_pb2.ROLE_VOTER, "learner": admin_pb2.ROLE_LEARNER, "standby": admin_pb2.ROLE_STANDBY}
_LEVELS = ("power", "kernel", "process")


class Durations:
    """Histograms of durations that log and backend gather between two scrapes."""

    def __init__(self) -> None:
        self.commits = Histogram(ETCD_BUCKETS)
        self.drains = Histogram(ETCD_BUCKETS)
        self.syncs = Histogram(ETCD_BUCKETS)

    def drain(self, member: Member) -> None:
        """Take what was gathered."""
        taken = member.store.backend.commit_seconds
        for _ in range(len(taken)):
            self.commits.add(taken.pop())
        for duration in member.log.take_durations_seconds():
            self.drains.add(duration)
        for duration in member.log.take_sync_durations_seconds():
            self.syncs.add(duration)


_DURATIONS = Durations()


def gauges(node: Node) -> Gauges:
    """All values of this moment."""
    result = Gauges()
    stats = node.engine.stats()
    result.values["etcd_server_quota_backend_bytes"] = 0.0
    result.labelled["etcd_server_version"] = (("server_version",), {(versions.ETCD_VERSION,): 1.0})
    build = (versions.RAFTKV_VERSION, str(versions.COMPILED).lower())
    result.labelled["raftkv_build_info"] = (("version", "compiled"), {build: 1.0})
    result.values["raftkv_connections"] = float(stats.get("connections", 0))
    result.counters["etcd_network_client_grpc_sent_bytes"] = float(stats.get("bytes_out", 0))
    result.counters["etcd_network_client_grpc_received_bytes"] = float(stats.get("bytes_in", 0))
    member = node.member
    if member is not None:
        _consensus(result, member)
        _roles(result, member)
        _log(result, member)
        _store(result, member)
        _network(result, member, stats)
    return result


def _consensus(result: Gauges, member: Member) -> None:
    raft, store = member.raft, member.store
    own = f"{member.identity.member_id:x}"
    result.labelled["etcd_server_id"] = (("server_id",), {(own,): 1.0})
    result.values.update(
        {
            "etcd_server_has_leader": float(bool(member.leader_id)),
            "etcd_server_is_leader": float(raft.is_leader),
            "etcd_server_is_learner": float(member.is_learner),
            "etcd_server_proposals_committed_total": float(raft.commit_index),
            "etcd_server_proposals_applied_total": float(store.applied_index),
            "etcd_server_proposals_pending": float(member.writes.pending + member.writes.waiting),
            "raftkv_term": float(raft.term),
            "raftkv_reads_waiting": float(member.reads.waiting),
            "raftkv_configuration_index": float(raft.configuration_index),
        }
    )
    behind: dict[tuple[str, ...], float] = {
        (f"{one:x}",): float(max(0, state.entries_behind))
        for one, state in raft.status().members.items()
        if one != raft.id
    }
    result.labelled["raft_replication_lag_entries"] = (("peer",), behind)


def _roles(result: Gauges, member: Member) -> None:
    """Roles of members, and what this one changed of them while it led."""
    configuration = member.configuration
    wanted = role_settings(configuration.settings)
    own = own_role(member)
    result.labelled["raftkv_role"] = (
        ("role",),
        {(name,): float(own == role) for name, role in _ROLES.items()},
    )
    result.values["raftkv_voters"] = float(len(configuration.voters))
    result.values["raftkv_voters_wished"] = float(wished_number(wanted, configuration.ids))
    result.values["raftkv_standbys"] = float(len(configuration.standbys))
    promotions, moves = member.changes.promotions, member.moves
    result.labelled_counters["raftkv_role_changes"] = (
        ("cause",),
        {(str(cause),): float(promotions.get(cause, 0)) for cause in Cause},
    )
    result.labelled_counters["raftkv_leader_moves"] = (
        ("cause",),
        {(str(cause),): float(moves.moved.get(cause, 0)) for cause in MoveCause},
    )
    result.counters["raftkv_leader_moves_failed"] = float(moves.failed)


def _log(result: Gauges, member: Member) -> None:
    log = member.log
    stats, alarms = log.stats(), log.alarms()
    size, used = ring_bytes(log, member.config)
    _DURATIONS.drain(member)
    result.labelled["adr_durability_level"] = (
        ("level",),
        {(level,): float(level == str(log.level)) for level in _LEVELS},
    )
    result.values.update(
        {
            "adr_ring_size_bytes": float(size),
            "adr_ring_used_bytes": float(used),
            "adr_ring_high_watermark_bytes": float(stats["high_watermark_bytes"]),
            "adr_drain_lag_bytes": float(max(0, stats["durable_lsn"] - stats["drained_lsn"])),
            "adr_drain_lag_seconds": log.lag_seconds(),
            "adr_drain_stalled": float(ALARM_STALLED in alarms),
            "adr_degraded": float(bool(alarms)),
            "adr_drain_last_success_timestamp_seconds": stats["last_drain_unix_milliseconds"] / 1000,
            "adr_log_segments": float(stats["segments"]),
            "adr_log_segment_bytes": float(stats["segment_bytes"]),
            "adr_generation": float(stats["generation"]),
            "adr_unsafe_shutdown_count": float(stats["unsafe_shutdowns"]),
            "adr_media_badblocks": float(stats["bad_sectors"]),
            "adr_recovery_replayed_entries": float(member.recovered.replayed),
            "adr_recovery_duration_seconds": member.recovered.duration_seconds,
            "adr_recovery_torn_tail_bytes": float(member.recovered.torn_tail_bytes),
        }
    )
    result.counters.update(
        {
            "adr_log_batches": float(stats["appended_batches"]),
            "adr_log_bytes": float(stats["appended_bytes"]),
            "adr_drain_bytes": float(stats["drained_bytes"]),
            "adr_drain_segments_rebuilt": float(stats["segment_rebuilds"]),
            "adr_ring_full": float(stats["ring_full"]),
            "adr_ring_backpressure_seconds": stats["backpressure_milliseconds"] / 1000,
            "adr_ring_wraps": float(stats.get("ring_wraps", 0)),
            "adr_log_fence": float(stats.get("fences", 0)),
        }
    )
    result.labelled_counters["adr_drain_errors"] = (
        ("op",),
        {(op,): float(stats[f"drain_errors_{op}"]) for op in ("space", "io", "sync")},
    )
    result.histograms["adr_drain_duration_seconds"] = _DURATIONS.drains
    result.histograms["adr_drain_fsync_duration_seconds"] = _DURATIONS.syncs
    result.histograms["etcd_disk_wal_fsync_duration_seconds"] = _DURATIONS.syncs
    result.histograms["etcd_disk_backend_commit_duration_seconds"] = _DURATIONS.commits


def _store(result: Gauges, member: Member) -> None:
    store, hub = member.store, member.watches.hub
    result.values.update(
        {
            "etcd_server_quota_backend_bytes": float(store.quota_bytes),
            "etcd_mvcc_db_total_size_in_bytes": float(store.db_size_bytes),
            "etcd_mvcc_db_total_size_in_use_in_bytes": float(store.db_size_in_use_bytes),
            "etcd_debugging_mvcc_keys_total": float(store.keys_total),
            "etcd_debugging_mvcc_current_revision": float(store.revision),
            "etcd_debugging_mvcc_compact_revision": float(max(0, store.compact_revision)),
            "etcd_debugging_mvcc_watch_stream_total": float(len(hub.streams)),
            "etcd_debugging_mvcc_watcher_total": float(hub.watchers_total),
            "etcd_debugging_mvcc_slow_watcher_total": float(hub.slow_watchers),
            "raftkv_backend_buffered_bytes": float(store.backend.buffered_bytes),
        }
    )
    result.counters["etcd_debugging_mvcc_events"] = float(hub.events_total)
    result.counters["raftkv_apply_cache_misses"] = float(store.cache_misses_total)
    result.counters["raftkv_apply_fetched_records"] = float(member.ahead.fetched_total)


def _network(result: Gauges, member: Member, stats: dict[str, int]) -> None:
    links = member.peers.link_ids()
    for name, key, label in (
        ("etcd_network_peer_sent_bytes", "bytes_out", "To"),
        ("etcd_network_peer_received_bytes", "bytes_in", "From"),
    ):
        values: dict[tuple[str, ...], float] = {}
        for one, link in links.items():
            values[(f"{one:x}",)] = float(stats.get(f"link.{link}.{key}", 0))
        result.labelled_counters[name] = ((label,), values)
    result.labelled["raftkv_peer_queued_bytes"] = (
        ("To",),
        {(f"{one:x}",): float(stats.get(f"link.{link}.queued_bytes", 0)) for one, link in links.items()},
    )
    own = f"{member.identity.member_id:x}"
    active: dict[tuple[str, ...], float] = {}
    for one in member.peers.known:
        active[(own, f"{one:x}")] = float(one in member.peers.connected)
    result.labelled["etcd_network_active_peers"] = (("Local", "Remote"), active)
