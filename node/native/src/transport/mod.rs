//! The transport: HTTP/2 with gRPC framing, plain HTTP/1.1, TLS, and peer links, in batches.
//!
//! One loop ([`reactor`]) owns every socket; Python's threads meet it at two queues ([`shared`]). Its rounds are run by a
//! thread, or by the one that polls ([`driver`]). Python takes all that has arrived in one call and hands back lists of
//! replies; neither side waits for the other, and no round needs the GIL. The way of a unary call:
//!
//! ```text
//! kernel ─ sock ─ h2 (nghttp2) ─ serve: Call in the slab ─ Inbox ═ poll ═► Python
//! kernel ◄ sock ◄ h2 (nghttp2) ◄ serve: Call in the slab ◄ Outbox ◄ reply ═ Python
//! ```
//!
//! [`client`] is a client's connection, [`serve`] what its streams mean, [`answer`] how they end, [`calls`]
//! where they live; [`links`] are the outgoing ones to peers; [`http1`], [`grpc`] and
//! [`peer`] are formats; [`wheel`] has the deadlines; [`python`] is the seam itself, described in `_engine.pyi`.

use pyo3::prelude::*;

mod answer;
mod batch;
mod calls;
mod client;
mod driver;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod grpc;
pub mod h2;
mod http1;
mod links;
mod peer;
mod python;
mod reactor;
mod serve;
mod shared;
pub mod sock;
pub mod tls;
mod wheel;

/// Adds this room's classes and constants to the extension module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    python::register(m)
}
