"""etcd's key space, written for obviousness: a dictionary for every revision."""

from __future__ import annotations

from raftkv_node.pb import rpc_pb2
from raftkv_node.pb.kv_pb2 import KeyValue
from raftkv_node.store import EtcdError
from raftkv_node.store import errors as e

State = dict[bytes, KeyValue]
Range = rpc_pb2.RangeRequest
Compare = rpc_pb2.Compare


class Model:
    def __init__(self) -> None:
        self.history: list[State] = [{}, {}]
        """The state at each revision."""
        self.changes: list[list[tuple[str, KeyValue, KeyValue | None]]] = [[], []]
        self.compacted = -1

    @property
    def revision(self) -> int:
        return len(self.history) - 1

    def header(self, revision: int) -> rpc_pb2.ResponseHeader:
        return rpc_pb2.ResponseHeader(revision=revision)

    def keys(self, state: State, key: bytes, end: bytes) -> list[bytes]:
        if not end:
            return [key] if key in state else []
        return sorted(k for k in state if k >= key and (end == b"\0" or k < end))

    # Each method returns the response that is expected (headers with the revision only), or raises EtcdError.

    def range(self, request: Range, open_state: State | None = None) -> rpc_pb2.RangeResponse:
        current = self.revision if open_state is None else self.revision + 1
        asked = request.revision
        if asked > current:
            raise e.FUTURE_REVISION
        if 0 < asked < self.compacted:
            raise e.COMPACTED
        if asked <= 0 or asked == current:
            state = self.history[-1] if open_state is None else open_state
        else:
            state = self.history[asked]
        found = [state[key] for key in self.keys(state, request.key, request.range_end)]
        response = rpc_pb2.RangeResponse(header=self.header(current), count=len(found))
        if request.count_only:
            return response
        bounds = (
            (request.min_mod_revision, lambda kv, b: kv.mod_revision >= b),
            (request.max_mod_revision, lambda kv, b: kv.mod_revision <= b),
            (request.min_create_revision, lambda kv, b: kv.create_revision >= b),
            (request.max_create_revision, lambda kv, b: kv.create_revision <= b),
        )
        for bound, holds in bounds:
            if bound:
                found = [kv for kv in found if holds(kv, bound)]
        if request.sort_target != Range.KEY or request.sort_order != Range.NONE:
            found.sort(
                key={
                    Range.KEY: lambda kv: kv.key,
                    Range.VERSION: lambda kv: kv.version,
                    Range.CREATE: lambda kv: kv.create_revision,
                    Range.MOD: lambda kv: kv.mod_revision,
                    Range.VALUE: lambda kv: kv.value,
                }[request.sort_target],
                reverse=request.sort_order == Range.DESCEND,
            )
        if 0 < request.limit < len(found):
            response.more = True
            found = found[: request.limit]
        for kv in found:
            copy = response.kvs.add()
            copy.CopyFrom(kv)
            if request.keys_only:
                copy.value = b""
        return response

    def put(self, request: rpc_pb2.PutRequest) -> rpc_pb2.PutResponse:
        if request.lease:
            raise e.LEASE_NOT_FOUND
        if (request.ignore_value or request.ignore_lease) and request.key not in self.history[-1]:
            raise e.KEY_NOT_FOUND
        self._begin()
        response = self._put(request)
        self._end()
        return response

    def delete(self, request: rpc_pb2.DeleteRangeRequest) -> rpc_pb2.DeleteRangeResponse:
        self._begin()
        response = self._delete(request)
        self._end()
        return response

    def txn(self, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        before = self.history[-1]
        outcome = self._outcome(request, before)
        self._check_puts(outcome, before)
        self._check_ranges(outcome)
        self._begin()
        response = self._execute(outcome)
        self._end()
        response.header.revision = self.revision
        return response

    def compact(self, request: rpc_pb2.CompactionRequest) -> rpc_pb2.CompactionResponse:
        if request.revision <= self.compacted:
            raise e.COMPACTED
        if request.revision > self.revision:
            raise e.FUTURE_REVISION
        self.compacted = request.revision
        return rpc_pb2.CompactionResponse(header=self.header(self.revision))

    def apply(self, request: object) -> object:
        """The expected response, or the error."""
        methods = {
            rpc_pb2.PutRequest: self.put,
            rpc_pb2.DeleteRangeRequest: self.delete,
            rpc_pb2.TxnRequest: self.txn,
            rpc_pb2.CompactionRequest: self.compact,
            Range: self.range,
        }
        try:
            return methods[type(request)](request)
        except EtcdError as error:
            return error

    # One revision.

    def _begin(self) -> None:
        self.open: State = dict(self.history[-1])
        self.open_changes: list[tuple[str, KeyValue, KeyValue | None]] = []

    def _end(self) -> None:
        if self.open_changes:
            self.history.append(self.open)
            self.changes.append(self.open_changes)

    def _put(self, request: rpc_pb2.PutRequest) -> rpc_pb2.PutResponse:
        main = self.revision + 1
        old = self.open.get(request.key)
        value = old.value if request.ignore_value and old is not None else request.value
        new = KeyValue(
            key=request.key,
            value=value,
            mod_revision=main,
            create_revision=main if old is None else old.create_revision,
            version=1 if old is None else old.version + 1,
        )
        self.open[request.key] = new
        self.open_changes.append(("put", new, old))
        return rpc_pb2.PutResponse(header=self.header(main), prev_kv=old if request.prev_kv else None)

    def _delete(self, request: rpc_pb2.DeleteRangeRequest) -> rpc_pb2.DeleteRangeResponse:
        keys = self.keys(self.open, request.key, request.range_end)
        response = rpc_pb2.DeleteRangeResponse(deleted=len(keys))
        for key in keys:
            old = self.open.pop(key)
            if request.prev_kv:
                response.prev_kvs.add().CopyFrom(old)
            self.open_changes.append(("delete", KeyValue(key=key, mod_revision=self.revision + 1), old))
        response.header.revision = self.revision + bool(self.open_changes)
        return response

    def _outcome(self, request: rpc_pb2.TxnRequest, state: State) -> tuple[bool, list[tuple[object, object]]]:
        succeeded = all(self._compare(compare, state) for compare in request.compare)
        chosen = []
        for op in request.success if succeeded else request.failure:
            inner = op.request_txn if op.HasField("request_txn") else None
            chosen.append((op, None if inner is None else self._outcome(inner, state)))
        return succeeded, chosen

    def _compare(self, compare: Compare, state: State) -> bool:
        found = [state[key] for key in self.keys(state, compare.key, compare.range_end)]
        if not found:
            if compare.target == Compare.VALUE:
                return False
            found = [KeyValue()]
        pairs = {
            Compare.VERSION: lambda kv: (kv.version, compare.version),
            Compare.CREATE: lambda kv: (kv.create_revision, compare.create_revision),
            Compare.MOD: lambda kv: (kv.mod_revision, compare.mod_revision),
            Compare.VALUE: lambda kv: (kv.value, compare.value),
            Compare.LEASE: lambda kv: (kv.lease, compare.lease),
        }
        holds = {
            Compare.EQUAL: lambda pair: pair[0] == pair[1],
            Compare.NOT_EQUAL: lambda pair: pair[0] != pair[1],
            Compare.GREATER: lambda pair: pair[0] > pair[1],
            Compare.LESS: lambda pair: pair[0] < pair[1],
        }
        return all(holds[compare.result](pairs[compare.target](kv)) for kv in found)

    def _check_puts(self, outcome: tuple[bool, list], state: State) -> None:
        for op, inner in outcome[1]:
            if op.HasField("request_put"):
                put = op.request_put
                if (put.ignore_value or put.ignore_lease) and put.key not in state:
                    raise e.KEY_NOT_FOUND
                if put.lease:
                    raise e.LEASE_NOT_FOUND
            elif inner is not None:
                self._check_puts(inner, state)

    def _check_ranges(self, outcome: tuple[bool, list]) -> None:
        for op, inner in outcome[1]:
            if op.HasField("request_range"):
                asked = op.request_range.revision
                if asked > self.revision:
                    raise e.FUTURE_REVISION
                if asked < 0 or 0 < asked < self.compacted:
                    raise e.COMPACTED
            elif inner is not None:
                self._check_ranges(inner)

    def _execute(self, outcome: tuple[bool, list]) -> rpc_pb2.TxnResponse:
        response = rpc_pb2.TxnResponse(header=rpc_pb2.ResponseHeader(), succeeded=outcome[0])
        for op, inner in outcome[1]:
            answer = response.responses.add()
            if op.HasField("request_put"):
                answer.response_put.CopyFrom(self._put(op.request_put))
            elif op.HasField("request_delete_range"):
                answer.response_delete_range.CopyFrom(self._delete(op.request_delete_range))
            elif op.HasField("request_range"):
                open_state = self.open if self.open_changes else None
                answer.response_range.CopyFrom(self.range(op.request_range, open_state))
            else:
                answer.response_txn.CopyFrom(self._execute(inner))
        return response
