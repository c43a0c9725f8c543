"""Forms of requests: protobuf bodies, bad JSON, impersonation, tables."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from apiserver_harness import Cluster
from raftkv_playground.apiserver import jsonpath, protobuf, tables
from raftkv_playground.apiserver.errors import Failure

Run = Callable[..., None]
MAPS = "/api/v1/namespaces/default/configmaps"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(number: int, value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def envelope(api_version: str, kind: str, message: bytes) -> bytes:
    return protobuf.MAGIC + _bytes(1, _bytes(1, api_version) + _bytes(2, kind)) + _bytes(2, message)


def test_protobuf_bodies_are_decoded() -> None:
    label = _bytes(11, _bytes(1, "k") + _bytes(2, "v"))
    meta = _bytes(1, "a") + _bytes(2, "") + _bytes(3, "ns") + label + _integer(7, 0)
    body = _bytes(1, meta) + _bytes(2, _bytes(1, "x") + _bytes(2, "y" * 300)) + _integer(4, 1)
    item = protobuf.decode(envelope("v1", "ConfigMap", body))
    assert item == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "a", "namespace": "ns", "labels": {"k": "v"}},
        "data": {"x": "y" * 300},
        "immutable": True,
    }
    port = _bytes(1, "http") + _bytes(2, "TCP") + _integer(3, 80) + _bytes(4, _integer(1, 1) + _bytes(3, "web"))
    service = _bytes(1, _bytes(1, "s")) + _bytes(2, _bytes(1, port + _integer(5, 0)) + _integer(13, 0))
    item = protobuf.decode(envelope("v1", "Service", service))
    assert item is not None
    assert item["spec"] == {"ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "web"}]}
    assert protobuf.decode(envelope("apps/v1", "Deployment", b"")) is None
    for broken in (b"{}", protobuf.MAGIC, envelope("v1", "ConfigMap", body)[:-3]):
        with pytest.raises(Failure):
            protobuf.decode(broken)


def _session(c: Cluster, **headers: str) -> aiohttp.ClientSession:
    context = ssl.create_default_context(cafile=str(c.server.ca_file))
    known = {"Authorization": f"Bearer {c.server.admin_token}", **headers}
    return aiohttp.ClientSession(c.server.url, headers=known, connector=aiohttp.TCPConnector(ssl=context))


async def _post(c: Cluster, data: bytes, media: str = "application/json", **query: str) -> tuple[int, dict[str, Any]]:
    async with (
        _session(c) as session,
        session.post(MAPS, data=data, params=query, headers={"Content-Type": media}) as response,
    ):
        return response.status, await response.json()


def test_bodies_that_cannot_be_read(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        good = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}'
        cases: list[tuple[bytes, str, int, str]] = [
            (b"", "application/json", 400, "EOF"),
            (b"[]", "application/json", 400, "cannot unmarshal"),
            (b'{"a" 1}', "application/json", 400, "invalid character '1' after object key"),
            (b'{"a": 1', "application/json", 400, "unexpected end of JSON input"),
            (good, "application/xml", 415, "unknown format"),
            (envelope("v1", "Pod", b""), "application/vnd.kubernetes.protobuf", 415, "unknown format"),
            (good.replace(b"v1", b"v2"), "application/json", 400, "does not match the expected API version"),
            (good.replace(b"ConfigMap", b"Secret"), "application/json", 400, "cannot be handled as a ConfigMap"),
            (b"x" * (3 << 20) + b"x", "application/json", 413, "too large"),
        ]
        for data, media, code, text in cases:
            status, body = await _post(c, data, media)
            assert (status, body["code"]) == (code, code), body
            assert text in body["message"]
        assert (await _post(c, good))[0] == 201
        yaml = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y\n"
        assert (await _post(c, yaml, "application/yaml"))[0] == 201
        status, body = await _post(c, good.replace(b'"a"', b'"b"'), fieldValidation="Loose")
        assert status == 422

    run(scenario)


def test_impersonation_has_the_rights_of_the_other(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        async with _session(c, **{"Impersonate-User": "jane"}) as session, session.get(MAPS) as response:
            assert response.status == 403
            assert 'User "jane" cannot list' in (await response.json())["message"]
        masters = {"Impersonate-User": "jane", "Impersonate-Group": "system:masters"}
        async with _session(c, **masters) as session, session.get(MAPS) as response:
            assert response.status == 200
        as_admin = {**masters, "Authorization": f"Bearer {c.server.tokens['oper']}"}
        async with _session(c, **as_admin) as session, session.get(MAPS) as response:
            assert response.status == 403
            assert "cannot impersonate" in (await response.json())["message"]

    run(scenario)


def test_unknown_fields_by_strictness(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        body = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"%s"},"dat":{"a":"b"}}'
        status, answer = await _post(c, body % b"a", fieldValidation="Strict")
        assert status == 400 and 'unknown field "dat"' in answer["message"]
        async with _session(c) as session:
            json = {"Content-Type": "application/json"}
            async with session.post(MAPS, data=body % b"b", headers=json) as response:
                assert response.headers["Warning"] == '299 - "unknown field \\"dat\\""'
                assert "dat" not in await response.json()
            query = {"fieldValidation": "Ignore"}
            async with session.post(MAPS, data=body % b"c", params=query, headers=json) as response:
                assert "Warning" not in response.headers

    run(scenario)


def test_what_is_not_there(run: Run) -> None:
    async def scenario(c: Cluster) -> None:
        async with _session(c) as session:
            for path, code in (
                ("/nothing", 404),
                ("/api/v2", 404),
                ("/apis/none.dev/v1/things", 404),
                ("/api/v1/namespaces/default/pods/p/exec", 404),
                ("/openapi/v3/apis/none.dev/v1", 404),
            ):
                async with session.get(path) as response:
                    assert (path, response.status) == (path, code)
            async with session.post(MAPS + "/a") as response:
                assert response.status == 405
            for query in ({"limit": "x"}, {"watch": "1", "timeoutSeconds": "soon"}, {"labelSelector": "a b c=d"}):
                async with session.get(MAPS, params=query) as response:
                    assert (query, response.status) == (query, 400)
            accept = {"Accept": "application/vnd.kubernetes.protobuf"}
            async with session.get(MAPS, headers=accept) as response:
                assert response.status == 406

    run(scenario)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".a.b", [1]),
        ("{.a.b}", [1]),
        (".list[0].n", ["x"]),
        (".list[-1].n", ["y"]),
        (".list[*].n", ["x", "y"]),
        ('.list[?(@.n=="y")].v', [2]),
        (".list[?(@.v!=2)].n", ["x"]),
        (r".labels.a\.b/c", ["dotted"]),
        (".labels['a.b/c']", ["dotted"]),
        (".none.b", []),
    ],
)
def test_jsonpath(path: str, found: list[Any]) -> None:
    item = {"a": {"b": 1}, "list": [{"n": "x", "v": 1}, {"n": "y", "v": 2}], "labels": {"a.b/c": "dotted"}}
    assert jsonpath.find(item, path) == found


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (185, "3m5s"),
        (600, "10m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 60, "3h1m"),
        (9 * 3600 + 60, "9h"),
        (50 * 3600, "2d2h"),
        (20 * 86400, "20d"),
        (800 * 86400, "2y"),
    ],
)
def test_ages(seconds: int, text: str) -> None:
    assert tables.duration(seconds) == text
