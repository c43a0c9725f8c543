"""A small program that plays a container: it serves HTTP, keeps a file, and ends as it is told.

GET /            its name and how often it was started (counted in FILE, if given)
GET /exit/N      end with code N
GET /ready/0|1   answer /readyz accordingly from now on
"""

from __future__ import annotations

import argparse
import http.server
import os
import pathlib
import signal
import subprocess
import sys
import threading
import types


class Handler(http.server.BaseHTTPRequestHandler):
    ready = True

    def do_GET(self) -> None:
        code, text = 200, f"{os.environ.get('POD_NAME', '')} {STARTS}\n"
        if self.path == "/readyz":
            code = 200 if Handler.ready else 503
        elif self.path.startswith("/ready/"):
            Handler.ready = self.path.endswith("1")
        elif self.path.startswith("/exit/"):
            threading.Timer(0.1, os._exit, [int(self.path.rsplit("/", 1)[1])]).start()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def stop(_number: int, _frame: types.FrameType | None) -> None:
    print("asked to end", flush=True)
    if OPTIONS.deaf:
        return
    sys.exit(0)


parser = argparse.ArgumentParser()
parser.add_argument("--listen", default="")
parser.add_argument("--file")
parser.add_argument("--ring")
parser.add_argument("--exit", type=int)
parser.add_argument("--message")
parser.add_argument("--child", action="store_true", help="leave a process behind in the session")
parser.add_argument("--deaf", action="store_true", help="do not end on SIGTERM")
OPTIONS = parser.parse_args()

STARTS = 0
if OPTIONS.file:
    kept = pathlib.Path(OPTIONS.file)
    STARTS = int(kept.read_text()) + 1 if kept.exists() else 1
    kept.write_text(str(STARTS))
if OPTIONS.ring:
    (pathlib.Path(OPTIONS.ring) / os.environ["POD_NAME"]).write_text(os.environ["NODE_NAME"])
if OPTIONS.message:
    pathlib.Path(OPTIONS.message).write_text("the last words")
if OPTIONS.child:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
signal.signal(signal.SIGTERM, stop)
print(f"started {STARTS}", flush=True)
if OPTIONS.exit is not None:
    print(f"ends with {OPTIONS.exit}", file=sys.stderr, flush=True)
    sys.exit(OPTIONS.exit)
host, _, port = OPTIONS.listen.rpartition(":")
http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
