"""Stories about a Raft group: a small text format, and the world that acts them out.

A script is blocks of commands, a line `----`, and the expected output up to the next blank line; `#` starts a comment.
`RAFT_REWRITE=1 pytest tests/raft` writes the output that was seen into the scripts (then read the diff).

The world is one thread, one queue of messages in order, and a disk per node. Nothing happens by itself: `run` works off
all Readys and delivers all messages until nothing is left, `process` and `deliver` do single steps. Randomness is
fixed: member N waits `election` + 2 (N - 1) ticks before it campaigns, unless `random=` says otherwise.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from raftkv_node.raft import (
    Config,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryBlock,
    EntryType,
    FetchRequest,
    Flag,
    HardState,
    InitialState,
    InvariantViolation,
    LostLogError,
    Message,
    MessageType,
    ProposalError,
    Raft,
    Ready,
    Role,
    Snapshot,
    decode_message,
    encode_message,
)


def ids_of(text: str) -> frozenset[int]:
    """Parse "1,2,3"."""
    return frozenset(int(part) for part in text.split(",") if part)


def payload_of(text: str) -> bytes:
    """The text's bytes; "*N" stands for N bytes."""
    return b"x" * int(text[1:]) if text.startswith("*") else text.encode()


def show_ids(ids: frozenset[int]) -> str:
    return ",".join(str(member) for member in sorted(ids))


def show_configuration(configuration: Configuration) -> str:
    parts = [f"voters {show_ids(configuration.voters) or 'none'}"]
    for name in ("voters_outgoing", "learners", "standbys", "learners_next", "standbys_next", "removed"):
        ids = getattr(configuration, name)
        if ids:
            parts.append(f"{name.replace('voters_', '')} {show_ids(ids)}")
    if configuration.settings:
        parts.append(f"settings {configuration.settings.decode()}")
    return " ".join(parts)


def show_entry(entry: Entry) -> str:
    if entry.type == EntryType.CONFIG:
        return f"{entry.term}/{entry.index}<{show_configuration(Configuration.decode(entry.data))}>"
    text = entry.data.decode() if len(entry.data) <= 20 else f"{len(entry.data)} bytes"
    return f"{entry.term}/{entry.index}{'=' + text if text else ''}"


def show_entries(entries: object) -> str:
    return " ".join(show_entry(entry) for entry in entries)  # type: ignore[attr-defined]


def show_message(message: Message) -> str:
    kind = MessageType(message.type)
    parts = [f"{message.sender}->{message.to} {kind.name} t{message.term}"]
    if kind == MessageType.APPEND:
        parts.append(f"after {message.log_term}/{message.index} commit {message.commit} match {message.match}")
        if message.entries:
            parts.append(f"[{show_entries(message.entries)}]")
    elif kind in (MessageType.VOTE, MessageType.PRE_VOTE):
        parts.append(f"log {message.log_term}/{message.index}")
    elif kind == MessageType.APPEND_RESPONSE:
        parts.append(f"{message.index}")
        if message.reject:
            parts.append(f"hint {message.log_term}/{message.match}")
    elif kind == MessageType.HEARTBEAT:
        parts.append(f"commit {message.commit} match {message.match} round {message.sequence}")
    elif kind == MessageType.HEARTBEAT_RESPONSE:
        parts.append(f"round {message.sequence}")
    elif kind == MessageType.READ_INDEX_RESPONSE:
        parts.append(f"{message.index}")
    elif kind in (MessageType.SNAPSHOT, MessageType.SNAPSHOT_RESPONSE):
        parts.append(f"{message.log_term}/{message.index} transfer {message.sequence} piece {message.context.decode()}")
        parts.extend([f"match {message.match}"] if kind == MessageType.SNAPSHOT else [])
    elif kind == MessageType.PROPOSE:
        parts.append(f"{message.data.decode()} ({message.context.decode()})")
    elif kind == MessageType.PROPOSE_REJECTED:
        parts.append(f"({message.context.decode()}) reason {message.reason}")
    parts.extend(flag.name.lower() for flag in Flag if message.flags & flag)
    return " ".join(parts)


class Level(IntEnum):
    """How much is told."""

    OUTCOMES = 0
    EVENTS = 1
    ALL = 2


@dataclass
class Disk:
    """What a node has durable."""

    hard_state: HardState = field(default_factory=HardState)
    configuration: Configuration = field(default_factory=Configuration)
    entries: list[Entry] = field(default_factory=list)
    snapshot: Snapshot | None = None
    """What the entries follow, where the log was replaced."""

    @property
    def base_index(self) -> int:
        return self.snapshot.index if self.snapshot is not None else 0

    def write(self, ready: Ready) -> None:
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.snapshot is not None:
            self.snapshot, self.entries = ready.snapshot, []
        if ready.entries:
            del self.entries[ready.entries[0].index - self.base_index - 1 :]
            self.entries.extend(ready.entries)


@dataclass
class Node:
    """A member of the story."""

    raft: Raft
    disk: Disk
    options: dict[str, str]
    waiting: list[Ready] = field(default_factory=list)
    fetches: list[FetchRequest] = field(default_factory=list)
    applied: list[Entry] = field(default_factory=list)
    pieces: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    """Pieces of snapshots that have come, by sender and transfer."""


class World:
    """Acts out commands; each returns lines of output."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.queue: list[Message] = []
        self.cut: set[int] = set()
        self.lines: list[str] = []
        self.lost: set[str] = set()
        self.held: list[Message] = []
        self.level = Level.ALL
        self.transfers: dict[int, tuple[Snapshot, int]] = {}
        """Snapshots that were made, and their number of pieces, by transfer."""

    def say(self, line: str, level: Level = Level.OUTCOMES) -> None:
        if level <= self.level:
            self.lines.append(line)

    def execute(self, line: str) -> None:
        """Run one command line."""
        words = shlex.split(line, comments=True)
        if not words:
            return
        command: Callable[[list[str], dict[str, str]], None] | None = getattr(
            self, f"do_{words[0].replace('-', '_')}", None
        )
        if command is None:
            raise ValueError(f"unknown command {words[0]!r}")
        plain = [word for word in words[1:] if "=" not in word]
        options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        try:
            command(plain, options)
        except ProposalError as error:
            self.say(f"refused {error.reason.name}: {error}")
        except LostLogError as error:
            self.say(f"LOST LOG: {error}")
        except InvariantViolation as error:
            self.say(f"INVARIANT {error.name.name}: {error.detail}")

    # -- setting the scene -----------------------------------------------------------------------------------

    def do_cluster(self, words: list[str], options: dict[str, str]) -> None:
        """cluster 1 2 3 [option=value]: members that all vote and have empty logs."""
        for word in words:
            self.do_node([word], {"voters": ",".join(words), **options})

    def do_node(self, words: list[str], options: dict[str, str]) -> None:
        """node N [voters= learners= standbys= log=1,1,2 term= vote= commit= random= election= ...]: start a node."""
        member = int(words[0])
        groups = {name: ids_of(options.get(name, "")) for name in ("voters", "learners", "standbys")}
        members = dict.fromkeys(sorted(frozenset().union(*groups.values())), b"")
        terms = [int(term) for term in options.get("log", "").split(",") if term]
        disk = Disk(
            HardState(
                int(options.get("term", terms[-1] if terms else 0)),
                int(options.get("vote", 0)),
                int(options.get("commit", 0)),
            ),
            Configuration(members=members, **groups),
            [Entry(term, index, EntryType.NORMAL, b"") for index, term in enumerate(terms, 1)],
        )
        self.start(member, disk, options)

    def start(self, member: int, disk: Disk, options: dict[str, str]) -> None:
        offset = int(options.get("random", 2 * (member - 1)))
        config = Config(
            id=member,
            random=lambda low, high: min(low + offset, high),
            election_ticks=int(options.get("election", 10)),
            max_append_bytes=int(options.get("append_bytes", 1 << 20)),
            max_inflight_messages=int(options.get("inflight_messages", 256)),
            max_inflight_bytes=int(options.get("inflight_bytes", 1 << 25)),
            max_uncommitted_bytes=int(options.get("uncommitted_bytes", 1 << 26)),
            max_apply_bytes=int(options.get("apply_bytes", 1 << 22)),
            pre_vote=options.get("pre_vote", "on") == "on",
            check_quorum=options.get("check_quorum", "on") == "on",
            apply_before_durable=options.get("apply_before_durable", "off") == "on",
            lazy_commit=options.get("lazy_commit", "off") == "on",
        )
        initial = InitialState(disk.hard_state, base_configuration=disk.configuration, entries=tuple(disk.entries))
        if disk.snapshot is not None:
            index, term, at, configuration = disk.snapshot
            initial = InitialState(disk.hard_state, index, term, configuration, at, tuple(disk.entries), index)
        self.nodes[member] = Node(Raft(config, initial), disk, options)

    def do_crash(self, words: list[str], _options: dict[str, str]) -> None:
        """crash N: lose all that is not on the disk."""
        del self.nodes[int(words[0])].waiting[:]

    def do_restart(self, words: list[str], options: dict[str, str]) -> None:
        """restart N [keep=I]: start from the disk, of which only the entries up to I are left if that is given."""
        node = self.nodes[int(words[0])]
        if "keep" in options:
            del node.disk.entries[int(options.pop("keep")) :]
        self.start(int(words[0]), node.disk, {**node.options, **options})

    def do_async(self, words: list[str], _options: dict[str, str]) -> None:
        """async N...: from now on writes complete only at `persist`."""
        for word in words:
            self.nodes[int(word)].options["async"] = "on"

    def do_sync(self, words: list[str], _options: dict[str, str]) -> None:
        """sync N...: writes complete at once again."""
        for word in words:
            self.nodes[int(word)].options["async"] = "off"

    # -- input -----------------------------------------------------------------------------------------------

    def do_campaign(self, words: list[str], _options: dict[str, str]) -> None:
        self.nodes[int(words[0])].raft.campaign()

    def do_tick(self, words: list[str], options: dict[str, str]) -> None:
        """tick N... [times=K]: one after the other, K times."""
        for _ in range(int(options.get("times", 1))):
            for word in words:
                self.nodes[int(word)].raft.tick()

    def do_elapse(self, words: list[str], _options: dict[str, str]) -> None:
        """elapse K: K rounds of a tick for every node and everything that follows from it; only changes are told."""
        for _ in range(int(words[0])):
            for member in sorted(self.nodes):
                self.nodes[member].raft.tick()
            self.run_all(Level.OUTCOMES, tell_roles=True)

    def do_propose(self, words: list[str], _options: dict[str, str]) -> None:
        """propose N data...: each an entry."""
        for data in words[1:]:
            ref = self.nodes[int(words[0])].raft.propose(payload_of(data))
            self.say(f"proposed {ref.term}/{ref.index}")

    def do_forward(self, words: list[str], _options: dict[str, str]) -> None:
        """forward N data context"""
        self.nodes[int(words[0])].raft.forward(payload_of(words[1]), words[2].encode())

    def do_read(self, words: list[str], _options: dict[str, str]) -> None:
        """read N context..."""
        for context in words[1:]:
            self.nodes[int(words[0])].raft.read_index(context.encode())

    def do_transfer(self, words: list[str], _options: dict[str, str]) -> None:
        accepted = self.nodes[int(words[0])].raft.transfer_leader(int(words[1]))
        self.say("accepted" if accepted else "not accepted")

    def do_change(self, words: list[str], options: dict[str, str]) -> None:
        """change N [voters= add= standby= remove= settings= demote=standby] [at=INDEX]"""
        raft = self.nodes[int(words[0])].raft
        change = ConfigurationChange(
            voters=ids_of(options["voters"]) if "voters" in options else None,
            demote_to_standby=options.get("demote") == "standby",
            add_learners=dict.fromkeys(sorted(ids_of(options.get("add", ""))), b""),
            add_standbys=dict.fromkeys(sorted(ids_of(options.get("standby", ""))), b""),
            remove=ids_of(options.get("remove", "")),
            settings=options["settings"].encode() if "settings" in options else None,
        )
        ref = raft.propose_configuration(change, int(options.get("at", raft.committed_configuration[0])))
        self.say(f"proposed {ref.term}/{ref.index}")

    def do_compact(self, words: list[str], _options: dict[str, str]) -> None:
        self.say(f"window begins after {self.nodes[int(words[0])].raft.compact(int(words[1]))}")

    def do_discard(self, words: list[str], _options: dict[str, str]) -> None:
        """discard N INDEX: entries of N up to there leave memory and disk."""
        raft, index = self.nodes[int(words[0])].raft, int(words[1])
        raft.compact(index)
        raft.entries_released(index)

    def do_snapshot(self, words: list[str], options: dict[str, str]) -> None:
        """snapshot N PEER [index=I pieces=K send=0,1]: N's caller makes a snapshot and sends its pieces (one)."""
        node, peer = self.nodes[int(words[0])], int(words[1])
        raft = node.raft
        index = int(options.get("index", raft.applied_index))
        configuration = (0, node.disk.configuration)
        for entry in node.disk.entries[: index - node.disk.base_index]:
            if entry.type == EntryType.CONFIG:
                configuration = (entry.index, Configuration.decode(entry.data))
        term = raft.term_at(index) if raft.term_at(index) >= 0 else node.disk.entries[index - 1].term
        if not raft.snapshot_started(peer, index):
            self.say("not wanted")
            return
        number = len(self.transfers) + 1
        pieces = int(options.get("pieces", 1))
        self.transfers[number] = (Snapshot(index, term, *configuration), pieces)
        self.do_pieces([words[0], words[1], str(number)], options)

    def do_pieces(self, words: list[str], options: dict[str, str]) -> None:
        """pieces N PEER TRANSFER [send=0,1]: send pieces of a snapshot (again), by default all."""
        snapshot, pieces = self.transfers[int(words[2])]
        for piece in ids_of(options["send"]) if "send" in options else range(pieces):
            context = f"{piece + 1}/{pieces}".encode()
            raft = self.nodes[int(words[0])].raft
            raft.send_snapshot(int(words[1]), snapshot.index, snapshot.term, int(words[2]), context, b"")

    def do_snapshot_failed(self, words: list[str], _options: dict[str, str]) -> None:
        """snapshot-failed N PEER: N's caller gives up."""
        self.nodes[int(words[0])].raft.snapshot_failed(int(words[1]))

    def do_install(self, words: list[str], _options: dict[str, str]) -> None:
        """install N TRANSFER: N's caller has all pieces, durable."""
        self.install(int(words[0]), int(words[1]))

    def install(self, member: int, number: int) -> None:
        taken = self.nodes[member].raft.restore(self.transfers[number][0])
        self.say(f"{member} {'takes' if taken else 'does not take'} the snapshot", Level.EVENTS)

    def transfer_message(self, member: int, message: Message) -> None:
        """What a member's caller does with a message of a transfer: a whole snapshot is installed at once."""
        node = self.nodes[member]
        if message.type == MessageType.SNAPSHOT_RESPONSE or not message.context:
            return  # (a forged piece has no context)
        _, pieces = self.transfers[message.sequence]
        have = node.pieces.setdefault((message.sender, message.sequence), set())
        have.add(int(message.context.decode().split("/")[0]))
        node.raft.answer_snapshot(message, f"{len(have)}/{pieces}".encode())
        if len(have) == pieces and node.options.get("install") != "later":
            self.install(member, message.sequence)

    def do_eager(self, words: list[str], _options: dict[str, str]) -> None:
        """eager N on|off: whether somebody waits at N for what is committed."""
        self.nodes[int(words[0])].raft.eager = words[1] == "on"

    def do_tell(self, words: list[str], _options: dict[str, str]) -> None:
        """tell N: N tells the commit index to all; says whether there was need to."""
        raft = self.nodes[int(words[0])].raft
        self.say(f"{words[0]} has {'a commit' if raft.commit_untold else 'nothing'} to tell")
        raft.tell_commit()

    def do_unreachable(self, words: list[str], _options: dict[str, str]) -> None:
        self.nodes[int(words[0])].raft.report_unreachable(int(words[1]))

    def do_provide(self, words: list[str], options: dict[str, str]) -> None:
        """provide N [fail=PEER]: answer N's fetches of old entries from its disk."""
        node = self.nodes[int(words[0])]
        fetches, node.fetches = node.fetches, []
        for peer, first, max_bytes in fetches:
            if options.get("fail") == str(peer):
                node.raft.fetch_failed(peer)
                continue
            found: list[Entry] = []
            for entry in node.disk.entries[first - 1 :]:
                if found and sum(each.size_bytes for each in found) + entry.size_bytes > max_bytes:
                    break
                found.append(entry)
            node.raft.provide_entries(peer, first, node.disk.entries[first - 2].term if first > 1 else 0, found)

    def do_send(self, words: list[str], options: dict[str, str]) -> None:
        """send TYPE FROM->TO term= index= log_term= commit= match= sequence= flags= entries=1,2: forge a message."""
        sender, to = (int(part) for part in words[1].split("->"))
        fields = {name: int(value) for name, value in options.items() if name != "entries"}
        start = fields.get("index", 0)
        entries = [
            Entry(int(term), start + position, EntryType.NORMAL, b"")
            for position, term in enumerate(options.get("entries", "").split(","), 1)
            if term
        ]
        message = Message(MessageType[words[0]], sender, to, entries=EntryBlock(entries), **fields)  # type: ignore[arg-type]
        self.nodes[to].raft.step(message)

    # -- the network -----------------------------------------------------------------------------------------

    def do_isolate(self, words: list[str], _options: dict[str, str]) -> None:
        """isolate N...: from now on messages from and to these are lost."""
        self.cut |= {int(word) for word in words}

    def do_heal(self, _words: list[str], _options: dict[str, str]) -> None:
        self.cut.clear()
        self.lost.clear()

    def do_lose(self, words: list[str], _options: dict[str, str]) -> None:
        """lose TYPE...: from now on messages of these types are lost."""
        self.lost |= set(words)

    def matching(self, words: list[str]) -> list[Message]:
        """Messages in the queue that match "1->2", "->2", "1->", a type's name, or all."""
        found = self.queue
        for word in words:
            if "->" in word:
                sender, to = word.split("->")
                found = [m for m in found if sender in ("", str(m.sender)) and to in ("", str(m.to))]
            else:
                found = [m for m in found if MessageType(m.type).name == word]
        return list(found)

    def do_messages(self, words: list[str], _options: dict[str, str]) -> None:
        """messages [pattern]: what is under way."""
        for message in self.matching(words):
            self.say(show_message(message))

    def do_deliver(self, words: list[str], options: dict[str, str]) -> None:
        """deliver [pattern] [copies=K]: deliver what is under way now, in order; answers stay in the queue."""
        chosen = self.matching(words)
        self.queue = [m for m in self.queue if not any(m is other for other in chosen)]
        for message in chosen:
            for _ in range(int(options.get("copies", 1))):
                self.hand_over(message)

    def do_drop(self, words: list[str], _options: dict[str, str]) -> None:
        chosen = self.matching(words)
        self.queue = [m for m in self.queue if not any(m is other for other in chosen)]
        for message in chosen:
            self.say(f"dropped {show_message(message)}")

    def do_hold(self, words: list[str], _options: dict[str, str]) -> None:
        """hold pattern: keep a copy of what matches for `release`, and drop it from the queue."""
        self.held = self.matching(words)
        self.queue = [m for m in self.queue if not any(m is other for other in self.held)]

    def do_release(self, _words: list[str], _options: dict[str, str]) -> None:
        """release: what `hold` kept is in the queue (again)."""
        self.queue.extend(self.held)

    def hand_over(self, message: Message) -> None:
        if message.sender in self.cut or message.to in self.cut or message.to not in self.nodes:
            return
        if MessageType(message.type).name in self.lost:
            return
        self.say(show_message(message), Level.ALL)
        self.nodes[message.to].raft.step(decode_message(encode_message(message)))

    # -- turns -----------------------------------------------------------------------------------------------

    def do_process(self, words: list[str], _options: dict[str, str]) -> None:
        """process N...: work off the Readys of these nodes; messages go to the queue."""
        for word in words:
            self.process(int(word))

    def process(self, member: int) -> bool:
        node = self.nodes[member]
        worked = False
        while node.raft.has_ready():
            worked = True
            ready = node.raft.ready()
            self.queue.extend(ready.messages)
            self.tell(member, ready)
            if node.options.get("async") == "on":
                if ready.must_sync or ready.messages_after_persist:
                    node.waiting.append(ready)
            else:
                self.complete(node, ready)
            if ready.snapshot is not None and node.options.get("async") != "on":
                node.raft.applied(ready.snapshot.index)
            for message in ready.snapshot_messages:
                self.transfer_message(member, message)
            node.fetches.extend(ready.fetch_requests)
            if ready.committed_entries:
                node.applied.extend(ready.committed_entries)
                node.raft.applied(ready.committed_entries[-1].index)
        return worked

    def complete(self, node: Node, ready: Ready) -> None:
        node.disk.write(ready)
        node.raft.persisted(ready.number)
        if ready.snapshot is not None and node.options.get("async") == "on":
            node.raft.applied(ready.snapshot.index)
        self.queue.extend(ready.messages_after_persist)

    def do_persist(self, words: list[str], options: dict[str, str]) -> None:
        """persist N [count=K]: the oldest K (default all) writes of an async node complete."""
        node = self.nodes[int(words[0])]
        count = int(options.get("count", len(node.waiting)))
        done, node.waiting = node.waiting[:count], node.waiting[count:]
        for ready in done:
            self.complete(node, ready)

    def tell(self, member: int, ready: Ready) -> None:
        """Describe a Ready's effects."""
        if ready.soft_state:
            self.say(self.describe_role(member), Level.EVENTS)
        if ready.snapshot is not None:
            at, configuration = ready.snapshot.configuration_index, ready.snapshot.configuration
            where = f"{ready.snapshot.term}/{ready.snapshot.index}"
            self.say(
                f"{member} replaces its log after {where}, {at}: {show_configuration(configuration)}", Level.EVENTS
            )
        if ready.entries:
            self.say(f"{member} writes {show_entries(ready.entries)}", Level.EVENTS)
        if ready.configuration:
            index, configuration = ready.configuration
            self.say(f"{member} is in configuration {index}: {show_configuration(configuration)}", Level.EVENTS)
        if ready.committed_entries:
            self.say(f"{member} applies {show_entries(ready.committed_entries)}", Level.EVENTS)
        for index, context in ready.read_states:
            self.say(f"{member} may read {context.decode()} at {index}")
        for context, reason in ready.read_failures:
            self.say(f"{member} read {context.decode()} failed: {reason.name}")
        for context, why in ready.rejected_proposals:
            self.say(f"{member} proposal {context.decode()} was rejected: {why.name}")
        for request in ready.fetch_requests:
            self.say(f"{member} fetches from {request.first} for {request.peer}", Level.EVENTS)
        for peer in ready.snapshot_requests:
            self.say(f"{member} must send {peer} a snapshot", Level.EVENTS)

    def describe_role(self, member: int) -> str:
        raft = self.nodes[member].raft
        leader = f", follows {raft.leader_id}" if raft.leader_id not in (0, member) else ""
        moving = f", hands over to {raft.status().transferee}" if raft.status().transferee else ""
        return f"{member} is {Role(raft.role).name} of term {raft.term}{leader}{moving}"

    def do_run(self, words: list[str], _options: dict[str, str]) -> None:
        """run [quiet|silent]: until nothing is left to do; quiet: no messages, silent: only outcomes of requests."""
        level = {(): Level.ALL, ("quiet",): Level.EVENTS, ("silent",): Level.OUTCOMES}[tuple(words)]
        self.run_all(level, tell_roles=False)

    def run_all(self, level: Level, tell_roles: bool) -> None:
        self.level = level
        before = {member: self.describe_role(member) for member in sorted(self.nodes)}
        for _ in range(1000):
            worked = [self.process(member) for member in sorted(self.nodes)]
            messages, self.queue = self.queue, []
            for message in messages:
                self.hand_over(message)
            if not messages and not any(worked):
                break
        else:
            raise AssertionError("no end in 1000 rounds")
        self.level = Level.ALL
        if tell_roles:
            for member, role in before.items():
                if self.describe_role(member) != role:
                    self.lines.append(self.describe_role(member))

    # -- looking ---------------------------------------------------------------------------------------------

    def do_status(self, words: list[str], _options: dict[str, str]) -> None:
        for member in [int(word) for word in words] or sorted(self.nodes):
            status = self.nodes[member].raft.status()
            marks = f"last {status.last_index} durable {status.durable_index} commit {status.commit_index}"
            self.say(f"{self.describe_role(member)}; {marks} applied {status.applied_index}")

    def do_log(self, words: list[str], _options: dict[str, str]) -> None:
        for member in [int(word) for word in words] or sorted(self.nodes):
            disk = self.nodes[member].disk
            start = f"({disk.snapshot.term}/{disk.snapshot.index}) " if disk.snapshot is not None else ""
            self.say(f"{member}: {start}{show_entries(disk.entries)}".rstrip())

    def do_progress(self, words: list[str], _options: dict[str, str]) -> None:
        """progress N: how the leader N sees the others."""
        status = self.nodes[int(words[0])].raft.status()
        for member, seen in status.members.items():
            if member != status.id:
                flight = f"in flight {seen.inflight_messages} ({seen.inflight_bytes} bytes)"
                ticks = "?" if seen.ticks_behind is None else seen.ticks_behind
                behind = f"behind {seen.entries_behind} entries, {ticks} ticks"
                self.say(f"{member}: {seen.state.name} match {seen.match} next {seen.next} {flight} {behind}")

    def do_configuration(self, words: list[str], _options: dict[str, str]) -> None:
        for member in [int(word) for word in words] or sorted(self.nodes):
            raft = self.nodes[member].raft
            self.say(f"{member}: {raft.configuration_index}: {show_configuration(raft.configuration)}")


def run_script(text: str) -> str:
    """Return the script with the output that was seen in place of the expected one."""
    world = World()
    result: list[str] = []
    block: list[str] = []
    lines = iter([*text.splitlines(), ""])
    for line in lines:
        if line.strip() == "----":
            world.lines = []
            for command in block:
                world.execute(command)
            result.extend([*block, "----", *world.lines, ""])
            block = []
            for skipped in lines:
                if not skipped.strip():
                    break
        elif line.strip():
            block.append(line)
        else:
            if any(command.strip() and not command.startswith("#") for command in block):
                raise ValueError(f"commands without ----: {block}")
            result.extend([*block, ""] if block else [])
            block = []
    return "\n".join(result).rstrip("\n") + "\n"
