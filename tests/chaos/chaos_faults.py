"""How each fault is done to a live cluster, and how it is healed.

A fault runs in a thread of its own: it strikes, stands for its time, and heals. Faults of processes (kill, stop, a lost
ring) take their members for themselves, so that none starts what another one has just killed; those of links, disks and
clocks may meet any other on the same member. A fault that finds all its targets taken is skipped, and not counted.

Only one ring may be lost at a time, until its member is replaced: a cluster that loses the rings of a quorum has lost
what they held, by contract, and nothing could be checked then.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from chaos_disks import Trouble
from chaos_links import FREE, Links, Rule
from chaos_members import ChaosCluster, ChaosMember
from chaos_plan import Kind, Planned
from processes import wait_until
from raftkv_node.adr import EXIT_ABSENT

EXIT_FAILED = 72
LEADER_WAIT_SECONDS = 3.0
CLOCK_SHIFTS_SECONDS = (-10 * 365 * 86400, -86400, -3600, -30, 30, 3600, 86400, 10 * 365 * 86400)
RING_SETTLE_SECONDS = 0.2
KEEP_SECONDS = 0.3


@dataclass
class Struck:
    """A fault that was injected."""

    kind: Kind
    began: float
    ended: float = 0.0
    detail: str = ""


@dataclass
class Effects:
    """Rules of links that several faults have made, which stand together."""

    links: Links
    lock: threading.Lock = field(default_factory=threading.Lock)
    standing: dict[tuple[int, int], list[Rule]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def applied(self, pairs: list[tuple[int, int]], rule: Rule) -> Iterator[None]:
        """While it lasts, the rule holds for these directions, with all others."""
        with self.lock:
            for pair in pairs:
                self.standing[pair].append(rule)
            self._tell(pairs)
        try:
            yield
        finally:
            with self.lock:
                for pair in pairs:
                    self.standing[pair].remove(rule)
                self._tell(pairs)

    def _tell(self, pairs: list[tuple[int, int]]) -> None:
        for pair in pairs:
            self.links.set([pair], together(self.standing[pair]))


def together(rules: list[Rule]) -> Rule:
    """What several rules for one direction come to."""
    rates = [one.bytes_per_second for one in rules if one.bytes_per_second]
    return (
        Rule(
            cut=any(one.cut for one in rules),
            reset=any(one.reset for one in rules),
            delay_ms=sum(one.delay_ms for one in rules),
            loss=max(one.loss for one in rules),
            bytes_per_second=min(rates, default=0),
        )
        if rules
        else FREE
    )


class Injector:
    """Does the faults of a round to a cluster, and knows which stand."""

    def __init__(self, cluster: ChaosCluster) -> None:
        self._cluster = cluster
        self._effects = Effects(cluster.links)
        self._lock = threading.Lock()
        self._ring = threading.Lock()
        self.struck: list[Struck] = []
        self.skipped = 0
        self.ended = 0
        """Members that ended by themselves for their disk."""
        self.problems: list[str] = []
        self._heal = threading.Event()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._doers: dict[Kind, Callable[[Planned, random.Random], None]] = {
            Kind.KILL_ONE: self._kill,
            Kind.KILL_SEVERAL: self._kill,
            Kind.KILL_ALL: self._kill,
            Kind.STOP_LEADER: self._stop_leader,
            Kind.STOP_FOLLOWERS: self._stop_followers,
            Kind.DISK_FULL: self._disk,
            Kind.DISK_SLOW: self._disk,
            Kind.DISK_FAILING: self._disk,
            Kind.DISK_STALLED: self._disk,
            Kind.LINK_CUT: self._cut,
            Kind.LINK_ONE_WAY: self._cut,
            Kind.LINK_RESET: self._cut,
            Kind.LINK_SLOW: self._hamper,
            Kind.LINK_LOSSY: self._hamper,
            Kind.RING_LOST: self._lose_ring,
            Kind.CLOCK: self._shift_clock,
        }

    # -- the round -----------------------------------------------------------------------------------------------------

    def run(self, planned: list[Planned], seconds: float) -> None:
        """Strikes as planned; returns after so many seconds, when all faults have been healed."""
        self._heal.clear()
        self._over.clear()
        began = time.monotonic()
        keeper = threading.Thread(target=self._keep_running, daemon=True)
        keeper.start()
        for one in planned:
            time.sleep(max(0.0, began + one.at_seconds - time.monotonic()))
            thread = threading.Thread(target=self._do, args=(one,), daemon=True)
            thread.start()
            self._threads.append(thread)
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        self._heal.set()
        for thread in self._threads:
            thread.join(400)
            assert not thread.is_alive(), "a fault was not healed"
        self._threads.clear()
        self._over.set()
        keeper.join()
        self._revive()

    def _do(self, planned: Planned) -> None:
        try:
            self._doers[planned.kind](planned, random.Random(planned.seed))
        except Exception as error:
            with self._lock:
                self.problems.append(f"{planned.kind}: {type(error).__name__}: {error}")

    @contextmanager
    def _standing(self, kind: Kind, detail: str) -> Iterator[None]:
        """Counts a fault as injected, from here to its end."""
        struck = Struck(kind, time.monotonic(), detail=detail)
        with self._lock:
            self.struck.append(struck)
        try:
            yield
        finally:
            struck.ended = time.monotonic()

    def _stand(self, planned: Planned) -> None:
        self._heal.wait(planned.seconds)

    def last_healed(self, began: float) -> float:
        """When the last fault was healed. Who waits for a replacement is one member, and does not count."""
        ends = (one.ended for one in self.struck if one.kind is not Kind.RING_LOST)
        return max(ends, default=began)

    # -- members that end by themselves --------------------------------------------------------------------------------

    def _keep_running(self) -> None:
        """Restarts who has ended by itself, as Kubernetes would; only a disk that fails is a reason to.

        Until the last fault is healed: a member may be needed for the quorum that replaces another.
        """
        while not self._over.wait(KEEP_SECONDS):
            self._revive()

    def _revive(self) -> None:
        for member in list(self._cluster.members):
            if not member.busy.acquire(blocking=False):
                continue
            try:
                if not member.running and not member.gone:
                    self._judge_end(member)
                    member.start()
            finally:
                member.busy.release()

    def _judge_end(self, member: ChaosMember) -> None:
        assert member.process is not None
        code = member.process.returncode
        if member.disk is not None and member.disk.troubled_lately():
            self.ended += 1
            return
        with self._lock:
            self.problems.append(f"{member.name} ended with {code}: {member.log_text()[-600:]}")

    # -- targets -------------------------------------------------------------------------------------------------------

    def _take(self, stack: ExitStack, members: list[ChaosMember], count: int) -> list[ChaosMember]:
        """Takes up to so many members for a fault of processes."""
        taken = []
        for member in members:
            if len(taken) == count:
                break
            if member.busy.acquire(blocking=False):
                stack.callback(member.busy.release)
                if member.running and not member.gone:
                    taken.append(member)
        if not taken:
            with self._lock:
                self.skipped += 1
        return taken

    def _shuffled(self, rng: random.Random) -> list[ChaosMember]:
        members = list(self._cluster.members)
        rng.shuffle(members)
        return members

    def _find_leader(self) -> ChaosMember | None:
        end = time.monotonic() + LEADER_WAIT_SECONDS
        while time.monotonic() < end:
            if (leader := self._cluster.leader()) is not None:
                return leader
        return None

    # -- processes -----------------------------------------------------------------------------------------------------

    def _kill(self, planned: Planned, rng: random.Random) -> None:
        size = len(self._cluster.members)
        counts = {Kind.KILL_ONE: 1, Kind.KILL_ALL: size}
        count = counts.get(planned.kind) or rng.randint(2, max(2, size - 1))
        with ExitStack() as stack:
            members = self._take(stack, self._shuffled(rng), count)
            if not members:
                return
            with self._standing(planned.kind, " ".join(one.name for one in members)):
                for member in members:
                    member.signal(9)
                for member in members:
                    member.kill()
                self._stand(planned)
                for member in members:
                    member.start()

    def _stop_leader(self, planned: Planned, _rng: random.Random) -> None:
        leader = self._find_leader()
        with ExitStack() as stack:
            for member in self._take(stack, [] if leader is None else [leader], 1):
                with self._standing(planned.kind, member.name):
                    self._freeze([member], planned)

    def _stop_followers(self, planned: Planned, rng: random.Random) -> None:
        leader = self._cluster.leader()
        followers = [one for one in self._shuffled(rng) if one is not leader]
        with ExitStack() as stack:
            members = self._take(stack, followers, rng.randint(1, max(1, len(followers) // 2)))
            if members:
                with self._standing(planned.kind, " ".join(one.name for one in members)):
                    self._freeze(members, planned)

    def _freeze(self, members: list[ChaosMember], planned: Planned) -> None:
        for member in members:
            member.freeze()
        self._stand(planned)
        for member in members:
            member.thaw()

    # -- links ---------------------------------------------------------------------------------------------------------

    def _cut(self, planned: Planned, rng: random.Random) -> None:
        """A member, or some, cut off from all others; one direction only; or connections broken and refused."""
        numbers = [one.number for one in self._shuffled(rng)]
        if planned.kind is Kind.LINK_ONE_WAY:
            alone, others = numbers[0], numbers[1:]
            some = others if rng.random() < 0.5 else others[:1]
            pairs = [(alone, one) for one in some] if rng.random() < 0.5 else [(one, alone) for one in some]
        else:
            split = rng.randint(1, max(1, len(numbers) // 2))
            pairs = [(a, b) for a in numbers[:split] for b in numbers[split:]]
            pairs += [(b, a) for a, b in pairs]
        rule = Rule(reset=True) if planned.kind is Kind.LINK_RESET else Rule(cut=True)
        with self._standing(planned.kind, str(pairs)), self._effects.applied(pairs, rule):
            self._stand(planned)

    def _hamper(self, planned: Planned, rng: random.Random) -> None:
        numbers = [one.number for one in self._cluster.members]
        pairs = [(a, b) for a in numbers for b in numbers if a != b]
        chosen = rng.sample(pairs, rng.randint(1, len(pairs)))
        if planned.kind is Kind.LINK_SLOW:
            rule = Rule(delay_ms=rng.uniform(5, 400), bytes_per_second=rng.choice((0, 64 << 10, 1 << 20)))
        else:
            rule = Rule(loss=rng.uniform(0.02, 0.5))
        with self._standing(planned.kind, f"{len(chosen)} directions, {rule}"), self._effects.applied(chosen, rule):
            self._stand(planned)

    # -- disks, rings, clocks ------------------------------------------------------------------------------------------

    def _disk(self, planned: Planned, rng: random.Random) -> None:
        """The same trouble on the disks of one member, of some, or of all."""
        members = self._shuffled(rng)
        # Failing disks end members for good where their log is on the disk: a quorum of them goes on.
        most = (len(members) - 1) // 2 if planned.kind is Kind.DISK_FAILING else len(members)
        members = members[: rng.randint(1, most)]
        trouble = {
            Kind.DISK_FULL: Trouble(room_bytes=rng.choice((0, 4096, 100_000))),
            Kind.DISK_SLOW: Trouble(flush_ms=rng.choice((5, 50, 500))),
            Kind.DISK_FAILING: Trouble(fail_flushes=rng.choice((1, 2, 1000))),
            Kind.DISK_STALLED: Trouble(stalled=True),
        }[planned.kind]
        with ExitStack() as stack:
            stack.enter_context(self._standing(planned.kind, f"{' '.join(one.name for one in members)} {trouble}"))
            for member in members:
                if member.disk is not None:
                    stack.enter_context(member.disk.trouble(trouble))
            self._stand(planned)

    def _lose_ring(self, planned: Planned, rng: random.Random) -> None:
        """The ring is deleted under a killed member, which must refuse to start; another member takes its place."""
        if not self._ring.acquire(blocking=False):
            with self._lock:
                self.skipped += 1
            return
        with ExitStack() as stack:
            stack.callback(self._ring.release)
            for member in self._take(stack, self._shuffled(rng), 1):
                with self._standing(planned.kind, member.name):
                    member.kill()
                    assert member.ring is not None
                    shutil.rmtree(member.ring)
                    member.ring.mkdir()
                    self._stand(planned)
                    self._expect_absent(member)
                    self._cluster.replace(member)

    def _expect_absent(self, member: ChaosMember) -> None:
        """Without its ring a member must say *absent*; while its disk is in trouble it may say that instead."""
        while True:
            member.start()
            wait_until(f"end of {member.name} without its ring", lambda: not member.running)
            code = member.wait()
            if code == EXIT_ABSENT:
                return
            troubled = member.disk is not None and member.disk.troubled_lately()
            assert troubled, f"{member.name} without its ring ended with {code}: {member.log_text()[-600:]}"
            time.sleep(RING_SETTLE_SECONDS)

    def _shift_clock(self, planned: Planned, rng: random.Random) -> None:
        members = self._shuffled(rng)[: rng.randint(1, len(self._cluster.members))]
        shifts = {one.name: rng.choice(CLOCK_SHIFTS_SECONDS) for one in members}
        with self._standing(planned.kind, str(shifts)):
            for member in members:
                member.shift_clock(shifts[member.name])
            self._stand(planned)
            for member in members:
                member.shift_clock(0)
