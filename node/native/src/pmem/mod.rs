//! The log's bytes: records that check themselves, and the memory that they are stored in.
//!
//! Theory of operation. A log is a sequence of records, each 64-byte aligned and addressed by its LSN, a byte position
//! that only grows. [`record`] encodes a batch and says of any bytes whether a given record lies there. [`memory`] is the
//! only code that touches a mapping: store, flush, fence, and beneath those three an optional recorder, which keeps what
//! a power cut could have left behind at any moment. [`ring`] places batches in the mapping (LSN modulo data size, no
//! record wraps, one fence per batch). [`image`] is the other direction: it reads a ring back by `read()`, since a
//! poisoned line is then an error and not a signal, and finds the end of the log. [`index`] is the view that results:
//! for each entry where it lies, and the latest hard state, configuration and marks.
//!
//! Nothing here knows what an entry means.

use pyo3::prelude::*;

#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod image;
mod index;
mod memory;
mod probe;
mod record;
mod recorder;
mod ring;

/// Adds this room's classes to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("RingFull", m.py().get_type::<ring::RingFull>())?;
    m.add("LogCorrupt", m.py().get_type::<record::LogCorrupt>())?;
    m.add_class::<index::LogIndex>()?;
    m.add_class::<ring::Ring>()?;
    m.add_class::<recorder::Recording>()?;
    m.add_class::<image::RingImage>()?;
    m.add_function(wrap_pyfunction!(record::crc32c, m)?)?;
    m.add_function(wrap_pyfunction!(index::log_encode, m)?)?;
    m.add_function(wrap_pyfunction!(image::log_scan, m)?)?;
    m.add_function(wrap_pyfunction!(image::log_extract, m)?)?;
    m.add_function(wrap_pyfunction!(probe::probe_map_sync, m)?)?;
    m.add_function(wrap_pyfunction!(probe::probe_dax, m)?)?;
    m.add_function(wrap_pyfunction!(probe::probe_flush, m)?)?;
    Ok(())
}
