"""Makes importable: the modules beside the tests, how members are started, and the checkers of histories."""

import sys
from pathlib import Path

for folder in (".", "../server", "../histories", "../store", "../tools"):
    sys.path.insert(0, str((Path(__file__).parent / folder).resolve()))
