//! The load generator of `raftkv bench`: HTTP/2 clients in one thread, driven by a plan of templates.
//!
//! It runs without the interpreter: Python makes a [`plan`], starts a thread, and looks at the [`stats`] from time to time.
//! [`run`] is the thread's loop; [`http2`] one connection; [`clients`] what is under way, [`choice`] what comes next,
//! [`answers`] what becomes of what arrives; [`fields`] reads single fields of answers, [`histogram`] keeps latencies.
//! Why it lives in the engine's crate: docs/decisions/0006-load-generator.md.

use pyo3::prelude::*;

mod answers;
mod choice;
mod clients;
mod fields;
mod histogram;
mod http2;
mod plan;
mod python;
mod run;
mod stats;

/// Adds this room's classes to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    python::register(m)
}
