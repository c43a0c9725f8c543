"""The store: etcd's multi-version key space on LMDB, without transport or consensus.

`store` applies entries and answers reads; `mvcc`, `index` and `keyorder` are its state in memory, `backend` its file,
`recovery` the way back from it; `watch` tells clients of changes (`resync`, `watchcodec`, `intervals` help it);
`commands` is what an entry of the log holds; `txn`, `ranges`, `reads` and `rangestream` say what requests mean,
`validate` what is refused before it is proposed, `errors` how; `encoding` is the protobuf that is written by hand.
"""

from .commands import Batch, decode_batch, encode_batch
from .errors import CommandError, EtcdError, StoreCorrupt, StoreError, UnknownCommand
from .reads import ColdRead
from .store import ApplyResult, PendingCompaction, Store

__all__ = [
    "ApplyResult",
    "Batch",
    "ColdRead",
    "CommandError",
    "EtcdError",
    "PendingCompaction",
    "Store",
    "StoreCorrupt",
    "StoreError",
    "UnknownCommand",
    "decode_batch",
    "encode_batch",
]
