//! The log's parsers as fuzz targets: any bytes in, no panic, and what each must keep. Run by `make fuzz` (tests/fuzz),
//! and over the seeds by the crate's tests.

use super::image::{judge, walk};
use super::index::LogIndex;
use super::record::{self, Codec, Draft, ALIGN_BYTES};

/// LSN, generation and seed from the front of the input.
fn setting(data: &[u8]) -> Option<(u64, Codec, &[u8])> {
    let (head, rest) = data.split_first_chunk::<12>()?;
    let lsn = u64::from(u32::from_le_bytes(head[..4].try_into().ok()?)) * ALIGN_BYTES as u64;
    let generation = u64::from(u32::from_le_bytes(head[4..8].try_into().ok()?));
    let seed = u32::from_le_bytes(head[8..].try_into().ok()?);
    Some((lsn, Codec { generation, seed }, rest))
}

/// A segment's or ring's bytes: the scan ends within them, and what it found is what an index takes.
pub fn log_bytes(data: &[u8]) {
    let Some((lsn, codec, bytes)) = setting(data) else {
        return;
    };
    let limit = lsn + bytes.len() as u64;
    let at = |here: u64| &bytes[(here - lsn) as usize..];
    let (end, count, _) = walk(at, codec, lsn, limit);
    assert!((lsn..=limit).contains(&end) && (count > 0) == (end > lsn));
    let slots = (0..bytes.len()).step_by(ALIGN_BYTES);
    let found = slots.filter_map(|o| record::decode(&bytes[o..], codec, lsn + o as u64));
    let (corrupt, behind) = judge(found, end);
    assert!(corrupt.is_some() || behind <= bytes.len() as u64);
    let index = LogIndex::default();
    let whole = &bytes[..(end - lsn) as usize];
    if let Ok((taken, _)) = index.absorb(whole, lsn, codec.generation, codec.seed, false) {
        assert_eq!(taken, count);
    }
}

/// Records with a right checksum but any contents, as a log of another program might have: what the index lets be
/// appended it takes, and recovering the bytes gives the same view.
pub fn log_records(data: &[u8]) {
    let Some((lsn, codec, mut rest)) = setting(data) else {
        return;
    };
    let written = LogIndex::default();
    let mut bytes = Vec::new();
    while let Some((head, tail)) = rest.split_first_chunk::<8>() {
        let [kind, what, term, wide, i0, i1, length, vote] = *head;
        let length = usize::from(length).min(tail.len());
        let (payload, after) = tail.split_at(length);
        rest = after;
        let index = u64::from(u16::from_le_bytes([i0, i1]));
        let draft = Draft {
            record_type: kind % 7,
            kind: what % 20,
            term: u64::from(term),
            // Also the ends of the range.
            index: match wide {
                0xff => u64::MAX - index,
                0xfe => index << 48,
                _ => index % 8,
            },
            aux: u64::from(vote % 3),
            payload: if kind % 7 == record::HARD_STATE {
                &[]
            } else {
                payload
            },
        };
        if (record::ENTRY..=record::MARK).contains(&draft.record_type)
            && written.check(&[draft]).is_ok()
        {
            let here = lsn + bytes.len() as u64;
            let before = bytes.len();
            record::encode(&mut bytes, codec, &draft, here, lsn);
            written
                .extend(&[draft], &[(here, bytes.len() - before)])
                .expect("what the check has let through");
        } else {
            // Never written by this program; read back it is refused, or taken, and does no harm.
            let mut foreign = Vec::new();
            record::encode(&mut foreign, codec, &draft, lsn, lsn);
            let _ = LogIndex::default().absorb(&foreign, lsn, codec.generation, codec.seed, false);
            let mut both = bytes.clone();
            record::encode(&mut both, codec, &draft, lsn + bytes.len() as u64, lsn);
            let _ = LogIndex::default().absorb(&both, lsn, codec.generation, codec.seed, true);
            let _ = LogIndex::default().absorb(&both, lsn, codec.generation, codec.seed, false);
        }
    }
    let read = LogIndex::default();
    read.absorb(&bytes, lsn, codec.generation, codec.seed, false)
        .expect("what was written is read");
    assert_eq!(read.last(), written.last());
    assert_eq!(read.first_index(), written.first_index());
    assert_eq!(read.hard_state(), written.hard_state());
    let first = read.first_index();
    assert_eq!(
        read.locate(first, first + 100, 1 << 20),
        written.locate(first, first + 100, 1 << 20)
    );
    read.release(lsn + bytes.len() as u64 / 2);
    assert_eq!(read.last().0, written.last().0);
}

#[cfg(test)]
mod tests {
    use crate::fuzzing::replay;

    #[test]
    fn seeds_and_their_mutations_do_no_harm() {
        replay("log_bytes", super::log_bytes);
        replay("log_records", super::log_records);
    }
}
