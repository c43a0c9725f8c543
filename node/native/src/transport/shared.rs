//! What Python's threads and the reactor share: two queues, and some counters.
//!
//! Both queues are double-buffered batches. The reactor collects what has arrived in a private [`Inbox`] and publishes
//! it once per round; `poll` takes the whole of it. Python's calls append to an [`Outbox`]; the I/O thread takes the
//! whole of that. A lock is held for a swap or a copy of small bytes, never while Python objects are made, and never
//! while the network is touched. Message bytes lie in one arena per batch, so that a message costs no allocation; large
//! ones keep the buffer they came in.
//!
//! Wake-ups are edge-shaped in both directions: the I/O thread notifies the condition variable only when a poll waits,
//! and Python writes the event fd only when the I/O thread sleeps. Under load neither happens.

use super::grpc;
use super::tls::{ClientTls, ServerTls};
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Messages of at least this size keep their own buffer instead of being copied to the arena.
const LARGE_MESSAGE_BYTES: usize = 32 << 10;
/// The same for messages that are to be sent: what owns its buffer is not copied again.
const FRAMED_MESSAGE_BYTES: usize = 4 << 10;
/// An arena that grew beyond this in a burst is freed after use instead of being kept.
const KEPT_ARENA_BYTES: usize = 4 << 20;

// Who waits for the kernel.
const NOBODY: u8 = 0;
const IO_THREAD: u8 = 1;
const POLLER: u8 = 2;

/// Bounds and intervals; see `_engine.pyi` for their meaning.
pub struct Config {
    pub max_connections: usize,
    pub max_concurrent_streams: u32,
    pub max_message_bytes: usize,
    pub max_header_bytes: usize,
    pub max_queued_bytes_per_connection: usize,
    pub max_http_body_bytes: usize,
    pub max_inbox_bytes: usize,
    pub max_inbox_events: usize,
    pub stream_queue_high_bytes: usize,
    pub max_peer_frame_bytes: usize,
    pub max_queued_bytes_per_peer: usize,
    pub keepalive_min_interval: Duration,
    pub handshake_timeout: Duration,
    pub idle_http1_timeout: Duration,
    pub peer_backoff_min: Duration,
    pub peer_backoff_max: Duration,
    /// Header names to hand to Python, lower case.
    pub capture: Vec<Vec<u8>>,
    /// First bytes of the peer frames that may wait (see [`Deferral`]).
    pub deferrable_frames: Vec<u8>,
}

/// A message's bytes: in the arena of its batch, or in a buffer of its own; `Framed` with gRPC's prefix before it, so that
/// a large answer is sent from where it was copied to first.
pub enum Message {
    Arena { start: usize, len: usize },
    Owned { buf: Vec<u8>, start: usize },
    Framed(Vec<u8>),
}

impl Message {
    pub fn len(&self) -> usize {
        match self {
            Message::Arena { len, .. } => *len,
            Message::Owned { buf, start } => buf.len() - start,
            Message::Framed(buf) => buf.len() - grpc::PREFIX_BYTES,
        }
    }
    pub fn bytes<'a>(&'a self, arena: &'a Arena) -> &'a [u8] {
        match self {
            Message::Arena { start, len } => &arena.0[*start..start + len],
            Message::Owned { buf, start } => &buf[*start..],
            Message::Framed(buf) => &buf[grpc::PREFIX_BYTES..],
        }
    }
    fn shift(&mut self, by: usize) {
        if let Message::Arena { start, .. } = self {
            *start += by;
        }
    }
}

/// The bytes of a batch's messages, end to end.
#[derive(Default)]
pub struct Arena(Vec<u8>);

impl Arena {
    pub fn put(&mut self, bytes: &[u8]) -> Message {
        if bytes.len() >= LARGE_MESSAGE_BYTES {
            let buf = bytes.to_vec();
            return Message::Owned { buf, start: 0 };
        }
        let start = self.0.len();
        self.0.extend_from_slice(bytes);
        Message::Arena {
            start,
            len: bytes.len(),
        }
    }
    /// As `put`, of a message that is to be sent to a client.
    pub fn put_framed(&mut self, bytes: &[u8]) -> Message {
        if bytes.len() < FRAMED_MESSAGE_BYTES {
            return self.put(bytes);
        }
        let mut buf = Vec::with_capacity(grpc::PREFIX_BYTES + bytes.len());
        buf.extend_from_slice(&grpc::prefix(bytes.len()));
        buf.extend_from_slice(bytes);
        Message::Framed(buf)
    }
    /// As `put` of `buf[start..]`, taking the buffer itself when that is cheaper. Leaves `buf` empty.
    pub fn take(&mut self, buf: &mut Vec<u8>, start: usize) -> Message {
        if buf.len() - start >= LARGE_MESSAGE_BYTES {
            let buf = std::mem::take(buf);
            return Message::Owned { buf, start };
        }
        let message = self.put(&buf[start..]);
        buf.clear();
        message
    }
    fn clear(&mut self) {
        self.0.clear();
        if self.0.capacity() > KEPT_ARENA_BYTES {
            self.0 = Vec::new();
        }
    }
}

/// Captured request headers in the order of `Config::capture`; None when there are none.
pub type Metadata = Option<Box<[Option<Vec<u8>>]>>;

/// The complete unary calls of one method.
pub struct UnaryGroup {
    pub method: u32,
    pub calls: Vec<u64>,
    pub messages: Vec<Message>,
    pub metadata: Vec<Metadata>,
    pub any_metadata: bool,
}

pub enum Event {
    StreamOpen {
        call: u64,
        method: u32,
        metadata: Metadata,
    },
    StreamMessage {
        call: u64,
        message: Message,
    },
    StreamHalfClose {
        call: u64,
    },
    StreamDrained {
        call: u64,
    },
    Cancelled {
        call: u64,
    },
    Http {
        call: u64,
        request: Box<HttpRequest>,
    },
    PeerUp {
        link: u64,
        hello_reply: Vec<u8>,
    },
    PeerRejected {
        link: u64,
        reason: Vec<u8>,
    },
    PeerDown {
        link: u64,
    },
    PeerInbound {
        link: u64,
        hello: Vec<u8>,
        remote: SocketAddr,
    },
    PeerInboundClosed {
        link: u64,
    },
}

/// A plain HTTP request, by whatever version it came.
#[derive(Default)]
pub struct HttpRequest {
    pub method: String,
    pub path: String,
    pub body: Vec<u8>,
    pub metadata: Metadata,
}

/// What has arrived and waits for a poll.
#[derive(Default)]
pub struct Inbox {
    pub arena: Arena,
    /// Indexed by method id; groups without calls are kept for their buffers.
    pub unary: Vec<UnaryGroup>,
    pub events: Vec<Event>,
    pub peer: Vec<(u64, Vec<Message>)>,
    /// Bytes and number of all that is in here, for the bounds.
    pub bytes: usize,
    pub count: usize,
    /// How many of them may wait.
    pub deferrable: usize,
}

impl Inbox {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn push_unary(&mut self, method: u32, call: u64, message: Message, metadata: Metadata) {
        self.bytes += message.len();
        self.count += 1;
        let group = self.group(method);
        group.any_metadata |= metadata.is_some();
        group.calls.push(call);
        group.messages.push(message);
        group.metadata.push(metadata);
    }

    pub fn push(&mut self, event: Event) {
        self.count += 1;
        self.bytes += match &event {
            Event::StreamMessage { message, .. } => message.len(),
            Event::Http { request, .. } => request.body.len() + request.path.len(),
            _ => 0,
        };
        self.events.push(event);
    }

    pub fn push_peer(&mut self, link: u64, frame: Message, deferrable: bool) {
        self.bytes += frame.len();
        self.count += 1;
        self.deferrable += usize::from(deferrable);
        match self.peer.iter_mut().rfind(|(id, _)| *id == link) {
            Some((_, frames)) => frames.push(frame),
            None => self.peer.push((link, vec![frame])),
        }
    }

    fn group(&mut self, method: u32) -> &mut UnaryGroup {
        while self.unary.len() <= method as usize {
            self.unary.push(UnaryGroup {
                method: self.unary.len() as u32,
                calls: Vec::new(),
                messages: Vec::new(),
                metadata: Vec::new(),
                any_metadata: false,
            });
        }
        &mut self.unary[method as usize]
    }

    /// Moves all of `other` to the end of self.
    fn append(&mut self, other: &mut Inbox) {
        let base = self.arena.0.len();
        self.arena.0.extend_from_slice(&other.arena.0);
        for from in other.unary.iter_mut().filter(|g| !g.calls.is_empty()) {
            let to = self.group(from.method);
            to.any_metadata |= from.any_metadata;
            to.calls.append(&mut from.calls);
            to.metadata.append(&mut from.metadata);
            from.messages.iter_mut().for_each(|m| m.shift(base));
            to.messages.append(&mut from.messages);
        }
        self.events.extend(other.events.drain(..).map(|mut event| {
            if let Event::StreamMessage { message, .. } = &mut event {
                message.shift(base);
            }
            event
        }));
        for (link, mut frames) in other.peer.drain(..) {
            frames.iter_mut().for_each(|m| m.shift(base));
            match self.peer.iter_mut().find(|(id, _)| *id == link) {
                Some((_, to)) => to.append(&mut frames),
                None => self.peer.push((link, frames)),
            }
        }
        self.bytes += other.bytes;
        self.count += other.count;
        self.deferrable += other.deferrable;
        other.clear();
    }

    pub fn clear(&mut self) {
        self.arena.clear();
        for group in &mut self.unary {
            group.calls.clear();
            group.messages.clear();
            group.metadata.clear();
            group.any_metadata = false;
        }
        self.events.clear();
        self.peer.clear();
        self.bytes = 0;
        self.count = 0;
        self.deferrable = 0;
    }
}

/// What Python asks of the I/O thread.
pub enum Command {
    Reply {
        call: u64,
        message: Message,
    },
    Finish {
        call: u64,
        code: u32,
        text: String,
    },
    StreamSend {
        call: u64,
        message: Message,
    },
    HttpReply {
        call: u64,
        reply: Box<HttpReply>,
    },
    PeerConnect {
        link: u64,
        target: Arc<PeerTarget>,
        gauge: Arc<LinkGauge>,
    },
    PeerResolved {
        link: u64,
        attempt: u64,
        addresses: Vec<SocketAddr>,
    },
    PeerDisconnect {
        link: u64,
    },
    PeerDecide {
        link: u64,
        accept: bool,
        text: Vec<u8>,
    },
    PeerSend {
        link: u64,
        epoch: u64,
        frame: Message,
    },
    Listen {
        socket: TcpListener,
        kind: ListenKind,
    },
    Shutdown {
        grace: Duration,
    },
}

pub struct HttpReply {
    pub status: u16,
    pub content_type: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// Where an outgoing link goes to, and what it says first.
pub struct PeerTarget {
    pub host: String,
    pub port: u16,
    pub hello: Vec<u8>,
    pub tls: Option<ClientTls>,
}

#[derive(Clone)]
pub enum ListenKind {
    Grpc(Option<ServerTls>),
    Http(Option<ServerTls>),
    Peer(Option<ServerTls>),
}

#[derive(Default)]
pub struct Outbox {
    pub arena: Arena,
    pub commands: Vec<Command>,
}

impl Outbox {
    pub fn clear(&mut self) {
        self.arena.clear();
        self.commands.clear();
    }
}

/// Bytes that wait to be sent on a streaming call (with their framing), as Python sees them.
#[derive(Default)]
pub struct StreamGauge {
    pub queued: AtomicI64,
    /// stream_send has reported a large queue, and a drained event is due.
    pub high: AtomicBool,
    /// The same bytes of all streams of the connection.
    pub connection: Arc<AtomicI64>,
}

impl Config {
    /// From here on what streams of one connection hold is too much for each of them: they are all told to wait.
    pub fn streams_high_bytes(&self) -> i64 {
        (self.max_queued_bytes_per_connection / 2) as i64
    }

    /// What one stream may hold while its connection holds too much; with more it is cut off.
    pub fn stream_share_bytes(&self) -> usize {
        self.max_queued_bytes_per_connection / 8
    }
}

/// The same for a link. The epoch counts connections, so that frames for an earlier one are not sent on the next.
#[derive(Default)]
pub struct LinkGauge {
    pub state: Mutex<LinkState>,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
}

#[derive(Default, Clone, Copy)]
pub struct LinkState {
    pub up: bool,
    pub epoch: u64,
    pub queued: usize,
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// Plain counters; written by the I/O thread, read by `Engine.stats`.
        #[derive(Default)]
        pub struct Counters { $(pub $name: AtomicU64),* }
        impl Counters {
            pub fn each(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed))),*]
            }
        }
    };
}

counters!(
    connections,
    connections_accepted,
    connections_rejected,
    connection_errors,
    peer_connections,
    calls,
    calls_started,
    unary_calls,
    stream_calls,
    http_calls,
    calls_rejected,
    calls_cancelled,
    deadline_exceeded,
    too_many_pings,
    client_bytes_in,
    client_bytes_out,
    peer_bytes_in,
    peer_bytes_out,
    peer_frames_in,
    peer_frames_out,
    peer_frames_dropped,
    peer_connects,
    poll_batches,
    rounds_threaded,
    rounds_inline,
    inbox_full,
);

/// Adds to a counter that only one thread writes.
pub fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub fn sub(counter: &AtomicU64, n: u64) {
    counter.fetch_sub(n, Ordering::Relaxed);
}

/// What a poll says of frames that may wait: alone they end it when more than `frames` are there, or when the first of
/// them has waited for so long. A caller that knows how many it needs before it can do anything saves turns by this.
#[derive(Clone, Copy, Default)]
pub struct Deferral {
    pub frames: usize,
    pub patience: Duration,
}

#[derive(Default)]
struct InboxState {
    inbox: Inbox,
    waiting: bool,
    woken: bool,
    deferral: Deferral,
    /// When the first of the frames that may wait arrived, while any are there.
    deferred_since: Option<Instant>,
}

impl InboxState {
    /// Whether a poll has something to return with.
    fn ready(&self) -> bool {
        let Inbox {
            count, deferrable, ..
        } = self.inbox;
        self.woken
            || count > deferrable
            || deferrable > self.deferral.frames
            || self.deferred_for() == Duration::ZERO
    }

    /// For how much longer what is there may wait; MAX when nothing is there.
    fn deferred_for(&self) -> Duration {
        match self.deferred_since {
            None => Duration::MAX,
            Some(since) => self.deferral.patience.saturating_sub(since.elapsed()),
        }
    }
}

/// How the I/O thread is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Running,
    Stopped,
    Failed,
}

pub struct Shared {
    pub config: Config,
    pub counters: Counters,
    pub streams: Mutex<HashMap<u64, Arc<StreamGauge>>>,
    pub links: Mutex<HashMap<u64, Arc<LinkGauge>>>,
    inbox: Mutex<InboxState>,
    arrived: Condvar,
    outbox: Mutex<Outbox>,
    waker: mio::Waker,
    /// Who waits for the kernel, if anybody does.
    sleeper: AtomicU8,
    inbox_full: AtomicBool,
    /// The thread that polls runs the rounds.
    inline: AtomicBool,
    /// Microseconds from `began` to when that thread last left its poll; 0 while it is in one.
    left_us: AtomicU64,
    began: Instant,
    health: Mutex<Health>,
    /// The I/O thread has ended: nothing takes commands any more.
    closed: AtomicBool,
}

/// Locks; a poisoned lock means that a thread died of a bug, and its data are plain queues: go on with them.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Shared {
    pub fn new(config: Config, waker: mio::Waker) -> Self {
        Shared {
            config,
            counters: Counters::default(),
            streams: Mutex::default(),
            links: Mutex::default(),
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            outbox: Mutex::default(),
            waker,
            sleeper: AtomicU8::new(NOBODY),
            inbox_full: AtomicBool::new(false),
            inline: AtomicBool::new(false),
            left_us: AtomicU64::new(0),
            began: Instant::now(),
            health: Mutex::new(Health::Running),
            closed: AtomicBool::new(false),
        }
    }

    // Python's side.

    /// Waits for something to arrive, a wake-up or the timeout, and swaps what there is with `empty`.
    pub fn take_inbox(&self, empty: &mut Inbox, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut state = lock(&self.inbox);
        while !self.inline() && !state.ready() {
            let left = deadline
                .saturating_duration_since(Instant::now())
                .min(state.deferred_for());
            if left.is_zero() {
                break;
            }
            state.waiting = true;
            state = match self.arrived.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
            state.waiting = false;
        }
        state.woken = false;
        state.deferred_since = None;
        std::mem::swap(&mut state.inbox, empty);
        let was_full = self.inbox_full.swap(false, Ordering::SeqCst);
        drop(state);
        if was_full {
            let _ = self.waker.wake();
        }
    }

    /// Makes the poll that waits, or the next one, return.
    pub fn wake_python(&self) {
        let mut state = lock(&self.inbox);
        state.woken = true;
        drop(state);
        self.arrived.notify_all();
        if self.sleeper.load(Ordering::SeqCst) == POLLER {
            self.wake_sleeper();
        }
    }

    /// Gives commands to the I/O thread: `fill` runs under the lock and must only copy.
    pub fn submit(&self, fill: impl FnOnce(&mut Outbox)) {
        if self.closed.load(Ordering::SeqCst) {
            return;
        }
        fill(&mut lock(&self.outbox));
        self.wake_sleeper();
    }

    /// Wakes whoever waits for the kernel, if anybody does.
    fn wake_sleeper(&self) {
        if self.sleeper.swap(NOBODY, Ordering::SeqCst) != NOBODY {
            let _ = self.waker.wake();
        }
    }

    /// Makes the wait for the kernel that is under way, or the next one, return.
    pub fn wake_io(&self) {
        let _ = self.waker.wake();
    }

    pub fn health(&self) -> Health {
        *lock(&self.health)
    }

    // Who runs the rounds (see `driver`).

    pub fn inline(&self) -> bool {
        self.inline.load(Ordering::SeqCst)
    }

    pub fn set_inline(&self, inline: bool) {
        self.inline.store(inline, Ordering::SeqCst);
    }

    /// The thread that polls has come back to it.
    pub fn is_back(&self) {
        self.left_us.store(0, Ordering::SeqCst);
    }

    /// The thread that polls goes about its own business.
    pub fn leaves(&self) {
        let us = self.began.elapsed().as_micros() as u64;
        self.left_us.store(us.max(1), Ordering::SeqCst);
    }

    /// For how long it has been away.
    pub fn away_for(&self) -> Duration {
        match self.left_us.load(Ordering::SeqCst) {
            0 => Duration::ZERO,
            left => self
                .began
                .elapsed()
                .saturating_sub(Duration::from_micros(left)),
        }
    }

    /// What the poll that begins says of frames that may wait.
    pub fn defer(&self, deferral: Deferral) {
        lock(&self.inbox).deferral = deferral;
    }

    /// Whether a poll has something to return with.
    pub fn has_arrived(&self) -> bool {
        lock(&self.inbox).ready()
    }

    /// For how much longer what has arrived may wait; MAX when nothing has.
    pub fn deferred_for(&self) -> Duration {
        lock(&self.inbox).deferred_for()
    }

    // The reactor's side.

    /// Publishes `local` (and empties it).
    pub fn publish(&self, local: &mut Inbox) {
        let mut state = lock(&self.inbox);
        if state.inbox.is_empty() {
            std::mem::swap(&mut state.inbox, local);
            local.clear();
        } else {
            state.inbox.append(local);
        }
        let full = state.inbox.bytes > self.config.max_inbox_bytes
            || state.inbox.count > self.config.max_inbox_events;
        // The poll that waits has a shorter wait from now on.
        let began_to_defer = state.inbox.deferrable > 0 && state.deferred_since.is_none();
        if began_to_defer {
            state.deferred_since = Some(Instant::now());
        }
        if full {
            // What may wait has no room to wait in.
            state.deferral = Deferral::default();
            // Under the lock: whoever empties the inbox after us sees it.
            self.inbox_full.store(true, Ordering::SeqCst);
            add(&self.counters.inbox_full, 1);
        }
        let awaited = state.waiting && (state.ready() || began_to_defer);
        drop(state);
        if awaited {
            self.arrived.notify_all();
        }
    }

    /// Whether sockets must not be read until Python has taken what waits. The waker tells when that is over.
    pub fn inbox_is_full(&self) -> bool {
        self.inbox_full.load(Ordering::SeqCst)
    }

    /// Whether something was asked for that is not done yet.
    pub fn has_commands(&self) -> bool {
        !lock(&self.outbox).commands.is_empty()
    }

    pub fn take_outbox(&self, empty: &mut Outbox) {
        std::mem::swap(&mut *lock(&self.outbox), empty);
    }

    /// Called before blocking, by the thread that polls or the other one: announces it, and says whether that is right.
    pub fn about_to_sleep(&self, poller: bool) -> bool {
        let who = if poller { POLLER } else { IO_THREAD };
        self.sleeper.store(who, Ordering::SeqCst);
        lock(&self.outbox).commands.is_empty() && !(poller && self.has_arrived())
    }

    pub fn awake(&self) {
        self.sleeper.store(NOBODY, Ordering::SeqCst);
    }

    /// The last word of whoever ran the rounds; the first one counts.
    pub fn set_health(&self, health: Health) {
        let mut state = lock(&self.health);
        if *state == Health::Running {
            *state = health;
        }
        drop(state);
        self.closed.store(true, Ordering::SeqCst);
        lock(&self.outbox).clear();
        self.wake_python();
    }
}
