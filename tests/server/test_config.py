"""Flags and environment of a node."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from raftkv_node.config import FLAGS, ConfigError, NodeConfig, flags_markdown, parse_arguments

DOCS = Path(__file__).parents[2] / "docs" / "node.md"


def parse(*arguments: str, **environment: str) -> NodeConfig:
    return parse_arguments(arguments, environment)


def test_every_flag_has_a_field_and_every_field_a_flag() -> None:
    assert [field.name for field in fields(NodeConfig)] == [flag.field for flag in FLAGS]


def test_without_flags_it_is_one_member_alone_as_with_etcd() -> None:
    config = parse()
    assert config.initial_cluster == (("default", ("http://localhost:2380",)),)
    assert config.data_dir == Path("default.raftkv")
    assert config.election_ticks == 10
    assert config.request_timeout_seconds == 7.0


def test_flags_are_read_as_go_reads_them() -> None:
    config = parse("-name=n1", "--data-dir", "d", "--pre-vote=false", "--strict-reconfig-check", "--adr-size", "8Mi")
    assert (config.name, config.data_dir, config.pre_vote, config.adr_size) == ("n1", Path("d"), False, 8 << 20)
    assert config.strict_reconfig_check


def test_the_command_line_counts_before_the_environment_and_ours_before_etcds() -> None:
    environment = {"ETCD_NAME": "etcd", "RAFTKV_NAME": "ours", "ETCD_MAX_TXN_OPS": "7", "RAFTKV_MAX_TXN_OPS": ""}
    config = parse(**environment)
    assert (config.name, config.max_txn_ops) == ("ours", 7)
    assert parse("--name", "line", **environment).name == "line"


def test_a_size_a_duration_and_a_cluster_are_taken_apart() -> None:
    config = parse(
        "--name", "b", "--initial-advertise-peer-urls", "http://b:2", "--initial-cluster", "a=http://a:1,b=http://b:2",
        "--adr-drain-interval", "1s500ms",
    )  # fmt: skip
    assert config.initial_cluster == (("a", ("http://a:1",)), ("b", ("http://b:2",)))
    assert config.adr_drain_interval == 1.5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--no-such"], "--no-such is not a flag"),
        (["stray"], "'stray' is not a flag"),
        (["--name"], "--name lacks its value"),
        (["--adr-size", "200Mi"], "--adr-size is not between 4Mi and 100Mi"),
        (["--adr-size", "lots"], "--adr-size: 'lots' is not a size"),
        (["--listen-client-urls", "localhost"], "is not a URL"),
        (["--listen-client-urls", "http://localhost:99999"], "is not a URL"),
        (["--election-timeout", "200"], "less than five times"),
        (["--heartbeat-interval", "-5"], "not a positive number"),
        (["--minimum-durability", "best"], "none of power, kernel, process"),
        (["--initial-cluster", "other=http://o:1"], "does not name this member (default)"),
        (["--initial-cluster", "default=http://o:1"], "--initial-advertise-peer-urls has http://localhost:2380"),
        (["--operated", "--initial-cluster", "default=http://localhost:2380"], "exclude each other"),
        (["--listen-client-urls", "https://localhost:1"], "needs --cert-file"),
        (["--listen-metrics-urls", "https://localhost:1"], "needs --cert-file"),
        (
            ["--initial-cluster", "default=http://localhost:2380,b=https://b:2380"],
            "an https URL in --initial-cluster needs --peer-trusted-ca-file",
        ),
        (["--cert-file", "x"], "need each other"),
        (["--pre-vote=perhaps"], "neither true nor false"),
        (["--adr-size", "4Mi", "--max-request-bytes", "1572865"], "more than three eighths of --adr-size"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(*arguments)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="ETCD_MAX_TXN_OPS: 'many' is not a whole number"):
        parse(ETCD_MAX_TXN_OPS="many")


def test_the_reference_in_the_docs_is_this_table() -> None:
    assert flags_markdown() in DOCS.read_text()
