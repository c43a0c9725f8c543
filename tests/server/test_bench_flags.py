"""The command line of ``raftkv bench`` refuses what cannot be, and says why."""

from __future__ import annotations

import pytest
from raftkv_node.bench import cli
from raftkv_node.bench.target import Endpoint, parse_endpoints
from raftkv_node.config import EXIT_USAGE


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("", "required"),
        ("dance", "invalid choice"),
        ("put --total 0", "--total: 0 is not in 1.."),
        ("put --total many", "'many' is not a whole number"),
        ("put --rate 0", "--rate: must be above 0"),
        ("put --rate nan", "--rate: must be above 0"),
        ("put --duration 10x", "'10x' is not a time"),
        ("put --duration 0s", "must be above 0"),
        ("put --new-keys 2", "--new-keys: must be between 0 and 1"),
        ("put --key-size 7", "leave no room after the prefix"),
        ("put --key-size 9 --key-space-size 1000", "no more than 256 keys"),
        ("put --endpoints ftp://a:1", "the scheme must be http or https"),
        ("put --endpoints http://a:1,https://b:1", "all http or all https"),
        ("put --endpoints a:99999", "out of range"),
        ("put --endpoints http://a:1/path", "is not HOST:PORT"),
        ("put --endpoints http://a:1 --cacert x", "for https endpoints"),
        ("put --cert x", "--cert and --key go together"),
        ("txn --cas --txn-ops 2", "not with --txn-ops"),
        ("txn --txn-ops 9 --key-space-size 8", "puts each key once"),
        ("range --consistency x", "invalid choice"),
        ("mixed --ratio 1", "is not 2 numbers"),
        ("mixed --ratio 0:0", "is not 2 numbers"),
        ("kubernetes --mix 1:2", "is not 3 numbers"),
        ("watch --val-size 8", "need 16 bytes"),
        ("watch-latency --watchers 0", "0 is not in 1.."),
    ],
)
def test_bad_flags_are_refused_with_a_reason(arguments: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments.split()) == EXIT_USAGE
    assert part in capsys.readouterr().err


def test_help_is_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["put", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--endpoints", "--clients", "--conns", "--total", "--rate", "--target-leader", "--cacert", "--json"):
        assert flag in text


def test_endpoints_are_taken_in_every_usual_form() -> None:
    assert parse_endpoints("a:1,http://b:2,[::1]:3,c")[0] == (
        Endpoint("a", 1),
        Endpoint("b", 2),
        Endpoint("::1", 3),
        Endpoint("c", 2379),
    )
    assert parse_endpoints("https://a:1") == ((Endpoint("a", 1),), True)
