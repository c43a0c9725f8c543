"""Arbitrary bytes given to every reader of a format: a refusal or an end, never a crash, and never a wrong record."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile

from adr_crash import laboratory
from adr_harness import Machine, Member, durably, entries
from hypothesis import given, settings
from hypothesis import strategies as st
from raftkv_node._engine import LogCorrupt, LogIndex, RingImage, log_encode, log_extract, log_scan
from raftkv_node.adr import LogError, configuration, entry, hard_state, mark, tools
from raftkv_node.adr.files import decode_document, encode_document
from raftkv_node.adr.manifest import ManifestInvalid, read_manifest
from raftkv_node.adr.ringfile import decode_header as decode_ring_header
from raftkv_node.adr.segments import decode_header as decode_segment_header

settings.register_profile("loaded", deadline=None)
settings.load_profile("loaded")

words = st.integers(0, 2**64 - 1)


@given(st.binary(max_size=2048), words, words, st.integers(0, 2**32 - 1))
def test_any_bytes_are_scanned_without_harm(data: bytes, lsn: int, generation: int, seed: int) -> None:
    end, count, _, _ = log_scan(data, lsn, generation, seed)
    assert end >= lsn
    assert count == 0 or end > lsn
    for call in (
        lambda: LogIndex().absorb(data, lsn, generation, seed),
        lambda: log_extract(data, lsn, generation, seed, [lsn, lsn ^ 64]),
    ):
        try:
            call()
        except LogCorrupt:
            pass
        else:
            assert not data or count


@given(st.binary(max_size=4096), st.integers(0, 2**40).map(lambda n: n * 64), words)
def test_any_ring_is_scanned_without_harm(data: bytes, lsn: int, generation: int) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(8192) + data)
        file.flush()
        image = RingImage.load(file.name, 2048)
    end, count, _, _ = image.scan(lsn, generation, 0)
    assert (end, count) == (lsn, 0)
    assert not image.holds_any(generation, 0)


@given(st.binary(max_size=1024))
def test_any_header_is_read_without_harm(data: bytes) -> None:
    for padded in (data, data.ljust(1024, b"\0"), b"RAFTKVRB" + data, b"RAFTKVSG" + data.ljust(512, b"\0")):
        assert decode_ring_header(padded) is None
        assert decode_segment_header(padded) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary(max_size=512) | st.dictionaries(st.text(), json_values).map(encode_document))
def test_any_manifest_is_read_without_harm(data: bytes) -> None:
    folder = laboratory()
    try:
        (folder / "manifest.json").write_bytes(data)
        with contextlib.suppress(ManifestInvalid):
            assert read_manifest(folder) is None
    finally:
        shutil.rmtree(folder)


@settings(max_examples=30)
@given(st.dictionaries(st.text(), json_values))
def test_a_document_is_read_as_written(document: dict[str, object]) -> None:
    assert decode_document(encode_document(document)) == json.loads(json.dumps(document))


payloads = st.binary(max_size=300)
indexes = st.integers(1, 2**63)


@given(st.lists(st.tuples(words, st.integers(0, 255), payloads), max_size=8), words.map(lambda n: n % 2**40 * 64))
def test_records_are_read_as_written(items: list[tuple[int, int, bytes]], lsn: int) -> None:
    batch = [entry(term, number, kind, payload) for number, (term, kind, payload) in enumerate(items, 1)]
    batch += [configuration(1, 2, b"c"), hard_state(7, 8, 9), mark(20, 1, 2, b"m")]
    index = LogIndex()
    data = log_encode(batch, lsn, lsn, 3, 4, index)
    again = LogIndex()
    again.absorb(data, lsn, 3, 4)
    assert again.hard_state == (7, 8, 9)
    assert again.configuration == (1, 2, b"c")
    places = again.locate(1, len(items) + 1, 1 << 20)
    assert [(t, k, p) for t, _, k, p in log_extract(data, lsn, 3, 4, [at for _, at, _ in places])] == items


@settings(max_examples=60)
@given(st.data())
def test_a_member_with_any_damaged_file_opens_or_refuses(data: st.DataObject) -> None:
    """Anything may be flipped, cut or lengthened: a LogError, or a log; never another exception, and never an entry
    that
    was not written."""
    folder = laboratory()
    try:
        member = Member(folder, Machine(), ring=data.draw(st.booleans())).make()
        log, _ = member.open(segment_size_bytes=600)
        for first in range(1, 10, 3):
            durably(log, entries(1, first, 3))
        log.close(clean=data.draw(st.booleans()))
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        path = data.draw(st.sampled_from(files))
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["flip", "cut", "fill", "append"]))
        if how == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "cut":
            del content[at:]
        elif how == "fill":
            content[at : at + 600] = data.draw(st.binary(min_size=600, max_size=600))
        else:
            content += data.draw(st.binary(max_size=200))
        path.write_bytes(content)
        said: list[str] = []
        tools.inspect(member.data, member.pmem, said.append)
        tools.verify(member.data, member.pmem, said.append, environment=member.machine)
        assert said
        try:
            log, recovered = member.open()
        except LogError as error:
            assert "\n" not in str(error)
            return
        log.close(clean=False)
        assert [item.payload for item in recovered.entries] == [
            b"value-%d" % number for number in range(1, recovered.last_index + 1)
        ]
    finally:
        shutil.rmtree(folder)
