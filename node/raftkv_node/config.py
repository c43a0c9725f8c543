"""What a node is told at its start: flags, and environment variables of the same names.

Where a flag means what etcd's flag means, it has etcd's name and etcd's default. Each is read, in this order, from the
command line, from ``RAFTKV_<NAME>`` and from ``ETCD_<NAME>`` (upper case, dashes as underscores); an empty variable
counts as unset. Whatever cannot be understood raises :class:`ConfigError`, one sentence for a person; the command then
exits with :data:`EXIT_USAGE`.

The table :data:`FLAGS` is the only list of flags: parser, environment and the reference in ``docs/node.md`` follow it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

EXIT_USAGE = 64
"""Exit code of a command line, environment or configuration that cannot be used (sysexits' EX_USAGE)."""

HOST_MAX_CHARACTERS = 253
"""Longest host of a URL, as of a name in DNS: URLs of members are part of every configuration."""

_SIZE_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LEVELS = ("power", "kernel", "process")


class ConfigError(ValueError):
    """The configuration cannot be used; the text is one sentence for a person."""


def _size(text: str) -> int:
    """Bytes of ``64Mi``, ``100m`` or a plain number."""
    match = re.fullmatch(r"(\d+)(Ki|Mi|Gi|Ti|k|m|g|)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 64Mi")
    return int(match[1]) * _SIZE_UNITS[match[2]]


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _positive(text: str) -> int:
    number = _integer(text)
    if number <= 0:
        raise ValueError(f"{text!r} is not a positive number")
    return number


def _duration(text: str) -> float:
    """Seconds of ``100ms``, ``1.5s`` or ``1h30m``."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise ValueError(f"{text!r} is not a duration such as 100ms")
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "t", "true"):
        return True
    if text.lower() in ("0", "f", "false"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


@dataclass(frozen=True)
class Address:
    """One URL to listen on or to advertise, taken apart."""

    scheme: str
    host: str
    port: int

    @property
    def tls(self) -> bool:
        return self.scheme == "https"

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_url(text: str) -> Address:
    """An ``http://host:port`` URL (``https`` for TLS); a path is not allowed, as with etcd."""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        raise ValueError(f"{text!r} is not a URL such as http://127.0.0.1:2379") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port is None or parts.path not in ("", "/"):
        raise ValueError(f"{text!r} is not a URL such as http://127.0.0.1:2379")
    if len(parts.hostname) > HOST_MAX_CHARACTERS:
        raise ValueError(f"the host of {text[:40]!r}... is longer than {HOST_MAX_CHARACTERS} characters")
    return Address(parts.scheme, parts.hostname, port)


def _urls(text: str) -> tuple[Address, ...]:
    return tuple(parse_url(part) for part in text.split(",") if part.strip())


def _initial_cluster(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """``n1=http://a:2380,n2=http://b:2380``: names and their peer URLs, in the order given; a name may repeat."""
    members: dict[str, list[str]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, url = part.partition("=")
        if not separator or not name:
            raise ValueError(f"{part!r} is not of the form name=URL")
        members.setdefault(name, []).append(parse_url(url).url)
    return tuple((name, tuple(urls)) for name, urls in members.items())


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return parse


def _path(text: str) -> Path:
    return Path(text)


def _cluster_id(text: str) -> str:
    """A cluster's id as it is shown: hexadecimal, without leading zeros."""
    if not text:
        return ""
    try:
        return f"{int(text, 16):x}"
    except ValueError:
        raise ValueError(f"{text!r} is no cluster id such as 6d24bc3b08291d99") from None


def _resolver(text: str) -> str:
    if text == "dns" or (text.startswith("hosts-file:") and len(text) > len("hosts-file:")):
        return text
    raise ValueError(f"{text!r} is neither dns nor hosts-file:PATH")


@dataclass(frozen=True)
class Flag:
    """One flag: its parser turns text into the value of the field of the same name in :class:`NodeConfig`."""

    name: str
    parse: Callable[[str], Any]
    default: str | None
    help: str
    etcd: bool = False
    switch: bool = False
    """Whether the bare flag means true."""

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables, the one that counts first."""
        upper = self.field.upper()
        return (f"RAFTKV_{upper}", f"ETCD_{upper}") if self.etcd else (f"RAFTKV_{upper}",)


def _etcd(name: str, parse: Callable[[str], Any], default: str | None, text: str, *, switch: bool = False) -> Flag:
    return Flag(name, parse, default, text, etcd=True, switch=switch)


FLAGS: tuple[Flag, ...] = (
    _etcd("name", str, "default", "Name of this member, for people."),
    _etcd("data-dir", _path, None, "Folder of this member's disk. Default: NAME.raftkv in the current folder."),
    _etcd("listen-client-urls", _urls, "http://localhost:2379", "URLs on which clients are served."),
    _etcd("listen-peer-urls", _urls, "http://localhost:2380", "URLs on which other members are served."),
    _etcd(
        "listen-metrics-urls",
        _urls,
        "",
        "Further URLs for /metrics, /health, /livez and /readyz, without certificates.",
    ),
    _etcd(
        "initial-advertise-peer-urls",
        _urls,
        "http://localhost:2380",
        "URLs at which other members reach this one; they make up its id when it is started by hand.",
    ),
    _etcd("advertise-client-urls", _urls, "http://localhost:2379", "URLs at which clients reach this member."),
    _etcd(
        "initial-cluster",
        _initial_cluster,
        "",
        "Members at the start by hand, name=URL with commas. Default: this member alone.",
    ),
    _etcd(
        "initial-cluster-state",
        _choice("new", "existing"),
        "new",
        "new: the members of --initial-cluster found a cluster; existing: this member was added to one by MemberAdd.",
    ),
    _etcd(
        "initial-cluster-token", str, "etcd-cluster", "Sets apart clusters that have the same URLs: part of the ids."
    ),
    _etcd(
        "force-new-cluster",
        _boolean,
        "false",
        "The quorum is gone for good: say what would be lost by making this member a new cluster of its own.",
        switch=True,
    ),
    Flag(
        "force-new-cluster-accept-loss",
        _cluster_id,
        "",
        "Id of the cluster whose loss is accepted: with it --force-new-cluster is done.",
    ),
    _etcd("heartbeat-interval", _positive, "100", "Milliseconds between two heartbeats of the leader."),
    _etcd(
        "election-timeout", _positive, "1000", "Milliseconds without a leader after which a member stands for election."
    ),
    _etcd("max-request-bytes", _positive, "1572864", "Largest request that is accepted, in bytes."),
    _etcd("max-txn-ops", _positive, "128", "Most operations in a branch of a transaction."),
    _etcd(
        "quota-backend-bytes",
        _integer,
        "0",
        "Size of the backend at which writes are refused; 0: 2 GiB, negative: none.",
    ),
    _etcd("max-learners", _positive, "1", "Most learners that MemberAdd accepts, by hand."),
    _etcd(
        "strict-reconfig-check",
        _boolean,
        "true",
        "Refuse changes of the membership that would lose the quorum.",
        switch=True,
    ),
    _etcd("pre-vote", _boolean, "true", "Ask for votes before raising the term.", switch=True),
    _etcd("cert-file", _path, None, "Certificate for clients (PEM)."),
    _etcd("key-file", _path, None, "Key of --cert-file (PEM)."),
    _etcd("client-cert-auth", _boolean, "false", "Clients must show a certificate of --trusted-ca-file.", switch=True),
    _etcd("trusted-ca-file", _path, None, "Authorities of client certificates (PEM)."),
    _etcd("peer-cert-file", _path, None, "Certificate for other members, as server and as client (PEM)."),
    _etcd("peer-key-file", _path, None, "Key of --peer-cert-file (PEM)."),
    _etcd(
        "peer-client-cert-auth",
        _boolean,
        "false",
        "Members must show a certificate of --peer-trusted-ca-file.",
        switch=True,
    ),
    _etcd("peer-trusted-ca-file", _path, None, "Authorities of members' certificates (PEM)."),
    _etcd("log-level", _choice("debug", "info", "warn", "error"), "info", "Least severe log lines that are written."),
    Flag("log-format", _choice("text", "json"), "text", "Form of log lines; one line each."),
    Flag(
        "log-retention-entries",
        _positive,
        "50000",
        "Entries kept in the log though the backend has them, for members that lag; who lags more gets a snapshot.",
    ),
    Flag(
        "log-retention-bytes",
        _size,
        "256Mi",
        "The same bound in bytes of the log on disk; the one that is reached first counts. It is met by segments.",
    ),
    Flag("adr-path", _path, None, "Folder of the ADR log buffer. Without it the log is flushed to disk (disk mode)."),
    Flag("adr-size", _size, "64Mi", "Size of the ADR log buffer, 4Mi to 100Mi."),
    Flag("adr-drain-dir", _path, None, "Folder of the log's segments on disk. Default: inside --data-dir."),
    Flag("adr-drain-interval", _duration, "100ms", "Longest time until an entry is drained from the buffer to disk."),
    Flag("adr-drain-size", _size, "8Mi", "So many bytes in the buffer are drained at once, whatever the interval."),
    Flag(
        "minimum-durability",
        _choice(*_LEVELS),
        "power",
        "What an acknowledged write must survive at least; the node refuses to start where it would not.",
    ),
    Flag(
        "operated",
        _boolean,
        "false",
        "Wait for an identity from the operator instead of --initial-cluster.",
        switch=True,
    ),
    Flag("number", _integer, "0", "Number of this member in its cluster, given by the operator."),
    Flag("namespace", str, "", "Namespace of the cluster, kept in the manifest."),
    Flag("cluster-name", str, "", "Name of the cluster, kept in the manifest."),
    Flag("zone", str, "", "Zone of this member."),
    Flag("admin-token-file", _path, None, "File with the bearer token that the admin service asks for."),
    Flag(
        "resolver", _resolver, "dns", "How names of members are found: dns, or hosts-file:PATH (re-read when changed)."
    ),
    Flag(
        "newest-disk-patience",
        _duration,
        "10s",
        "How long a restarted member waits for missing ones to confirm that its disk is the newest; 0s: for ever.",
    ),
    Flag("host-name", str, "", "Name of the host, kept with the ring. Default: the system's."),
)
"""Every flag of ``raftkv node``, in the order of the reference."""


@dataclass(frozen=True)
class NodeConfig:
    """A checked configuration; a field for each flag of the same name. Times in the units of the flag's text."""

    name: str
    data_dir: Path
    listen_client_urls: tuple[Address, ...]
    listen_peer_urls: tuple[Address, ...]
    listen_metrics_urls: tuple[Address, ...]
    initial_advertise_peer_urls: tuple[Address, ...]
    advertise_client_urls: tuple[Address, ...]
    initial_cluster: tuple[tuple[str, tuple[str, ...]], ...]
    initial_cluster_state: str
    initial_cluster_token: str
    force_new_cluster: bool
    force_new_cluster_accept_loss: str
    heartbeat_interval: int
    election_timeout: int
    max_request_bytes: int
    max_txn_ops: int
    quota_backend_bytes: int
    max_learners: int
    strict_reconfig_check: bool
    pre_vote: bool
    cert_file: Path | None
    key_file: Path | None
    client_cert_auth: bool
    trusted_ca_file: Path | None
    peer_cert_file: Path | None
    peer_key_file: Path | None
    peer_client_cert_auth: bool
    peer_trusted_ca_file: Path | None
    log_level: str
    log_format: str
    log_retention_entries: int
    log_retention_bytes: int
    adr_path: Path | None
    adr_size: int
    adr_drain_dir: Path | None
    adr_drain_interval: float
    adr_drain_size: int
    minimum_durability: str
    operated: bool
    number: int
    namespace: str
    cluster_name: str
    zone: str
    admin_token_file: Path | None
    resolver: str
    newest_disk_patience: float
    host_name: str

    @property
    def election_ticks(self) -> int:
        """The election timeout in heartbeats, at least two."""
        return max(2, self.election_timeout // self.heartbeat_interval)

    @property
    def request_timeout_seconds(self) -> float:
        """How long a request may wait for agreement: etcd's 5 s and two election timeouts."""
        return 5.0 + 2 * self.election_timeout / 1000

    @property
    def max_batch_bytes(self) -> int:
        """Bytes of requests in one entry. With one request of the largest size beside it, an entry takes less than half
        of the log buffer, so that it always finds room in one piece once the buffer is drained."""
        return min(1 << 20, self.adr_size // 16)

    @property
    def peer_url(self) -> str:
        return self.initial_advertise_peer_urls[0].url

    @property
    def client_urls(self) -> tuple[str, ...]:
        return tuple(address.url for address in self.advertise_client_urls)


def parse_arguments(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> NodeConfig:
    """The configuration of ``raftkv node ARGUMENTS``. Raises :class:`ConfigError`."""
    texts = _flag_texts(arguments)
    variables = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    for flag in FLAGS:
        text, source = _text_of(flag, texts, variables)
        if text is None:
            values[flag.field] = None
            continue
        try:
            values[flag.field] = flag.parse(text)
        except ValueError as error:
            raise ConfigError(f"{source}: {error}") from None
    return _checked(values, given=frozenset(texts))


def _text_of(flag: Flag, texts: Mapping[str, str], variables: Mapping[str, str]) -> tuple[str | None, str]:
    """The text that counts for the flag, and where it stands."""
    if flag.name in texts:
        return texts[flag.name], f"--{flag.name}"
    for variable in flag.variables:
        if variables.get(variable):
            return variables[variable], variable
    return flag.default, f"--{flag.name}"


def _flag_texts(arguments: Sequence[str]) -> dict[str, str]:
    """Flags as Go's flag package reads them: ``--name value``, ``--name=value``, one dash too, switches bare."""
    known = {flag.name: flag for flag in FLAGS}
    texts: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-") or not argument.strip("-"):
            raise ConfigError(f"{argument!r} is not a flag; raftkv node takes flags only")
        name, separator, text = argument.lstrip("-").partition("=")
        flag = known.get(name)
        if flag is None:
            raise ConfigError(f"--{name} is not a flag of raftkv node; see raftkv node --help")
        if not separator:
            if flag.switch:
                text = "true"
            elif not rest:
                raise ConfigError(f"--{name} lacks its value")
            else:
                text = rest.pop(0)
        texts[name] = text
    return texts


def _checked(values: dict[str, Any], given: frozenset[str]) -> NodeConfig:
    """Fills what depends on other values, and refuses what does not fit together."""
    name = values["name"]
    if not name:
        raise ConfigError("--name is empty")
    values["data_dir"] = values["data_dir"] or Path(f"{name}.raftkv")
    values["host_name"] = values["host_name"] or socket.gethostname()
    if not values["initial_cluster"]:
        urls = tuple(address.url for address in values["initial_advertise_peer_urls"])
        values["initial_cluster"] = ((name, urls),)
    for field in ("listen_client_urls", "listen_peer_urls", "initial_advertise_peer_urls", "advertise_client_urls"):
        if not values[field]:
            raise ConfigError(f"--{field.replace('_', '-')} is empty")
    config = NodeConfig(**{field.name: values[field.name] for field in fields(NodeConfig)})
    _check_cluster(config)
    _check_times_and_sizes(config)
    _check_tls(config)
    if config.operated and "initial-cluster" in given:
        raise ConfigError("--operated and --initial-cluster exclude each other: the operator gives the identity")
    return config


def _check_cluster(config: NodeConfig) -> None:
    if config.force_new_cluster_accept_loss and not config.force_new_cluster:
        raise ConfigError("--force-new-cluster-accept-loss means nothing without --force-new-cluster")
    if config.operated:
        return
    members = dict(config.initial_cluster)
    if config.name not in members:
        raise ConfigError(f"--initial-cluster does not name this member ({config.name})")
    own = sorted(address.url for address in config.initial_advertise_peer_urls)
    if sorted(members[config.name]) != own:
        raise ConfigError(
            f"--initial-cluster has {','.join(members[config.name])} for {config.name}, "
            f"--initial-advertise-peer-urls has {','.join(own)}"
        )
    urls = [url for _, listed in config.initial_cluster for url in listed]
    if len(urls) != len(set(urls)):
        raise ConfigError("--initial-cluster names a URL twice")


def _check_times_and_sizes(config: NodeConfig) -> None:
    if config.election_timeout < 5 * config.heartbeat_interval:
        raise ConfigError("--election-timeout is less than five times --heartbeat-interval")
    if config.election_timeout > 50_000:
        raise ConfigError("--election-timeout is more than 50000 ms")
    if not 4 << 20 <= config.adr_size <= 100 << 20:
        raise ConfigError("--adr-size is not between 4Mi and 100Mi")
    if not 0 < config.adr_drain_interval <= 60:
        raise ConfigError("--adr-drain-interval is not between 0 and 60s")
    if not 64 << 10 <= config.adr_drain_size <= 100 << 20:
        raise ConfigError("--adr-drain-size is not between 64Ki and 100Mi")
    if config.log_retention_bytes < 256 << 10:
        raise ConfigError("--log-retention-bytes is less than 256Ki")
    if config.quota_backend_bytes > 1 << 40:
        raise ConfigError("--quota-backend-bytes is more than 1 TiB")
    if config.max_request_bytes > config.adr_size * 3 // 8:
        raise ConfigError("--max-request-bytes is more than three eighths of --adr-size")


def _check_tls(config: NodeConfig) -> None:
    members = [one for one in config.initial_cluster if one[0] != config.name]
    for side in ("", "peer_"):
        cert, key = getattr(config, f"{side}cert_file"), getattr(config, f"{side}key_file")
        authority, required = getattr(config, f"{side}trusted_ca_file"), getattr(config, f"{side}client_cert_auth")
        addresses = config.listen_peer_urls if side else config.listen_client_urls + config.listen_metrics_urls
        prefix = "--" + side.replace("_", "-")
        if (cert is None) != (key is None):
            raise ConfigError(f"{prefix}cert-file and {prefix}key-file need each other")
        if required and authority is None:
            raise ConfigError(f"{prefix}client-cert-auth needs {prefix}trusted-ca-file")
        if any(address.tls for address in addresses) and cert is None:
            raise ConfigError(f"an https URL needs {prefix}cert-file and {prefix}key-file")
        if side and authority is None and any(url.startswith("https:") for _, urls in members for url in urls):
            raise ConfigError(
                "an https URL in --initial-cluster needs --peer-trusted-ca-file to check the member against"
            )
        for path in (cert, key, authority):
            if path is not None and not path.is_file():
                raise ConfigError(f"{path} cannot be read: no such file")


def flags_help() -> str:
    """The text of ``raftkv node --help``."""
    lines = ["usage: raftkv node [--FLAG VALUE ...]", ""]
    for flag in FLAGS:
        default = f" (default {flag.default})" if flag.default else ""
        lines.append(f"  --{flag.name}{default}")
        lines.append(f"        {flag.help}")
    return "\n".join(lines)


def flags_markdown() -> str:
    """The flags' table in ``docs/node.md``."""
    rows = ["| flag | environment | default | meaning |", "| --- | --- | --- | --- |"]
    for flag in FLAGS:
        variables = ", ".join(f"`{variable}`" for variable in flag.variables)
        default = f"`{flag.default}`" if flag.default else ""
        rows.append(f"| `--{flag.name}` | {variables} | {default} | {flag.help} |")
    return "\n".join(rows)
