"""Five members over three sites that are far from each other, as simulated production members.

Units of time are milliseconds. One way, a message takes 1 ms within a site, 40 ms between "home" and "near", and 120 ms
to and from "far". Two members are at home, two near, one far. So a leader at home has its second acknowledgement, which
completes the quorum of three, after 80 ms: the third-fastest member's round trip, its own being the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from raftkv_node.api.methods import Method
from raftkv_node.pb import rpc_pb2
from raftkv_node.server.preference import SETTLE_TIMEOUTS, WINDOW_TIMEOUTS, WINDOWS
from simulation_member import MemberNode
from simulation_node import Timing
from simulation_setup import Setup
from simulation_story import CALM, StoryWorld

SITES = {1: "home", 2: "home", 3: "near", 4: "near", 5: "far"}
ONE_WAY = {
    **{(one, one): 1 for one in ("home", "near", "far")},
    **dict.fromkeys((("home", "near"), ("near", "home")), 40),
    **dict.fromkeys((("home", "far"), ("far", "home"), ("near", "far"), ("far", "near")), 120),
}
ROUND_TRIP = 240
"""Between the far site and any other."""
SECOND = 1000
TIMING = Timing(election_ticks=10, heartbeat_ticks=1, max_append_bytes=1000, max_inflight_messages=64)
SETTLE = SETTLE_TIMEOUTS * SECOND
"""An election timeout is a second."""


def five(preference: tuple[str, ...] = ()) -> Setup:
    return Setup(
        members=5,
        clients=0,
        faults=CALM,
        timing=TIMING,
        zones=3,
        leader_preference=preference,
        unit_milliseconds=1,
        latencies=ONE_WAY,
        # as often as a node does it: a buffer that is full holds writes up for as long as it is full
        drain=1.0,
    )


@dataclass(frozen=True)
class Write:
    """A write that was answered."""

    node: int
    sent: int
    answered: int

    @property
    def took(self) -> int:
        return self.answered - self.sent


class FarWorld(StoryWorld):
    """Writes come at a steady pace, and each is timed."""

    first = 1
    """Who is to lead at the beginning."""

    def zone_of(self, member: int) -> str:
        return SITES[member]

    def _run(self) -> None:
        self.writes: list[Write] = []
        self.sent_at: dict[int, int] = {}
        self.errors: list[str] = []
        super()._run()

    def write_from(self, *members: int, every: int = 50, until: int) -> None:
        """Writes arrive at these members, one at each every so many milliseconds, up to a time."""
        for member in members:
            node = self.nodes[member]
            if node.up:
                self.sent_at[self.next_request + 2] = self.now
                self.call(node, [(Method.PUT, rpc_pb2.PutRequest(key=b"k", value=self.unique()))])
        if self.now + every < until:
            self.at(every, self.keep_writing, members, every, until)

    def keep_writing(self, members: tuple[int, ...], every: int, until: int) -> None:
        self.write_from(*members, every=every, until=until)

    def replied(self, node: MemberNode, call_id: int, message: bytes) -> None:
        if call_id in self.sent_at:
            self.writes.append(Write(node.id, self.sent_at.pop(call_id), self.now))
        super().replied(node, call_id, message)

    def failed(self, node: MemberNode, call_id: int, code: int, text: str) -> None:
        if call_id in self.sent_at:
            self.errors.append(text)
        super().failed(node, call_id, code, text)

    def lead(self, member: int) -> None:
        """Have a member lead."""
        self.wait_for("leader", self.settled)
        if not self.leader_is(member):
            self.transfer_now(self.leaders()[0], member)
        self.wait_for(f"lead of {member}", lambda: self.leader_is(member) and self.settled())

    def took_between(self, begin: int, end: int, node: int) -> list[int]:
        """How long the writes took that arrived at a member in this time."""
        return sorted(one.took for one in self.writes if one.node == node and begin <= one.sent < end)

    def longest_gap(self, begin: int, end: int) -> int:
        """The longest time without any acknowledgement."""
        times = sorted([begin, *(one.answered for one in self.writes if begin <= one.answered <= end)])
        return max(after - before for before, after in pairwise(times))

    def all_answered(self) -> None:
        """Nothing was refused, nothing is lost."""
        self.wait_for("all answers", lambda: not self.sent_at)
        assert not self.errors


class ThirdFastest(FarWorld):
    """A leader at home, then one far away; then members that stall."""

    def timed(self, leader: int) -> list[int]:
        """How long writes at the leader take in five seconds."""
        begin = self.now
        self.write_from(leader, every=100, until=begin + 5 * SECOND)
        self.run_until(begin + 6 * SECOND)
        return self.took_between(begin, begin + 5 * SECOND, leader)

    def story(self) -> None:
        self.lead(1)
        took = self.timed(1)
        assert len(took) == 50
        assert 80 <= took[0] <= took[-1] <= 90, "the third-fastest member, there and back"
        self.stalled(5, took)
        self.stalled(4, took)
        self.lead(5)
        took = self.timed(5)
        assert 240 <= took[0] <= took[-1] <= 250, "far from all others"
        self.all_answered()

    def stalled(self, member: int, undisturbed: list[int]) -> None:
        """A member does not take anything any more: the others' writes take as long as before, and what the leader
        keeps for it stays within its bounds."""
        raft = self.leaders()[0].raft
        self.asleep[member] = self.now + 6 * SECOND
        took = self.timed(1)
        state = raft.status().members[member]
        assert state.inflight_messages <= raft.config.max_inflight_messages
        assert state.inflight_bytes <= raft.config.max_inflight_bytes
        assert took[-1] <= undisturbed[-1] + 2
        assert sum(took) <= 1.05 * sum(undisturbed)
        self.wait_for("the sleeper", self.converged)


class Backlog(FarWorld):
    """A member stalls for long, under load: bytes and messages on the way to it have a bound."""

    def story(self) -> None:
        self.lead(1)
        raft = self.leaders()[0].raft
        self.asleep[5] = self.now + 40 * SECOND
        self.write_from(1, 2, 3, every=100, until=self.now + 30 * SECOND)
        sizes = []
        for _ in range(30):
            self.run_until(self.now + SECOND)
            waiting = sum(1 for event in self.events if len(event[3]) > 2 and event[3][0] is self.nodes[5])
            sizes.append((waiting, raft.status().members[5].inflight_messages))
        assert max(inflight for _, inflight in sizes) <= TIMING.max_inflight_messages
        appends = [waiting for waiting, _ in sizes]
        growth = appends[-1] - appends[9]
        assert growth <= 20 * 11 * 1.5, f"nothing but heartbeats, of which a second has ten, is sent on and on: {sizes}"
        self.wait_for("the sleeper", self.converged, patience=60 * SECOND)
        self.all_answered()


class PreferredSite(FarWorld):
    """The leader is far away, and wished at home."""

    def story(self) -> None:
        self.lead(5)
        begin = self.now
        self.write_from(1, 2, 3, 4, 5, every=100, until=begin + 2 * SETTLE)
        self.wait_for("leader at home", lambda: self.leader_is(1, 2), patience=3 * SETTLE)
        moved = self.now
        assert moved - begin >= 0.6 * SETTLE, "a leader leads for a while before it goes (clocks run unevenly)"
        self.run_until(begin + 2 * SETTLE + SECOND)
        gap = self.longest_gap(begin + SECOND, begin + 2 * SETTLE)
        assert gap <= 1.25 * ROUND_TRIP, "about one round trip between the old leader and the new one"
        self.all_answered()
        before, after = self.took_between(begin, moved - SECOND, 1), self.took_between(moved + SECOND, self.now, 1)
        assert median(after) <= 90
        assert median(before) >= 2 * ROUND_TRIP
        assert self.leader_is(1, 2), "and it stays"


class WhereWritesComeFrom(FarWorld):
    """The leader follows the writes, and stays where nobody sends most of them."""

    def story(self) -> None:
        self.lead(1)
        window = (WINDOWS + 2) * WINDOW_TIMEOUTS * SECOND
        begin = self.now
        self.write_from(3, every=100, until=begin + 3 * window)
        self.wait_for("leader near", lambda: self.leader_is(3, 4), patience=2 * window)
        self.run_until(begin + 3 * window + SECOND)
        self.all_answered()
        leader = self.leaders()[0].id
        begin = self.now
        self.write_from(1, 3, 5, every=100, until=begin + 2 * window)
        self.run_until(begin + 2 * window + SECOND)
        assert self.leader_is(leader), "nobody sends most"
        self.all_answered()


def test_commit_latency_is_the_third_fastest_members_and_stalled_ones_change_nothing() -> None:
    ThirdFastest(1, five()).run()


def test_the_backlog_of_a_stalled_member_is_bounded() -> None:
    Backlog(1, five()).run()


def test_the_leader_moves_to_the_preferred_site_without_an_outage() -> None:
    PreferredSite(8, five(("home",))).run()


def test_the_leader_follows_the_writes() -> None:
    WhereWritesComeFrom(1, five(("Writers",))).run()
