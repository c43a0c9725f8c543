//! RaftKV's native engine.
//!
//! Three rooms that know nothing of etcd or of Raft: [`transport`] (HTTP/2, gRPC framing, HTTP/1.1, TLS, peer links) hands
//! Python batches of events and takes batches of replies; [`pmem`] maps persistent memory, and stores, flushes and fences
//! records in it; [`bench`] puts other servers under load.

use pyo3::prelude::*;

mod bench;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod pmem;
mod transport;

/// The extension module `raftkv_node._engine`.
#[pymodule]
fn _engine(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    transport::register(m)?;
    pmem::register(m)?;
    bench::register(m)?;
    Ok(())
}
