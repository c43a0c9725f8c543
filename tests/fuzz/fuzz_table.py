"""`make fuzz`: every target for a while, and a table. Exit code 1: a crash, a hang, or too much memory.

    SECONDS_EACH=20     how long each target runs
    FUZZ_ONLY=TEXT      only the targets whose name has TEXT in it

The engine's parsers run under libFuzzer with the address sanitizer, the node's under atheris, and a live engine under
hostile clients. What was found interesting is kept in `build/fuzz/` for the next run; an input that does harm, too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fuzz_targets import TARGETS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "fuzz"
TRIPLE = "x86_64-unknown-linux-gnu"
ENGINE_TARGETS = ("http1", "h2", "grpc", "peer_frame", "log_bytes", "log_records")
#: A target that needs more is out of bounds: inputs are at most so long.
INPUT_BYTES = 16 << 10
MEMORY_MB = 1024
ALLOCATION_MB = 64
HANG_SECONDS = 20
#: What cargo-fuzz passes: coverage for libFuzzer, and the address sanitizer (that one is a nightly flag).
RUSTFLAGS = (
    "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 "
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table "
    "-Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address"
)


@dataclass
class Row:
    name: str
    executions: int = 0
    per_second: int = 0
    corpus: int = 0
    crashes: int = 0
    peak_mb: int = 0
    note: str = ""


def main() -> int:
    seconds = int(os.environ.get("SECONDS_EACH", "20"))
    only = os.environ.get("FUZZ_ONLY", "")
    rows = []
    if any(only in f"engine {name}" for name in ENGINE_TARGETS):
        folder = _build_engine()
        rows += [_engine(folder, name, seconds) for name in ENGINE_TARGETS if only in f"engine {name}"]
    atheris = _have_atheris()
    rows += [_python(name, seconds, atheris) for name in TARGETS if only in f"node {name}"]
    if only in "live engine":
        rows.append(_live(seconds))
    print(f"\n{'target':<28}{'executions':>12}{'a second':>10}{'corpus':>8}{'crashes':>9}{'peak MB':>9}")
    for row in rows:
        print(
            f"{row.name:<28}{row.executions:>12}{row.per_second:>10}{row.corpus:>8}{row.crashes:>9}{row.peak_mb:>9}"
            f"  {row.note}"
        )
    print(f"\n{sum(row.executions for row in rows)} executions, {sum(row.crashes for row in rows)} crashes")
    return 1 if any(row.crashes for row in rows) else 0


def _build_engine() -> Path:
    environment = {
        **os.environ,
        "RUSTC_BOOTSTRAP": "1",
        "RUSTFLAGS": RUSTFLAGS,
        "PYO3_PYTHON": sys.executable,
        "CARGO_TARGET_DIR": str(WORK / "target"),
    }
    command = ["cargo", "build", "--release", "--quiet", "--target", TRIPLE]
    subprocess.run([*command, "--manifest-path", str(HERE / "engine" / "Cargo.toml")], check=True, env=environment)
    return WORK / "target" / TRIPLE / "release"


def _have_atheris() -> bool:
    """Whether atheris is there, or can be installed: it has no wheels for some Python versions."""
    if subprocess.run([sys.executable, "-c", "import atheris"], capture_output=True, check=False).returncode == 0:
        return True
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "atheris"]
    done = subprocess.run(install, capture_output=True, check=False).returncode == 0
    if not done:
        print("atheris cannot be installed here: the node's targets run on random mutations instead", flush=True)
    return done


def _options(name: str, seconds: int) -> list[str]:
    return [
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_BYTES}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-malloc_limit_mb={ALLOCATION_MB}",
        f"-timeout={HANG_SECONDS}",
        f"-artifact_prefix={WORK}/{name}-",
        "-print_final_stats=1",
        "-detect_leaks=0",
    ]


def _engine(folder: Path, name: str, seconds: int) -> Row:
    corpus = WORK / "corpus" / f"engine-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    command = [str(folder / name), str(corpus), str(HERE / "seeds" / name), *_options(f"engine-{name}", seconds)]
    return _fuzzed(f"engine {name}", command, corpus)


def _python(name: str, seconds: int, atheris: bool) -> Row:
    if not atheris:
        return _mutations(name, seconds)
    corpus = WORK / "corpus" / f"node-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / "fuzz_python.py"), name, str(corpus), *_options(f"node-{name}", seconds)]
    return _fuzzed(f"node {name}", command, corpus)


def _mutations(name: str, seconds: int) -> Row:
    import random

    from fuzz_targets import mutated

    rng, row, end = random.Random(), Row(f"node {name}", note="no atheris"), time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(rng, TARGETS[name].seeds)
        row.executions += 1
        try:
            TARGETS[name].run(data)
        except Exception as error:
            row.crashes += 1
            row.note = f"{error!r} with {data.hex()}"
            break
    row.per_second = row.executions // max(1, seconds)
    return row


def _fuzzed(name: str, command: list[str], corpus: Path) -> Row:
    print(f"{name} ...", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    row = Row(name, crashes=int(done.returncode != 0), corpus=sum(1 for _ in corpus.iterdir()))
    for stat, figure in re.findall(r"stat::(\w+):\s+(\d+)", done.stderr):
        if stat == "number_of_executed_units":
            row.executions = int(figure)
        elif stat == "average_exec_per_sec":
            row.per_second = int(figure)
        elif stat == "peak_rss_mb":
            row.peak_mb = int(figure)
    if row.crashes:
        found = re.search(r"Test unit written to (\S+)", done.stderr)
        row.note = f"input: {found[1]}" if found else done.stderr[-2000:]
        print(done.stderr[-3000:])
    return row


def _live(seconds: int) -> Row:
    print("live engine ...", flush=True)
    command = [sys.executable, str(HERE / "live_engine.py"), str(seconds), str(int(time.time()))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    row = Row("live engine", crashes=int(done.returncode != 0))
    found = re.search(r"connections (\d+) calls (\d+) peak_mb (\d+)", done.stdout)
    if found:
        row.executions, row.peak_mb = int(found[1]), int(found[3])
        row.per_second = row.executions // max(1, seconds)
        row.note = f"connections; {found[2]} normal calls between them were answered"
    else:
        row.note = f"{' '.join(command)}: {done.stderr[-500:]}"
    return row


if __name__ == "__main__":
    sys.exit(main())
