//! What a load has measured so far: written by its thread, read by whoever asks.

use super::histogram::Histogram;
use super::http2::Status;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Kinds of errors that are told apart; further ones are counted under the last.
const MAX_ERROR_KINDS: usize = 64;

/// A measurement over the whole run, and since somebody last asked.
#[derive(Clone, Default)]
pub struct Measured {
    pub whole: Histogram,
    pub lately: Histogram,
}

impl Measured {
    pub fn record(&mut self, value_ns: u64) {
        self.whole.record(value_ns);
        self.lately.record(value_ns);
    }
}

#[derive(Clone, Default)]
pub struct OperationStats {
    /// Latencies of the calls that succeeded.
    pub latency: Measured,
    /// Those of them that did not do what they were for.
    pub missed: u64,
    pub failed: u64,
    /// Of all answers, with their five bytes of gRPC's in front.
    pub answer_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    #[default]
    Connecting,
    Running,
    Draining,
    Ended,
}

#[derive(Default)]
pub struct Stats {
    pub phase: Phase,
    pub operations: Vec<OperationStats>,
    pub events: Measured,
    /// By operation (the number of operations: a stream), code and message; how often.
    pub errors: BTreeMap<(usize, u32, String), u64>,
    pub started: u64,
    /// Calls of an open loop that were due and could not be sent before the run was given up.
    pub unsent: u64,
    pub in_flight: u64,
    pub connected: u64,
    pub ready_streams: u64,
    /// From the first call to the last answer, or to now.
    pub elapsed_ns: u64,
    /// From the first call to the last event.
    pub events_elapsed_ns: u64,
    pub events_expected: u64,
    /// Why the run could not go on.
    pub failure: Option<String>,
}

impl Stats {
    pub fn error(&mut self, operation: usize, status: &Status) {
        if let Some(stats) = self.operations.get_mut(operation) {
            stats.failed += 1;
        }
        let mut key = (operation, status.code, status.message.clone());
        if self.errors.len() >= MAX_ERROR_KINDS && !self.errors.contains_key(&key) {
            key.2 = "(other messages)".into();
        }
        *self.errors.entry(key).or_default() += 1;
    }
}

/// What a load's thread shares with whoever started it.
#[derive(Default)]
pub struct Shared {
    pub stats: Mutex<Stats>,
    pub stop: AtomicBool,
    ended: Condvar,
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of the load; false when it has not come in time.
    pub fn wait(&self, timeout: Duration) -> bool {
        let running = |stats: &mut Stats| stats.phase != Phase::Ended;
        let waited = self.ended.wait_timeout_while(self.lock(), timeout, running);
        let (stats, _) = waited.unwrap_or_else(PoisonError::into_inner);
        stats.phase == Phase::Ended
    }
}

/// Says that the load is over, whichever way its thread ends.
pub struct End {
    shared: Arc<Shared>,
    pub failure: Option<String>,
}

impl End {
    pub fn new(shared: Arc<Shared>) -> Self {
        let failure = Some("the load's thread has failed".into());
        End { shared, failure }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut stats = self.shared.lock();
        stats.phase = Phase::Ended;
        stats.failure = self.failure.take();
        self.shared.ended.notify_all();
    }
}
