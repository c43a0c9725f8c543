"""Snapshots of the backend: the stream's bytes, what is refused, and installation with a stop at every step.

`docs/formats/snapshot.md` has the format; D13, D15, D16 and M4 are what it must not break.
"""

from __future__ import annotations

import gc
import hashlib
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest
from raftkv_node._engine import crc32c
from raftkv_node.adr import Files
from raftkv_node.pb import rpc_pb2
from raftkv_node.raft import Configuration, Snapshot, initial_configuration
from raftkv_node.store import Batch, Store, StoreCorrupt, commands, install
from raftkv_node.store import mvcc as mvcc_module
from raftkv_node.store import snapshot as snapshot_module
from raftkv_node.store.backend import Backend
from raftkv_node.store.mvcc import Mvcc
from raftkv_node.store.snapshot import SnapshotInvalid, SnapshotSink, SnapshotSource
from raftkv_node.store.watch import WatchHub, WatchStream

CLUSTER = 7
REMOVED = Configuration(voters=frozenset((1,)), members={1: b"one"}, removed=frozenset((4, 5)))


def put(key: bytes, value: bytes) -> tuple[int, bytes]:
    return commands.PUT, rpc_pb2.PutRequest(key=key, value=value).SerializeToString()


def apply(store: Store, *requests: tuple[int, bytes]) -> None:
    index = store.applied_index + 1
    store.apply(index, 3, Batch(1, index, bytes(one[0] for one in requests), [one[1] for one in requests]))


def commit(store: Store) -> None:
    store.set_durable_index(store.applied_index)
    while store.backend.commit_now():
        pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with keys, history, deletions, a compaction, members, a configuration."""
    made = Store.open(tmp_path / "backend", start_thread=False)
    for number in range(50):
        apply(made, put(b"k%02d" % (number % 20), b"v%d" % number * 20))
    delete = rpc_pb2.DeleteRangeRequest(key=b"k03")
    apply(made, (commands.DELETE_RANGE, delete.SerializeToString()))
    apply(made, (commands.COMPACT, rpc_pb2.CompactionRequest(revision=20).SerializeToString()))
    member = rpc_pb2.Member(ID=9, name="nine")
    apply(made, (commands.MEMBER_ATTRIBUTES, member.SerializeToString()))
    made.apply_configuration(made.applied_index + 1, 3, REMOVED.encode())
    apply(made, put(b"big", b"x" * 5000))
    while made.compacting:
        made.background()
    commit(made)
    return made


def stream_of(backend: Backend, step: int = 1000, founding: bytes = Configuration().encode()) -> bytes:
    source = SnapshotSource(backend, CLUSTER, founding)
    parts = []
    while not source.done:
        part = source.read(step)
        assert 0 < len(part) <= step
        parts.append(part)
    assert source.read(step) == b""
    return b"".join(parts)


def sink(folder: Path) -> SnapshotSink:
    return SnapshotSink(folder / install.PARTIAL, CLUSTER, 1 << 26)


def taken(folder: Path, stream: bytes, step: int = 777) -> Snapshot:
    """Takes a stream in, up to where it is durable under its name."""
    made = sink(folder)
    for at in range(0, len(stream), step):
        made.feed(stream[at : at + step])
    assert made.complete
    snapshot = made.finish()
    install.complete(Files(), folder)
    return snapshot


def state(store: Store) -> tuple[object, ...]:
    """All that a store holds, as far as others can see."""
    everything = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")
    read = store.start_range(everything)
    return (
        read if isinstance(read, bytes) else read.run(),
        store.start_hash().run(),
        store.revision,
        store.compact_revision,
        store.applied_index,
        store.applied_term,
        dict(store.members),
        store.configuration,
        store.configuration_index,
    )


# -- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 100, 4096, 1 << 20])
def test_what_was_streamed_is_the_whole_state(tmp_path: Path, store: Store, step: int) -> None:
    snapshot = taken(tmp_path, stream_of(store.backend, max(step, 50)), step)
    assert (snapshot.index, snapshot.term) == (store.applied_index, 3)
    assert snapshot.configuration == REMOVED
    assert snapshot.configuration_index == store.configuration_index
    copy = Store.open(tmp_path / install.WHOLE, start_thread=False)
    assert state(copy) == state(store)
    apply(copy, put(b"after", b"1"))
    apply(store, put(b"after", b"1"))
    assert state(copy) == state(store)


def test_m4_the_removed_set_travels_in_the_snapshot(tmp_path: Path, store: Store) -> None:
    assert taken(tmp_path, stream_of(store.backend)).configuration.removed == {4, 5}
    copy = Store.open(tmp_path / install.WHOLE, start_thread=False)
    assert Configuration.decode(copy.configuration).removed == {4, 5}


def test_d14_a_snapshot_is_the_state_of_a_synced_commit_whatever_is_applied(tmp_path: Path, store: Store) -> None:
    committed = store.applied_index
    apply(store, put(b"k01", b"applied, not committed"))
    source = SnapshotSource(store.backend, CLUSTER, b"")
    commit(store)  # a commit during the transfer does not change what is sent
    apply(store, put(b"k02", b"later"))
    commit(store)
    parts = []
    while not source.done:
        parts.append(source.read(300))
    assert source.index == committed
    taken(tmp_path, b"".join(parts))
    copy = Store.open(tmp_path / install.WHOLE, start_thread=False)
    assert copy.applied_index == committed
    read = copy.start_range(rpc_pb2.RangeRequest(key=b"k01"))
    assert isinstance(read, bytes) and b"not committed" not in read


def test_a_backend_without_a_configuration_sends_the_founding_one(tmp_path: Path) -> None:
    founding = initial_configuration((1, 2, 3))
    young = Store.open(tmp_path / "backend", start_thread=False)
    apply(young, put(b"a", b"1"))
    commit(young)
    snapshot = taken(tmp_path, stream_of(young.backend, founding=founding.encode()))
    assert (snapshot.configuration_index, snapshot.configuration) == (0, founding)
    copy = Store.open(tmp_path / install.WHOLE, start_thread=False)
    assert (copy.configuration_index, copy.configuration) == (0, founding.encode())


def test_the_stream_is_as_documented(store: Store) -> None:
    """To the byte, read here by other code than the product's."""
    stream = stream_of(store.backend)
    magic, version, backend, cluster, index, term, at, length = struct.unpack_from(">8sIIQQQQI", stream)
    assert (magic, version, backend, cluster) == (b"RAFTKVSN", 1, 1, CLUSTER)
    assert (index, term, at) == (store.applied_index, 3, store.configuration_index)
    offset = 52 + length
    assert Configuration.decode(stream[52:offset]) == REMOVED
    assert struct.unpack_from(">I", stream, offset) == (crc32c(stream[:offset]),)
    offset += 4
    databases: dict[int, list[bytes]] = {}
    records = 0
    while stream[offset]:
        number, key_bytes, value_bytes = struct.unpack_from(">BHI", stream, offset)
        databases.setdefault(number, []).append(stream[offset + 7 : offset + 7 + key_bytes])
        offset += 7 + key_bytes + value_bytes
        records += 1
    assert struct.unpack_from(">BQ", stream, offset) == (0, records)
    assert stream[offset + 9 :] == hashlib.sha256(stream[: offset + 9]).digest()
    assert list(databases) == [1, 2, 3]
    assert databases[1] == [b"applied", b"configuration", b"revision", b"version"]
    assert databases[3] == sorted(databases[3]) and len(databases[3]) > 20


def test_d16_another_version_is_refused(tmp_path: Path, store: Store) -> None:
    stream = bytearray(stream_of(store.backend))
    stream[8:12] = struct.pack(">I", 2)
    with pytest.raises(SnapshotInvalid, match="version 2"):
        sink(tmp_path).feed(bytes(stream))


def test_another_clusters_snapshot_is_refused(tmp_path: Path, store: Store) -> None:
    made = SnapshotSink(tmp_path / "other", CLUSTER + 1, 1 << 26)
    with pytest.raises(SnapshotInvalid, match="of cluster 7"):
        made.feed(stream_of(store.backend))


def test_no_damaged_stream_is_taken(tmp_path: Path, store: Store) -> None:
    """A flipped bit anywhere, a byte more or less, a stream that ends early: never complete."""
    stream = stream_of(store.backend)
    head = 52 + len(REMOVED.encode()) + 4
    places = {*range(0, head, 7), *range(head, len(stream), 211), *range(len(stream) - 41, len(stream), 5)}
    for place in sorted(places):
        damaged = bytearray(stream)
        damaged[place] ^= 0x10
        made = sink(tmp_path)
        try:
            made.feed(bytes(damaged))
            assert not made.complete, f"a bit at {place} was not found"
        except SnapshotInvalid:
            pass
        finally:
            made.close()
    made = sink(tmp_path)
    made.feed(stream[:-1])
    assert not made.complete
    with pytest.raises(SnapshotInvalid, match="follow"):
        made.feed(stream[-1:] + b"x")
    made.close()


def test_a_large_length_reserves_no_memory(tmp_path: Path, store: Store) -> None:
    stream = stream_of(store.backend)
    head = stream[: 52 + len(REMOVED.encode()) + 4]
    made = sink(tmp_path)
    with pytest.raises(SnapshotInvalid, match="bytes"):
        made.feed(head + struct.pack(">BHI", 3, 12, (1 << 32) - 1))
    made.close()
    made = sink(tmp_path)
    with pytest.raises(SnapshotInvalid, match="configuration"):
        made.feed(head[:48] + struct.pack(">I", 1 << 30))
    made.close()


def test_memory_of_a_sink_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "SINK_BYTES", 1 << 16)
    large = Store.open(tmp_path / "backend", start_thread=False)
    for number in range(200):
        apply(large, put(b"%d" % number, bytes(5000)))
    commit(large)
    made = sink(tmp_path)
    stream = stream_of(large.backend)
    highest = 0
    for at in range(0, len(stream), 8192):
        made.feed(stream[at : at + 8192])
        highest = max(highest, made._held_bytes + len(made._buffer))
    assert made.complete
    assert highest <= (1 << 16) + 8192 + 6000


# -- installing ------------------------------------------------------------------------------------------------------


class Stopped(BaseException):
    """The process ends here."""


class Stopping(Files):
    """Ends the process before or after the n-th operation."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _step(self, work: Callable[[], None]) -> None:
        for now in (False, True):
            if now:
                work()
            self.left -= 1
            if self.left < 0:
                raise Stopped

    def rename(self, source: Path, target: Path) -> None:
        self._step(lambda: Files.rename(self, source, target))

    def sync_folder(self, path: Path) -> None:
        self._step(lambda: Files.sync_folder(self, path))


def old_and_new(root: Path) -> tuple[Path, bytes]:
    """A data folder with a store at index 10, and a stream of one at index 60."""
    folder = root / "data"
    folder.mkdir(parents=True)
    old = Store.open(folder / install.BACKEND, start_thread=False)
    for number in range(10):
        apply(old, put(b"k", b"old %d" % number))
    commit(old)
    old.close()
    new = Store.open(root / "new", start_thread=False)
    for number in range(60):
        apply(new, put(b"k", b"new %d" % number))
    commit(new)
    stream = stream_of(new.backend)
    new.close()
    return folder, stream


def applied(folder: Path) -> int:
    found = Store.open(folder / install.BACKEND, start_thread=False)
    try:
        return found.applied_index
    finally:
        found.close(commit=False)


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {install.BACKEND}


def test_d15_a_stop_at_every_step_of_an_installation_leaves_old_or_new(tmp_path: Path) -> None:
    """Up to the mark the old state is found, from the mark on the new one, and nothing else remains."""
    steps = 0
    while True:
        folder, stream = old_and_new(tmp_path / str(steps))
        files = Stopping(steps)
        mark: tuple[int, int] | None = None
        try:
            made = sink(folder)
            made.feed(stream)
            snapshot = made.finish()
            install.complete(files, folder)
            mark = (snapshot.index, snapshot.term)  # the log has it now, durably
            install.swap(files, folder)
        except Stopped:
            install.settle(Files(), folder, mark)
            assert applied(folder) == (60 if mark else 10), f"after step {steps}"
            assert not leftovers(folder)
            steps += 1
            continue
        break
    assert steps == 12  # three renames and three syncs, before and after each
    assert applied(folder) == 60 and not leftovers(folder)


def test_d15_a_stop_while_a_start_finishes_an_installation(tmp_path: Path) -> None:
    for stop in range(20):
        folder, stream = old_and_new(tmp_path / str(stop))
        taken(folder, stream)
        try:
            install.settle(Stopping(stop), folder, (60, 3))
        except Stopped:
            install.settle(Files(), folder, (60, 3))
            assert applied(folder) == 60 and not leftovers(folder)
            continue
        assert stop > 3
        return
    pytest.fail("it never ends")


def test_d15_a_swap_that_was_cut_off_in_the_removal_is_finished(tmp_path: Path) -> None:
    """What is left of the old backend means nothing once the log has the snapshot's mark."""
    folder, stream = old_and_new(tmp_path)
    taken(folder, stream)
    (folder / install.BACKEND / "data.mdb").unlink()
    assert install.settle(Files(), folder, (60, 3))
    assert applied(folder) == 60


@pytest.mark.parametrize("mark", [None, (59, 3), (60, 2), (5, 1)])
def test_d15_a_snapshot_without_the_logs_mark_is_removed(tmp_path: Path, mark: tuple[int, int] | None) -> None:
    folder, stream = old_and_new(tmp_path)
    taken(folder, stream)
    assert not install.settle(Files(), folder, mark)
    assert applied(folder) == 10 and not leftovers(folder)


def test_d15_a_mark_of_an_installation_that_is_over_touches_nothing(tmp_path: Path) -> None:
    folder, stream = old_and_new(tmp_path)
    taken(folder, stream)
    install.swap(Files(), folder)
    assert not install.settle(Files(), folder, (60, 3))
    assert applied(folder) == 60


def test_an_unreadable_snapshot_fails_closed(tmp_path: Path) -> None:
    """With the mark in the log only it explains the gap: nobody guesses."""
    folder, stream = old_and_new(tmp_path)
    taken(folder, stream)
    (folder / install.WHOLE / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreCorrupt, match="snapshot"):
        install.settle(Files(), folder, (60, 3))
    assert (folder / install.BACKEND).is_dir()


def test_leftovers_of_a_transfer_are_removed(tmp_path: Path) -> None:
    folder, stream = old_and_new(tmp_path)
    made = sink(folder)
    made.feed(stream[:500])
    made.close()
    assert not install.settle(Files(), folder, None)
    assert applied(folder) == 10 and not leftovers(folder)


# -- a store that takes a snapshot over --------------------------------------------------------------------------------


def test_reads_in_progress_go_on_in_the_old_state(tmp_path: Path) -> None:
    folder, stream = old_and_new(tmp_path)
    store = Store.open(folder / install.BACKEND, start_thread=False)
    history = store.start_range(rpc_pb2.RangeRequest(key=b"k", revision=5))
    cold = store.start_hash()
    taken(folder, stream)
    old = store.replace(Store.open(folder / install.WHOLE, start_thread=False))
    old.retire()
    install.swap(Files(), folder)
    assert store.applied_index == 60
    text = history if isinstance(history, bytes) else history.run()
    assert b"old 3" in text
    assert cold.run()
    read = store.start_range(rpc_pb2.RangeRequest(key=b"k"))
    assert isinstance(read, bytes) and b"new 59" in read
    apply(store, put(b"k", b"after"))
    commit(store)
    store.close()
    assert applied(folder) == 61


def test_a_large_state_that_is_replaced_is_freed_beside_the_turn_and_after_its_last_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To let millions of keys go at once took the turn most of a second, in the middle of an installation."""
    monkeypatch.setattr(mvcc_module, "SLOWLY_FREED_KEYS", 10)
    folder, stream = old_and_new(tmp_path)
    store = Store.open(folder / install.BACKEND, start_thread=False)
    for number in range(10):
        apply(store, put(b"many %d" % number, b"x"))
    reader: Mvcc | None = store.mvcc
    entries = store.mvcc.index.entries
    store.applied_index = 0
    taken(folder, stream)
    store.replace(Store.open(folder / install.WHOLE, start_thread=False)).retire()
    gc.collect()
    assert len(entries) >= 10, "somebody still reads it"
    del reader
    gc.collect()
    deadline = monotonic() + 10
    while entries and monotonic() < deadline:
        sleep(0.001)
    assert not entries, "taken apart step by step, by a thread of its own"
    shutil.rmtree(folder / install.BACKEND)


def test_counters_do_not_go_back(tmp_path: Path) -> None:
    folder, stream = old_and_new(tmp_path)
    store = Store.open(folder / install.BACKEND, start_thread=False)
    apply(store, put(b"k", b"1"))
    before = store.puts_total
    taken(folder, stream)
    store.replace(Store.open(folder / install.WHOLE, start_thread=False))
    assert store.puts_total >= before
    shutil.rmtree(folder / install.BACKEND)


def test_a_snapshot_that_is_no_news_is_not_taken_over(tmp_path: Path) -> None:
    folder, stream = old_and_new(tmp_path)
    store = Store.open(folder / install.BACKEND, start_thread=False)
    for number in range(60):
        apply(store, put(b"k", b"%d" % number))
    taken(folder, stream)
    with pytest.raises(Exception, match="no news"):
        store.replace(Store.open(folder / install.WHOLE, start_thread=False))


# -- watches over the change -------------------------------------------------------------------------------------------


def watching(store: Store, start: int) -> tuple[WatchHub, WatchStream]:
    hub = WatchHub(store)
    stream = hub.open_stream(0.0)
    create = rpc_pb2.WatchCreateRequest(key=b"k", start_revision=start)
    stream.receive(rpc_pb2.WatchRequest(create_request=create))
    return hub, stream


def told(hub: WatchHub) -> list[rpc_pb2.WatchResponse]:
    """All that the hub says until it has no more to say."""
    found = []
    while True:
        job = hub.start_resync()
        if job is not None:
            job.run()
            hub.finish_resync(job)
        output = hub.take_output()
        found += [rpc_pb2.WatchResponse.FromString(one) for _, responses in output for one in responses]
        if job is None and not output:
            return found


def test_a_watcher_gets_every_event_over_an_installed_snapshot(tmp_path: Path) -> None:
    folder, stream = old_and_new(tmp_path)
    store = Store.open(folder / install.BACKEND, start_thread=False)
    hub, _ = watching(store, 2)
    assert [event.kv.mod_revision for one in told(hub) for event in one.events] == list(range(2, 12))
    taken(folder, stream)
    before = store.revision
    store.replace(Store.open(folder / install.WHOLE, start_thread=False))
    hub.restored(before)
    assert [event.kv.mod_revision for one in told(hub) for event in one.events] == list(range(12, 62))
    store.watching(True, False)
    result = store.apply(61, 3, Batch(1, 99, bytes([commands.PUT]), [put(b"k", b"later")[1]]))
    hub.publish(result.events)
    assert [event.kv.mod_revision for one in told(hub) for event in one.events] == [62]


def test_a_slice_of_history_that_is_under_way_over_the_change_is_read_again(tmp_path: Path) -> None:
    folder, stream = old_and_new(tmp_path)
    store = Store.open(folder / install.BACKEND, start_thread=False)
    hub, _ = watching(store, 2)
    hub.take_output()
    job = hub.start_resync()
    assert job is not None
    taken(folder, stream)
    before = store.revision
    store.replace(Store.open(folder / install.WHOLE, start_thread=False))
    hub.restored(before)
    job.run()
    hub.finish_resync(job)
    assert [event.kv.mod_revision for one in told(hub) for event in one.events] == list(range(2, 62))


def test_a_watcher_behind_the_snapshots_compaction_is_cancelled_as_compacted(tmp_path: Path) -> None:
    folder, _ = old_and_new(tmp_path)
    newer = Store.open(tmp_path / "newer", start_thread=False)
    for number in range(60):
        apply(newer, put(b"k", b"%d" % number))
    apply(newer, (commands.COMPACT, rpc_pb2.CompactionRequest(revision=40).SerializeToString()))
    while newer.compacting:
        newer.background()
    commit(newer)
    store = Store.open(folder / install.BACKEND, start_thread=False)
    hub, _ = watching(store, 2)
    told(hub)
    taken(folder, stream_of(newer.backend))
    before = store.revision
    store.replace(Store.open(folder / install.WHOLE, start_thread=False))
    hub.restored(before)
    (response,) = told(hub)
    assert response.canceled and response.compact_revision == 40
