"""Small pure parts: names, HTTP endpoints, histograms, log lines."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
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
from raftkv_node.server.log import Logger
from raftkv_node.server.metrics import Histogram
from raftkv_node.server.probes import METRICS_TRIES, render_metrics
from raftkv_node.server.resolver import make_resolver, parse_hosts


def test_hosts_are_read_as_etc_hosts() -> None:
    hosts = parse_hosts("# all\n127.0.0.5 Demo-1.default demo-1 # first\n\n127.0.0.6 demo-1 demo-2\n")
    assert hosts == {"demo-1.default": "127.0.0.5", "demo-1": "127.0.0.5", "demo-2": "127.0.0.6"}


def test_the_hosts_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    resolver = make_resolver(f"hosts-file:{path}")
    assert resolver.address("demo-1") is None
    path.write_text("127.0.0.5 demo-1\n")
    assert resolver.address("DEMO-1") == "127.0.0.5"
    path.write_text("127.0.0.66 demo-1\n")
    assert resolver.address("demo-1") == "127.0.0.66"
    path.unlink()
    assert resolver.address("demo-1") == "127.0.0.66"
    assert resolver.address("10.0.0.1") == "10.0.0.1"


def test_dns_is_left_to_the_engine() -> None:
    assert make_resolver("dns").address("demo-1") == "demo-1"


@pytest.mark.parametrize(
    ("target", "query"),
    [
        ("/health", HealthQuery(False, frozenset())),
        ("/health?serializable=true&exclude=NOSPACE", HealthQuery(True, frozenset({"NOSPACE"}))),
        ("/livez", ProbeQuery(("serializable_read",), False)),
        (
            "/readyz?verbose&exclude=non_learner",
            ProbeQuery(("data_corruption", "serializable_read", "linearizable_read"), True),
        ),
        ("/readyz/non_learner", ProbeQuery(("non_learner",), False)),
        ("/version", VersionQuery()),
        ("/metrics", MetricsQuery()),
    ],
)
def test_http_requests_are_understood(target: str, query: object) -> None:
    assert parse("GET", target) == query


def test_http_requests_that_make_no_sense() -> None:
    for target in ("/", "/nothing", "/readyz/nothing", "/livez/non_learner"):
        reply = parse("GET", target)
        assert isinstance(reply, HttpReply)
        assert reply.status == 404
    reply = parse("POST", "/health")
    assert isinstance(reply, HttpReply)
    assert (reply.status, reply.headers[0]) == (405, ("Allow", "GET"))


@given(st.text(alphabet="/[]:?#&=%@\\ehalt.x1\u2100\0", max_size=30))
def test_any_http_target_has_an_answer(target: str) -> None:
    parse("GET", target)
    path = target.partition("#")[0].partition("?")[0]
    if "://" not in path and path.strip("/") == "health":
        assert isinstance(parse("GET", target), HealthQuery)


def test_the_absolute_form_of_a_target_is_understood() -> None:
    assert parse("GET", "http://[::1]:2379/health?serializable=true") == HealthQuery(True, frozenset())


def test_http_answers_are_etcds() -> None:
    assert render_health("").body == b'{"health":"true","reason":""}'
    assert render_health("RAFT NO LEADER")[:1] == (503,)
    assert alarm_reason(["NOSPACE", "CORRUPT"], ["CORRUPT"]) == "ALARM NOSPACE"
    assert alarm_reason([], []) == ""
    query = ProbeQuery(("serializable_read", "non_learner"), True)
    assert render_probe(query, {}).body == b"[+]serializable_read ok\n[+]non_learner ok\nok\n"
    failed = render_probe(query, {"non_learner": "is a learner"})
    assert (failed.status, failed.body) == (503, b"[+]serializable_read ok\n[-]non_learner failed: is a learner\n")
    assert render_probe(ProbeQuery((), False), {}).body == b"ok\n"
    assert json.loads(render_version("3.6.5", "3.6.0").body) == {
        "etcdserver": "3.6.5", "etcdcluster": "3.6.0", "storage": "3.6.0",
    }  # fmt: skip


class Changing:
    """Figures that the turn changes while they are read, so many times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def collect(self) -> Iterator[Metric]:
        figures = {1: 1.0, 2: 2.0}
        for one, value in figures.items():
            if self.times:
                self.times -= 1
                figures[3] = 3.0
            yield GaugeMetricFamily(f"figure_{one}", "text", value)


@pytest.mark.parametrize(("times", "status"), [(0, 200), (METRICS_TRIES - 1, 200), (METRICS_TRIES, 500)])
def test_figures_that_change_while_they_are_read_end_nothing(times: int, status: int) -> None:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Changing(times))
    reply = render_metrics(registry)
    assert reply.status == status
    assert (b"figure_2 2.0" in reply.body) == (status == 200)


def test_a_histogram_counts_with_weights_and_puts_a_bound_into_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.add(1.0, 3)
    histogram.add(1.5)
    histogram.add(9.0, 2)
    assert histogram.buckets() == [("1.0", 3.0), ("2.0", 4.0), ("+Inf", 6.0)]
    assert histogram.total == 3.0 + 1.5 + 18.0
    assert histogram.count == 6


def test_log_lines_stay_lines() -> None:
    text, objects = io.StringIO(), io.StringIO()
    Logger(stream=text, clock=lambda: 0.0).warn("peer refused", reason='a "b"\nc', id="a1")
    assert text.getvalue() == '1970-01-01T00:00:00.000Z WARN  peer refused reason="a \\"b\\"\\nc" id=a1\n'
    Logger(form="json", stream=objects, clock=lambda: 0.0).info("started", term=3)
    assert json.loads(objects.getvalue()) == {
        "time": "1970-01-01T00:00:00.000Z", "level": "info", "event": "started", "term": 3,
    }  # fmt: skip
    quiet = io.StringIO()
    Logger(level="error", stream=quiet).info("unheard")
    assert quiet.getvalue() == ""
