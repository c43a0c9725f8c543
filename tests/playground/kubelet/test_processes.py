"""Processes and probes for real: ends, signals, parents that die, and what probes make of servers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from raftkv_playground.kubelet.images import Image
from raftkv_playground.kubelet.logs import LogFile, LogKeeper, LogOptions, read
from raftkv_playground.kubelet.plan import ProcessPlan
from raftkv_playground.kubelet.probes import Target, check
from raftkv_playground.kubelet.process import Exit, Process
from raftkv_playground.kubelet.rewrite import Rewriter

PYTHON = sys.executable


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


async def ending(tmp_path: Path, *argv: str) -> Exit:
    process = Process.start(argv, {"PATH": os.environ["PATH"]}, str(tmp_path), tmp_path / "log")
    return await process.wait()


def test_exit_codes_and_output(tmp_path: Path) -> None:
    async def story() -> None:
        ended = await ending(
            tmp_path, PYTHON, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"
        )
        assert (ended.code, ended.signal) == (7, None)
        assert set((tmp_path / "log").read_text().split()) == {"out", "err"}
        killed = await ending(tmp_path, PYTHON, "-c", "import os; os.kill(os.getpid(), 9)")
        assert (killed.code, killed.signal) == (137, 9)
        assert (await ending(tmp_path, "/no/such/program")).code == 127
        assert (await ending(tmp_path, str(tmp_path))).code == 126

    run(story())


def test_stop_is_gentle_first(tmp_path: Path) -> None:
    polite = (
        "import signal, sys, time; signal.signal(15, lambda *a: sys.exit(3)); print('up', flush=True); time.sleep(99)"
    )
    deaf = polite.replace("lambda *a: sys.exit(3)", "signal.SIG_IGN")

    async def story() -> None:
        for program, grace, code in ((polite, 30.0, 3), (deaf, 0.3, 137)):
            log = tmp_path / f"log-{code}"
            process = Process.start([PYTHON, "-c", program], {}, str(tmp_path), log)
            while not (log.exists() and log.read_text()):
                await asyncio.sleep(0.01)
            assert (await process.stop(grace)).code == code

    run(story())


PARENT = """
import asyncio, pathlib, sys
from raftkv_playground.kubelet.process import Process
async def main():
    p = Process.start([sys.executable, "-c", "import time; time.sleep(99)"], {}, "/tmp", pathlib.Path(sys.argv[1]))
    print(p.pid, flush=True)
    await p.wait()
asyncio.run(main())
"""


def test_children_die_with_their_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen([PYTHON, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = Path("/proc") / parent.stdout.readline().strip()
    assert child.exists()
    time.sleep(0.5)  # until the child has asked the kernel
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while _alive(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.02)


def _alive(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def target(port: int, program: str = "pass") -> Target:
    image = Image((PYTHON,), {"python": (PYTHON,)})
    plan = ProcessPlan([PYTHON], {"WORD": "x"}, "/tmp", Rewriter({}))
    container = {"name": "c", "ports": [{"name": "http", "containerPort": port}]}
    return Target(container, "127.0.0.1", plan, image)


def test_http_and_tcp_probes() -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path == "/slow":
            await asyncio.sleep(30)
        if request.path == "/moved":
            raise web.HTTPFound("http://elsewhere.invalid/")
        return web.Response(status=503 if request.path == "/no" else 200, text=request.headers.get("X-A", "why not"))

    async def story() -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = int(runner.addresses[0][1])
        there = target(port)

        async def http(path: str, limit: float = 30.0, **more: Any) -> tuple[bool, str]:
            return await check({"httpGet": {"path": path, "port": "http", **more}}, there, limit)

        assert (await http("/yes"))[0]
        assert (await http("/moved"))[0], "a redirection counts as an answer"
        assert await http("/no") == (False, "HTTP probe: statuscode: 503: why not")
        assert (await http("/no", httpHeaders=[{"name": "X-A", "value": "given"}]))[1].endswith("given")
        passed, text = await http("/slow", limit=0.3)
        assert not passed and "timed out" in text
        assert (await check({"tcpSocket": {"port": port}}, there, 30.0))[0]
        await runner.cleanup()
        passed, text = await http("/yes")
        assert not passed and "refused" in text
        assert not (await check({"tcpSocket": {"port": port}}, there, 30.0))[0]

    run(story())


def test_exec_probes_run_listed_programs_only() -> None:
    async def probe(*command: str, limit: float = 30.0) -> tuple[bool, str]:
        return await check({"exec": {"command": list(command)}}, target(1), limit)

    async def story() -> None:
        assert await probe("python", "-c", "import os; print(os.environ['WORD'])") == (True, "x")
        assert not (await probe("python", "-c", "raise SystemExit(1)"))[0]
        assert "not found" in (await probe("sh", "-c", "true"))[1]
        assert "timed out" in (await probe("python", "-c", "import time; time.sleep(60)", limit=0.5))[1]

    run(story())


def test_grpc_probes() -> None:
    async def story() -> None:
        status = {b"": b"\x08\x01", b"\x0a\x03raf": b"\x08\x02"}

        async def answer(request: bytes, _context: Any) -> bytes:
            return status[request]

        method = grpc.unary_unary_rpc_method_handler(answer)
        handler = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": method})
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        assert (await check({"grpc": {"port": port}}, target(port), 30.0))[0]
        assert not (await check({"grpc": {"port": port, "service": "raf"}}, target(port), 30.0))[0]
        await server.stop(None)
        assert not (await check({"grpc": {"port": port}}, target(port), 30.0))[0]

    run(story())


def test_logs_are_followed_to_the_end(tmp_path: Path) -> None:
    async def story() -> None:
        log = LogFile(tmp_path / "0.log")
        log.path.write_bytes(b"one\ntwo\n")
        blocks: list[bytes] = []

        async def follow() -> None:
            async for block in read(log, LogOptions(follow=True, tail_lines=1)):
                blocks.append(block)

        task = asyncio.create_task(follow())
        await asyncio.sleep(0.3)
        with log.path.open("ab") as file:
            file.write(b"three\nfo")
            file.flush()
            await asyncio.sleep(0.3)
            file.write(b"ur")
        log.closed = True
        await task
        assert b"".join(blocks) == b"two\nthree\nfour"
        limited = [block async for block in read(log, LogOptions(limit_bytes=5))]
        assert b"".join(limited) == b"one\nt"

    run(story())


def test_log_keeper_keeps_the_previous_start(tmp_path: Path) -> None:
    keeper = LogKeeper(tmp_path)
    for number in range(4):
        keeper.begin("c", number).path.write_text(str(number))
    assert [path.name for path in sorted((tmp_path / "c").iterdir())] == ["2.log", "3.log"]
    current, previous = keeper.find("c"), keeper.find("c", previous=True)
    assert current is not None and previous is not None
    assert (current.path.read_text(), previous.path.read_text()) == ("3", "2")
    again = LogKeeper(tmp_path)
    again.recover("c")
    found = again.find("c")
    assert found is not None and found.path == current.path


def test_a_long_log_loses_its_older_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkv_playground.kubelet.logs.LOG_LIMIT_BYTES", 100)
    log = LogFile(tmp_path / "0.log")
    log.path.write_text("".join(f"line {i:3}\n" for i in range(30)))
    log.note(1.0)
    kept = log.path.read_text()
    assert kept.endswith("line  29\n") and kept.startswith("line") and len(kept) <= 50
