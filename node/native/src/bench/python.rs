//! The seam: a load as Python sees it. Described in `_engine.pyi`.

use super::histogram::Histogram as Counts;
use super::plan::{Capture, Endpoint, Keys, Memory, Operation, Patch, Plan, Stream, When};
use super::run::{self, WAKE};
use super::stats::{Phase, Shared, Stats};
use crate::transport::tls::TlsConfig;
use mio::Waker;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use rustls::pki_types::ServerName;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Latencies in nanoseconds; see the type stub.
#[pyclass(module = "raftkv_node._engine")]
#[derive(Clone, Default)]
struct Histogram {
    counts: Counts,
}

#[pymethods]
impl Histogram {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn record(&mut self, value_ns: u64) {
        self.counts.record(value_ns);
    }

    fn merge(&mut self, other: &Bound<'_, Histogram>) -> PyResult<()> {
        let other = other.try_borrow()?;
        self.counts.merge(&other.counts);
        Ok(())
    }

    fn percentile(&self, per_cent: f64) -> u64 {
        self.counts.percentile(per_cent)
    }

    fn buckets(&self) -> Vec<(u64, u64, u64)> {
        self.counts.buckets().collect()
    }

    #[getter]
    fn count(&self) -> u64 {
        self.counts.count
    }

    #[getter]
    fn sum_ns(&self) -> f64 {
        self.counts.sum_ns
    }

    #[getter]
    fn sum_squares(&self) -> f64 {
        self.counts.sum_squares
    }

    #[getter]
    fn min_ns(&self) -> u64 {
        if self.counts.count == 0 {
            0
        } else {
            self.counts.min_ns
        }
    }

    #[getter]
    fn max_ns(&self) -> u64 {
        self.counts.max_ns
    }
}

/// What an operation has done so far; see the type stub.
#[pyclass(frozen, get_all, module = "raftkv_node._engine")]
struct OperationSnapshot {
    missed: u64,
    failed: u64,
    answer_bytes: u64,
    latency: Py<Histogram>,
    lately: Py<Histogram>,
}

/// What a load has measured so far; see the type stub.
#[pyclass(frozen, get_all, module = "raftkv_node._engine")]
struct LoadSnapshot {
    phase: &'static str,
    operations: Vec<Py<OperationSnapshot>>,
    events: Py<Histogram>,
    events_lately: Py<Histogram>,
    events_expected: u64,
    errors: Vec<(Option<usize>, u32, String, u64)>,
    started: u64,
    unsent: u64,
    in_flight: u64,
    connected: u64,
    ready_streams: u64,
    elapsed_seconds: f64,
    events_elapsed_seconds: f64,
    failure: Option<String>,
}

enum State {
    Planned(Box<Plan>),
    Running {
        waker: Waker,
        thread: Option<JoinHandle<()>>,
    },
}

/// A load: planned, then running, then read out; see the type stub.
#[pyclass(frozen, module = "raftkv_node._engine")]
struct Load {
    state: Mutex<State>,
    shared: Arc<Shared>,
}

fn bad(text: impl Into<String>) -> PyErr {
    PyValueError::new_err(text.into())
}

fn seconds(value: f64, name: &str) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|e| bad(format!("{name}: {e}")))
}

fn patch(kind: &str, at: usize, argument: u64) -> PyResult<Patch> {
    let length = argument as usize;
    Ok(match kind {
        "key" => Patch::Key {
            at,
            offset: argument,
        },
        "random" => Patch::Random { at, length },
        "stamp" => Patch::Stamp { at },
        "key_number" => Patch::KeyNumber { at },
        "client_number" => Patch::ClientNumber { at },
        "client_bytes" => Patch::ClientBytes { at, length },
        other => return Err(bad(format!("unknown kind of patch: {other}"))),
    })
}

fn capture(when: &str, to: &str, path: Vec<u32>) -> PyResult<Capture> {
    let when = match when {
        "always" => When::Always,
        "hit" => When::Hit,
        "miss" => When::Miss,
        other => return Err(bad(format!("unknown condition of a capture: {other}"))),
    };
    let to = match to {
        "key_number" => Memory::KeyNumber,
        "client_number" => Memory::ClientNumber,
        "client_bytes" => Memory::ClientBytes,
        other => return Err(bad(format!("unknown aim of a capture: {other}"))),
    };
    Ok(Capture { when, to, path })
}

impl Load {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Plan) -> T) -> PyResult<T> {
        match &mut *self.state() {
            State::Planned(plan) => Ok(change(plan)),
            State::Running { .. } => Err(PyRuntimeError::new_err("the load runs already")),
        }
    }
}

#[pymethods]
impl Load {
    #[new]
    #[allow(clippy::too_many_arguments)] // named ones, in Python
    #[pyo3(signature = (endpoints, *, connections, clients, key_space, key_digits, total=None, duration=None, rate=None,
        tls=None, call_timeout=10.0, dial_timeout=10.0, drain_timeout=10.0, sequential=false, ordered=false,
        fresh_per_mille=0, seed=1))]
    fn new(
        endpoints: Vec<(String, String, String)>,
        connections: usize,
        clients: usize,
        key_space: u64,
        key_digits: usize,
        total: Option<u64>,
        duration: Option<f64>,
        rate: Option<f64>,
        tls: Option<&TlsConfig>,
        call_timeout: f64,
        dial_timeout: f64,
        drain_timeout: f64,
        sequential: bool,
        ordered: bool,
        fresh_per_mille: u64,
        seed: u64,
    ) -> PyResult<Self> {
        if rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            return Err(bad("rate: must be above 0"));
        }
        let config = match tls {
            None => None,
            Some(tls) => {
                let mut config = (*tls.client()?.config).clone();
                config.alpn_protocols = vec![b"h2".to_vec()];
                Some(Arc::new(config))
            }
        };
        let endpoint = |(address, authority, host): (String, String, String)| {
            let tls = match &config {
                None => None,
                Some(config) => {
                    let name = ServerName::try_from(host.clone())
                        .map_err(|_| bad(format!("{host:?} is no server name")))?;
                    Some((config.clone(), name))
                }
            };
            let address = address
                .parse()
                .map_err(|_| bad(format!("{address:?} is not IP:PORT")))?;
            PyResult::Ok(Endpoint {
                address,
                authority,
                tls,
            })
        };
        let plan = Plan {
            endpoints: endpoints
                .into_iter()
                .map(endpoint)
                .collect::<PyResult<_>>()?,
            connections,
            clients,
            total,
            duration: duration
                .map(|value| seconds(value, "duration"))
                .transpose()?,
            rate,
            call_timeout: seconds(call_timeout, "call_timeout")?,
            dial_timeout: seconds(dial_timeout, "dial_timeout")?,
            drain_timeout: seconds(drain_timeout, "drain_timeout")?,
            keys: Keys {
                space: key_space,
                digits: key_digits,
                sequential,
                ordered,
                fresh_per_mille,
            },
            methods: Vec::new(),
            operations: Vec::new(),
            streams: Vec::new(),
            remembered: Vec::new(),
            seed,
        };
        Ok(Load {
            state: Mutex::new(State::Planned(Box::new(plan))),
            shared: Arc::default(),
        })
    }

    #[allow(clippy::too_many_arguments)]
    #[pyo3(signature = (method, body, *, weight=1, patches=vec![], verdict=None, captures=vec![], follow=None,
        creates=false, same_key=false, events=0))]
    fn add_operation(
        &self,
        method: &str,
        body: Vec<u8>,
        weight: u64,
        patches: Vec<(String, usize, u64)>,
        verdict: Option<Vec<u32>>,
        captures: Vec<(String, String, Vec<u32>)>,
        follow: Option<(Vec<u32>, usize)>,
        creates: bool,
        same_key: bool,
        events: u64,
    ) -> PyResult<()> {
        let patches = patches
            .into_iter()
            .map(|(kind, at, argument)| patch(&kind, at, argument))
            .collect::<PyResult<_>>()?;
        let captures = captures
            .into_iter()
            .map(|(when, to, path)| capture(&when, &to, path))
            .collect::<PyResult<_>>()?;
        self.change(|plan| {
            let method = plan.method(method);
            plan.operations.push(Operation {
                method,
                weight,
                body,
                patches,
                verdict,
                captures,
                follow,
                creates,
                same_key,
                events,
            });
        })
    }

    #[pyo3(signature = (method, messages, *, ready, ready_count, failed, stamp))]
    fn add_stream(
        &self,
        method: &str,
        messages: Vec<Vec<u8>>,
        ready: Vec<u32>,
        ready_count: u64,
        failed: Vec<u32>,
        stamp: Vec<u32>,
    ) -> PyResult<()> {
        self.change(|plan| {
            let method = plan.method(method);
            plan.streams.push(Stream {
                method,
                messages,
                ready,
                ready_count,
                failed,
                stamp,
            });
        })
    }

    fn remember(&self, numbers: Vec<(u64, u64)>) -> PyResult<()> {
        self.change(|plan| plan.remembered = numbers)
    }

    fn start(&self) -> PyResult<()> {
        let mut state = self.state();
        let State::Planned(plan) = &*state else {
            return Err(PyRuntimeError::new_err("the load runs already"));
        };
        if let Some(problem) = plan.problem() {
            return Err(bad(problem));
        }
        let poll = mio::Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let before = std::mem::replace(
            &mut *state,
            State::Running {
                waker,
                thread: None,
            },
        );
        let State::Planned(plan) = before else {
            return Ok(());
        };
        let shared = self.shared.clone();
        let spawned = std::thread::Builder::new()
            .name("bench".into())
            .spawn(move || run::run(*plan, shared, poll))?;
        if let State::Running { thread, .. } = &mut *state {
            *thread = Some(spawned);
        }
        Ok(())
    }

    /// Ends the load at once, whatever is under way.
    fn stop(&self) -> PyResult<()> {
        self.shared.stop.store(true, Ordering::Release);
        if let State::Running { waker, .. } = &*self.state() {
            waker.wake()?;
        }
        Ok(())
    }

    /// Waits for the end; False when it has not come in time.
    fn wait(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let timeout = seconds(timeout, "timeout")?;
        let ended = py.detach(|| self.shared.wait(timeout));
        if ended {
            if let State::Running { thread, .. } = &mut *self.state() {
                if thread.take().is_some_and(|thread| thread.join().is_err()) {
                    return Err(PyRuntimeError::new_err("the load's thread has failed"));
                }
            }
        }
        Ok(ended)
    }

    #[pyo3(signature = (*, take_lately=false))]
    fn snapshot(&self, py: Python<'_>, take_lately: bool) -> PyResult<LoadSnapshot> {
        let mut stats = self.shared.lock();
        let snapshot = read_out(py, &stats)?;
        if take_lately {
            for one in &mut stats.operations {
                one.latency.lately.clear();
            }
            stats.events.lately.clear();
        }
        Ok(snapshot)
    }
}

fn read_out(py: Python<'_>, stats: &Stats) -> PyResult<LoadSnapshot> {
    let histogram = |counts: &Counts| {
        let counts = counts.clone();
        Py::new(py, Histogram { counts })
    };
    let mut operations = Vec::with_capacity(stats.operations.len());
    for one in &stats.operations {
        let snapshot = OperationSnapshot {
            missed: one.missed,
            failed: one.failed,
            answer_bytes: one.answer_bytes,
            latency: histogram(&one.latency.whole)?,
            lately: histogram(&one.latency.lately)?,
        };
        operations.push(Py::new(py, snapshot)?);
    }
    let errors = stats
        .errors
        .iter()
        .map(|((operation, code, message), count)| {
            let operation = (*operation < stats.operations.len()).then_some(*operation);
            (operation, *code, message.clone(), *count)
        });
    Ok(LoadSnapshot {
        phase: match stats.phase {
            Phase::Connecting => "connecting",
            Phase::Running => "running",
            Phase::Draining => "draining",
            Phase::Ended => "ended",
        },
        operations,
        events: histogram(&stats.events.whole)?,
        events_lately: histogram(&stats.events.lately)?,
        events_expected: stats.events_expected,
        errors: errors.collect(),
        started: stats.started,
        unsent: stats.unsent,
        in_flight: stats.in_flight,
        connected: stats.connected,
        ready_streams: stats.ready_streams,
        elapsed_seconds: stats.elapsed_ns as f64 / 1e9,
        events_elapsed_seconds: stats.events_elapsed_ns as f64 / 1e9,
        failure: stats.failure.clone(),
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Histogram>()?;
    m.add_class::<OperationSnapshot>()?;
    m.add_class::<LoadSnapshot>()?;
    m.add_class::<Load>()
}
