//! What the machine and a file system can do.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::memory::{Flush, Memory};

/// The attribute that `statx` reports for a file whose data is accessed without a page cache.
const STATX_ATTR_DAX: u64 = 0x0020_0000;
const PAGE_BYTES: usize = 4096;

/// Whether the file system grants a `MAP_SYNC` mapping of the file at `path`, which must have at least 4096 bytes.
#[pyfunction]
pub fn probe_map_sync(path: std::path::PathBuf) -> PyResult<bool> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    if file.metadata()?.len() < PAGE_BYTES as u64 {
        return Err(PyValueError::new_err(
            "the file to be mapped is shorter than a page",
        ));
    }
    Ok(Memory::map(&file, PAGE_BYTES, Flush::None)?.map_sync)
}

/// Whether the file at `path` is in DAX state (its data is memory, not a page cache's copy).
#[pyfunction]
pub fn probe_dax(path: std::path::PathBuf) -> PyResult<bool> {
    let path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| PyValueError::new_err("a path with a zero byte"))?;
    // SAFETY: an all-zero statx is a valid value of that plain structure.
    let mut seen: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is terminated and outlives the call; the result goes into a structure of the right type.
    let rc = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            0,
            libc::STATX_BASIC_STATS,
            &mut seen,
        )
    };
    if rc != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(seen.stx_attributes & STATX_ATTR_DAX != 0)
}

/// How this processor writes cache lines back: "clwb", "clflushopt", "clflush" or "none".
#[pyfunction]
pub fn probe_flush() -> &'static str {
    Flush::detect().name()
}
