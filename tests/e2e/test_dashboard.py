"""Every query of every dashboard returns data from a real Prometheus that found the pods through the Kubernetes API."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from debian import PackageUnavailable, unpacked
from kube import NAME, ROOT, Kubectl, wait_until
from machine import free_ports
from writer import Writer

_DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
_SCRAPE = ROOT / "deploy" / "prometheus" / "scrape-config.yaml"
_DATA_SECONDS = 120.0
# Grafana takes at least four scrape intervals for $__rate_interval.
_RATE_INTERVAL = "10s"

pytestmark = pytest.mark.slow


def _expressions() -> list[tuple[str, str]]:
    found = []
    for path in _DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            found += [(f"{path.stem}: {panel['title']}", t["expr"]) for t in panel.get("targets", [])]
    return found


def _credentials(kubectl: Kubectl, folder: Path) -> dict[str, Any]:
    """What kubernetes_sd_configs needs to reach the API server from outside, out of the kubeconfig."""
    config = json.loads(kubectl.run("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    import base64

    (folder / "ca.crt").write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    settings: dict[str, Any] = {"api_server": cluster["server"], "tls_config": {"ca_file": str(folder / "ca.crt")}}
    if "token" in user:
        settings["authorization"] = {"credentials": user["token"]}
    else:
        for name in ("cert", "key"):
            encoded = user["client-certificate-data" if name == "cert" else "client-key-data"]
            (folder / f"client.{name}").write_bytes(base64.b64decode(encoded))
            settings["tls_config"][f"{name}_file"] = str(folder / f"client.{name}")
    return settings


@pytest.fixture(scope="module")
def prometheus(live_cluster: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that scrapes the live cluster by the shipped job, while somebody writes."""
    try:
        binary = str(unpacked(("prometheus",)) / "prometheus")
    except PackageUnavailable as error:
        pytest.skip(f"no Prometheus with Kubernetes service discovery: {error}")
    folder = tmp_path_factory.mktemp("prometheus")
    jobs = yaml.safe_load(_SCRAPE.read_text())
    for job in jobs:
        assert "static_configs" not in job
        for discovery in job["kubernetes_sd_configs"]:
            discovery.update(_credentials(live_cluster, folder))
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    writer = Writer(f"{live_cluster.get('service', NAME)['spec']['clusterIP']}:2379", prefix="/dashboard/", threads=2)
    writer.start()
    try:
        wait_until("three targets that are up", lambda: len(_query(address, "up == 1")) >= 3, _DATA_SECONDS)
        time.sleep(10)
        yield address
    finally:
        writer.stop()
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _query(address: str, expression: str) -> list[dict[str, Any]]:
    """An instant query; connection errors count as no data yet."""
    try:
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{address}/api/v1/query?{query}", timeout=10) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return result
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{expression}: {error.read().decode()}") from error
    except OSError:
        return []


def test_there_are_queries_to_check() -> None:
    assert len(_expressions()) >= 25


@pytest.mark.parametrize(("panel", "expression"), _expressions(), ids=lambda value: value[:60])
def test_every_query_returns_data(prometheus: str, panel: str, expression: str) -> None:
    for name, value in {"$namespace": "default", "$cluster": NAME, "$__rate_interval": _RATE_INTERVAL}.items():
        expression = expression.replace(name, value)
    wait_until(f"data for {panel}: {expression}", lambda: bool(_query(prometheus, expression)), 30)
