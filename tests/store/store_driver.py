"""Drives a store: one request per entry, results parsed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message
from raftkv_node.pb import rpc_pb2
from raftkv_node.store import Batch, ColdRead, EtcdError, PendingCompaction, Store, commands

CLUSTER, MEMBER, TERM = 0xC1C2C3C4C5C6C7C8, 0xA1, 3

KINDS: dict[type[Message], tuple[int, type[Message] | None]] = {
    rpc_pb2.PutRequest: (commands.PUT, rpc_pb2.PutResponse),
    rpc_pb2.DeleteRangeRequest: (commands.DELETE_RANGE, rpc_pb2.DeleteRangeResponse),
    rpc_pb2.TxnRequest: (commands.TXN, rpc_pb2.TxnResponse),
    rpc_pb2.CompactionRequest: (commands.COMPACT, rpc_pb2.CompactionResponse),
    rpc_pb2.Member: (commands.MEMBER_ATTRIBUTES, None),
}

M = TypeVar("M", bound=Message)


def fast_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for one example of a property: in memory where that can be had, since each store syncs."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None)


def batch_of(*requests: Message) -> Batch:
    """A batch that went through its encoding."""
    kinds = bytes(KINDS[type(request)][0] for request in requests)
    payloads = [request.SerializeToString() for request in requests]
    return commands.decode_batch(commands.encode_batch(1, 1, kinds, payloads))


class Driver:
    """Commits only when told to, so that tests choose the moments."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.options = {"cluster_id": CLUSTER, "member_id": MEMBER, "start_thread": False, **options}
        self.store = Store.open(path, **self.options)
        self.store.set_term(TERM)
        self.closed = False

    @property
    def index(self) -> int:
        return self.store.applied_index

    def apply(self, *requests: Message, want: bool = True) -> list[Any]:
        """Applies requests as one entry; parsed responses and errors."""
        result = self.store.apply(self.index + 1, TERM, batch_of(*requests), None, want)
        if result.results is None:
            return []
        answers: list[Any] = []
        for request, answer in zip(requests, result.results, strict=True):
            response_type = KINDS[type(request)][1]
            if isinstance(answer, EtcdError | PendingCompaction) or response_type is None:
                answers.append(answer)
            else:
                answers.append(response_type.FromString(answer))  # type: ignore[attr-defined]
        return answers

    def put(self, key: bytes, value: bytes = b"", **more: Any) -> Any:
        return self.apply(rpc_pb2.PutRequest(key=key, value=value, **more))[0]

    def delete(self, key: bytes, range_end: bytes = b"", **more: Any) -> Any:
        return self.apply(rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end, **more))[0]

    def txn(self, request: rpc_pb2.TxnRequest) -> Any:
        return self.apply(request)[0]

    def compact(self, revision: int, physical: bool = False) -> Any:
        return self.apply(rpc_pb2.CompactionRequest(revision=revision, physical=physical))[0]

    def run(self, read: bytes | ColdRead) -> bytes:
        return read if isinstance(read, bytes) else read.run()

    def range(self, key: bytes, range_end: bytes = b"", **more: Any) -> Any:
        """A parsed RangeResponse, or the error."""
        request = rpc_pb2.RangeRequest(key=key, range_end=range_end, **more)
        try:
            return rpc_pb2.RangeResponse.FromString(self.run(self.store.start_range(request)))
        except EtcdError as error:
            return error

    def read_txn(self, request: rpc_pb2.TxnRequest) -> Any:
        try:
            return rpc_pb2.TxnResponse.FromString(self.run(self.store.start_txn(request)))
        except EtcdError as error:
            return error

    def hash(self, revision: int = 0) -> Any:
        try:
            return rpc_pb2.HashKVResponse.FromString(self.run(self.store.start_hash(revision)))
        except EtcdError as error:
            return error

    def commit(self, index: int | None = None) -> None:
        """Commits all (or up to an entry) that may be."""
        self.store.set_durable_index(self.index if index is None else index)
        while self.store.backend.commit_now():
            pass
        assert self.store.failed is None

    def sweep(self) -> None:
        while self.store.background():
            pass

    def crash(self) -> None:
        """Forgets what is not committed."""
        if not self.closed:
            self.closed = True
            self.store.close(commit=False)

    def reopen(self) -> Driver:
        self.crash()
        return Driver(self.path, **self.options)

    def close(self) -> None:
        self.crash()
