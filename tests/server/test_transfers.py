"""Transfers of snapshots piece by piece: limits, losses, breaks, and who ends what; sender and receiver face to face.

The network is a list of messages; workers do their jobs at once. What the core would let through goes through.
"""

from __future__ import annotations

import io
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from raftkv_node.pb import rpc_pb2
from raftkv_node.raft import Configuration, Flag, Message, MessageType, Snapshot
from raftkv_node.server import installs as installs_module
from raftkv_node.server import transfers as transfers_module
from raftkv_node.server.installs import Installs, Prepared
from raftkv_node.server.log import Logger
from raftkv_node.server.member import Member
from raftkv_node.server.metrics import Metrics
from raftkv_node.server.transfers import Transfers
from raftkv_node.store import Batch, Store, commands, install
from raftkv_node.store.snapshot import SnapshotSink, SnapshotSource

SENDER, RECEIVER, TERM = 1, 2, 5
CHUNK = 500


class Workers:
    """Does jobs when it is told to."""

    def __init__(self) -> None:
        self.jobs: deque[Callable[[], None]] = deque()
        self.done: deque[Callable[[], None]] = deque()

    def submit(self, job: Callable[[], None]) -> None:
        self.jobs.append(job)

    def work(self) -> bool:
        worked = bool(self.jobs or self.done)
        while self.jobs:
            self.jobs.popleft()()
        while self.done:
            self.done.popleft()()
        return worked


class Core:
    """What both sides ask of the core."""

    def __init__(self, own_id: int, network: list[Message]) -> None:
        self.own_id, self.network = own_id, network
        self.wanted: set[int] = set()
        self.failed: list[int] = []
        self.is_leader = own_id == SENDER
        self.restored: list[Snapshot] = []
        self.takes = True

    def snapshot_started(self, peer: int, index: int) -> bool:
        return peer in self.wanted

    def snapshot_failed(self, peer: int) -> None:
        self.failed.append(peer)

    def awaits_snapshot(self, peer: int) -> bool:
        return peer in self.wanted

    def send_snapshot(self, peer: int, index: int, term: int, transfer: int, context: bytes, data: bytes) -> None:
        kind = MessageType.SNAPSHOT
        self.network.append(
            Message(kind, SENDER, peer, TERM, index, term, sequence=transfer, context=context, data=data)
        )

    def answer_snapshot(self, message: Message, context: bytes, reject: bool = False) -> None:
        flags = Flag.REJECT if reject else 0
        kind = MessageType.SNAPSHOT_RESPONSE
        self.network.append(
            Message(kind, self.own_id, message.sender, TERM, sequence=message.sequence, context=context, flags=flags)
        )

    def restore(self, snapshot: Snapshot) -> bool:
        self.restored.append(snapshot)
        return self.takes


class Scene:
    """A sender, a receiver, and what is between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 0.0
        self.network: list[Message] = []
        self.sent: list[Message] = []
        self.workers = Workers()
        self.metrics = Metrics()
        self.store = Store.open(folder / "sender", start_thread=False)
        for index in range(1, 101):
            request = rpc_pb2.PutRequest(key=b"k%d" % index, value=b"%d" % index * 50)
            self.store.apply(index, 3, Batch(1, index, bytes([commands.PUT]), [request.SerializeToString()]))
        self.store.set_durable_index(100)
        while self.store.backend.commit_now():
            pass
        self.sources: list[SnapshotSource] = []
        self.core = Core(SENDER, self.network)
        self.core.wanted.add(RECEIVER)
        logger = Logger("error", stream=io.StringIO())
        core: Any = self.core
        workers: Any = self.workers
        self.transfers = Transfers(core, workers, self.metrics, logger, self.open_source)
        self.places = Places(folder / "receiver")
        self.start_receiver()

    def start_receiver(self) -> None:
        self.receiver = Core(RECEIVER, self.network)
        core: Any = self.receiver
        workers: Any = self.workers
        self.installs = Installs(core, workers, self.metrics, Logger("error", stream=io.StringIO()), self.places)

    def open_source(self) -> SnapshotSource:
        self.sources.append(SnapshotSource(self.store.backend, 7, Configuration().encode()))
        return self.sources[-1]

    def deliver(self, keep: Callable[[Message], bool] = lambda message: True) -> bool:
        """Delivers what is on its way; what is not kept is lost."""
        messages, self.network[:] = list(self.network), []
        for message in messages:
            self.sent.append(message)
            if not keep(message):
                continue
            if message.type == MessageType.SNAPSHOT:
                self.installs.receive(message, self.now)
            else:
                self.transfers.answered(message, self.now)
        return bool(messages)

    def run(self, keep: Callable[[Message], bool] = lambda message: True) -> None:
        while self.workers.work() or self.deliver(keep):
            pass

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.transfers.tick(self.now)
        self.installs.tick(self.now)

    @property
    def arrived(self) -> bool:
        return self.installs.prepared is not None


class Places:
    """The receiver's disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.discarded = 0
        folder.mkdir()

    def open_sink(self) -> SnapshotSink:
        return SnapshotSink(self.folder / install.PARTIAL, 7, 1 << 26)

    def complete(self, sink: SnapshotSink) -> Prepared:
        snapshot = sink.finish()
        files: Any = SimpleNamespace(sync_folder=lambda path: None, rename=lambda source, target: source.rename(target))
        folder = install.complete(files, self.folder)
        return Prepared(snapshot, Store.open(folder, start_thread=False))

    def discard(self, store: Store) -> None:
        self.discarded += 1
        store.close(commit=False)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(transfers_module, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(installs_module, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(transfers_module, "WINDOW_BYTES", 4 * CHUNK)
    made = Scene(tmp_path)
    made.transfers.wanted(RECEIVER, 0.0)
    return made


def test_a_snapshot_arrives_whole_and_its_end_is_the_cores(scene: Scene) -> None:
    scene.run()
    assert scene.arrived
    assert scene.receiver.restored[0].index == 100
    assert scene.transfers.running == 1, "it ends with the acknowledgement, not with the last piece"
    scene.core.wanted.clear()
    scene.tick(0.1)
    assert scene.transfers.running == 0
    assert scene.metrics.snapshots.sent == {RECEIVER: 1}


def test_pieces_are_bounded_in_bytes_and_in_flight(scene: Scene) -> None:
    answered, most = 0, 0

    def keep(message: Message) -> bool:
        nonlocal answered, most
        if message.type == MessageType.SNAPSHOT:
            assert len(message.data) <= CHUNK
            offset = int.from_bytes(message.context[:8], "little")
            most = max(most, offset + len(message.data) - answered)
        else:
            answered = int.from_bytes(message.context, "little")
        return True

    scene.run(keep)
    assert scene.arrived
    assert CHUNK < most <= 4 * CHUNK
    assert scene.metrics.snapshots.sent_bytes == scene.metrics.snapshots.received_bytes, "nothing was sent twice"


def test_a_broken_link_is_gone_on_with_where_it_broke(scene: Scene) -> None:
    taken = 0

    def breaks(message: Message) -> bool:
        nonlocal taken
        taken += message.type == MessageType.SNAPSHOT
        return taken < 20

    scene.run(breaks)
    before = scene.metrics.snapshots.received_bytes
    assert not scene.arrived and before > 10 * CHUNK
    scene.tick(1.0)
    first = next(message for message in scene.network if message.type == MessageType.SNAPSHOT)
    assert int.from_bytes(first.context[:8], "little") >= before - 4 * CHUNK, "not from the beginning"
    for _ in range(100):
        scene.run()
        if scene.arrived:
            break
        scene.tick(0.5)
    assert scene.arrived
    assert len(scene.sources) == 1, "the backend was read once"


@pytest.mark.parametrize("seed", range(8))
def test_losses_doubles_and_disorder_change_nothing(scene: Scene, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(3000):
        if scene.arrived:
            break
        scene.network[:] = [one for one in scene.network for _ in range(rng.choice((0, 1, 1, 1, 2)))]
        rng.shuffle(scene.network)
        scene.deliver()
        scene.workers.work()
        scene.tick(0.1)
    assert scene.arrived
    assert scene.receiver.restored[0].index == 100 and len(scene.sources) == 1


def test_a_receiver_that_was_restarted_refuses_the_rest_and_a_new_transfer_begins(scene: Scene) -> None:
    count = 0

    def some(message: Message) -> bool:
        nonlocal count
        count += 1
        return count < 20

    scene.run(some)
    scene.start_receiver()
    scene.tick(1.0)
    scene.run()
    assert scene.core.failed == [RECEIVER]
    scene.transfers.wanted(RECEIVER, scene.now)
    scene.run()
    assert scene.core.failed == [RECEIVER, RECEIVER], "the next one has to wait a moment"
    scene.now += 2.0
    scene.transfers.wanted(RECEIVER, scene.now)
    scene.run()
    assert scene.arrived and len(scene.sources) == 2


def test_a_newer_snapshot_supersedes_and_an_older_one_does_not(scene: Scene) -> None:
    scene.workers.work()
    scene.workers.work()
    first = list(scene.network)
    scene.deliver()
    scene.workers.work()
    scene.network.clear()
    scene.transfers.wanted(RECEIVER, scene.now)
    scene.run(lambda message: not (message.type == MessageType.SNAPSHOT and message.sequence == 1))
    assert scene.arrived
    assert scene.sources[0].done, "the old view was given up"
    scene.installs.prepared = None
    scene.network[:] = first
    scene.run()
    assert not scene.arrived


def test_pieces_of_an_older_transfer_do_not_end_the_newer_one(scene: Scene) -> None:
    scene.workers.work()
    scene.workers.work()
    old = [message for message in scene.network if message.type == MessageType.SNAPSHOT]
    assert old
    scene.network.clear()
    scene.transfers.wanted(RECEIVER, scene.now)
    rounds = 0
    while not scene.arrived:
        rounds += 1
        assert rounds < 1000
        scene.network += old
        scene.deliver()
        scene.workers.work()
        scene.tick(0.01)


def damaged(message: Message) -> Message:
    """A piece of a snapshot with another first byte."""
    *front, data, entries = message.fields()
    return Message(*front, b"!" + data[1:], entries)


def test_a_damaged_piece_is_dropped_and_sent_again(scene: Scene) -> None:
    hit = False

    def damage() -> None:
        nonlocal hit
        for at, message in enumerate(scene.network):
            if not hit and message.type == MessageType.SNAPSHOT and scene.metrics.snapshots.received_bytes:
                scene.network[at] = damaged(message)
                hit = True

    for _ in range(1000):
        if scene.arrived:
            break
        damage()
        scene.deliver()
        scene.workers.work()
        scene.tick(0.1)
    assert hit and scene.arrived


def test_a_transfer_that_gets_nowhere_or_takes_too_long_lets_the_backend_go(scene: Scene) -> None:
    scene.run(lambda message: False)
    scene.tick(transfers_module.STALL_SECONDS)
    assert scene.core.failed == [RECEIVER] and scene.transfers.running == 0
    assert scene.sources[0].done
    scene.now += transfers_module.RETRY_MAXIMUM_SECONDS
    scene.transfers.wanted(RECEIVER, scene.now)
    scene.workers.work()
    scene.workers.work()
    for _ in range(int(transfers_module.LIFE_SECONDS / 10) + 2):
        # a piece now and then is progress, but not for ever
        scene.deliver(lambda message: message.type != MessageType.SNAPSHOT or scene.now % 20 < 10)
        scene.tick(10.0)
        if len(scene.core.failed) > 1:
            break
    assert len(scene.core.failed) == 2 and scene.transfers.running == 0


def test_a_large_backend_has_the_time_that_a_slow_way_takes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member at the end of a slow way could never be sent more than the way carries in ten minutes: its transfer was
    given up each time, though it went on, and began anew."""
    monkeypatch.setattr(transfers_module, "LIFE_SECONDS", 100.0)
    while not scene.sources:
        scene.workers.work()
    scene.sources[0].size_bytes = 4000 * transfers_module.SLOWEST_BYTES_PER_SECOND
    while not scene.arrived and scene.now < 4000:
        scene.deliver(lambda message: message.type != MessageType.SNAPSHOT or scene.now % 20 < 5)
        scene.workers.work()
        scene.tick(transfers_module.RESEND_MAXIMUM_SECONDS)
    assert scene.arrived and scene.now > transfers_module.LIFE_SECONDS, f"at {scene.now} s, failed: {scene.core.failed}"
    assert not scene.core.failed and len(scene.sources) == 1


def test_at_most_so_many_snapshots_are_sent_at_a_time(scene: Scene) -> None:
    peers = range(10, 10 + transfers_module.MAX_TRANSFERS + 3)
    scene.core.wanted |= set(peers)
    for peer in peers:
        scene.transfers.wanted(peer, 0.0)
    assert scene.transfers.running == transfers_module.MAX_TRANSFERS
    assert len(scene.core.failed) == 4


def test_a_lead_that_ends_ends_its_transfers(scene: Scene) -> None:
    scene.workers.work()
    scene.core.wanted.clear()
    scene.core.is_leader = False
    scene.tick(0.1)
    assert scene.transfers.running == 0 and not scene.metrics.snapshots.sent
    scene.workers.work()
    assert scene.sources[0].done


def test_a_disk_without_room_refuses_and_the_member_goes_on(scene: Scene) -> None:
    def full() -> SnapshotSink:
        raise OSError(28, "No space left on device")

    scene.places.open_sink = full  # type: ignore[method-assign]
    scene.run()
    assert scene.core.failed == [RECEIVER] and not scene.installs.under_way
    del scene.places.open_sink  # type: ignore[misc]
    scene.now += 2.0
    scene.transfers.wanted(RECEIVER, scene.now)
    scene.run()
    assert scene.arrived


def test_a_snapshot_that_is_of_no_use_any_more_is_thrown_away(scene: Scene) -> None:
    scene.receiver.takes = False
    scene.run()
    assert scene.places.discarded == 1 and not scene.installs.under_way


@pytest.mark.interpreted("a stand-in for the member")
@pytest.mark.parametrize(
    ("sent", "first_kept"),
    [
        (None, 901),  # what the retention says
        (950, 901),  # the snapshot is newer than that
        (700, 701),  # what follows the snapshot, which its receiver asks for next
        (100, 500),  # but not more bytes than twice the retention
    ],
)
def test_the_log_behind_a_snapshot_on_its_way_is_kept_for_its_receiver(sent: int | None, first_kept: int) -> None:
    """Otherwise whoever has taken a snapshot at last needs the next one."""
    released: list[int] = []
    tails = {1000: 800, 2000: 500}
    log = SimpleNamespace(tail_index=tails.__getitem__, release=released.append, first_index=1)
    member: Any = SimpleNamespace(
        replica=SimpleNamespace(installing=False),
        installs=SimpleNamespace(swapping=False),
        log=log,
        config=SimpleNamespace(log_retention_entries=100, log_retention_bytes=1000),
        store=SimpleNamespace(committed_index=1000),
        transfers=SimpleNamespace(lowest_index=lambda: sent),
        _released=0,
    )
    Member._release(member)
    assert released == [first_kept]
