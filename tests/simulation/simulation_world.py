"""A whole cluster in one thread, from one seed: network, disks, crashes, clients, an operator, and time.

Everything that happens is an event in a heap, everything random comes from one generator, so a seed replays a run to
the letter. A run has two phases. In the **safety phase** all faults are on: messages are lost, doubled, late and out of
order, the network splits, processes die at every point of their turn, sleep and wake up late, clocks run unevenly,
members are added, promoted, demoted and removed. `simulation_checks` looks at every turn. In the **liveness phase** the
faults end, everybody who is needed is started, and the cluster must elect a leader, serve, and converge.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

from raftkv_node.raft import (
    Configuration,
    ConfigurationChange,
    FetchRequest,
    InvariantViolation,
    LostLogError,
    Message,
    ProposalError,
    Raft,
    Ready,
    decode_message,
    encode_message,
    initial_configuration,
)
from simulation_checks import Checks, Violation
from simulation_node import CrashError, SimNode
from simulation_setup import Setup, setup_of
from simulation_storage import LogStore, ModelLog, ModelStore


class World:
    """The run of one seed. `run` returns when both phases are over, or raises what went wrong."""

    def __init__(
        self,
        seed: int,
        setup: Setup | None = None,
        raft_class: Callable[..., Raft] = Raft,
        node_class: type[SimNode] = SimNode,
        log_class: Callable[[Configuration], LogStore] = ModelLog,
    ) -> None:
        self.seed = seed
        self.setup = setup or setup_of(seed)
        self.rng = random.Random(seed)
        self.raft_class, self.node_class, self.log_class = raft_class, node_class, log_class
        self.now = 0
        self.events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.sequence = 0
        self.checks = Checks()
        self.nodes: dict[int, SimNode] = {}
        self.asleep: dict[int, int] = {}
        self.gone: set[int] = set()
        """Members that never come back."""
        self.groups: list[set[int]] = []
        self.cuts: set[tuple[int, int]] = set()
        """Links that carry nothing, as (sender, receiver)."""
        self.numbers: dict[tuple[int, int], int] = {}
        """Messages that were sent over each link, and the highest number that has arrived there."""
        self.arrived: dict[tuple[int, int], int] = {}
        self.faulty = True
        self.struck: list[str] = []
        """Each single fault that has happened: the number of its fault event and its kind, or of its death."""
        self.skipped = frozenset(self.setup.skip)
        self.fault_events = self.deaths = 0
        self.trace: list[str] = []
        self.points: dict[str, int] = {}
        self.crash_armed = True
        self.next_id = self.setup.members + 1
        self.next_request = 0
        self.acknowledged = 0
        self.answered_index = 0
        self.read_floor: dict[bytes, int] = {}
        self.reads_served = self.reads_failed = self.changes_made = self.crashes = 0
        configuration = initial_configuration(range(1, self.setup.members + 1))
        for member in range(1, self.setup.members + 1):
            self.add_node(member, configuration)

    # -- time and events -------------------------------------------------------------------------------------

    def at(self, delay: int, action: Callable[..., None], *arguments: Any) -> None:
        self.sequence += 1
        heapq.heappush(self.events, (self.now + delay, self.sequence, action, arguments))

    def note(self, text: str) -> None:
        self.trace.append(f"{self.now} {text}")

    def run_until(self, time: int) -> None:
        while self.events and self.events[0][0] <= time:
            self.now, _, action, arguments = heapq.heappop(self.events)
            action(*arguments)
        self.now = time

    def run(self) -> World:
        for client in range(self.setup.clients):
            self.at(self.rng.randint(1, 30), self.client, client)
        self.at(self.setup.faults.fault_every, self.fault)
        self.run_until(self.setup.duration)
        self.liveness()
        return self

    # -- places ----------------------------------------------------------------------------------------------

    def zone_of(self, member: int) -> str:
        """Where a member stands; empty where nobody knows of zones."""
        return f"zone-{'abcdefghi'[(member - 1) % self.setup.zones]}" if self.setup.zones else ""

    def delay(self, sender: int, to: int) -> int:
        """How long a message is on its way."""
        known = self.setup.latencies.get((self.zone_of(sender), self.zone_of(to)))
        return self.rng.randint(1, 3) if known is None else known

    # -- nodes -----------------------------------------------------------------------------------------------

    def add_node(self, member: int, configuration: Configuration) -> None:
        setup = self.setup
        node = self.node_class(
            member,
            self,
            self.log_class(configuration),
            ModelStore(),
            random.Random(self.rng.getrandbits(64)),
            setup.timing,
            self.raft_class,
            setup.slow_disks,
            setup.apply_before_durable,
        )
        self.nodes[member] = node
        self.start(node)

    def start(self, node: SimNode) -> None:
        if node.up or node.id in self.gone:
            return
        self.note(f"{node.id} starts")
        self.guard(node, node.start)
        self.checks.started(node)
        self.at(self.rng.randint(1, 10), self.tick, node, node.incarnation)
        self.act(node, node.turn)

    def crash(self, node: SimNode, restart_after: int | None = None) -> None:
        self.crashes += 1
        self.note(f"{node.id} crashes")
        node.crash()
        self.asleep.pop(node.id, None)
        self.at(restart_after or self.rng.randint(5, self.setup.faults.restart), self.start, node)

    def act(self, node: SimNode, action: Callable[..., None], *arguments: Any) -> None:
        """Let a node do something; it may die of it."""
        if not node.up:
            return
        wake = self.asleep.get(node.id, 0)
        if wake > self.now:
            # what arrives meanwhile waits in the sockets, in order
            self.at(wake - self.now, self.act_in, node, node.incarnation, action, arguments)
            return
        self.guard(node, action, *arguments)

    def guard(self, node: SimNode, action: Callable[..., None], *arguments: Any) -> None:
        """Run a node's code: it may be killed in it, or find out that something is wrong."""
        try:
            action(*arguments)
        except CrashError:
            self.crash(node)
        except InvariantViolation as error:
            raise Violation(error.name.name, f"{error.detail} at {node.id}") from error
        except LostLogError as error:
            raise Violation("M15_LOST_LOG", str(error)) from error

    def act_in(self, node: SimNode, incarnation: int, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if node.incarnation == incarnation:
            self.act(node, action, *arguments)

    def tick(self, node: SimNode, incarnation: int) -> None:
        """A node's clock: about every 10, unevenly."""
        if node.incarnation != incarnation or not node.up:
            return
        pace = (self.rng.randint(7, 14) if self.faulty else 10) * 10 // self.setup.unit_milliseconds
        self.at(max(pace, self.asleep.get(node.id, 0) - self.now), self.tick, node, incarnation)
        if self.asleep.get(node.id, 0) <= self.now:
            self.act(node, self.tick_now, node)

    def tick_now(self, node: SimNode) -> None:
        node.raft.tick()
        if self.rng.random() < 0.05:
            node.commit_store()
        if self.rng.random() < 0.02:
            node.raft.compact(node.raft.applied_index)
        node.turn()

    # -- what nodes ask of their world -----------------------------------------------------------------------

    def reach(self, node: SimNode, point: str) -> None:
        self.points[point] = self.points.get(point, 0) + 1
        if self.faulty and self.rng.random() < self.setup.faults.crash and self.dies():
            self.note(f"{node.id} dies {point}")
            raise CrashError(point)

    def dies(self) -> bool:
        """Whether the next death of a process that chance wants takes place."""
        self.deaths += 1
        return self.happens(f"death {self.deaths}")

    def happens(self, fault: str) -> bool:
        """Whether a single fault takes place, or is one of those that are left out."""
        if fault in self.skipped:
            return False
        self.struck.append(fault)
        return True

    def send(self, message: Message) -> None:
        self.checks.sent(message)
        faults, rng = self.setup.faults, self.rng
        copies = 1
        if self.faulty:
            if rng.random() < faults.lose:
                self.checks.count("messages lost")
                return
            if rng.random() < faults.double:
                self.checks.count("messages doubled")
                copies = 2
        link = message.sender, message.to
        number = self.numbers[link] = self.numbers.get(link, 0) + 1
        data = encode_message(message)
        for _ in range(copies):
            delay = self.delay(*link)
            if self.faulty and rng.random() < faults.late:
                self.checks.count("messages late")
                delay = rng.choice((10, 40, 200))
            self.at(delay, self.deliver, *link, data, number)

    def deliver(self, sender: int, to: int, data: bytes, number: int) -> None:
        node = self.nodes.get(to)
        if node is None or not node.up or not self.passes(sender, to):
            return
        if number < self.arrived.get((sender, to), 0):
            self.checks.count("messages out of order")
        else:
            self.arrived[sender, to] = number
        self.act(node, self.step, node, data)

    def passes(self, sender: int, to: int) -> bool:
        """Whether the network carries what has come so far."""
        if self.connected(sender, to):
            return True
        self.checks.count("messages cut off")
        return False

    def step(self, node: SimNode, data: bytes) -> None:
        node.raft.step(decode_message(data))
        node.turn()

    def connected(self, sender: int, to: int) -> bool:
        """Whether the network carries anything in this direction."""
        if (sender, to) in self.cuts:
            return False
        return not self.groups or any(sender in group and to in group for group in self.groups)

    def linked(self, member: int) -> frozenset[int]:
        """Members that a member has a working link to."""
        return frozenset(
            one for one, node in self.nodes.items() if one != member and node.up and self.connected(member, one)
        )

    def start_flush(self, node: SimNode) -> None:
        self.at(self.rng.randint(1, self.setup.flush), self.act_in, node, node.incarnation, node.flush_done, ())

    def start_fetch(self, node: SimNode, request: FetchRequest) -> None:
        self.at(self.rng.randint(1, 10), self.act_in, node, node.incarnation, node.fetch_done, (request,))

    def observe(self, node: SimNode, ready: Ready) -> None:
        self.checks.turn(node, ready, self.nodes)
        self.checks.applied(node, ready.committed_entries)

    # -- clients ---------------------------------------------------------------------------------------------

    def client(self, client: int) -> None:
        """A client writes or reads somewhere, and comes back later."""
        self.at(self.rng.randint(5, 60), self.client, client)
        node = self.nodes[self.rng.choice(sorted(self.nodes))]
        if not node.up:
            return
        self.next_request += 1
        if self.rng.random() < 0.6:
            self.act(node, self.put, node, f"{client}.{self.next_request}")
        else:
            context = f"r{self.next_request}".encode()
            self.read_floor[context] = self.answered_index
            self.act(node, self.read, node, context)

    def put(self, node: SimNode, request: str) -> None:
        node.put(request)
        if self.rng.random() < 0.5:
            node.put(f"{request}b")
        node.turn()

    def read(self, node: SimNode, context: bytes) -> None:
        node.raft.read_index(context)
        node.turn()

    def answered(self, node: SimNode, request: str) -> None:
        self.acknowledged += 1
        self.answered_index = max(self.answered_index, node.raft.applied_index)

    def rejected(self, _node: SimNode, request: str) -> None:
        self.checks.rejected.add(request)
        if request in self.checks.requests:
            raise Violation("M16_REJECTED", f"{request} is refused, but was applied")

    def read_served(self, node: SimNode, context: bytes, index: int) -> None:
        """A read must see every write that was acknowledged, and every state that was read, before it began."""
        self.reads_served += 1
        floor = self.read_floor.pop(context)
        if index < floor:
            raise Violation("LINEARIZABLE_READ", f"{node.id} serves {context!r} at {index}, {floor} was known before")
        self.answered_index = max(self.answered_index, index)

    def read_failed(self, _node: SimNode, context: bytes) -> None:
        self.reads_failed += 1
        self.read_floor.pop(context)

    # -- faults ----------------------------------------------------------------------------------------------

    def fault(self) -> None:
        """A fault event: now and then this or that goes wrong, or is well again."""
        if not self.faulty:
            return
        rng = self.rng
        self.at(rng.randint(1, 2 * self.setup.faults.fault_every), self.fault)
        self.fault_events += 1
        try:
            self.faults()
        finally:
            self.rng = rng

    def strikes(self, kind: str, chance: float) -> bool:
        """Whether a fault happens in this event.

        What it does is then drawn from a generator of its own, so that a run in which it is left out is the same in all
        that does not follow from it.
        """
        if not chance:
            return False
        fault = f"{self.fault_events} {kind}"
        self.rng = random.Random(f"{self.seed} {fault}")
        return self.rng.random() < chance and self.happens(fault)

    def faults(self) -> None:
        """Split or heal the network, put a process to sleep, change the membership, move the lead."""
        faults = self.setup.faults
        if self.groups and self.strikes("heal", 0.5):
            self.groups = []
            self.note("the network heals")
        elif self.strikes("partition", faults.partition):
            self.split()
        if self.cuts and self.strikes("links heal", 0.5):
            self.cuts = set()
            self.note("all links carry both ways")
        elif not self.cuts and self.strikes("one way", faults.one_way):
            self.cut_one_way()
        for kind, chance, action in (
            ("sleep", faults.sleep, self.sleep),
            ("away", faults.away, self.take_away),
            ("freeze", faults.freeze, self.freeze),
            ("change", faults.change, self.change),
            ("transfer", faults.transfer, self.transfer),
        ):
            if self.strikes(kind, chance):
                action()

    def sleep(self) -> None:
        """A process stands still, and then goes on as if nothing had been."""
        member = self.rng.choice(sorted(self.nodes))
        self.checks.count("pauses")
        self.asleep[member] = self.now + self.rng.randint(50, 500)
        self.note(f"{member} sleeps until {self.asleep[member]}")

    def take_away(self) -> None:
        """Kill a member that the others can do without, for a long time."""
        if len(self.nodes) < 3 or not all(node.up for node in self.nodes.values()):
            return
        node = self.nodes[self.rng.choice(sorted(self.nodes))]
        self.note(f"{node.id} goes away")
        self.crash(node, self.rng.randint(150, 450))

    def split(self) -> None:
        members = sorted(self.nodes)
        self.rng.shuffle(members)
        cut = self.rng.randint(1, max(1, len(members) - 1))
        self.groups = [set(members[:cut]), set(members[cut:])]
        if self.rng.random() < 0.2:
            # a bridge: one member hears both sides
            self.groups[1].add(members[0])
            self.checks.count("bridged partitions")
        elif len(members) > 1:
            self.checks.count("full partitions")
        self.note(f"the network splits: {[sorted(group) for group in self.groups]}")

    def cut_one_way(self) -> None:
        """A member, the leader rather than others, is not heard by some, or hears nothing of them."""
        leaders = [node.id for node in self.leaders()]
        members = sorted(self.nodes)
        one = self.rng.choice(leaders if leaders and self.rng.random() < 0.5 else members)
        others = [other for other in members if other != one]
        chosen = self.rng.sample(others, self.rng.randint(min(1, len(others)), len(others)))
        deaf = self.rng.random() < 0.5
        self.cuts = {(other, one) if deaf else (one, other) for other in chosen}
        if self.cuts:
            self.checks.count("one-way cuts")
            self.note(f"{one} {'hears nothing of' if deaf else 'is not heard by'} {sorted(chosen)}")

    def freeze(self) -> None:
        """Cut a leader off and stop it; clients still reach it when it wakes up."""
        for node in self.leaders()[:1]:
            self.groups = [{node.id}, set(self.nodes) - {node.id}]
            self.checks.count("full partitions")
            self.checks.count("pauses")
            self.asleep[node.id] = self.now + self.rng.randint(50, 400)
            self.note(f"{node.id} is cut off and sleeps until {self.asleep[node.id]}")

    def leaders(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.up and node.raft.is_leader]

    def transfer(self) -> None:
        for node in self.leaders():
            target = self.rng.choice(sorted(self.nodes))
            self.act(node, self.transfer_now, node, target)

    def transfer_now(self, node: SimNode, target: int) -> None:
        node.raft.transfer_leader(target)
        node.turn()

    def change(self) -> None:
        """The operator changes the membership at whoever believes to lead; its view may be old."""
        for node in self.leaders():
            index, configuration = node.raft.committed_configuration
            change = self.wish(configuration)
            if change is not None:
                self.act(node, self.change_now, node, change, index)

    def wish(self, configuration: Configuration) -> ConfigurationChange | None:
        """Some change that might be wanted."""
        rng, voters = self.rng, configuration.voters
        others = sorted(configuration.learners | configuration.standbys)
        kind = rng.random()
        if kind < 0.35 and len(configuration.ids) < 6:
            member, self.next_id = self.next_id, self.next_id + 1
            self.add_node(member, Configuration())
            return ConfigurationChange(add_learners={member: b""})
        if kind < 0.7 and others:
            keep = rng.sample(sorted(voters), rng.randint(max(1, len(voters) - 2), len(voters)))
            new = rng.sample(others, rng.randint(1, len(others)))
            return ConfigurationChange(voters=frozenset(keep) | frozenset(new), demote_to_standby=rng.random() < 0.5)
        if kind < 0.9 and len(configuration.ids) > 2:
            return ConfigurationChange(remove=frozenset(rng.sample(sorted(configuration.ids), 1)))
        return ConfigurationChange(settings=str(self.now).encode())

    def change_now(self, node: SimNode, change: ConfigurationChange, index: int) -> None:
        try:
            node.raft.propose_configuration(change, index)
            self.changes_made += 1
            self.note(f"{node.id} proposes {change}")
        except ProposalError:
            pass
        node.turn()

    # -- liveness --------------------------------------------------------------------------------------------

    def liveness(self) -> None:
        """No more faults, no more requests: the members of the final configuration must elect, serve, and converge."""
        self.faulty = False
        self.groups, self.cuts, self.asleep = [], set(), {}
        self.events = [event for event in self.events if event[2] != self.client]
        heapq.heapify(self.events)
        self.note("faults end")
        for member in sorted(self.nodes.keys() - self.gone):
            self.start(self.nodes[member])
        self.wait_for("leader that commits", self.settled)
        self.wait_for("write", self.written)
        self.wait_for("convergence", self.converged)
        leader = self.leaders()[0]
        members = [self.nodes[member] for member in sorted(leader.raft.configuration.ids - self.gone)]
        if len({node.store.digest() for node in members}) != 1:
            raise Violation("STATE_MACHINE_SAFETY", "members that applied the same entries differ")

    def wait_for(self, what: str, condition: Callable[[], bool], patience: int = 12000) -> None:
        deadline = self.now + patience
        while not condition():
            if self.now >= deadline:
                raise Violation("LIVENESS", f"no {what}: {self.describe()}")
            self.run_until(self.now + 100)

    def written(self) -> bool:
        """Whether a write has been served; tries another one if not (the leader may just be handing over)."""
        if any(request.startswith("last") for request in self.checks.requests):
            return True
        for leader in self.leaders():
            self.act(leader, self.put, leader, f"last{self.now}")
        return False

    def settled(self) -> bool:
        """Whether one member leads, has no change half done, and has committed all it has."""
        leaders = self.leaders()
        return (
            len(leaders) == 1
            and not leaders[0].raft.configuration.joint
            and leaders[0].raft.commit_index == leaders[0].raft.last_index
        )

    def converged(self) -> bool:
        """Whether every member of the configuration has applied the leader's whole log."""
        if not self.settled():
            return False
        raft = self.leaders()[0].raft
        living = raft.configuration.ids - self.gone
        return all(self.nodes[member].store.applied == raft.last_index for member in living)

    def describe(self) -> str:
        lines = []
        for member, node in sorted(self.nodes.items()):
            status = node.raft.status()
            lines.append(
                f"{member}: {status.role.name} t{status.term} leader {status.leader_id} last {status.last_index} "
                f"commit {status.commit_index} applied {node.store.applied} "
                f"voters {sorted(status.configuration.voters)} out {sorted(status.configuration.voters_outgoing)}"
            )
        return "; ".join(lines)
