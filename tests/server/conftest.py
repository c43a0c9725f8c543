"""Makes the modules beside the tests importable, and the disks that fail of the log's tests."""

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parent.parent / "adr"):
    sys.path.insert(0, str(folder))
