"""House rules that no linter knows: what may not be named, and what may not be unsafe."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_NATIVE = _ROOT / "node" / "native" / "src"


def _rust_sources() -> list[Path]:
    sources = sorted(_NATIVE.rglob("*.rs"))
    assert sources, "the engine has moved: this test would check nothing"
    return sources


def _code(path: Path) -> str:
    """The file without its line comments (a comment may say what the engine must not know)."""
    return re.sub(r"//.*", "", path.read_text())


@pytest.mark.parametrize("path", _rust_sources(), ids=lambda p: str(p.relative_to(_NATIVE)))
def test_engine_names_nothing_of_etcd_or_raft(path: Path) -> None:
    code = re.sub(r"raftkv", "", _code(path), flags=re.IGNORECASE)
    assert not re.search(r"etcd|(?<!d)raft", code, flags=re.IGNORECASE)  # a "draft" is a draft


@pytest.mark.parametrize("path", _rust_sources(), ids=lambda p: str(p.relative_to(_NATIVE)))
def test_unsafe_stays_in_the_persistent_memory_room_and_around_the_wrapped_c_library(path: Path) -> None:
    wrappers = [_NATIVE / "transport" / "h2.rs", _NATIVE / "transport" / "h2" / "hpack.rs"]
    allowed = path.is_relative_to(_NATIVE / "pmem") or path in wrappers
    if not allowed:
        assert not re.search(r"\bunsafe\b", _code(path))


@pytest.mark.parametrize("path", _rust_sources(), ids=lambda p: str(p.relative_to(_NATIVE)))
def test_every_unsafe_block_says_why_it_is_sound(path: Path) -> None:
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.search(r"\bunsafe\s*(\{|impl)", line.split("//")[0]):
            context = "\n".join(lines[max(0, number - 8) : number + 1])
            assert "SAFETY" in context, f"{path.name}:{number + 1}: no SAFETY comment above this unsafe block"


@pytest.mark.parametrize("folder", ["node/raftkv_node/raft", "operator", "playground"])
def test_the_engine_is_out_of_reach(folder: str) -> None:
    sources = sorted((_ROOT / folder).rglob("*.py"))
    assert sources
    for path in sources:
        assert not re.search(r"^\s*(from|import)\s.*\b_engine\b", path.read_text(), flags=re.MULTILINE), path


def test_what_other_threads_run_and_the_log_are_not_compiled() -> None:
    """Compiled code gives way to nobody. A module that must not be compiled says so in its text."""
    listed = re.search(r"^COMPILED = (\{.*?^\})", (_ROOT / "setup.py").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert listed is not None
    compiled = ast.literal_eval(listed[1])
    assert compiled.keys() == {"raft", "store", "server", "api"}
    for package, modules in compiled.items():
        for module in modules.split():
            text = (_ROOT / "node" / "raftkv_node" / package / f"{module}.py").read_text()
            assert "ever compiled" not in text, module
            assert "Thread(" not in text, module


def test_no_error_is_raised_from_a_constant() -> None:
    """It would keep its traceback, and what the frames of each request held, for ever (`EtcdError.fresh`)."""
    for path in sorted((_ROOT / "node" / "raftkv_node").rglob("*.py")):
        assert not re.search(r"^\s*raise [A-Z][A-Z_]+( from .*)?$", path.read_text(), flags=re.MULTILINE), path
