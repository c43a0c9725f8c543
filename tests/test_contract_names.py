"""The rules of the contracts, and the rows of the decision table: each has a test that carries its number in its name.

A name may carry several (`test_m7_m8_...`): it counts for each of them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
_RULES = [*(f"m{number}" for number in range(1, 18)), *(f"d{number}" for number in range(1, 18))]
_ROWS = [f"row_{number}" for number in range(1, 14)]
_CARRIED = re.compile(r"(?:[md]\d+|row_\d+)(?=_|$)")


def carried(name: str) -> set[str]:
    """The rules and rows that a test's name begins with."""
    found: set[str] = set()
    rest = name.removeprefix("test_")
    while match := _CARRIED.match(rest):
        found.add(match[0])
        rest = rest[match.end() + 1 :]
    return found


def collected(source: str) -> list[str]:
    """The tests that pytest would collect: functions of a module, and methods of its test classes."""
    scopes = [ast.parse(source).body]
    scopes += [node.body for node in scopes[0] if isinstance(node, ast.ClassDef) and node.name.startswith("Test")]
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node.name for body in scopes for node in body if isinstance(node, functions) and node.name[:5] == "test_"]


@pytest.fixture(scope="module")
def shown() -> set[str]:
    """All that some test is named after."""
    sources = (path.read_text() for path in sorted(_TESTS.rglob("test_*.py")))
    return {one for source in sources for name in collected(source) for one in carried(name)}


@pytest.mark.parametrize("rule", [*_RULES, *_ROWS])
def test_each_rule_and_row_has_a_test_of_its_number(rule: str, shown: set[str]) -> None:
    assert rule in shown, f"no test is named test_{rule}_..."


def test_no_test_is_named_after_a_rule_that_there_is_not(shown: set[str]) -> None:
    assert shown <= {*_RULES, *_ROWS}


def test_what_a_name_carries() -> None:
    assert carried("test_m1_m12_d3_x") == {"m1", "m12", "d3"}
    assert carried("test_row_1_x") == {"row_1"}
    assert carried("test_m1x_m2") == carried("test_a_row_1_d2") == set()
    assert collected("def test_a():\n  def test_b(): pass\nclass TestC:\n  async def test_d(self): pass") == [
        "test_a",
        "test_d",
    ]
