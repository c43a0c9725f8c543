//! Who runs the reactor's rounds: a thread of its own, or the thread that polls.
//!
//! A hand-over between two threads costs some 20 microseconds on an idle machine, most of it the wake-up, and a call that
//! is alone pays for two: to Python, and back. While little arrives at a time and Python's turns are short, nothing is won
//! by doing both at once; then `poll` runs the rounds itself (**inline**): it obeys what the turn has asked for, writes, and
//! waits for the kernel. Under load the I/O thread runs them beside Python (**threaded**). [`Pace`] decides, after each
//! poll.
//!
//! One of the two has the reactor, or nobody has; who, and whether rounds are run inline, changes under one lock
//! ([`State`]), so that neither can wait for the other in vain. Threaded, the I/O thread has it all the time. Inline, it
//! rests, and looks up now and then: a caller that has been away from `poll` for a while is in a long turn, and the
//! thread takes over, so that no socket waits for much longer than that.

use super::reactor::Reactor;
use super::shared::{lock, Deferral, Health, Inbox, Shared};
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How the choice between inline and threaded is made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Auto,
    Thread,
    Inline,
}

impl Choice {
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Choice::Auto),
            "thread" => Some(Choice::Thread),
            "inline" => Some(Choice::Inline),
            _ => None,
        }
    }
}

/// What the last polls brought, and how long the caller was away after each: averages that forget.
pub struct Pace {
    arrivals: f64,
    turn_seconds: f64,
}

impl Pace {
    /// The share of the newest in an average: the last ten or so count.
    const NEWEST: f64 = 0.1;
    /// Inline begins below the first and ends above the second.
    const ARRIVALS: (f64, f64) = (6.0, 16.0);
    const TURN_SECONDS: (f64, f64) = (0.001, 0.003);

    pub fn new() -> Self {
        Pace {
            arrivals: 0.0,
            turn_seconds: 0.0,
        }
    }

    fn came_back(&mut self, turn: Duration) {
        self.turn_seconds += (turn.as_secs_f64() - self.turn_seconds) * Self::NEWEST;
    }

    fn leaves(&mut self, arrivals: usize) {
        self.arrivals += (arrivals as f64 - self.arrivals) * Self::NEWEST;
    }

    fn wants_inline(&self, inline: bool) -> bool {
        let bound = |(begin, end)| if inline { end } else { begin };
        self.arrivals < bound(Self::ARRIVALS) && self.turn_seconds < bound(Self::TURN_SECONDS)
    }
}

/// Who has the reactor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    Nobody,
    IoThread,
    Poller,
}

/// What the two threads agree about.
struct State {
    holder: Holder,
    /// A shutdown has been asked for: the I/O thread sees to it, and rounds are never run inline again.
    ending: bool,
}

pub struct Driver {
    shared: Arc<Shared>,
    choice: Choice,
    /// A caller that has not come back to `poll` for so long is not waited for.
    patience: Duration,
    /// Locked by its holder only; None once it has ended.
    reactor: Mutex<Option<Reactor>>,
    /// `Shared::inline` is written under this lock, too.
    state: Mutex<State>,
    changed: Condvar,
    pace: Mutex<Pace>,
}

impl Driver {
    pub fn new(shared: Arc<Shared>, reactor: Reactor, choice: Choice, patience: Duration) -> Self {
        Driver {
            shared,
            choice,
            patience,
            reactor: Mutex::new(Some(reactor)),
            state: Mutex::new(State {
                holder: Holder::Nobody,
                ending: false,
            }),
            changed: Condvar::new(),
            pace: Mutex::new(Pace::new()),
        }
    }

    // The I/O thread.

    /// The body of the I/O thread.
    pub fn run(&self) {
        let health = match catch_unwind(AssertUnwindSafe(|| self.rounds())) {
            Ok(Ok(())) => Health::Stopped,
            _ => Health::Failed,
        };
        lock(&self.reactor).take();
        self.set_inline(false);
        self.release();
        self.shared.set_health(health);
    }

    fn rounds(&self) -> io::Result<()> {
        loop {
            self.take_over();
            if self.threaded_rounds()? {
                return Ok(());
            }
            self.release();
        }
    }

    /// Rests while rounds are run inline and the caller comes back in time; then has the reactor.
    fn take_over(&self) {
        let mut state = lock(&self.state);
        loop {
            let inline = self.shared.inline();
            if state.holder == Holder::Nobody
                && (!inline || self.shared.away_for() >= self.patience)
            {
                self.shared.set_inline(false);
                state.holder = Holder::IoThread;
                return;
            }
            let rested = self.changed.wait_timeout(state, self.patience);
            state = rested.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Runs rounds until they are to be run inline, or it is over (true).
    fn threaded_rounds(&self) -> io::Result<bool> {
        let mut held = lock(&self.reactor);
        let Some(reactor) = held.as_mut() else {
            return Err(io::Error::other("a round that was run inline has failed"));
        };
        while !self.shared.inline() {
            if reactor.done() {
                reactor.close_all();
                return Ok(true);
            }
            reactor.round(None)?;
        }
        Ok(false)
    }

    /// Lets go of the reactor. The poller does so after every poll, and wakes the I/O thread only where that is to have it.
    fn release(&self) {
        let mut state = lock(&self.state);
        let by = std::mem::replace(&mut state.holder, Holder::Nobody);
        drop(state);
        if by == Holder::IoThread || !self.shared.inline() {
            self.changed.notify_all();
        }
    }

    // The thread that polls.

    /// Waits for something to arrive, a wake-up or the timeout, and swaps what there is with `inbox`, which is empty.
    pub fn poll(&self, inbox: &mut Inbox, timeout: Duration, deferral: Deferral) {
        self.shared.defer(deferral);
        let deadline = Instant::now().checked_add(timeout);
        let turn = self.shared.away_for();
        self.shared.is_back();
        lock(&self.pace).came_back(turn);
        if self.shared.inline() {
            self.run_inline(deadline);
        }
        // Nothing to wait for after inline rounds; but the I/O thread may have taken over in between.
        let left = deadline.map_or(timeout, |at| at.saturating_duration_since(Instant::now()));
        self.shared.take_inbox(inbox, left);
        self.choose(inbox.count);
        self.shared.leaves();
    }

    /// Writes what was asked for so far, if that would wait for the next poll otherwise.
    pub fn flush(&self) {
        if self.shared.inline() && self.shared.has_commands() {
            self.with_reactor(|reactor| {
                reactor.obey();
                Ok(())
            });
        }
    }

    fn run_inline(&self, deadline: Option<Instant>) {
        self.with_reactor(|reactor| self.inline_rounds(reactor, deadline));
    }

    /// Does something with the reactor, unless the I/O thread is to have it. A failure ends the engine, as one in the I/O
    /// thread does.
    fn with_reactor(&self, act: impl FnOnce(&mut Reactor) -> io::Result<()>) {
        if !self.take_inline() {
            return;
        }
        let mut held = lock(&self.reactor);
        let outcome = catch_unwind(AssertUnwindSafe(|| match held.as_mut() {
            Some(reactor) => act(reactor),
            None => Ok(()),
        }));
        let failed = !matches!(outcome, Ok(Ok(())));
        if failed {
            held.take();
        }
        drop(held);
        if failed {
            self.shared.set_health(Health::Failed);
            self.set_inline(false);
        }
        self.release();
    }

    /// Has the reactor, if rounds are to be run inline; the I/O thread lets go of it with the end of its round.
    fn take_inline(&self) -> bool {
        let mut state = lock(&self.state);
        while self.shared.inline() {
            if state.holder == Holder::Nobody {
                state.holder = Holder::Poller;
                return true;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        false
    }

    fn inline_rounds(&self, reactor: &mut Reactor, deadline: Option<Instant>) -> io::Result<()> {
        reactor.obey();
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let arrived = self.shared.has_arrived();
            let limit = match arrived {
                true => Duration::ZERO,
                false => left
                    .unwrap_or(Duration::MAX)
                    .min(self.shared.deferred_for()),
            };
            reactor.round(Some(limit))?;
            if arrived || limit.is_zero() || self.shared.has_arrived() || !self.shared.inline() {
                return Ok(());
            }
        }
    }

    fn choose(&self, arrivals: usize) {
        let inline = self.shared.inline();
        let mut pace = lock(&self.pace);
        pace.leaves(arrivals);
        let wanted = match self.choice {
            Choice::Auto => pace.wants_inline(inline),
            Choice::Thread => false,
            Choice::Inline => true,
        };
        drop(pace);
        if wanted != inline && self.shared.health() == Health::Running {
            self.set_inline(wanted);
            if wanted {
                self.shared.wake_io(); // the I/O thread lets go of the reactor
            }
        }
    }

    fn set_inline(&self, inline: bool) {
        let state = lock(&self.state);
        self.shared.set_inline(inline && !state.ending);
        drop(state);
        self.changed.notify_all();
    }

    /// Makes the I/O thread run the rounds, for ever. What was submitted before, it will see.
    pub fn end(&self) {
        lock(&self.state).ending = true;
        self.set_inline(false);
        self.shared.wake_io(); // a poll that waits inline lets go of the reactor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(pace: &mut Pace, polls: usize, arrivals: usize, turn: Duration) {
        for _ in 0..polls {
            pace.leaves(arrivals);
            pace.came_back(turn);
        }
    }

    #[test]
    fn few_arrivals_and_short_turns_are_served_inline() {
        let mut pace = Pace::new();
        assert!(pace.wants_inline(false));
        after(&mut pace, 100, 1, Duration::from_micros(200));
        assert!(pace.wants_inline(false) && pace.wants_inline(true));
        after(&mut pace, 100, 200, Duration::from_micros(200));
        assert!(!pace.wants_inline(true));
        after(&mut pace, 100, 1, Duration::from_micros(200));
        assert!(pace.wants_inline(false));
        after(&mut pace, 100, 1, Duration::from_millis(10));
        assert!(!pace.wants_inline(true));
    }

    #[test]
    fn in_between_it_stays_as_it_is() {
        let mut pace = Pace::new();
        after(&mut pace, 100, 10, Duration::from_micros(200));
        assert!(pace.wants_inline(true) && !pace.wants_inline(false));
        let mut pace = Pace::new();
        after(&mut pace, 100, 1, Duration::from_millis(2));
        assert!(pace.wants_inline(true) && !pace.wants_inline(false));
    }
}
