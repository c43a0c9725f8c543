//! The seam: what Python calls. Meaning, units and errors of everything here are in `_engine.pyi`.
//!
//! Each method turns Python objects into plain bytes first and takes a lock after, so no Python code ever runs under one;
//! what blocks (waiting, resolving, joining) runs without the GIL.

use super::batch::{kind, Batch};
use super::calls::{Calls, Method};
use super::driver::{Choice, Driver};
use super::grpc;
use super::peer::{framed_bytes, MAX_HELLO_BYTES};
use super::reactor::{Reactor, FIRST_INBOUND, WAKER};
use super::serve::{headers_are_safe, World};
use super::shared::{
    add, lock, Command, Config, Deferral, Health, HttpReply, Inbox, LinkGauge, ListenKind, Outbox,
    PeerTarget, Shared,
};
use super::tls::TlsConfig;
use super::wheel::Wheel;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PySequence};
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Method ids lie below this.
const MAX_METHOD_ID: u32 = 4096;
const LISTEN_BACKLOG: i32 = 1024;
const MAX_LISTENERS: usize = 64;

/// See the type stub.
#[pyclass(frozen, module = "raftkv_node._engine")]
pub struct Engine {
    shared: Arc<Shared>,
    methods: Mutex<HashMap<Vec<u8>, Method>>,
    /// Until start.
    poll: Mutex<Option<mio::Poll>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    driver: OnceLock<Arc<Driver>>,
    choice: Choice,
    patience: Duration,
    started: AtomicBool,
    listeners: Mutex<usize>,
    /// The empty inbox that the next poll trades in; keeps its buffers.
    spare: Mutex<Inbox>,
}

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|_| {
        PyValueError::new_err(format!("{name} must be a number of seconds, not {value}"))
    })
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (*, max_connections=10_000, max_concurrent_streams=4_096, max_message_bytes=2_097_152,
        max_header_bytes=65_536, max_queued_bytes_per_connection=67_108_864, max_http_body_bytes=4_194_304,
        max_inbox_bytes=134_217_728, max_inbox_events=262_144, stream_queue_high_bytes=1_048_576,
        max_peer_frame_bytes=67_108_864, max_queued_bytes_per_peer=134_217_728, keepalive_min_interval_seconds=5.0,
        handshake_timeout_seconds=10.0, idle_http1_timeout_seconds=120.0, peer_backoff_min_seconds=0.05,
        peer_backoff_max_seconds=2.0, capture_metadata=Vec::new(), rounds="auto",
        poll_patience_seconds=0.02, deferrable_frames=Vec::new()))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        max_connections: usize,
        max_concurrent_streams: u32,
        max_message_bytes: usize,
        max_header_bytes: u32,
        max_queued_bytes_per_connection: usize,
        max_http_body_bytes: usize,
        max_inbox_bytes: usize,
        max_inbox_events: usize,
        stream_queue_high_bytes: usize,
        max_peer_frame_bytes: u32,
        max_queued_bytes_per_peer: usize,
        keepalive_min_interval_seconds: f64,
        handshake_timeout_seconds: f64,
        idle_http1_timeout_seconds: f64,
        peer_backoff_min_seconds: f64,
        peer_backoff_max_seconds: f64,
        capture_metadata: Vec<String>,
        rounds: &str,
        poll_patience_seconds: f64,
        deferrable_frames: Vec<u8>,
    ) -> PyResult<Self> {
        let choice = Choice::parse(rounds).ok_or_else(|| {
            PyValueError::new_err(format!(
                "rounds must be 'auto', 'thread' or 'inline', not '{rounds}'"
            ))
        })?;
        let config = Config {
            max_connections,
            max_concurrent_streams,
            max_message_bytes,
            max_header_bytes: max_header_bytes as usize,
            max_queued_bytes_per_connection,
            max_http_body_bytes,
            max_inbox_bytes,
            max_inbox_events,
            stream_queue_high_bytes,
            max_peer_frame_bytes: max_peer_frame_bytes as usize,
            max_queued_bytes_per_peer,
            keepalive_min_interval: seconds(
                "keepalive_min_interval_seconds",
                keepalive_min_interval_seconds,
            )?,
            handshake_timeout: seconds("handshake_timeout_seconds", handshake_timeout_seconds)?,
            idle_http1_timeout: seconds("idle_http1_timeout_seconds", idle_http1_timeout_seconds)?,
            peer_backoff_min: seconds("peer_backoff_min_seconds", peer_backoff_min_seconds)?,
            peer_backoff_max: seconds("peer_backoff_max_seconds", peer_backoff_max_seconds)?,
            capture: capture_metadata
                .into_iter()
                .map(|n| n.to_ascii_lowercase().into_bytes())
                .collect(),
            deferrable_frames,
        };
        let poll = mio::Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), WAKER)?;
        Ok(Engine {
            shared: Arc::new(Shared::new(config, waker)),
            methods: Mutex::default(),
            poll: Mutex::new(Some(poll)),
            thread: Mutex::default(),
            driver: OnceLock::new(),
            choice,
            patience: seconds("poll_patience_seconds", poll_patience_seconds)?,
            started: AtomicBool::new(false),
            listeners: Mutex::default(),
            spare: Mutex::default(),
        })
    }

    fn register_methods(&self, methods: Vec<(String, u32, bool)>) -> PyResult<()> {
        if self.started.load(Ordering::SeqCst) {
            return Err(PyRuntimeError::new_err(
                "methods must be registered before start()",
            ));
        }
        if let Some((path, id, _)) = methods.iter().find(|(_, id, _)| *id >= MAX_METHOD_ID) {
            return Err(PyValueError::new_err(format!(
                "method id {id} of {path} is not below {MAX_METHOD_ID}"
            )));
        }
        let entries = methods
            .into_iter()
            .map(|(path, id, streaming)| (path.into_bytes(), Method { id, streaming }));
        lock(&self.methods).extend(entries);
        Ok(())
    }

    #[pyo3(signature = (host, port, tls=None))]
    fn listen_grpc(
        &self,
        py: Python<'_>,
        host: &str,
        port: u16,
        tls: Option<&TlsConfig>,
    ) -> PyResult<u16> {
        let tls = tls
            .map(|tls| tls.server(&[b"h2", b"http/1.1"]))
            .transpose()?;
        self.listen(py, host, port, ListenKind::Grpc(tls))
    }

    #[pyo3(signature = (host, port, tls=None))]
    fn listen_http(
        &self,
        py: Python<'_>,
        host: &str,
        port: u16,
        tls: Option<&TlsConfig>,
    ) -> PyResult<u16> {
        let tls = tls.map(|tls| tls.server(&[b"http/1.1"])).transpose()?;
        self.listen(py, host, port, ListenKind::Http(tls))
    }

    #[pyo3(signature = (host, port, tls=None))]
    fn listen_peer(
        &self,
        py: Python<'_>,
        host: &str,
        port: u16,
        tls: Option<&TlsConfig>,
    ) -> PyResult<u16> {
        let tls = tls.map(|tls| tls.server(&[])).transpose()?;
        self.listen(py, host, port, ListenKind::Peer(tls))
    }

    fn start(&self) -> PyResult<()> {
        let Some(poll) = lock(&self.poll).take() else {
            return Err(PyRuntimeError::new_err("the engine was started before"));
        };
        self.started.store(true, Ordering::SeqCst);
        let shared = self.shared.clone();
        let methods = lock(&self.methods).clone();
        let now = Instant::now();
        let world = World {
            shared: shared.clone(),
            methods,
            calls: Calls::default(),
            inbox: Inbox::default(),
            wheel: Wheel::new(now),
            now,
        };
        let driver = Arc::new(Driver::new(
            shared,
            Reactor::new(poll, world),
            self.choice,
            self.patience,
        ));
        let _ = self.driver.set(driver.clone());
        let body = move || driver.run();
        *lock(&self.thread) = Some(
            std::thread::Builder::new()
                .name("engine-io".into())
                .spawn(body)?,
        );
        Ok(())
    }

    #[pyo3(signature = (timeout_seconds, deferred_frames=0, deferred_seconds=0.0))]
    fn poll(
        &self,
        py: Python<'_>,
        timeout_seconds: f64,
        deferred_frames: usize,
        deferred_seconds: f64,
    ) -> PyResult<Batch> {
        let timeout = seconds("timeout_seconds", timeout_seconds)?;
        let deferral = Deferral {
            frames: deferred_frames,
            patience: seconds("deferred_seconds", deferred_seconds)?,
        };
        let mut inbox = std::mem::take(&mut *lock(&self.spare));
        py.detach(|| match self.driver.get() {
            Some(driver) => driver.poll(&mut inbox, timeout, deferral),
            None => self.shared.take_inbox(&mut inbox, timeout), // not started: only a wake-up can come
        });
        if inbox.is_empty() && self.shared.health() == Health::Failed {
            return Err(PyRuntimeError::new_err("the engine's I/O thread has died"));
        }
        add(&self.shared.counters.poll_batches, 1);
        let batch = Batch::new(py, &mut inbox);
        inbox.clear();
        *lock(&self.spare) = inbox;
        batch
    }

    fn flush(&self, py: Python<'_>) {
        if let Some(driver) = self.driver.get() {
            py.detach(|| driver.flush());
        }
    }

    fn wake(&self) {
        self.shared.wake_python();
    }

    fn reply(&self, call_ids: &Bound<'_, PyAny>, messages: &Bound<'_, PyAny>) -> PyResult<()> {
        let (ids, messages) = (as_list(call_ids)?, as_list(messages)?);
        if ids.len() != messages.len() {
            let text = format!("{} call ids, but {} messages", ids.len(), messages.len());
            return Err(PyValueError::new_err(text));
        }
        let mut replies = Vec::with_capacity(ids.len());
        for (id, message) in ids.iter().zip(messages.iter()) {
            replies.push((id.extract::<u64>()?, message.cast_into::<PyBytes>()?));
        }
        self.shared.submit(|outbox| {
            for (call, bytes) in &replies {
                let message = outbox.arena.put_framed(bytes.as_bytes());
                outbox.commands.push(Command::Reply {
                    call: *call,
                    message,
                });
            }
        });
        Ok(())
    }

    fn reply_errors(&self, errors: Vec<(u64, u32, String)>) {
        self.shared.submit(|outbox| {
            let finish = |(call, code, text)| Command::Finish { call, code, text };
            outbox.commands.extend(errors.into_iter().map(finish));
        });
    }

    fn stream_send(&self, messages: Vec<(u64, Bound<'_, PyBytes>)>) -> Vec<i64> {
        let high = self.shared.config.stream_queue_high_bytes as i64;
        let all_high = self.shared.config.streams_high_bytes();
        let streams = lock(&self.shared.streams);
        let mut queued = Vec::with_capacity(messages.len());
        for (call, bytes) in &messages {
            queued.push(streams.get(call).map_or(-1, |gauge| {
                let size = (bytes.as_bytes().len() + grpc::PREFIX_BYTES) as i64;
                let now = gauge.queued.fetch_add(size, Ordering::SeqCst) + size;
                let all = gauge.connection.fetch_add(size, Ordering::SeqCst) + size;
                if now >= high || all >= all_high {
                    gauge.high.store(true, Ordering::SeqCst);
                }
                if all >= all_high {
                    all
                } else {
                    now
                }
            }));
        }
        drop(streams);
        self.shared.submit(|outbox| {
            for ((call, bytes), queued) in messages.iter().zip(&queued) {
                if *queued >= 0 {
                    let message = outbox.arena.put_framed(bytes.as_bytes());
                    outbox.commands.push(Command::StreamSend {
                        call: *call,
                        message,
                    });
                }
            }
        });
        queued
    }

    fn stream_close(&self, call_id: u64, code: u32, message: String) {
        self.reply_errors(vec![(call_id, code, message)]);
    }

    #[pyo3(signature = (call_id, status, content_type, body, headers=Vec::new()))]
    fn http_reply(
        &self,
        call_id: u64,
        status: u16,
        content_type: String,
        body: &[u8],
        headers: Vec<(String, String)>,
    ) -> PyResult<()> {
        let reply = HttpReply {
            status,
            content_type,
            headers,
            body: body.to_vec(),
        };
        if !(200..600).contains(&status) {
            return Err(PyValueError::new_err(format!(
                "{status} is not the status of a final response"
            )));
        }
        if !headers_are_safe(&reply) {
            return Err(PyValueError::new_err(
                "a header's name or value has characters that HTTP does not allow",
            ));
        }
        let command = Command::HttpReply {
            call: call_id,
            reply: Box::new(reply),
        };
        self.shared.submit(|outbox| outbox.commands.push(command));
        Ok(())
    }

    #[pyo3(signature = (link_id, host, port, hello, tls=None))]
    fn peer_connect(
        &self,
        link_id: u64,
        host: String,
        port: u16,
        hello: &[u8],
        tls: Option<&TlsConfig>,
    ) -> PyResult<()> {
        if link_id >= FIRST_INBOUND {
            return Err(PyValueError::new_err(format!(
                "link id {link_id} is not below 2**32"
            )));
        }
        check_hello(hello)?;
        let target = PeerTarget {
            host,
            port,
            hello: hello.to_vec(),
            tls: tls.map(TlsConfig::client).transpose()?,
        };
        let gauge = Arc::new(LinkGauge::default());
        let mut links = lock(&self.shared.links);
        if links.contains_key(&link_id) {
            return Err(PyValueError::new_err(format!("link {link_id} exists")));
        }
        links.insert(link_id, gauge.clone());
        drop(links);
        let command = Command::PeerConnect {
            link: link_id,
            target: Arc::new(target),
            gauge,
        };
        self.shared.submit(|outbox| outbox.commands.push(command));
        Ok(())
    }

    fn peer_disconnect(&self, link_id: u64) {
        lock(&self.shared.links).remove(&link_id);
        self.shared.submit(|outbox| {
            outbox
                .commands
                .push(Command::PeerDisconnect { link: link_id })
        });
    }

    fn peer_accept(&self, inbound_id: u64, hello_reply: &[u8]) -> PyResult<()> {
        check_hello(hello_reply)?;
        if inbound_id < FIRST_INBOUND {
            return Ok(());
        }
        if let Some(gauge) = lock(&self.shared.links).get(&inbound_id) {
            lock(&gauge.state).up = true; // so that frames can follow at once; the acceptance goes before them
        }
        self.decide(inbound_id, true, hello_reply);
        Ok(())
    }

    fn peer_reject(&self, inbound_id: u64, reason: &[u8]) -> PyResult<()> {
        check_hello(reason)?;
        self.decide(inbound_id, false, reason);
        Ok(())
    }

    fn peer_send(&self, frames: Vec<(u64, Bound<'_, PyBytes>)>) -> PyResult<Vec<i64>> {
        let config = &self.shared.config;
        if let Some((link, frame)) = frames
            .iter()
            .find(|(_, f)| f.as_bytes().len() > config.max_peer_frame_bytes)
        {
            let text = format!(
                "a frame of {} bytes for link {link} is larger than {}",
                frame.as_bytes().len(),
                config.max_peer_frame_bytes
            );
            return Err(PyValueError::new_err(text));
        }
        let links = lock(&self.shared.links);
        let mut dropped = 0;
        let outcome: Vec<(i64, u64)> = frames
            .iter()
            .map(|(link, frame)| {
                let taken = links.get(link).and_then(|gauge| {
                    let mut state = lock(&gauge.state);
                    let queued = state.queued + framed_bytes(frame.as_bytes().len());
                    let fits = state.up && queued <= config.max_queued_bytes_per_peer;
                    fits.then(|| {
                        state.queued = queued;
                        (queued as i64, state.epoch)
                    })
                });
                dropped += u64::from(taken.is_none());
                taken.unwrap_or((-1, 0))
            })
            .collect();
        drop(links);
        add(&self.shared.counters.peer_frames_dropped, dropped);
        self.shared.submit(|outbox| {
            for ((link, bytes), (queued, epoch)) in frames.iter().zip(&outcome) {
                if *queued >= 0 {
                    let frame = outbox.arena.put(bytes.as_bytes());
                    let (link, epoch) = (*link, *epoch);
                    outbox
                        .commands
                        .push(Command::PeerSend { link, epoch, frame });
                }
            }
        });
        Ok(outcome.into_iter().map(|(queued, _)| queued).collect())
    }

    fn shutdown(&self, py: Python<'_>, grace_seconds: f64) -> PyResult<()> {
        let grace = seconds("grace_seconds", grace_seconds)?;
        let poll = lock(&self.poll).take();
        drop(poll); // never started: there is no thread, and the listeners go with the outbox
        self.shared.submit(|outbox| {
            if !self.started.load(Ordering::SeqCst) {
                outbox.clear();
            }
            outbox.commands.push(Command::Shutdown { grace });
        });
        if let Some(driver) = self.driver.get() {
            driver.end();
        }
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            py.detach(|| thread.join().ok());
        }
        Ok(())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = PyDict::new(py);
        for (name, value) in self.shared.counters.each() {
            stats.set_item(name, value)?;
        }
        let links: Vec<_> = lock(&self.shared.links)
            .iter()
            .map(|(id, gauge)| (*id, gauge.clone()))
            .collect();
        for (id, gauge) in links {
            let state = *lock(&gauge.state);
            stats.set_item(
                format!("link.{id}.bytes_in"),
                gauge.bytes_in.load(Ordering::Relaxed),
            )?;
            stats.set_item(
                format!("link.{id}.bytes_out"),
                gauge.bytes_out.load(Ordering::Relaxed),
            )?;
            stats.set_item(format!("link.{id}.queued_bytes"), state.queued)?;
            stats.set_item(format!("link.{id}.up"), u8::from(state.up))?;
        }
        Ok(stats)
    }
}

impl Engine {
    fn decide(&self, link: u64, accept: bool, text: &[u8]) {
        let text = text.to_vec();
        self.shared.submit(|outbox| {
            outbox
                .commands
                .push(Command::PeerDecide { link, accept, text })
        });
    }

    fn listen(&self, py: Python<'_>, host: &str, port: u16, kind: ListenKind) -> PyResult<u16> {
        let mut listeners = lock(&self.listeners);
        if *listeners == MAX_LISTENERS {
            return Err(PyRuntimeError::new_err(format!(
                "there are {MAX_LISTENERS} listeners already"
            )));
        }
        let socket = py.detach(|| bind(host, port)).map_err(|e| {
            let text = format!("cannot listen on {host}:{port}: {e}");
            match e.raw_os_error() {
                Some(errno) => PyOSError::new_err((errno, text)),
                None => PyOSError::new_err(text),
            }
        })?;
        let port = socket.local_addr()?.port();
        *listeners += 1;
        self.shared
            .submit(|outbox: &mut Outbox| outbox.commands.push(Command::Listen { socket, kind }));
        Ok(port)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let command = Command::Shutdown {
            grace: Duration::ZERO,
        };
        self.shared.submit(|outbox| outbox.commands.push(command));
        // The thread ends by itself; waiting for it here could hold up the interpreter.
    }
}

/// Binds the first address of `host` that can be bound.
fn bind(host: &str, port: u16) -> std::io::Result<TcpListener> {
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    let mut addresses: Vec<SocketAddr> = match literal {
        "" => vec![
            SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port),
            SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), port),
        ],
        _ => (literal, port).to_socket_addrs()?.collect(),
    };
    addresses.dedup();
    let mut last = std::io::Error::new(
        std::io::ErrorKind::AddrNotAvailable,
        "the name has no address",
    );
    for address in addresses {
        match bind_address(address) {
            Ok(socket) => return Ok(socket),
            // The IPv4 fallback would only hide that the port is in use.
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => return Err(e),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn bind_address(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        None,
    )?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

fn check_hello(text: &[u8]) -> PyResult<()> {
    if text.len() > MAX_HELLO_BYTES {
        let text = format!(
            "a hello of {} bytes is larger than {MAX_HELLO_BYTES}",
            text.len()
        );
        return Err(PyValueError::new_err(text));
    }
    Ok(())
}

/// A list as it is; another sequence as a list.
fn as_list<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    match object.cast::<PyList>() {
        Ok(list) => Ok(list.clone()),
        Err(_) => object.cast::<PySequence>()?.to_list(),
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Engine>()?;
    m.add_class::<Batch>()?;
    m.add_class::<TlsConfig>()?;
    for (name, value) in kind::ALL {
        m.add(*name, *value)?;
    }
    Ok(())
}
