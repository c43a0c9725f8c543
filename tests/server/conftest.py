"""Makes the modules beside the tests importable, the disks that fail of the log's tests, and the tools."""

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "adr", Path(__file__).parents[1] / "tools"):
    sys.path.insert(0, str(folder))
