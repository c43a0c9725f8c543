//! Records: the unit of the log (docs/formats/adr-ring.md, rules D1 and D2).
//!
//! A record is a 64-byte header and its payload, padded with zeros to 64 bytes. The checksum covers the header behind it
//! and the payload, and starts from a secret of the generation, so that bytes which a client chose never pass for one.

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(
    _engine,
    LogCorrupt,
    PyException,
    "Bytes of the log that must be valid are not (rule D2)."
);

/// Size of a record's header, and the alignment of records, in bytes.
pub const HEADER_BYTES: usize = 64;
pub const ALIGN_BYTES: usize = 64;
/// Version of the record format (D16).
pub const VERSION: u8 = 1;

pub const ENTRY: u8 = 1;
pub const HARD_STATE: u8 = 2;
pub const CONFIGURATION: u8 = 3;
pub const MARK: u8 = 4;
pub const PAD: u8 = 5;

/// Marks that the index itself understands: the log as of here ends at (index, term); and: the log was replaced by a
/// snapshot and starts behind (index, term). Other kinds are the caller's.
pub const MARK_POSITION: u8 = 1;
pub const MARK_SNAPSHOT: u8 = 2;

/// Bytes that a payload of `payload_bytes` takes in the log.
pub fn record_bytes(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(ALIGN_BYTES)
}

/// What all records of one opening share.
#[derive(Clone, Copy, Debug)]
pub struct Codec {
    pub generation: u64,
    /// Start value of the checksum: derived from the generation's secret.
    pub seed: u32,
}

/// A record to be written: borrows its payload. A hard state's vote travels in `aux`.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    pub record_type: u8,
    pub kind: u8,
    pub term: u64,
    pub index: u64,
    pub aux: u64,
    pub payload: &'a [u8],
}

/// A valid record found in some bytes.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    pub record_type: u8,
    pub kind: u8,
    pub lsn: u64,
    pub fenced_lsn: u64,
    pub term: u64,
    pub index: u64,
    pub aux: u64,
    pub payload: &'a [u8],
    /// Header, payload and padding.
    pub total_bytes: usize,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn header(
    codec: Codec,
    draft: &Draft<'_>,
    length: u32,
    lsn: u64,
    fenced_lsn: u64,
) -> [u8; HEADER_BYTES] {
    let mut bytes = [0u8; HEADER_BYTES];
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[8] = VERSION;
    bytes[9] = draft.record_type;
    bytes[10] = draft.kind;
    bytes[16..24].copy_from_slice(&codec.generation.to_le_bytes());
    bytes[24..32].copy_from_slice(&lsn.to_le_bytes());
    bytes[32..40].copy_from_slice(&fenced_lsn.to_le_bytes());
    bytes[40..48].copy_from_slice(&draft.term.to_le_bytes());
    bytes[48..56].copy_from_slice(&draft.index.to_le_bytes());
    bytes[56..64].copy_from_slice(&draft.aux.to_le_bytes());
    bytes
}

/// Appends the record's bytes to `out`; the record will lie at `lsn`.
pub fn encode(out: &mut Vec<u8>, codec: Codec, draft: &Draft<'_>, lsn: u64, fenced_lsn: u64) {
    let mut head = header(codec, draft, draft.payload.len() as u32, lsn, fenced_lsn);
    let crc = ::crc32c::crc32c_append(
        ::crc32c::crc32c_append(codec.seed, &head[4..]),
        draft.payload,
    );
    head[..4].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(draft.payload);
    out.resize(out.len().next_multiple_of(ALIGN_BYTES), 0);
}

/// The header of a pad that fills `total_bytes`; what follows it is never read.
pub fn encode_pad(
    codec: Codec,
    total_bytes: usize,
    lsn: u64,
    fenced_lsn: u64,
) -> [u8; HEADER_BYTES] {
    let draft = Draft {
        record_type: PAD,
        kind: 0,
        term: 0,
        index: 0,
        aux: 0,
        payload: &[],
    };
    let mut head = header(
        codec,
        &draft,
        (total_bytes - HEADER_BYTES) as u32,
        lsn,
        fenced_lsn,
    );
    let crc = ::crc32c::crc32c_append(codec.seed, &head[4..]);
    head[..4].copy_from_slice(&crc.to_le_bytes());
    head
}

/// The bytes that a record at `lsn` takes by its header, which may be damaged, as may be all the rest: at most those of
/// `bytes`. None: the header is of another generation or place.
pub fn claimed_bytes(bytes: &[u8], codec: Codec, lsn: u64) -> Option<usize> {
    if bytes.len() < HEADER_BYTES
        || u64_at(bytes, 16) != codec.generation
        || u64_at(bytes, 24) != lsn
    {
        return None;
    }
    Some(record_bytes(u32_at(bytes, 4) as usize).min(bytes.len()))
}

/// The record of `codec`'s generation at `lsn`, if `bytes` starts with one. A pad's payload is not looked at.
pub fn decode(bytes: &[u8], codec: Codec, lsn: u64) -> Option<Found<'_>> {
    let total_bytes = claimed_bytes(bytes, codec, lsn)?;
    let length = u32_at(bytes, 4) as usize;
    if record_bytes(length) > bytes.len() {
        return None;
    }
    let record_type = bytes[9];
    let payload = if record_type == PAD {
        &[][..]
    } else {
        &bytes[HEADER_BYTES..HEADER_BYTES + length]
    };
    let crc = ::crc32c::crc32c_append(
        ::crc32c::crc32c_append(codec.seed, &bytes[4..HEADER_BYTES]),
        payload,
    );
    let fenced_lsn = u64_at(bytes, 32);
    if crc != u32_at(bytes, 0) || fenced_lsn > lsn {
        return None;
    }
    Some(Found {
        record_type,
        kind: bytes[10],
        lsn,
        fenced_lsn,
        term: u64_at(bytes, 40),
        index: u64_at(bytes, 48),
        aux: u64_at(bytes, 56),
        payload,
        total_bytes,
    })
}

/// Whether a valid record is of a version or type that this program does not know: never to be mistaken for the end.
pub fn unsupported(bytes: &[u8], found: &Found<'_>) -> Option<String> {
    if bytes[8] != VERSION || !(ENTRY..=PAD).contains(&found.record_type) {
        return Some(format!(
            "the record at LSN {} is of version {} and type {}, which this program does not know",
            found.lsn, bytes[8], found.record_type
        ));
    }
    None
}

/// CRC32C (Castagnoli) of `data`, continued from `seed`; by the processor's own instruction where it has one.
#[pyfunction]
#[pyo3(signature = (data, seed = 0))]
pub fn crc32c(data: &[u8], seed: u32) -> u32 {
    ::crc32c::crc32c_append(seed, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODEC: Codec = Codec {
        generation: 7,
        seed: 0xdead_beef,
    };

    fn sample(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let draft = Draft {
            record_type: ENTRY,
            kind: 1,
            term: 3,
            index: 9,
            aux: 0,
            payload,
        };
        encode(&mut out, CODEC, &draft, 128, 64);
        out
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let bytes = sample(b"hello");
        let found = decode(&bytes, CODEC, 128).expect("a record");
        assert_eq!(
            (found.term, found.index, found.kind, found.payload),
            (3, 9, 1, &b"hello"[..])
        );
        assert_eq!(found.total_bytes, bytes.len());
    }

    #[test]
    fn any_flipped_bit_of_header_or_payload_is_found() {
        let bytes = sample(b"hello");
        for bit in 0..(HEADER_BYTES + 5) * 8 {
            let mut torn = bytes.clone();
            torn[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&torn, CODEC, 128).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn another_generation_secret_or_position_is_no_record() {
        let bytes = sample(b"hello");
        assert!(decode(
            &bytes,
            Codec {
                generation: 8,
                ..CODEC
            },
            128
        )
        .is_none());
        assert!(decode(&bytes, Codec { seed: 1, ..CODEC }, 128).is_none());
        assert!(decode(&bytes, CODEC, 192).is_none());
    }

    /// D1: the generation is in the checksum, not only compared: an old record under a new generation's word is none.
    #[test]
    fn d1_the_generation_is_part_of_the_checksum() {
        let mut bytes = sample(b"hello");
        bytes[16..24].copy_from_slice(&8u64.to_le_bytes());
        assert!(decode(
            &bytes,
            Codec {
                generation: 8,
                ..CODEC
            },
            128
        )
        .is_none());
    }
}
