"""A mistake in handling one request concerns its caller, not the member: else a client kills one after another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from raftkv_node import _engine
from raftkv_node.api.methods import Method
from raftkv_node.raft import Invariant, InvariantViolation
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.node import Node
from raftkv_node.store.errors import INTERNAL, EtcdError, StoreError

pytestmark = pytest.mark.interpreted("a stand-in for the member")


class _Recorder:
    """Stands for the engine, the answers, the log and the watches: remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **_: self.told.append((name, *arguments))


def _node(error: Exception) -> tuple[Node, _Recorder]:
    """A node whose key space, watches, probes and administration all fail in the same way."""
    recorder = _Recorder()

    def fail(*_: Any) -> None:
        raise error

    node = cast(Any, object.__new__(Node))
    node.metrics, node.logger, node.answers, node.engine = Metrics(), recorder, recorder, recorder
    node.stopping, node._cancelled, node._health_streams = False, set(), {}
    node.key_space = node.probes = node.admin = SimpleNamespace(handle=fail)
    node.member = SimpleNamespace(
        is_learner=False,
        opened=True,
        removed_from_cluster=False,
        peers=SimpleNamespace(handle=fail),
        watches=SimpleNamespace(receive=fail),
        stream_closed=lambda number: recorder.told.append(("closed", number)),
    )
    return node, recorder


def _batch(unary: list[Any] | None = None, events: list[Any] | None = None) -> Any:
    return SimpleNamespace(unary=unary or [], events=events or [], peer=[])


def test_calls_that_meet_a_fault_end_with_internal() -> None:
    node, recorder = _node(ValueError("a mistake"))
    node._take(_batch(unary=[(int(Method.PUT), [7, 8], [b"", b""], None)]), 0.0)
    errors = [told for told in recorder.told if told[0] == "errors"]
    assert [(call_id, error.grpc_code) for call_id, error in errors[0][1]] == [(7, INTERNAL), (8, INTERNAL)]
    assert any(told[0] == "error" and "test_faults" not in told[1] for told in recorder.told), "the log says it"


def test_a_stream_that_meets_a_fault_is_closed_and_forgotten() -> None:
    node, recorder = _node(KeyError("a mistake"))
    node._take(_batch(events=[(_engine.EV_STREAM_MESSAGE, 9, b"?")]), 0.0)
    assert ("closed", 9) in recorder.told
    assert any(told[:3] == ("stream_close", 9, INTERNAL) for told in recorder.told)


def test_an_http_request_that_meets_a_fault_gets_500() -> None:
    node, recorder = _node(IndexError("a mistake"))
    node._take(_batch(events=[(_engine.EV_HTTP, 5, "GET", "/health", b"", None)]), 0.0)
    assert any(told[:3] == ("http_reply", 5, 500) for told in recorder.told)


@pytest.mark.parametrize(
    "error",
    [StoreError("the backend failed"), InvariantViolation(Invariant.COMMIT_MONOTONIC, "back"), EtcdError(2, "stray")],
    ids=["store", "invariant", "stray answer"],
)
def test_what_tells_of_broken_state_ends_the_node(error: Exception) -> None:
    node, _ = _node(error)
    with pytest.raises(type(error)):
        node._take(_batch(unary=[(int(Method.PUT), [7], [b""], None)]), 0.0)


def test_peers_and_administration_are_not_guarded() -> None:
    node, _ = _node(ValueError("a mistake"))
    with pytest.raises(ValueError, match="a mistake"):
        node._take(_batch(events=[(_engine.EV_PEER_UP, 1, b"")]), 0.0)
    with pytest.raises(ValueError, match="a mistake"):
        node._take(_batch(unary=[(int(Method.DESCRIBE), [7], [b""], None)]), 0.0)
