//! A batch as Python sees it: lists, made in one go under the GIL.
//!
//! Unary calls come grouped by method, as a list of ids and a list of messages: the cheapest to make and to loop over
//! (docs/decisions/0002-batch-crossing.md). Everything else is one ordered list of tuples.

use super::shared::{Arena, Event, Inbox, Message, Metadata, UnaryGroup};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use pyo3::IntoPyObjectExt;

macro_rules! kinds {
    ($($name:ident = $value:literal),* $(,)?) => {
        /// The kinds of events, as in the type stub.
        pub mod kind {
            $(pub const $name: u8 = $value;)*
            pub const ALL: &[(&str, u8)] = &[$((stringify!($name), $value)),*];
        }
    };
}

kinds!(
    EV_STREAM_OPEN = 1,
    EV_STREAM_MESSAGE = 2,
    EV_STREAM_HALF_CLOSE = 3,
    EV_STREAM_DRAINED = 4,
    EV_CANCELLED = 5,
    EV_HTTP = 6,
    EV_PEER_UP = 7,
    EV_PEER_REJECTED = 8,
    EV_PEER_DOWN = 9,
    EV_PEER_INBOUND = 10,
    EV_PEER_INBOUND_CLOSED = 11,
);

/// See the type stub.
#[pyclass(frozen, module = "raftkv_node._engine")]
pub struct Batch {
    #[pyo3(get)]
    unary: Py<PyList>,
    #[pyo3(get)]
    events: Py<PyList>,
    #[pyo3(get)]
    peer: Py<PyList>,
}

#[pymethods]
impl Batch {
    fn __bool__(&self, py: Python<'_>) -> bool {
        [&self.unary, &self.events, &self.peer]
            .iter()
            .any(|list| !list.bind(py).is_empty())
    }
}

impl Batch {
    /// Makes Python objects of all that is in `inbox`.
    pub fn new(py: Python<'_>, inbox: &mut Inbox) -> PyResult<Self> {
        let unary = PyList::empty(py);
        for group in inbox.unary.iter().filter(|group| !group.calls.is_empty()) {
            unary.append(group_to_python(py, group, &inbox.arena)?)?;
        }
        let events = inbox
            .events
            .drain(..)
            .map(|event| event_to_python(py, event, &inbox.arena));
        let events = PyList::new(py, events.collect::<PyResult<Vec<_>>>()?)?;
        let peer = PyList::empty(py);
        for (link, frames) in &inbox.peer {
            peer.append((*link, bytes_list(py, frames, &inbox.arena)?))?;
        }
        Ok(Batch {
            unary: unary.unbind(),
            events: events.unbind(),
            peer: peer.unbind(),
        })
    }
}

fn bytes_list<'py>(
    py: Python<'py>,
    messages: &[Message],
    arena: &Arena,
) -> PyResult<Bound<'py, PyList>> {
    PyList::new(
        py,
        messages.iter().map(|m| PyBytes::new(py, m.bytes(arena))),
    )
}

fn group_to_python<'py>(
    py: Python<'py>,
    group: &UnaryGroup,
    arena: &Arena,
) -> PyResult<Bound<'py, PyTuple>> {
    let ids = PyList::new(py, &group.calls)?;
    let messages = bytes_list(py, &group.messages, arena)?;
    let metadata = match group.any_metadata {
        false => None,
        true => {
            let each = group.metadata.iter().map(|m| metadata_to_python(py, m));
            Some(PyList::new(py, each.collect::<PyResult<Vec<_>>>()?)?)
        }
    };
    (group.method, ids, messages, metadata).into_pyobject(py)
}

fn metadata_to_python<'py>(
    py: Python<'py>,
    metadata: &Metadata,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let values = |all: &[Option<Vec<u8>>]| {
        PyTuple::new(
            py,
            all.iter().map(|v| v.as_ref().map(|v| PyBytes::new(py, v))),
        )
    };
    metadata.as_deref().map(values).transpose()
}

fn event_to_python<'py>(
    py: Python<'py>,
    event: Event,
    arena: &Arena,
) -> PyResult<Bound<'py, PyAny>> {
    use kind::*;
    let bytes = |b: &[u8]| PyBytes::new(py, b);
    match event {
        Event::StreamOpen {
            call,
            method,
            metadata,
        } => (
            EV_STREAM_OPEN,
            call,
            method,
            metadata_to_python(py, &metadata)?,
        )
            .into_bound_py_any(py),
        Event::StreamMessage { call, message } => {
            (EV_STREAM_MESSAGE, call, bytes(message.bytes(arena))).into_bound_py_any(py)
        }
        Event::StreamHalfClose { call } => (EV_STREAM_HALF_CLOSE, call).into_bound_py_any(py),
        Event::StreamDrained { call } => (EV_STREAM_DRAINED, call).into_bound_py_any(py),
        Event::Cancelled { call } => (EV_CANCELLED, call).into_bound_py_any(py),
        Event::Http { call, request } => {
            let metadata = metadata_to_python(py, &request.metadata)?;
            (
                EV_HTTP,
                call,
                request.method,
                request.path,
                bytes(&request.body),
                metadata,
            )
                .into_bound_py_any(py)
        }
        Event::PeerUp { link, hello_reply } => {
            (EV_PEER_UP, link, bytes(&hello_reply)).into_bound_py_any(py)
        }
        Event::PeerRejected { link, reason } => {
            (EV_PEER_REJECTED, link, bytes(&reason)).into_bound_py_any(py)
        }
        Event::PeerDown { link } => (EV_PEER_DOWN, link).into_bound_py_any(py),
        Event::PeerInbound {
            link,
            hello,
            remote,
        } => (EV_PEER_INBOUND, link, bytes(&hello), remote.to_string()).into_bound_py_any(py),
        Event::PeerInboundClosed { link } => (EV_PEER_INBOUND_CLOSED, link).into_bound_py_any(py),
    }
}
