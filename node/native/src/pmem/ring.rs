//! The ring: batches in the mapping, one fence each (D4).
//!
//! There is no head pointer: where the log ends is found by its records. The data area starts behind the two header
//! pages; a record at LSN x lies at offset x modulo the area's size, and none wraps: a pad fills what is left before the
//! end. An append writes records and pads, flushes them, fences once, and only then moves `durable_lsn`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::index::{self, Item, LogIndex};
use super::memory::{Flush, Memory};
use super::record::{self, Codec, LogCorrupt, ALIGN_BYTES};
use super::recorder::{Recorder, Recording};

create_exception!(
    _engine,
    RingFull,
    PyException,
    "The ring holds too much that is not yet on disk for this batch."
);

/// Size of one header copy; two of them stand before the data.
pub const HEADER_PAGE_BYTES: u64 = 4096;
pub const DATA_OFFSET_BYTES: u64 = 2 * HEADER_PAGE_BYTES;
/// The interpreter's lock is given up for stores of at least so many bytes.
const DETACH_BYTES: usize = 64 << 10;
/// No record is larger than this part of the data area: with the pad before it, it fits into a drained ring wherever the
/// log stands.
const RECORD_PART: u64 = 2;

/// Consecutive bytes of a batch: offset in the file, range in the scratch buffer.
struct Piece {
    offset: usize,
    start: usize,
    end: usize,
}

/// A ring that is open for writing, in one generation.
#[pyclass(frozen)]
pub struct Ring {
    memory: Mutex<Option<Memory>>,
    scratch: Mutex<Vec<u8>>,
    appending: AtomicBool,
    durable: AtomicU64,
    reclaimed: AtomicU64,
    fences: AtomicU64,
    file: File,
    data_bytes: u64,
    codec: Codec,
    map_sync: bool,
    flush: Flush,
}

/// Clears the flag that lets one batch in at a time.
struct Turnstile<'a>(&'a AtomicBool);

impl Drop for Turnstile<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Ring {
    fn memory(&self) -> MutexGuard<'_, Option<Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offset(&self, lsn: u64) -> u64 {
        DATA_OFFSET_BYTES + lsn % self.data_bytes
    }

    /// Lays a batch out from `lsn`: for each record the bytes of the pad before it (0: none); and the end.
    fn lay_out(&self, drafts: &[record::Draft<'_>], mut lsn: u64) -> PyResult<(Vec<u64>, u64)> {
        let mut pads = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let total = record::record_bytes(draft.payload.len()) as u64;
            if total > self.data_bytes / RECORD_PART {
                return Err(PyValueError::new_err(format!(
                    "a record of {total} bytes is larger than half of the ring ({} bytes)",
                    self.data_bytes
                )));
            }
            let left = self.data_bytes - lsn % self.data_bytes;
            let pad = if total > left { left } else { 0 };
            pads.push(pad);
            lsn += pad + total;
        }
        Ok((pads, lsn))
    }

    /// Encodes the batch; returns the pieces to store, and where each record lies.
    fn encode(
        &self,
        out: &mut Vec<u8>,
        drafts: &[record::Draft<'_>],
        pads: &[u64],
        start: u64,
    ) -> (Vec<Piece>, Vec<(u64, usize)>) {
        let mut places = Vec::with_capacity(drafts.len());
        let mut pieces = Vec::with_capacity(2);
        let (mut lsn, mut piece_lsn, mut piece_start) = (start, start, 0);
        for (draft, pad) in drafts.iter().zip(pads) {
            if *pad > 0 {
                out.extend_from_slice(&record::encode_pad(self.codec, *pad as usize, lsn, start));
                pieces.push(Piece {
                    offset: self.offset(piece_lsn) as usize,
                    start: piece_start,
                    end: out.len(),
                });
                lsn += pad;
                (piece_lsn, piece_start) = (lsn, out.len());
            }
            let at = out.len();
            record::encode(out, self.codec, draft, lsn, start);
            places.push((lsn, out.len() - at));
            lsn += (out.len() - at) as u64;
            if lsn % self.data_bytes == 0 {
                pieces.push(Piece {
                    offset: self.offset(piece_lsn) as usize,
                    start: piece_start,
                    end: out.len(),
                });
                (piece_lsn, piece_start) = (lsn, out.len());
            }
        }
        if out.len() > piece_start {
            pieces.push(Piece {
                offset: self.offset(piece_lsn) as usize,
                start: piece_start,
                end: out.len(),
            });
        }
        (pieces, places)
    }

    /// Stores, flushes, fences: what was stored is durable on return, to the level of the medium.
    fn write(&self, bytes: &[u8], pieces: &[Piece]) -> PyResult<()> {
        let mut guard = self.memory();
        let memory = guard
            .as_mut()
            .ok_or_else(|| PyRuntimeError::new_err("the ring is closed"))?;
        for piece in pieces {
            memory.store(piece.offset, &bytes[piece.start..piece.end]);
        }
        for piece in pieces {
            memory.flush(piece.offset, piece.end - piece.start);
        }
        memory.fence();
        self.fences.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The bytes of [lo, hi), read back by `read()` from where they lie.
    fn read(&self, lo: u64, hi: u64) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; (hi - lo) as usize];
        let mut done = 0;
        while done < bytes.len() {
            let lsn = lo + done as u64;
            let part = ((self.data_bytes - lsn % self.data_bytes) as usize).min(bytes.len() - done);
            self.file
                .read_exact_at(&mut bytes[done..done + part], self.offset(lsn))?;
            done += part;
        }
        Ok(bytes)
    }
}

impl Ring {
    /// Whole valid records from `lo` on, up to `hi`; bytes covered by pads are zero.
    fn read_records(&self, lo: u64, hi: u64) -> std::io::Result<Vec<u8>> {
        let mut bytes = self.read(lo, hi)?;
        let whole = clean_records(&mut bytes, self.codec, lo);
        bytes.truncate(whole);
        Ok(bytes)
    }
}

/// Cuts `bytes` (at `lsn`) after the last whole valid record, and clears what pads cover. Returns the length.
pub fn clean_records(bytes: &mut [u8], codec: Codec, lsn: u64) -> usize {
    let mut offset = 0;
    while offset < bytes.len() {
        let Some(found) = record::decode(&bytes[offset..], codec, lsn + offset as u64) else {
            break;
        };
        let (record_type, total) = (found.record_type, found.total_bytes);
        if record_type == record::PAD {
            bytes[offset + record::HEADER_BYTES..offset + total].fill(0);
        }
        offset += total;
    }
    offset
}

#[pymethods]
impl Ring {
    /// Maps the ring file at `path`, which is whole and zeroed behind its headers; the generation's first record will lie
    /// at `start_lsn`. `flush`: None for the best instruction there is, "none" where caches are persistent (eADR).
    #[new]
    #[pyo3(signature = (path, size_bytes, generation, seed, start_lsn, flush = None))]
    fn new(
        path: std::path::PathBuf,
        size_bytes: u64,
        generation: u64,
        seed: u32,
        start_lsn: u64,
        flush: Option<&str>,
    ) -> PyResult<Self> {
        let align = ALIGN_BYTES as u64;
        if size_bytes <= DATA_OFFSET_BYTES || size_bytes % align != 0 || start_lsn % align != 0 {
            return Err(PyValueError::new_err(
                "ring size and LSN are multiples of 64 bytes, and the headers need room",
            ));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        if file.metadata()?.len() != size_bytes {
            return Err(PyValueError::new_err("the ring file has another size"));
        }
        let flush = match flush {
            Some("none") => Flush::None,
            Some(_) => return Err(PyValueError::new_err("flush is None or \"none\"")),
            None => Flush::detect(),
        };
        let memory = Memory::map(&file, size_bytes as usize, flush)?;
        let map_sync = memory.map_sync;
        Ok(Ring {
            memory: Mutex::new(Some(memory)),
            scratch: Mutex::default(),
            appending: AtomicBool::new(false),
            durable: AtomicU64::new(start_lsn),
            reclaimed: AtomicU64::new(start_lsn),
            fences: AtomicU64::new(0),
            file,
            data_bytes: size_bytes - DATA_OFFSET_BYTES,
            codec: Codec { generation, seed },
            map_sync,
            flush,
        })
    }

    /// Appends a batch of (type, kind, term, index, payload) and takes it into `index`. Durable on return; one fence.
    /// Returns start and end LSN. RingFull: it does not fit; nothing was written. ValueError: it cannot follow what is
    /// there, or a record is too large; nothing was written. One batch at a time.
    fn append(
        &self,
        py: Python<'_>,
        records: &Bound<'_, PyAny>,
        index: &LogIndex,
    ) -> PyResult<(u64, u64)> {
        if self.appending.swap(true, Ordering::Acquire) {
            return Err(PyRuntimeError::new_err("two threads append to one ring"));
        }
        let _turnstile = Turnstile(&self.appending);
        let items = index::items(records)?;
        let drafts = items
            .iter()
            .map(Item::draft)
            .collect::<PyResult<Vec<_>>>()?;
        index.check(&drafts)?;
        let start = self.durable.load(Ordering::Acquire);
        let (pads, end) = self.lay_out(&drafts, start)?;
        let held = end - self.reclaimed.load(Ordering::Acquire);
        if held > self.data_bytes {
            return Err(RingFull::new_err(format!(
                "the ring of {} bytes would hold {held} bytes not yet on disk",
                self.data_bytes
            )));
        }
        if drafts.is_empty() {
            return Ok((start, end));
        }
        let mut scratch =
            std::mem::take(&mut *self.scratch.lock().unwrap_or_else(PoisonError::into_inner));
        scratch.clear();
        let (pieces, places) = self.encode(&mut scratch, &drafts, &pads, start);
        // Who holds the memory's lock never waits for the interpreter's, so waiting for it with either is safe.
        if scratch.len() >= DETACH_BYTES {
            py.detach(|| self.write(&scratch, &pieces))?;
        } else {
            self.write(&scratch, &pieces)?;
        }
        index.extend(&drafts, &places)?;
        self.durable.store(end, Ordering::Release);
        *self.scratch.lock().unwrap_or_else(PoisonError::into_inner) = scratch;
        Ok((start, end))
    }

    /// Stores, flushes and fences one header copy (0 or 1).
    fn store_header(&self, py: Python<'_>, copy: u64, header: &[u8]) -> PyResult<()> {
        if copy > 1 || header.len() as u64 > HEADER_PAGE_BYTES {
            return Err(PyValueError::new_err(
                "there are two header copies of one page each",
            ));
        }
        let piece = Piece {
            offset: (copy * HEADER_PAGE_BYTES) as usize,
            start: 0,
            end: header.len(),
        };
        py.detach(|| self.write(header, &[piece]))
    }

    /// Whole valid records from `lo` on, at most up to `hi` and of about `max_bytes`: what drain writes to a segment.
    /// Bytes covered by pads are zero. LogCorrupt: `lo` does not start one.
    fn copy_out<'py>(
        &self,
        py: Python<'py>,
        lo: u64,
        hi: u64,
        max_bytes: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| {
            let bytes = self.read_records(lo, hi.min(lo + max_bytes))?;
            if !bytes.is_empty() {
                return Ok(bytes);
            }
            // The first record may be longer than asked for, but no record is longer than this.
            self.read_records(lo, hi.min(lo + self.data_bytes / RECORD_PART))
        });
        let bytes = bytes.map_err(PyErr::from)?;
        if bytes.is_empty() && lo < hi {
            return Err(LogCorrupt::new_err(format!(
                "the ring holds no valid record at LSN {lo}"
            )));
        }
        Ok(PyBytes::new(py, &bytes))
    }

    /// The raw bytes of [lo, hi): to be validated by whoever uses them, since the ring may have been reused meanwhile.
    fn read_raw<'py>(&self, py: Python<'py>, lo: u64, hi: u64) -> PyResult<Bound<'py, PyBytes>> {
        if hi < lo || hi - lo > self.data_bytes {
            return Err(PyValueError::new_err("not a range of this ring"));
        }
        let bytes = py.detach(|| self.read(lo, hi))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Gives the bytes below `lsn` up for reuse: only when they are on disk, the manifest says so, and the ring's header
    /// says so (D6).
    fn set_reclaimed(&self, lsn: u64) -> PyResult<()> {
        if lsn < self.reclaimed.load(Ordering::Acquire)
            || lsn > self.durable.load(Ordering::Acquire)
        {
            return Err(PyValueError::new_err(
                "space is reclaimed forwards, and never past what is durable",
            ));
        }
        self.reclaimed.store(lsn, Ordering::Release);
        Ok(())
    }

    /// Starts recording stores, flushes and fences (tests): see `Recording`.
    fn record(&self) -> PyResult<Recording> {
        let mut base = vec![0; (DATA_OFFSET_BYTES + self.data_bytes) as usize];
        self.file.read_exact_at(&mut base, 0)?;
        let recorder = Arc::new(Mutex::new(Recorder::new(base)));
        let mut guard = self.memory();
        let memory = guard
            .as_mut()
            .ok_or_else(|| PyRuntimeError::new_err("the ring is closed"))?;
        memory.record(Arc::clone(&recorder));
        Ok(Recording::new(recorder))
    }

    /// Unmaps. Appends fail from now on; what was durable is.
    fn close(&self) {
        *self.memory() = None;
    }

    #[getter]
    fn durable_lsn(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }
    #[getter]
    fn reclaimed_lsn(&self) -> u64 {
        self.reclaimed.load(Ordering::Acquire)
    }
    #[getter]
    fn data_bytes(&self) -> u64 {
        self.data_bytes
    }
    /// Fences so far, those of header flips included.
    #[getter]
    fn fences(&self) -> u64 {
        self.fences.load(Ordering::Relaxed)
    }
    #[getter]
    fn map_sync(&self) -> bool {
        self.map_sync
    }
    /// "clwb", "clflushopt", "clflush" or "none".
    #[getter]
    fn flush(&self) -> &'static str {
        self.flush.name()
    }
}
