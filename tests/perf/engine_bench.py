"""The engine alone against a grpcio asyncio server: an empty unary call, one load generator, one run, in turn.

Both servers are Python processes whose handler does nothing but return the same twenty bytes for each request (a gRPC
body of a put with a 256-byte value). What differs is only how a call reaches Python and leaves it. The load comes from
h2load, so neither side's client library has a part in it.

    python tests/perf/engine_bench.py                 the table of docs/performance.md
    python tests/perf/engine_bench.py --minimum 20    fails when the ratio at 1,000 in flight is below that

Needs h2load (Debian: nghttp2-client). Rounds alternate between the servers, so that what else the machine does hits
both; figures are medians, and the ratio is of medians. Absolute figures are for orientation: h2load takes a core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from machine import cpu_seconds

METHOD = "/bench.Service/Put"
REPLY = b"\x0a\x12" + b"\x08\x01" * 9
REQUEST = b"\x0a\x08key00000\x12\x80\x02" + b"v" * 256

# In flight: connections, streams per connection.
LOADS = {1: (1, 1), 100: (50, 2), 1000: (50, 20)}
# Requests per round: enough for about a second.
REQUESTS = {"engine": {1: 10_000, 100: 150_000, 1000: 400_000}, "grpcio": {1: 3_000, 100: 8_000, 1000: 8_000}}


def serve_engine() -> None:
    """Answers on a free port, which it prints, until killed."""
    from raftkv_node._engine import Engine

    engine = Engine()
    engine.register_methods([(METHOD, 0, False)])
    print(engine.listen_grpc("127.0.0.1", 0), flush=True)
    engine.start()
    while True:
        for _, call_ids, messages, _ in engine.poll(3600).unary:
            engine.reply(call_ids, [REPLY for _ in messages])


def serve_grpcio() -> None:
    """The same by grpcio's asyncio server, as grpcio's own examples do it (no protobuf: bytes in, bytes out)."""
    import grpc

    class Handler(grpc.GenericRpcHandler):
        async def put(self, request: bytes, context: object) -> bytes:
            return REPLY

        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(self.put)

    async def main() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Handler(),))
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        await server.start()
        await server.wait_for_termination()

    asyncio.run(main())


@dataclass
class Server:
    pid: int
    port: int

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)


@contextlib.contextmanager
def running(kind: str) -> Iterator[Server]:
    command = [sys.executable, __file__, "--serve", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(process.pid, int(process.stdout.readline()))
        finally:
            process.kill()


@dataclass
class Sample:
    per_second: float
    mean_us: float
    cpu_us: float


def _microseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def measure(server: Server, body: str, in_flight: int, requests: int) -> Sample:
    connections, streams = LOADS[in_flight]
    command = ["h2load", "-n", str(requests), "-c", str(connections), "-m", str(streams), "-t", "1", "-d", body]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://127.0.0.1:{server.port}{METHOD}"]
    before = server.cpu_seconds()
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cpu = server.cpu_seconds() - before
    if f"{requests} succeeded" not in output:
        raise RuntimeError(f"not every request succeeded:\n{output}")
    rate = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", output)
    mean = re.search(r"time for request:\s+\S+\s+\S+\s+(\S+)", output)
    assert rate is not None and mean is not None, output
    return Sample(float(rate[1]), _microseconds(mean[1]), cpu / requests * 1e6)


def median(samples: list[Sample]) -> Sample:
    values = zip(*((s.per_second, s.mean_us, s.cpu_us) for s in samples), strict=True)
    return Sample(*(statistics.median(v) for v in values))


def compare(rounds: int) -> dict[int, dict[str, Sample]]:
    """Medians by in-flight and server."""
    samples: dict[int, dict[str, list[Sample]]] = {n: {kind: [] for kind in REQUESTS} for n in LOADS}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        body = Path(folder) / "body"
        body.write_bytes(struct.pack(">BI", 0, len(REQUEST)) + REQUEST)
        servers = {kind: stack.enter_context(running(kind)) for kind in REQUESTS}
        for kind, server in servers.items():
            measure(server, str(body), 100, REQUESTS[kind][100] // 4)  # warm
        for _ in range(rounds):
            for in_flight, by_kind in samples.items():
                for kind, server in servers.items():
                    by_kind[kind].append(measure(server, str(body), in_flight, REQUESTS[kind][in_flight]))
    return {n: {kind: median(s) for kind, s in by_kind.items()} for n, by_kind in samples.items()}


def table(figures: dict[int, dict[str, Sample]]) -> str:
    lines = [
        "| in flight | engine | grpcio aio | ratio | mean latency: engine, grpcio | CPU per call: engine, grpcio |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for in_flight, by_kind in figures.items():
        engine, other = by_kind["engine"], by_kind["grpcio"]
        lines.append(
            f"| {in_flight:,} | {engine.per_second:,.0f}/s | {other.per_second:,.0f}/s "
            f"| {engine.per_second / other.per_second:.1f}x | {engine.mean_us:,.0f} us, {other.mean_us:,.0f} us "
            f"| {engine.cpu_us:.1f} us, {other.cpu_us:.1f} us |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minimum", type=float, default=0.0, help="fail below this ratio at 1,000 in flight")
    parser.add_argument("--serve", choices=REQUESTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        {"engine": serve_engine, "grpcio": serve_grpcio}[options.serve]()
    if shutil.which("h2load") is None:
        print(
            "engine_bench: needs h2load: install Debian's nghttp2-client (or nghttp2 from its source)", file=sys.stderr
        )
        return 2
    figures = compare(options.rounds)
    print("The engine alone: an empty unary call, h2load with one thread, Python's handler returns 20 bytes\n")
    print(table(figures))
    thousand = figures[1000]
    ratio = thousand["engine"].per_second / thousand["grpcio"].per_second
    if ratio < options.minimum:
        print(f"\nratio at 1,000 in flight: {ratio:.1f}, wanted {options.minimum}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
