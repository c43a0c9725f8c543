"""Makes the modules beside the tests importable, and the model of the key space of the store's tests."""

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parent.parent / "store"):
    sys.path.insert(0, str(folder))
