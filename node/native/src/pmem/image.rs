//! Reading back: a ring's data area after a stop, and where its log ends (D2).

use std::fs::File;
use std::os::unix::fs::FileExt;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::record::{self, Codec, LogCorrupt, ALIGN_BYTES};
use super::ring::{clean_records, DATA_OFFSET_BYTES};

const PAGE_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 1 << 20;

/// End LSN, records, why it is corruption and no end (None: it is the end), bytes of valid records behind it.
type Scan = (u64, usize, Option<String>, u64);

/// Term, index, kind, payload.
type Entry<'py> = (u64, u64, u8, Bound<'py, PyBytes>);

/// A ring's data area, as `read()` gives it. Pages that cannot be read are remembered, not fatal by themselves: poison
/// behind the end of the log harms nobody.
#[pyclass(frozen)]
pub struct RingImage {
    data: Vec<u8>,
    /// Offsets in the data area of unreadable pages.
    bad: Vec<(usize, usize)>,
}

/// Walks records from `lsn` on; `at` gives the bytes that start at an LSN (shorter at a place where none may go on).
pub fn walk<'a>(
    at: impl Fn(u64) -> &'a [u8],
    codec: Codec,
    start: u64,
    limit: u64,
) -> (u64, usize, Option<String>) {
    let (mut lsn, mut count) = (start, 0);
    while lsn < limit {
        let bytes = at(lsn);
        let room = bytes.len().min((limit - lsn) as usize);
        let Some(found) = record::decode(&bytes[..room], codec, lsn) else {
            break;
        };
        if let Some(message) = record::unsupported(bytes, &found) {
            return (lsn, count, Some(message));
        }
        lsn += found.total_bytes as u64;
        count += 1;
    }
    (lsn, count, None)
}

/// The verdict on the first bad record at `end`, by all valid records of the generation anywhere (D2).
pub fn judge<'a>(
    found: impl Iterator<Item = record::Found<'a>>,
    end: u64,
) -> (Option<String>, u64) {
    let mut behind = 0;
    for record in found {
        if record.fenced_lsn > end {
            let message = format!(
                "the record at LSN {} was written when everything below {} was durable, but there is no valid one at {end}",
                record.lsn, record.fenced_lsn
            );
            return (Some(message), 0);
        }
        if record.lsn >= end {
            behind += record.total_bytes as u64;
        }
    }
    (None, behind)
}

#[pymethods]
impl RingImage {
    /// Reads `data_bytes` behind the headers of the file at `path`; what the file does not have counts as unreadable.
    #[staticmethod]
    fn load(py: Python<'_>, path: std::path::PathBuf, data_bytes: usize) -> PyResult<Self> {
        py.detach(|| {
            let file = File::open(path)?;
            let mut data = vec![0; data_bytes];
            let mut bad = Vec::new();
            let mut offset = 0;
            while offset < data_bytes {
                let end = (offset + CHUNK_BYTES).min(data_bytes);
                let at = DATA_OFFSET_BYTES + offset as u64;
                if file.read_exact_at(&mut data[offset..end], at).is_err() {
                    for page in (offset..end).step_by(PAGE_BYTES) {
                        let page_end = (page + PAGE_BYTES).min(end);
                        let at = DATA_OFFSET_BYTES + page as u64;
                        if file.read_exact_at(&mut data[page..page_end], at).is_err() {
                            data[page..page_end].fill(0);
                            bad.push((page, page_end));
                        }
                    }
                }
                offset = end;
            }
            Ok(RingImage { data, bad })
        })
    }

    /// The log from `start_lsn` on: (end LSN, records, corruption or None, bytes of valid records behind the end).
    fn scan(&self, py: Python<'_>, start_lsn: u64, generation: u64, seed: u32) -> PyResult<Scan> {
        let codec = Codec { generation, seed };
        let size = self.data.len() as u64;
        if size == 0 || start_lsn % ALIGN_BYTES as u64 != 0 {
            return Err(PyValueError::new_err("an LSN is a multiple of 64 bytes"));
        }
        Ok(py.detach(|| {
            let at = |lsn: u64| &self.data[(lsn % size) as usize..];
            let (end, count, unknown) = walk(at, codec, start_lsn, start_lsn.saturating_add(size));
            if unknown.is_some() {
                return (end, count, unknown, 0);
            }
            if end < start_lsn.saturating_add(size) && self.unreadable_at(codec, end) {
                return (
                    end,
                    count,
                    Some(format!("the ring cannot be read at LSN {end}")),
                    0,
                );
            }
            let (corrupt, behind) = judge(self.records(codec), end);
            (end, count, corrupt, behind)
        }))
    }

    /// Whether any valid record of the generation lies anywhere in the ring.
    fn holds_any(&self, py: Python<'_>, generation: u64, seed: u32) -> bool {
        py.detach(|| self.records(Codec { generation, seed }).next().is_some())
    }

    /// The records of [lo, hi), which `scan` has found, in one piece; bytes covered by pads are zero.
    fn linear<'py>(
        &self,
        py: Python<'py>,
        lo: u64,
        hi: u64,
        generation: u64,
        seed: u32,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let size = self.data.len() as u64;
        if hi < lo || hi - lo > size {
            return Err(PyValueError::new_err("not a range of this ring"));
        }
        let mut bytes = Vec::with_capacity((hi - lo) as usize);
        while (bytes.len() as u64) < hi - lo {
            let lsn = lo + bytes.len() as u64;
            let from = (lsn % size) as usize;
            let part = ((hi - lsn) as usize).min(self.data.len() - from);
            bytes.extend_from_slice(&self.data[from..from + part]);
        }
        let whole = clean_records(&mut bytes, Codec { generation, seed }, lo);
        if whole != bytes.len() {
            return Err(LogCorrupt::new_err(format!(
                "no valid record at LSN {}",
                lo + whole as u64
            )));
        }
        Ok(PyBytes::new(py, &bytes))
    }
}

impl RingImage {
    /// Whether what is no record at `lsn` may be one that cannot be read: its first bytes, or, if these are the header of
    /// a record there, any byte that it claims.
    fn unreadable_at(&self, codec: Codec, lsn: u64) -> bool {
        let first = (lsn % self.data.len() as u64) as usize;
        let claimed = record::claimed_bytes(&self.data[first..], codec, lsn);
        let end = first + claimed.unwrap_or(ALIGN_BYTES);
        self.bad.iter().any(|(lo, hi)| *lo < end && first < *hi)
    }

    /// All valid records of the generation, wherever they lie.
    fn records(&self, codec: Codec) -> impl Iterator<Item = record::Found<'_>> {
        let size = self.data.len() as u64;
        (0..self.data.len())
            .step_by(ALIGN_BYTES)
            .filter_map(move |offset| {
                let bytes = &self.data[offset..];
                let lsn = u64::from_le_bytes(bytes.get(24..32)?.try_into().ok()?);
                if lsn % size != offset as u64 {
                    return None;
                }
                record::decode(bytes, codec, lsn)
            })
    }
}

/// The log in `data`, which lies at `lsn` in a segment: as `RingImage.scan`.
#[pyfunction]
pub fn log_scan(py: Python<'_>, data: &[u8], lsn: u64, generation: u64, seed: u32) -> Scan {
    let codec = Codec { generation, seed };
    py.detach(|| {
        let limit = lsn.saturating_add(data.len() as u64);
        let (end, count, unknown) = walk(|at| &data[(at - lsn) as usize..], codec, lsn, limit);
        if unknown.is_some() {
            return (end, count, unknown, 0);
        }
        let slots = ((end - lsn) as usize..data.len()).step_by(ALIGN_BYTES);
        let found =
            slots.filter_map(|offset| record::decode(&data[offset..], codec, lsn + offset as u64));
        let (corrupt, behind) = judge(found, end);
        (end, count, corrupt, behind)
    })
}

/// The entries at `lsns` in `data`, which lies at `lsn`: (term, index, kind, payload). LogCorrupt: one is not there.
#[pyfunction]
pub fn log_extract<'py>(
    py: Python<'py>,
    data: &[u8],
    lsn: u64,
    generation: u64,
    seed: u32,
    lsns: Vec<u64>,
) -> PyResult<Vec<Entry<'py>>> {
    let codec = Codec { generation, seed };
    let entry = |at: &u64| {
        let found = at
            .checked_sub(lsn)
            .and_then(|offset| data.get(offset as usize..))
            .and_then(|bytes| record::decode(bytes, codec, *at))
            .filter(|found| found.record_type == record::ENTRY)
            .ok_or_else(|| LogCorrupt::new_err(format!("no valid entry at LSN {at}")))?;
        Ok((
            found.term,
            found.index,
            found.kind,
            PyBytes::new(py, found.payload),
        ))
    };
    lsns.iter().map(entry).collect()
}
