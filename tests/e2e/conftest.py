"""A live cluster for the end-to-end tests: on the cluster that KUBECONFIG names, else on a playground of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from kube import NAME, SAMPLE, START_SECONDS, Kubectl, playground, settled, wait_until


@pytest.fixture(scope="session")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """kubectl against a cluster on which the operator runs."""
    with ExitStack() as stack:
        given = os.environ.get("KUBECONFIG")
        yield (
            Kubectl(Path(given)) if given else stack.enter_context(playground(tmp_path_factory.mktemp("playground")))
        )


@pytest.fixture(scope="session")
def live_cluster(kubectl: Kubectl) -> Iterator[Kubectl]:
    """The sample cluster of three, ready."""
    kubectl.run("apply", "-f", str(SAMPLE))
    wait_until("three ready members", lambda: settled(kubectl, 3), START_SECONDS)
    yield kubectl
    kubectl.run("delete", "rkv", NAME, "--timeout=180s")
