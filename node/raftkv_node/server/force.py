"""`--force-new-cluster`: a deliberate way out when the quorum is gone (M6, D12).

One member's data become a new cluster of one voter. What other members had, and this one has not, is lost; so the first
run only says what that may be, and changes nothing. The second one names the cluster whose loss is accepted.

The new cluster has a **new cluster id and member id**, and all old ids are in its removed set. Under the old ids the
members that were believed to be lost would come back as members of two clusters at once: they would vote, acknowledge
and lead in one history, while this one goes on in another. Under new ids they are strangers, and are refused.

The order, each step durable before the next:

1. The identity file: the new ids, drawn once (``forcing``). From here on every start finishes the work, with flags or
   without, and nothing else is done with the disk.
2. The log, still under the old ids: a hard state and a configuration entry of a later term, all of it committed. Closed
   clean, so that no ring is needed any more.
3. Segments and manifest take the new ids, the manifest last (`adr/adopt.py`).
4. The identity file: it is the new member, and no longer ``forcing``.
5. What is left of the old member's ring and knowledge of others goes.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import MappingProxyType

from raftkv_node.adr import Files, Log, LogError, Recovered, Refused, adopt_log, adoption_begun, records
from raftkv_node.adr.log import LogOptions
from raftkv_node.adr.ringfile import ring_folder
from raftkv_node.config import EXIT_USAGE, NodeConfig
from raftkv_node.pb import admin_pb2
from raftkv_node.raft import Configuration, EntryType
from raftkv_node.server import identity as identities
from raftkv_node.server import openings
from raftkv_node.server.identity import Identity
from raftkv_node.server.member import log_options, settle_snapshot
from raftkv_node.server.members import encode_attributes, encode_settings, settings
from raftkv_node.server.replica import initial_state
from raftkv_node.store import install
from raftkv_node.store.store import Store

LOST_RING_ROWS = frozenset({9, 10, 11})
"""Rows of the decision table in which the log buffer is lost or elsewhere; what was drained is on the disk."""


class ForceError(LogError):
    """It is not done; the text says what to do."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class Survey:
    """What this member has, and what it cannot have."""

    last_index: int
    last_term: int
    commit: int
    applied: int
    configuration: Configuration
    durability: str
    lost_ring: str = ""
    """Why the log buffer cannot be used; empty where it can."""

    def report(self, identity: Identity) -> str:
        """For the person who decides."""
        own = identity.member_id
        others = sorted(self.configuration.voters - {own}) or sorted(self.configuration.ids - {own})
        shown = ", ".join(f"{one:x}" for one in others)
        lines = [
            f"This makes member {own:x} of cluster {identity.cluster_id:x} a new cluster of one. What may be lost:",
            f"  entries of others after this member's last one, index {self.last_index} of term {self.last_term}",
            f"  known to be committed here: index {self.commit}; applied: index {self.applied}",
        ]
        later = self.last_index - self.commit
        if later > 0:
            lines.append(f"  {later} later entries may never have been acknowledged; they will count as committed")
        lines += [
            f"  members that may have acknowledged more: {shown}",
            f"  durability of this member: {self.durability}",
        ]
        if self.lost_ring:
            lines.append(f"  what its log buffer had and its disk has not: {self.lost_ring}")
        lines.append("The other members must never be started again: they would go on as the old cluster.")
        return "\n".join(lines)


def is_due(config: NodeConfig, identity: Identity) -> bool:
    """Whether there is something to do, to say or to refuse before the member starts."""
    return config.force_new_cluster or identity.forcing is not None


def force(config: NodeConfig, identity: Identity, say: Callable[[str], None]) -> Identity:
    """Say what may be lost, and do it once that is accepted; the identity to start with.

    Raises :class:`ForceError` where nothing was changed, and the log's errors.
    """
    if identity.forcing is None:
        if not identity.issued:
            raise ForceError("--force-new-cluster: there is no member in the data folder")
        if identity.operated:
            raise ForceError(
                "--force-new-cluster is for members that were started by hand; the operator has this one's id"
            )
        accepted = config.force_new_cluster_accept_loss
        if identity.forced_from and accepted in ("", f"{identity.forced_from:x}"):
            say(
                f"--force-new-cluster was done before: cluster {identity.forced_from:x} is now "
                f"{identity.cluster_id:x}; remove the flags"
            )
            return identity
        identity = _accept(config, identity, accepted, say)
    return finish(config, identity)


def _accept(config: NodeConfig, identity: Identity, accepted: str, say: Callable[[str], None]) -> Identity:
    survey = look(config, identity)
    own = f"{identity.cluster_id:x}"
    if survey.configuration.voters == {identity.member_id}:
        raise ForceError("--force-new-cluster: this member is the only voter already; start it without the flag")
    say(survey.report(identity))
    if not accepted:
        raise ForceError(f"nothing was changed; to accept this loss, add --force-new-cluster-accept-loss={own}")
    if accepted != own:
        raise ForceError(f"nothing was changed: --force-new-cluster-accept-loss names {accepted}, not cluster {own}")
    decided = replace(identity, forcing=new_ids(identity))
    identities.save(config.data_dir, decided)
    return decided


def new_ids(_old: Identity) -> tuple[int, int]:
    """A cluster id and a member id that nobody has."""
    return secrets.randbits(63) | 1 << 63, secrets.randbits(63) | 1 << 63


def look(config: NodeConfig, identity: Identity) -> Survey:
    """What there is. A log that can be opened is, as by any start; one whose buffer is lost is left as it is."""
    founding = Configuration.decode(identity.founding) if identity.founding else Configuration()
    with contextlib.ExitStack() as stack:
        try:
            log, recovered = Log.open(log_options(config, identity))
        except Refused as refused:
            if refused.row not in LOST_RING_ROWS:
                raise
            # Whether a snapshot was being installed is not known yet: what the backend has is the least there will be.
            # (Where it is missing it is known: then its snapshot is half in its place, and would be taken for nothing.)
            install.finish_begun(Files(), config.data_dir)
            store = stack.enter_context(_opened_store(config, identity))
            known = Configuration.decode(store.configuration) if store.configuration else founding
            applied = store.applied_index
            return Survey(applied, store.applied_term, applied, applied, known, "-", str(refused))
        stack.callback(log.close)
        settle_snapshot(Files(), config.data_dir, recovered)
        store = stack.enter_context(_opened_store(config, identity))
        configurations = _configurations(recovered, log, store, founding)
        return Survey(
            recovered.last_index,
            recovered.last_term,
            max(recovered.hard_state.commit, store.applied_index),
            store.applied_index,
            configurations[-1],
            f"{log.level} ({log.medium})",
        )


@contextlib.contextmanager
def _opened_store(config: NodeConfig, identity: Identity) -> Iterator[Store]:
    store = Store.open(
        config.data_dir / install.BACKEND,
        cluster_id=identity.cluster_id,
        member_id=identity.member_id,
        quota_backend_bytes=config.quota_backend_bytes,
    )
    try:
        yield store
    finally:
        store.close(commit=False)


def _configurations(recovered: Recovered, log: Log, store: Store, founding: Configuration) -> list[Configuration]:
    """All that the backend and the log behind it know of, the one in force last."""
    if store.applied_index > recovered.last_index:
        return [Configuration.decode(store.configuration) if store.configuration else founding]
    initial = initial_state(recovered, log, store, founding)
    found = [initial.base_configuration]
    return found + [Configuration.decode(one.data) for one in initial.entries if one.type == EntryType.CONFIG]


def finish(config: NodeConfig, identity: Identity) -> Identity:
    """Steps 2 to 5, from wherever an earlier run came to; the new identity."""
    assert identity.forcing is not None
    cluster, member = identity.forcing
    new = replace(
        identity,
        cluster_id=cluster,
        member_id=member,
        founding=b"",
        peers=(),
        bindings=MappingProxyType({}),
        forcing=None,
        forced_from=identity.cluster_id,
    )
    old_options, new_options = log_options(config, identity), log_options(config, new)
    if not adoption_begun(old_options, new_options.identity):
        _commit_alone(config, identity, new, replace(old_options, accept_loss=True))
    adopt_log(old_options, new_options.identity)
    identities.save(config.data_dir, new)
    (config.data_dir / openings.FILE_NAME).unlink(missing_ok=True)
    if config.adr_path is not None:
        shutil.rmtree(ring_folder(config.adr_path, identity.cluster_id, identity.number), ignore_errors=True)
    return new


def _commit_alone(config: NodeConfig, old: Identity, new: Identity, options: LogOptions) -> None:
    """Step 2: the log's last word is a configuration in which the new member is alone."""
    founding = Configuration.decode(old.founding) if old.founding else Configuration()
    with contextlib.ExitStack() as stack:
        log, recovered = Log.open(options)
        stack.callback(log.close)
        settle_snapshot(Files(), config.data_dir, recovered)
        store = stack.enter_context(_opened_store(config, old))
        known = _configurations(recovered, log, store, founding)
        if known[-1].voters == {new.member_id}:
            return
        last_index, last_term = recovered.last_index, recovered.last_term
        batch = []
        if store.applied_index > last_index:
            # The backend had more than what is left of the log: the log goes on behind it, as after a snapshot.
            last_index, last_term = store.applied_index, store.applied_term
            batch.append(records.snapshot(last_term, last_index))
        term = max(recovered.hard_state.term, last_term) + 1
        index = last_index + 1
        alone = alone_configuration(known, new).encode()
        batch += [
            records.hard_state(term, new.member_id, index),
            records.entry(term, index, EntryType.CONFIG, alone),
            records.configuration(term, index, alone),
        ]
        log.append(batch)


def alone_configuration(known: Iterable[Configuration], new: Identity) -> Configuration:
    """The new member alone; whoever was ever named is removed. Roles are changed by hand again."""
    known = list(known)
    gone: frozenset[int] = frozenset().union(*(one.ids | one.removed | one.members.keys() for one in known))
    wanted = admin_pb2.Settings()
    wanted.CopyFrom(settings(known[-1].settings))
    wanted.replicas = 0
    wanted.ClearField("leaving")
    wanted.ClearField("restart")
    attributes = admin_pb2.Identity(
        member_id=new.member_id, name=new.name, peer_url=new.peer_url, disk_uuid=new.disk_uuid, zone=new.zone
    )
    return Configuration(
        voters=frozenset({new.member_id}),
        members={new.member_id: encode_attributes(attributes)},
        removed=gone,
        settings=encode_settings(wanted),
    )
