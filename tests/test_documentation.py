"""The documentation names tests and files: each of them exists, so that nothing is claimed that nobody runs."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_PAGES = sorted([*(_ROOT / "docs").rglob("*.md"), _ROOT / "README.md"])


@cache
def _tests() -> frozenset[str]:
    """The names of all test functions and test files."""
    names = set()
    for path in (_ROOT / "tests").rglob("*.py"):
        names.add(path.name)
        names.update(re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(), flags=re.MULTILINE))
    return frozenset(names)


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for named in re.findall(r"`(test_[\w*.]+)`", page.read_text()):
        pattern = named.replace("...", "*")
        assert any(fnmatchcase(name, pattern) for name in _tests()), f"{page.name} names {named}, which is not there"


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def _anchors(page: Path) -> set[str]:
    """What a page's headings are called in links, as GitHub makes it."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_every_link_to_a_heading_leads_to_one(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        to = page.parent / target if target else page
        if to.suffix == ".md":
            assert anchor in _anchors(to), f"{page.name} links to #{anchor} of {to.name}, which is not there"


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (_ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in _PAGES:
        for named in re.findall(r"(?:`|\$ )make ([a-z][\w-]*)", page.read_text()):
            assert named in targets, f"{page.name} names make {named}, which is not there"


def test_the_page_of_known_bugs_names_every_test_that_is_named_after_one() -> None:
    named = set(re.findall(r"`(test_\w+)`", (_ROOT / "docs/known-bugs.md").read_text()))
    written = {name for name in _tests() if re.match(r"test_(etcd|raft|thesis)_[\d_]+[a-z]|test_etcd_nested_", name)}
    assert len(written) > 10
    assert written <= named
