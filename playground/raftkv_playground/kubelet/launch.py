"""Run as a script: ``launch.py PARENT_PID -- ARGV...``; becomes the container's process.

It asks the kernel to be killed when the kubelet dies and then executes ARGV in its own place. A script of its own
(started with ``-I -S``, so within a few milliseconds) because code between fork and exec in a process with threads is
not safe. Exit code 127: not found, 126: cannot be executed.
"""

import ctypes
import os
import signal
import sys


def main() -> None:
    parent, argv = int(sys.argv[1]), sys.argv[3:]
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    # What the interpreter ignores must not stay ignored in the program.
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(argv[0], argv, os.environ)
    except OSError as error:
        print(f"exec {argv[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    main()
