"""Numbers that the turn counts, and their form for Prometheus.

The turn only adds to plain integers and floats, once per batch: no lock, no label lookup, no object per observation.
:class:`Collector` turns them into metric families when somebody scrapes, on another thread. etcd's names are kept where
the meaning is etcd's, so that existing dashboards work; ours stand beside them with buckets from microseconds.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector as PrometheusCollector

STAGES = ("queue", "append", "replicate", "quorum", "apply", "reply")
"""The way of a write; docs/metrics.md says where each stage begins and ends."""

COMMIT_BUCKETS = (
    5e-6, 10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6,
    1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip
APPEND_BUCKETS = tuple(0.5e-6 * 2**power for power in range(16))
ETCD_BUCKETS = tuple(0.001 * 2**power for power in range(14))
ROUND_TRIP_BUCKETS = tuple(0.0001 * 2**power for power in range(16))
TURN_BUCKETS = (50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.5, 1.0)
BATCH_BUCKETS = tuple(float(2**power) for power in range(13))


class Histogram:
    """Counts per bucket; adding costs a bisection and two additions, whatever the weight.

    The bisection is spelled out: compiled, this loop is faster than a call of `bisect_left`, which has to be handed
    objects.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = list(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float, weight: int = 1) -> None:
        """Counts ``weight`` observations of the same value."""
        bounds = self.bounds
        low, high = 0, len(bounds)
        while low < high:
            middle = (low + high) >> 1
            if bounds[middle] < value:
                low = middle + 1
            else:
                high = middle
        self.counts[low] += weight
        self.total += value * weight

    @property
    def count(self) -> int:
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts with their upper bounds, as the exposition format has them."""
        cumulative = 0
        result: list[tuple[str, float]] = []
        for bound, count in zip((*(repr(float(bound)) for bound in self.bounds), "+Inf"), self.counts, strict=True):
            cumulative += count
            result.append((bound, float(cumulative)))
        return result


class MethodCounters:
    """grpc_server_* of one method; handled by status code."""

    __slots__ = ("handled", "received", "sent", "started")

    def __init__(self) -> None:
        self.started = 0
        self.received = 0
        self.sent = 0
        self.handled: dict[int, int] = {}


SNAPSHOT_BUCKETS = tuple(0.1 * 2**power for power in range(10))


class SnapshotMetrics:
    """Snapshots sent and received, by member."""

    def __init__(self) -> None:
        self.sending: dict[int, int] = {}
        self.receiving: dict[int, int] = {}
        self.installing = 0
        self.sent: dict[int, int] = {}
        self.send_failures: dict[int, int] = {}
        self.send_seconds: dict[int, Histogram] = {}
        self.received: dict[int, int] = {}
        self.receive_failures: dict[int, int] = {}
        self.receive_seconds: dict[int, Histogram] = {}
        self.install_seconds = Histogram(SNAPSHOT_BUCKETS)
        """From the first piece to the new state."""
        self.sync_seconds = Histogram(SNAPSHOT_BUCKETS)
        self.sent_bytes = 0
        self.received_bytes = 0

    def count(self, counts: dict[int, int], peer: int) -> None:
        """One more for a member."""
        counts[peer] = counts.get(peer, 0) + 1

    def took(self, durations: dict[int, Histogram], peer: int, seconds: float) -> None:
        """A transfer from or to a member took so long."""
        if peer not in durations:
            durations[peer] = Histogram(SNAPSHOT_BUCKETS)
        durations[peer].add(seconds)


class Metrics:
    """Everything the turn counts."""

    def __init__(self) -> None:
        self.stages = {stage: Histogram(COMMIT_BUCKETS) for stage in STAGES}
        self.commit = Histogram(COMMIT_BUCKETS)
        """From receipt to commit, of this member's own clients' writes."""
        self.append = Histogram(APPEND_BUCKETS)
        self.turn = Histogram(TURN_BUCKETS)
        self.batch_requests = Histogram(BATCH_BUCKETS)
        self.read_index = Histogram(COMMIT_BUCKETS)
        self.apply_duration = Histogram(ETCD_BUCKETS)
        self.quorum_completed: dict[int, int] = {}
        self.round_trips: dict[int, Histogram] = {}
        self.methods: dict[int, MethodCounters] = {}
        self.turns = 0
        self.put_total = 0
        self.delete_total = 0
        self.txn_total = 0
        self.range_total = 0
        self.proposals_failed = 0
        self.slow_read_indexes = 0
        self.read_indexes_failed = 0
        self.leader_changes = 0
        self.heartbeat_send_failures = 0
        self.peer_sent_failures: dict[int, int] = {}
        self.learner_promote_successes = 0
        self.health_success = 0
        self.health_failures = 0
        self.huge_page_bytes = 0
        self.collapse_seconds = 0.0
        """Of a thread beside the turn, to make them."""
        self.snapshots = SnapshotMetrics()

    def method(self, method_id: int) -> MethodCounters:
        counters = self.methods.get(method_id)
        if counters is None:
            counters = self.methods[method_id] = MethodCounters()
        return counters

    def handled(self, method_id: int, code: int, number: int = 1) -> None:
        """Counts calls that were answered with a status."""
        handled = self.method(method_id).handled
        handled[code] = handled.get(code, 0) + number


Labelled = dict[str, tuple[tuple[str, ...], Mapping[tuple[str, ...], float]]]
"""Family name to label names, and values by label values."""


@dataclass
class Gauges:
    """What the node says of itself at the moment of a scrape; names are metric names."""

    values: dict[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    """Totals, named without ``_total``."""
    labelled: Labelled = field(default_factory=dict)
    labelled_counters: Labelled = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodName:
    """How a method is called in labels."""

    service: str
    method: str
    kind: str
    """unary, server_stream or bidi_stream."""


_CODES = (
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
    "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable",
    "DataLoss", "Unauthenticated",
)  # fmt: skip


class Collector(PrometheusCollector):
    """Metric families of a node."""

    def __init__(self, metrics: Metrics, gauges: Callable[[], Gauges], methods: Mapping[int, MethodName]) -> None:
        self._metrics = metrics
        self._gauges = gauges
        self._methods = methods

    def collect(self) -> Iterator[Metric]:
        yield from self._histograms()
        yield from self._counters()
        yield from self._snapshots()
        yield from self._grpc()
        yield from _gauge_families(self._gauges())
        yield from _process()

    def _histograms(self) -> Iterator[Metric]:
        metrics = self._metrics
        stages = HistogramMetricFamily(
            "raftkv_commit_duration_seconds",
            "Time of a write in each stage on the member that received it; a batch counts each of its writes.",
            labels=["stage"],
        )
        for stage, histogram in metrics.stages.items():
            stages.add_metric([stage], histogram.buckets(), histogram.total)
        yield stages
        yield _histogram("adr_log_commit_duration_seconds", "From receipt of a write to its commit.", metrics.commit)
        yield _histogram("adr_log_append_duration_seconds", "One append to the log, fence included.", metrics.append)
        yield _histogram("raftkv_turn_duration_seconds", "Work of one turn, waiting excluded.", metrics.turn)
        yield _histogram("raftkv_batch_requests", "Writes that one turn proposed together.", metrics.batch_requests)
        yield _histogram("raft_read_index_duration_seconds", "From ReadIndex to its confirmation.", metrics.read_index)
        yield _histogram("etcd_server_apply_duration_seconds", "Apply of one batch of entries.", metrics.apply_duration)
        trips = HistogramMetricFamily(
            "etcd_network_peer_round_trip_time_seconds", "Round trip to another member.", labels=["To"]
        )
        for peer, histogram in list(metrics.round_trips.items()):
            trips.add_metric([f"{peer:x}"], histogram.buckets(), histogram.total)
        yield trips

    def _counters(self) -> Iterator[Metric]:
        metrics = self._metrics
        for name, text, value in (
            ("raftkv_turns", "Turns taken.", metrics.turns),
            ("etcd_mvcc_put", "Puts seen by this member.", metrics.put_total),
            ("etcd_mvcc_delete", "Deletes seen by this member.", metrics.delete_total),
            ("etcd_mvcc_txn", "Transactions seen by this member.", metrics.txn_total),
            ("etcd_mvcc_range", "Ranges seen by this member.", metrics.range_total),
            ("etcd_server_proposals_failed", "Proposals that failed.", metrics.proposals_failed),
            ("etcd_server_slow_read_indexes", "ReadIndex requests that took too long.", metrics.slow_read_indexes),
            ("etcd_server_read_indexes_failed", "ReadIndex requests that failed.", metrics.read_indexes_failed),
            ("etcd_server_leader_changes_seen", "Changes of leader seen.", metrics.leader_changes),
            ("etcd_server_heartbeat_send_failures", "Leader heartbeats not sent.", metrics.heartbeat_send_failures),
            ("etcd_server_learner_promote_successes", "Learners promoted.", metrics.learner_promote_successes),
            ("etcd_server_health_success", "Health checks passed.", metrics.health_success),
            ("etcd_server_health_failures", "Health checks failed.", metrics.health_failures),
            ("raftkv_huge_page_collapse_seconds", "Time taken to make huge pages.", metrics.collapse_seconds),
        ):
            yield CounterMetricFamily(name, text, value=value)
        yield GaugeMetricFamily(
            "raftkv_huge_page_bytes",
            "Anonymous memory in huge pages, as of the last look.",
            value=metrics.huge_page_bytes,
        )
        completed = CounterMetricFamily(
            "raftkv_quorum_completed", "Commits that this member's acknowledgement completed.", labels=["peer"]
        )
        for peer, number in list(metrics.quorum_completed.items()):
            completed.add_metric([f"{peer:x}"], number)
        yield completed
        failures = CounterMetricFamily(
            "etcd_network_peer_sent_failures", "Messages to another member that were dropped.", labels=["To"]
        )
        for peer, number in list(metrics.peer_sent_failures.items()):
            failures.add_metric([f"{peer:x}"], number)
        yield failures

    def _snapshots(self) -> Iterator[Metric]:
        """etcd's names, to the letter: some of its counters have no ``_total``, which only a gauge can leave out."""
        snapshots = self._metrics.snapshots
        for label, kind, inflight, succeeded, failed, seconds in (
            ("To", "send", snapshots.sending, snapshots.sent, snapshots.send_failures, snapshots.send_seconds),
            (
                "From",
                "receive",
                snapshots.receiving,
                snapshots.received,
                snapshots.receive_failures,
                snapshots.receive_seconds,
            ),
        ):
            for name, text, values in (
                ("inflights_total", "Snapshots on their way.", inflight),
                ("success", "Snapshots that arrived.", succeeded),
                ("failures", "Snapshots that did not arrive.", failed),
            ):
                family = GaugeMetricFamily(f"etcd_network_snapshot_{kind}_{name}", text, labels=[label])
                for peer, value in list(values.items()):
                    family.add_metric([f"{peer:x}"], value)
                yield family
            durations = HistogramMetricFamily(
                f"etcd_network_snapshot_{kind}_total_duration_seconds", "Time of a transfer.", labels=[label]
            )
            for peer, histogram in list(seconds.items()):
                durations.add_metric([f"{peer:x}"], histogram.buckets(), histogram.total)
            yield durations
        yield GaugeMetricFamily(
            "etcd_server_snapshot_apply_in_progress_total",
            "1 while a received snapshot is put into the place of the backend.",
            value=snapshots.installing,
        )
        yield _histogram(
            "etcd_snap_db_save_total_duration_seconds",
            "From a snapshot's first piece to its use.",
            snapshots.install_seconds,
        )
        yield _histogram(
            "etcd_snap_db_fsync_duration_seconds", "The last sync of a received snapshot.", snapshots.sync_seconds
        )
        for name, value in (("sent", snapshots.sent_bytes), ("received", snapshots.received_bytes)):
            yield CounterMetricFamily(f"raftkv_snapshot_{name}_bytes", f"Bytes of snapshots {name}.", value=value)

    def _grpc(self) -> Iterator[Metric]:
        labels = ["grpc_type", "grpc_service", "grpc_method"]
        started = CounterMetricFamily("grpc_server_started", "RPCs started.", labels=labels)
        received = CounterMetricFamily("grpc_server_msg_received", "Messages received.", labels=labels)
        sent = CounterMetricFamily("grpc_server_msg_sent", "Messages sent.", labels=labels)
        handled = CounterMetricFamily("grpc_server_handled", "RPCs completed.", labels=[*labels, "grpc_code"])
        for method_id, counters in list(self._metrics.methods.items()):
            name = self._methods[method_id]
            values = [name.kind, name.service, name.method]
            started.add_metric(values, counters.started)
            received.add_metric(values, counters.received)
            sent.add_metric(values, counters.sent)
            for code, number in list(counters.handled.items()):
                handled.add_metric([*values, _CODES[code]], number)
        yield from (started, received, sent, handled)


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text)
    family.add_metric([], histogram.buckets(), histogram.total)
    return family


def _gauge_families(gauges: Gauges) -> Iterator[Metric]:
    for name, value in gauges.values.items():
        yield GaugeMetricFamily(name, name.replace("_", " "), value=value)
    for name, value in gauges.counters.items():
        yield CounterMetricFamily(name, name.replace("_", " "), value=value)
    for name, histogram in gauges.histograms.items():
        yield _histogram(name, name.replace("_", " "), histogram)
    yield from _labelled(gauges.labelled, GaugeMetricFamily)
    yield from _labelled(gauges.labelled_counters, CounterMetricFamily)


def _labelled(
    families: Labelled,
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
) -> Iterator[Metric]:
    for name, (labels, values) in families.items():
        family = kind(name, name.replace("_", " "), labels=list(labels))
        for label_values, value in values.items():
            family.add_metric(list(label_values), value)
        yield family


def _process() -> Iterable[Metric]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield CounterMetricFamily("process_cpu_seconds", "CPU time.", value=usage.ru_utime + usage.ru_stime)
    try:
        with open("/proc/self/statm") as statm:  # noqa: PTH123 (a pseudo file)
            pages = statm.read().split()
        yield GaugeMetricFamily(
            "process_resident_memory_bytes", "Resident memory.", value=int(pages[1]) * resource.getpagesize()
        )
        yield GaugeMetricFamily("process_open_fds", "Open file descriptors.", value=len(os.listdir("/proc/self/fd")))  # noqa: PTH208
    except OSError:
        return
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield GaugeMetricFamily("process_max_fds", "Limit of open file descriptors.", value=limit)
