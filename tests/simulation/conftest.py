"""The simulation builds on the crash model of the log's tests and on the obvious model of the store's."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in ("adr", "store", "histories"):
    sys.path.append(str(Path(__file__).parent.parent / folder))
