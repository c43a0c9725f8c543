"""Old records beneath a torn new one: the ring's Rust code writes one generation over another, in one file.

The log never does that (a generation has a file and a secret of its own, D8); the checksum must hold all the same: a
generation that is only compared, and not checked, would let an old record pass for a new one when its generation's
word alone has reached the medium. Same secret, LSN, term and index: the generation is all that tells them apart.
"""

from __future__ import annotations

import time

from adr_crash import laboratory
from adr_invariants import ACKNOWLEDGED_IMPLIES_DURABLE, RECOVERED_IS_PREFIX
from crash_states import Tally, Tree, Violation
from raftkv_node._engine import LogIndex, Ring, RingImage, crc32c, log_extract
from raftkv_node.adr import entry

RING_BYTES = 8192 + 4096
SEED = 0x5EED
#: From the first byte that is checked to behind the generation's (docs/formats/adr-ring.md).
CHECKED_TO_GENERATION_BYTES = 20
GENERATION_BYTES = 8


def cancelling_seed(seed: int, old: int, new: int) -> int:
    """A start value for generation `new` under which the generation is as good as not in the checksum.

    CRC32C is linear: what another generation changes in the checksum, another start value undoes.
    """
    zeros = bytes(CHECKED_TO_GENERATION_BYTES)

    def generation(number: int) -> bytes:
        return number.to_bytes(GENERATION_BYTES, "little").rjust(CHECKED_TO_GENERATION_BYTES, b"\0")

    wanted = crc32c(generation(old)) ^ crc32c(generation(new))
    # Gauss over the bits: which start values make which difference after so many bytes.
    basis: dict[int, tuple[int, int]] = {}
    for bit in range(32):
        made, by = crc32c(zeros, 1 << bit) ^ crc32c(zeros), 1 << bit
        while made and made.bit_length() in basis:
            other = basis[made.bit_length()]
            made, by = made ^ other[0], by ^ other[1]
        if made:
            basis[made.bit_length()] = made, by
    difference = 0
    while wanted:
        made, by = basis[wanted.bit_length()]
        wanted, difference = wanted ^ made, difference ^ by
    return seed ^ difference


def explore(seed_of_new: int = SEED) -> Tally:
    """Every state of the words of three records of generation 2 above those of generation 1."""
    tally = Tally("old records beneath torn new ones")
    began = time.monotonic()
    folder = laboratory()
    path = folder / "ring"
    try:
        path.write_bytes(bytes(RING_BYTES))
        old = Ring(str(path), RING_BYTES, 1, SEED, 0)
        for number in (1, 2, 3):
            old.append([entry(1, number, 0, b"old" + b"%d" % number)], LogIndex())
        old.close()
        new = Ring(str(path), RING_BYTES, 2, seed_of_new, 0)
        recording = new.record()
        index = LogIndex()
        acknowledged = []
        for number in (1, 2, 3):
            new.append([entry(1, number, 0, b"new" + b"%d" % number)], index)
            acknowledged.append(len(recording))
        new.close()
        for moment in range(len(recording) + 1):
            tally.moments += 1
            tally.exhausted += 1
            certain = sum(1 for events in acknowledged if events <= moment)
            tree, more = Tree(), True
            while more:
                choices = [tree.choose(count) for count in recording.uncertain(moment)]
                path.write_bytes(recording.image(moment, choices))
                _check(RingImage.load(str(path), RING_BYTES - 8192), seed_of_new, certain, f"{moment}, {choices}")
                tally.exhaustive += 1
                tally.recoveries += 1
                more = tree.advance()
    except Violation as violation:
        tally.violations.append(str(violation))
    finally:
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()
    tally.seconds = time.monotonic() - began
    return tally


def _check(image: RingImage, seed: int, certain: int, where: str) -> None:
    end, count, why, _ = image.scan(0, 2, seed)
    if why is not None or count < certain:
        raise Violation(
            ACKNOWLEDGED_IMPLIES_DURABLE, f"{certain} records were fenced, {count} found ({why}) at {where}"
        )
    data = image.linear(0, end, 2, seed)
    index = LogIndex()
    index.absorb(data, 0, 2, seed)
    places = [at for _, at, _ in index.locate(1, count + 1, 1 << 20)]
    shown = [payload for *_, payload in log_extract(data, 0, 2, seed, places)]
    if shown != [b"new%d" % number for number in range(1, count + 1)]:
        raise Violation(RECOVERED_IS_PREFIX, f"{shown} were found at {where}")
