//! The loop that drives a load: one thread, all connections.
//!
//! *Closed loop*: each client sends its next call when the last has ended. *Open loop* (a rate): call n is due at n / rate,
//! whatever became of those before; a free client sends it, and its latency counts from when it was due, so that a server
//! that stalls is charged for the calls that it kept waiting (no coordinated omission).

use super::answers::{Answers, Owner, Owners, StreamState};
use super::choice::Choice;
use super::clients::{Client, Clients, KEPT_ANSWER_BYTES};
use super::http2::{self, status, Connection};
use super::plan::{Operation, Plan};
use super::stats::{End, Phase, Shared, Stats};
use crate::transport::sock::{self, Sock};
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{
    timerfd_create, timerfd_settime, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags,
    Timespec,
};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const WAKE: Token = Token(usize::MAX - 1);
const TIMER: Token = Token(usize::MAX - 2);
/// How often timeouts and lost connections are looked at.
const TICK: Duration = Duration::from_millis(50);
const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_MOST: Duration = Duration::from_secs(1);
const CODE_DEADLINE_EXCEEDED: u32 = 4;

/// A connection, or the place of one that is down.
struct Link {
    connection: Option<Connection>,
    owners: Owners,
    /// Clients that wait for the connection, or for the server to allow another stream.
    parked: Vec<usize>,
    streams: Vec<usize>,
    dirty: bool,
    retry_at: Instant,
    retry_after: Duration,
}

struct Load {
    plan: Plan,
    shared: Arc<Shared>,
    poll: Poll,
    timer: OwnedFd,
    links: Vec<Link>,
    clients: Clients,
    streams: Vec<StreamState>,
    idle: VecDeque<usize>,
    dirty: Vec<usize>,
    choice: Choice,
    message: Vec<u8>,
    origin: Instant,
    /// When the first call was due.
    begun: u64,
    started: u64,
    in_flight: u64,
    events: u64,
    ended: Vec<usize>,
    down_since: Option<Instant>,
    drain_until: Option<Instant>,
}

/// Runs a load to its end. What was measured stands in the shared statistics, also after an error. Events of [`WAKE`] on
/// `poll` make the loop look whether it is to stop.
pub fn run(plan: Plan, shared: Arc<Shared>, poll: Poll) {
    let mut end = End::new(shared.clone());
    let outcome = Load::new(plan, shared, poll).and_then(|mut load| load.drive());
    end.failure = outcome.err().map(|error| error.to_string());
}

impl Load {
    fn new(plan: Plan, shared: Arc<Shared>, poll: Poll) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        poll.registry()
            .register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        let now = Instant::now();
        let mut links: Vec<Link> = (0..plan.connections)
            .map(|_| Link {
                connection: None,
                owners: Owners::default(),
                parked: Vec::new(),
                streams: Vec::new(),
                dirty: false,
                retry_at: now,
                retry_after: RECONNECT_FIRST,
            })
            .collect();
        let clients = (0..plan.clients)
            .map(|n| Client {
                link: n % plan.connections,
                ..Client::default()
            })
            .collect();
        let streams: Vec<_> = (0..plan.streams.len())
            .map(|n| StreamState {
                link: n % plan.connections,
                ..StreamState::default()
            })
            .collect();
        for (n, stream) in streams.iter().enumerate() {
            links[stream.link].streams.push(n);
        }
        let mut numbers = Vec::new();
        if plan.operations.iter().any(Operation::uses_key_numbers) {
            numbers = vec![0; plan.keys.space as usize];
            for &(key, number) in &plan.remembered {
                numbers[key as usize] = number;
            }
        }
        let choice = Choice {
            state: plan.seed | 1,
            sequence: 0,
            space: plan.keys.space,
            weights: plan.operations.iter().map(|one| one.weight).sum(),
        };
        {
            let mut stats = shared.lock();
            stats
                .operations
                .resize_with(plan.operations.len(), Default::default);
        }
        Ok(Load {
            idle: (0..plan.clients).collect(),
            clients: Clients {
                all: clients,
                numbers,
            },
            choice,
            poll,
            timer,
            links,
            streams,
            dirty: Vec::new(),
            message: Vec::new(),
            origin: now,
            begun: 0,
            started: 0,
            in_flight: 0,
            events: 0,
            ended: Vec::new(),
            down_since: None,
            drain_until: None,
            plan,
            shared,
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn drive(&mut self) -> io::Result<()> {
        let shared = self.shared.clone();
        let mut events = Events::with_capacity(1024);
        let mut scratch = vec![0; 128 << 10];
        let mut again: Vec<usize> = Vec::new();
        let mut next_tick = Instant::now();
        loop {
            if Instant::now() >= next_tick {
                self.tick(&mut shared.lock())?;
                next_tick = Instant::now() + TICK;
            }
            {
                let mut stats = shared.lock();
                if self.advance(&mut stats)? || shared.stop.load(Ordering::Acquire) {
                    return Ok(());
                }
            }
            self.flush_dirty(&mut shared.lock());
            let wait = if again.is_empty() && self.dirty.is_empty() {
                next_tick.saturating_duration_since(Instant::now())
            } else {
                Duration::ZERO
            };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            let mut ready = std::mem::take(&mut again);
            for event in &events {
                match event.token() {
                    WAKE => {}
                    TIMER => {
                        let _ = rustix::io::read(&self.timer, &mut [0_u8; 8][..]);
                    }
                    Token(link) => {
                        self.mark_dirty(link);
                        if let Some(connection) = &mut self.links[link].connection {
                            connection.sock.readable |= event.is_readable();
                            connection.sock.hung_up |= event.is_read_closed();
                            if event.is_readable() || event.is_read_closed() {
                                ready.push(link);
                            }
                        }
                    }
                }
            }
            for link in ready {
                if self.receive(link, &mut scratch, &mut shared.lock()) {
                    again.push(link);
                }
            }
        }
    }

    /// Moves the run on: begins it, sends what is due, ends it. True: it is over.
    fn advance(&mut self, stats: &mut Stats) -> io::Result<bool> {
        if stats.phase == Phase::Connecting {
            let ready = self.streams.iter().zip(&self.plan.streams);
            stats.ready_streams = ready.filter(|(s, p)| s.ready >= p.ready_count).count() as u64;
            let complete = stats.connected == self.links.len() as u64
                && stats.ready_streams == self.streams.len() as u64;
            if !complete {
                return Ok(false);
            }
            stats.phase = Phase::Running;
            self.begun = self.now();
        }
        if stats.phase == Phase::Running {
            self.dispatch(stats);
            if self.all_started() {
                stats.phase = Phase::Draining;
                if self.plan.rate.is_some() {
                    stats.unsent = self
                        .calls_wanted()
                        .unwrap_or(0)
                        .saturating_sub(self.started);
                }
                self.drain_until = Some(Instant::now() + self.plan.drain_timeout);
            }
        }
        stats.started = self.started;
        stats.in_flight = self.in_flight;
        if stats.phase == Phase::Running {
            stats.elapsed_ns = self.now() - self.begun;
        }
        if stats.phase != Phase::Draining || self.in_flight > 0 {
            return Ok(false);
        }
        Ok(self.events >= stats.events_expected
            || self
                .drain_until
                .is_some_and(|until| Instant::now() >= until))
    }

    /// How many calls there are to be: known from the start, except in a closed loop with a time limit.
    fn calls_wanted(&self) -> Option<u64> {
        let due = match (self.plan.rate, self.plan.duration) {
            (Some(rate), Some(duration)) => Some((rate * duration.as_secs_f64()) as u64),
            _ => None,
        };
        [due, self.plan.total].into_iter().flatten().min()
    }

    /// Whether no further call is to be sent. Calls of an open loop that were due in time are sent after it, too, or a stall
    /// at the end would go unseen; but not without end.
    fn all_started(&self) -> bool {
        let grace = if self.plan.rate.is_some() {
            self.plan.call_timeout
        } else {
            Duration::ZERO
        };
        let limit = self.plan.duration.map(|duration| duration + grace);
        let time_is_up =
            limit.is_some_and(|limit| self.now() - self.begun >= limit.as_nanos() as u64);
        time_is_up
            || self
                .calls_wanted()
                .is_some_and(|wanted| self.started >= wanted)
    }

    /// When call number `n` of an open loop is due.
    fn due(&self, n: u64, rate: f64) -> u64 {
        self.begun + (n as f64 * 1e9 / rate) as u64
    }

    fn dispatch(&mut self, stats: &mut Stats) {
        while !self.idle.is_empty() && !self.all_started() {
            let now = self.now();
            let intended = match self.plan.rate {
                None => now,
                Some(rate) => self.due(self.started, rate),
            };
            if intended > now {
                return self.arm(intended - now);
            }
            let Some(client) = self.idle.pop_front() else {
                return;
            };
            if !self.has_room(client) {
                continue; // parked
            }
            let operation = self.choice.operation(&self.plan.operations);
            if !self.plan.operations[operation].same_key {
                self.clients.all[client].key = self
                    .choice
                    .key(&self.plan, &self.plan.operations[operation]);
            }
            self.started += 1;
            self.start(client, operation, intended, stats);
        }
    }

    /// Wakes the loop when the next call is due: mio's own timeout counts in milliseconds.
    fn arm(&self, after_ns: u64) {
        let value = Timespec {
            tv_sec: (after_ns / 1_000_000_000) as i64,
            tv_nsec: (after_ns % 1_000_000_000).max(1) as i64,
        };
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: value,
        };
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }

    /// Whether the client's connection takes another call; if not, the client waits with it.
    fn has_room(&mut self, client: usize) -> bool {
        let link = &mut self.links[self.clients.all[client].link];
        let room = link
            .connection
            .as_ref()
            .is_some_and(|c| c.takes_calls() && link.owners.len() < c.max_streams);
        if !room {
            link.parked.push(client);
        }
        room
    }

    fn start(&mut self, client: usize, operation: usize, intended: u64, stats: &mut Stats) {
        let plan = &self.plan.operations[operation];
        self.message.clear();
        self.message.extend_from_slice(&plan.body);
        for patch in &plan.patches {
            self.clients.patch(
                client,
                patch,
                &self.plan,
                &mut self.choice,
                intended,
                &mut self.message,
            );
        }
        let state = &mut self.clients.all[client];
        let link = &mut self.links[state.link];
        let Some(connection) = &mut link.connection else {
            return stats.error(
                operation,
                &status(http2::CODE_UNAVAILABLE, "connection lost"),
            );
        };
        state.stream_id = connection.request(plan.method, &self.message);
        (state.operation, state.intended, state.busy) = (operation, intended, true);
        state.deadline =
            self.origin.elapsed().as_nanos() as u64 + self.plan.call_timeout.as_nanos() as u64;
        state.answer.clear();
        if state.answer.capacity() > KEPT_ANSWER_BYTES {
            state.answer = Vec::new();
        }
        link.owners.insert(state.stream_id, Owner::Client(client));
        self.in_flight += 1;
        let at = state.link;
        self.mark_dirty(at);
    }

    fn mark_dirty(&mut self, link: usize) {
        if !std::mem::replace(&mut self.links[link].dirty, true) {
            self.dirty.push(link);
        }
    }

    fn flush_dirty(&mut self, stats: &mut Stats) {
        for at in std::mem::take(&mut self.dirty) {
            self.links[at].dirty = false;
            let Some(connection) = &mut self.links[at].connection else {
                continue;
            };
            if let Err(error) = connection.sock.flush() {
                self.lose(at, Some(&error), stats);
            }
        }
    }

    /// Takes what has arrived on a connection; true when there may be more.
    fn receive(&mut self, at: usize, scratch: &mut [u8], stats: &mut Stats) -> bool {
        let (now, events_before) = (self.now(), self.events);
        let link = &mut self.links[at];
        let Some(connection) = &mut link.connection else {
            return false;
        };
        let was_established = connection.established;
        let mut to = Answers {
            plan: &self.plan,
            clients: &mut self.clients,
            streams: &mut self.streams,
            owners: &mut link.owners,
            ended: &mut self.ended,
            events: &mut self.events,
            stats,
            now,
        };
        let outcome = connection.receive(scratch, &mut to);
        let established = connection.established;
        if !self.ended.is_empty() && stats.phase != Phase::Connecting {
            stats.elapsed_ns = now.saturating_sub(self.begun);
        }
        if events_before < self.events {
            stats.events_elapsed_ns = now.saturating_sub(self.begun);
        }
        if established && !was_established {
            self.came_up(at, stats);
        }
        self.after_answers(at, stats);
        self.mark_dirty(at);
        match outcome {
            Ok(more) => more,
            Err(error) => {
                self.lose(at, Some(&error), stats);
                false
            }
        }
    }

    /// Gives the clients whose calls have ended their next ones.
    fn after_answers(&mut self, at: usize, stats: &mut Stats) {
        for client in std::mem::take(&mut self.ended) {
            self.in_flight -= 1;
            let follower = self.clients.follower(client, &self.plan);
            if let Some(operation) = follower {
                let now = self.now();
                self.start(client, operation, now, stats);
            } else {
                self.idle.push_back(client);
            }
        }
        let link = &self.links[at];
        let retired = link
            .connection
            .as_ref()
            .is_some_and(|c| c.established && !c.takes_calls());
        if retired
            && !link
                .owners
                .values()
                .any(|owner| matches!(owner, Owner::Client(_)))
        {
            self.lose(at, None, stats);
        }
        let parked = &mut self.links[at].parked;
        self.idle.extend(parked.drain(..));
        if stats.phase == Phase::Running {
            self.dispatch(stats);
        }
    }

    fn came_up(&mut self, at: usize, stats: &mut Stats) {
        stats.connected += 1;
        let link = &mut self.links[at];
        link.retry_after = RECONNECT_FIRST;
        let Some(connection) = &mut link.connection else {
            return;
        };
        for &n in &link.streams {
            let plan = &self.plan.streams[n];
            let id = connection.open(plan.method, &plan.messages);
            link.owners.insert(id, Owner::Stream(n));
            self.streams[n].input.clear();
            (self.streams[n].ready, self.streams[n].open) = (0, true);
        }
        self.idle.extend(link.parked.drain(..));
    }

    /// Closes a connection: its calls have failed, and another one will be tried.
    fn lose(&mut self, at: usize, error: Option<&io::Error>, stats: &mut Stats) {
        let link = &mut self.links[at];
        let Some(mut connection) = link.connection.take() else {
            return;
        };
        let _ = self.poll.registry().deregister(&mut connection.sock.tcp);
        stats.connected -= u64::from(connection.established);
        link.retry_at = Instant::now() + link.retry_after;
        link.retry_after = (link.retry_after * 2).min(RECONNECT_MOST);
        let reason = error.map_or("retired".to_owned(), ToString::to_string);
        let why = status(
            http2::CODE_UNAVAILABLE,
            &format!("connection lost: {reason}"),
        );
        if link.owners.is_empty() && error.is_some() {
            stats.error(self.plan.operations.len(), &why);
        }
        for (_, owner) in link.owners.drain() {
            match owner {
                Owner::Client(client) => {
                    let state = &mut self.clients.all[client];
                    stats.error(state.operation, &why);
                    state.busy = false;
                    self.in_flight -= 1;
                    link.parked.push(client);
                }
                Owner::Stream(n) => {
                    stats.error(self.plan.operations.len(), &why);
                    self.streams[n].open = false;
                }
            }
        }
    }

    /// Connects what is not connected, gives up on calls that take too long.
    fn tick(&mut self, stats: &mut Stats) -> io::Result<()> {
        let now = Instant::now();
        for at in 0..self.links.len() {
            if self.links[at].connection.is_none() && now >= self.links[at].retry_at {
                self.connect(at)?;
            }
        }
        self.expire(stats);
        let progress = stats.phase == Phase::Draining
            || (stats.connected > 0 && stats.phase == Phase::Running);
        if progress {
            self.down_since = None;
        } else if now - *self.down_since.get_or_insert(now) > self.plan.dial_timeout {
            let last = stats
                .errors
                .keys()
                .next_back()
                .map(|(_, _, why)| why.clone());
            return Err(io::Error::other(format!(
                "{} of {} connections and {} of {} streams up within {:.1} s{}",
                stats.connected,
                self.links.len(),
                stats.ready_streams,
                self.streams.len(),
                self.plan.dial_timeout.as_secs_f64(),
                last.map(|why| format!(": {why}")).unwrap_or_default()
            )));
        }
        Ok(())
    }

    fn connect(&mut self, at: usize) -> io::Result<()> {
        let endpoint = &self.plan.endpoints[at % self.plan.endpoints.len()];
        let mut tcp = TcpStream::connect(endpoint.address)?;
        sock::tune(&tcp, None);
        let tls = match &endpoint.tls {
            None => None,
            Some((config, name)) => {
                let session = rustls::ClientConnection::new(config.clone(), name.clone());
                Some(rustls::Connection::Client(
                    session.map_err(io::Error::other)?,
                ))
            }
        };
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut tcp, Token(at), both)?;
        let secure = tls.is_some();
        let sock = Sock::new(tcp, tls);
        let connection = Connection::new(sock, secure, &endpoint.authority, &self.plan.methods);
        self.links[at].connection = Some(connection);
        Ok(())
    }

    fn expire(&mut self, stats: &mut Stats) {
        let now = self.now();
        for n in 0..self.clients.all.len() {
            let client = &mut self.clients.all[n];
            if !client.busy || now < client.deadline {
                continue;
            }
            client.busy = false;
            let (at, id, operation) = (client.link, client.stream_id, client.operation);
            self.links[at].owners.remove(&id);
            if let Some(connection) = &mut self.links[at].connection {
                connection.reset(id);
            }
            stats.error(
                operation,
                &status(CODE_DEADLINE_EXCEEDED, "no answer in time"),
            );
            self.in_flight -= 1;
            self.idle.push_back(n);
            self.mark_dirty(at);
        }
    }
}
