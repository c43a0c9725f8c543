//! The loop that owns every socket. Its rounds are run by the I/O thread or by the thread that polls ([`super::driver`]).
//!
//! A round: wait for the kernel (or a wake-up, or a timer), read and parse what came, publish it to Python at once, then
//! do what Python has asked meanwhile, write, and fire timers. Everything is non-blocking; names are resolved by threads
//! of their own.

use super::client::{Client, Fate};
use super::h2::{Ops, Template};
use super::links::Link;
use super::peer::{self, Peer};
use super::serve::{Server, World};
use super::shared::{add, lock, sub, Arena, Command, Event, ListenKind, Outbox};
use super::sock::{self, Sock};
use super::wheel::Timer;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The token of the waker; listeners follow, then connections.
pub const WAKER: Token = Token(0);
const FIRST_LISTENER: usize = 1;
const FIRST_CONNECTION: usize = 1024;
/// Inbound links are numbered from here; the caller's links lie below.
pub const FIRST_INBOUND: u64 = 1 << 32;
const SCRATCH_BYTES: usize = 64 << 10;
/// After a failure to accept (no more file descriptors), listeners rest this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) enum Conn {
    Client(Box<Client>),
    Peer(Box<Peer>),
}

pub(super) struct Slot {
    pub(super) conn: Conn,
    /// Has something to write at the end of the round.
    pub(super) dirty: bool,
    /// Stands in [`Reactor::again`].
    pub(super) again: bool,
}

impl Slot {
    pub(super) fn new(conn: Conn) -> Self {
        Slot {
            conn,
            dirty: false,
            again: false,
        }
    }
}

pub struct Reactor {
    poll: Poll,
    pub(super) w: World,
    template: Arc<Template>,
    pub(super) conns: slab::Slab<Slot>,
    listeners: Vec<(TcpListener, ListenKind)>,
    pub(super) links: HashMap<u64, Link>,
    pub(super) inbound: HashMap<u64, usize>,
    pub(super) dirty: Vec<usize>,
    /// Connections that had more to read than their turn allowed, or were not read because the inbox was full.
    again: Vec<usize>,
    scratch: Vec<u8>,
    pub(super) frame: Vec<u8>,
    pub(super) serial: u64,
    next_inbound: u64,
    pub(super) random: u64,
    draining: bool,
    done: bool,
    // Kept for their buffers.
    events: Option<Events>,
    outbox: Outbox,
    due: Vec<Timer>,
}

impl Reactor {
    pub fn new(poll: Poll, w: World) -> Self {
        let config = &w.shared.config;
        let template = Template::new(
            config.max_concurrent_streams,
            config.max_header_bytes as u32,
        );
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 1);
        Reactor {
            poll,
            w,
            template,
            conns: slab::Slab::new(),
            listeners: Vec::new(),
            links: HashMap::new(),
            inbound: HashMap::new(),
            dirty: Vec::new(),
            again: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES],
            frame: Vec::new(),
            serial: 0,
            next_inbound: FIRST_INBOUND,
            random: random | 1,
            draining: false,
            done: false,
            events: Some(Events::with_capacity(1024)),
            outbox: Outbox::default(),
            due: Vec::new(),
        }
    }

    /// Waits for the kernel, a wake-up, a timer or `limit`, and does all there is to do.
    pub fn round(&mut self, limit: Option<Duration>) -> std::io::Result<()> {
        let counters = &self.w.shared.counters;
        match limit {
            None => add(&counters.rounds_threaded, 1),
            Some(_) => add(&counters.rounds_inline, 1),
        }
        let full = self.w.shared.inbox_is_full();
        let mut timeout = self.w.wheel.next(Instant::now());
        if let Some(limit) = limit {
            timeout = Some(timeout.map_or(limit, |t| t.min(limit)));
        }
        if (!self.again.is_empty() && !full)
            || limit == Some(Duration::ZERO)
            || !self.w.shared.about_to_sleep(limit.is_some())
        {
            timeout = Some(Duration::ZERO);
        }
        let mut events = self
            .events
            .take()
            .unwrap_or_else(|| Events::with_capacity(1024));
        if let Err(e) = self.poll.poll(&mut events, timeout) {
            if e.kind() != ErrorKind::Interrupted {
                return Err(e);
            }
        }
        self.w.shared.awake();
        self.w.now = Instant::now();
        self.read_round(&events, full);
        self.events = Some(events);
        self.publish();
        self.obey();
        Ok(())
    }

    /// Does what Python has asked and what is due, and writes.
    pub fn obey(&mut self) {
        self.w.now = Instant::now();
        let mut outbox = std::mem::take(&mut self.outbox);
        self.w.shared.take_outbox(&mut outbox);
        let mut commands = std::mem::take(&mut outbox.commands);
        for command in commands.drain(..) {
            self.command(command, &outbox.arena);
        }
        outbox.commands = commands;
        outbox.clear();
        self.outbox = outbox;
        let mut due = std::mem::take(&mut self.due);
        self.w.wheel.advance(self.w.now, &mut due);
        for timer in due.drain(..) {
            self.timer(timer);
        }
        self.due = due;
        self.flush_dirty();
        self.publish();
        if self.draining
            && !self
                .conns
                .iter()
                .any(|(_, slot)| matches!(slot.conn, Conn::Client(_)))
        {
            self.done = true;
        }
    }

    /// Whether a shutdown is over.
    pub fn done(&self) -> bool {
        self.done
    }

    fn publish(&mut self) {
        if !self.w.inbox.is_empty() {
            self.w.shared.publish(&mut self.w.inbox);
        }
    }

    fn read_round(&mut self, events: &Events, full: bool) {
        let again = std::mem::take(&mut self.again);
        for event in events {
            match event.token() {
                WAKER => {}
                Token(t) if t < FIRST_CONNECTION => self.accept(t - FIRST_LISTENER),
                Token(t) => self.connection_event(t - FIRST_CONNECTION, event, full),
            }
        }
        if full {
            self.again.extend(again);
            return;
        }
        for token in again {
            let Some(slot) = self.conns.get_mut(token) else {
                continue;
            };
            slot.again = false;
            let fate = match &mut slot.conn {
                Conn::Client(client) => client.read(&mut self.w, &mut self.scratch),
                Conn::Peer(peer) => peer_fate(peer.read(&mut self.w, &mut self.scratch)),
            };
            self.settle(token, fate);
        }
    }

    fn connection_event(&mut self, token: usize, event: &mio::event::Event, full: bool) {
        let Some(slot) = self.conns.get_mut(token) else {
            return;
        };
        let mut fate = Fate::Keep;
        match &mut slot.conn {
            Conn::Client(client) => {
                if event.is_read_closed() {
                    client.hung_up();
                }
                if event.is_readable() {
                    client.readable();
                }
                if event.is_readable() && !full {
                    fate = client.read(&mut self.w, &mut self.scratch); // flushes, too
                } else if event.is_writable() {
                    fate = client.flush(&mut self.w);
                }
            }
            Conn::Peer(peer) => {
                if event.is_read_closed() {
                    peer.hung_up();
                }
                if event.is_readable() {
                    peer.readable();
                }
                if event.is_writable() && !peer.writable(&mut self.w) {
                    fate = Fate::Close;
                } else if event.is_readable() && !full {
                    fate = peer_fate(peer.read(&mut self.w, &mut self.scratch));
                }
            }
        }
        if full && event.is_readable() && fate == Fate::Keep {
            fate = Fate::Again;
        }
        self.settle(token, fate);
    }

    fn settle(&mut self, token: usize, fate: Fate) {
        match fate {
            Fate::Keep => {}
            Fate::Again => {
                let slot = self.conns.get_mut(token);
                if slot.is_some_and(|slot| !std::mem::replace(&mut slot.again, true)) {
                    self.again.push(token);
                }
            }
            Fate::Close => self.close(token),
        }
    }

    pub(super) fn mark_dirty(dirty: &mut Vec<usize>, token: usize, slot: &mut Slot) {
        if !std::mem::replace(&mut slot.dirty, true) {
            dirty.push(token);
        }
    }

    fn flush_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for token in dirty.drain(..) {
            let Some(slot) = self.conns.get_mut(token) else {
                continue;
            };
            slot.dirty = false;
            let fate = match &mut slot.conn {
                Conn::Client(client) => client.flush(&mut self.w),
                Conn::Peer(peer) => match peer.flush(&mut self.w) {
                    true => Fate::Keep,
                    false => Fate::Close,
                },
            };
            self.settle(token, fate);
        }
        self.dirty = dirty;
    }

    // Connections come and go.

    fn accept(&mut self, index: usize) {
        loop {
            let Some((listener, kind)) = self.listeners.get(index) else {
                return;
            };
            match listener.accept() {
                Ok((tcp, remote)) => {
                    let kind = kind.clone();
                    self.accepted(tcp, remote, kind);
                }
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) => {}
                Err(e) => {
                    if e.kind() != ErrorKind::WouldBlock {
                        self.w.wheel.set(self.w.now + ACCEPT_PAUSE, Timer::Accept);
                    }
                    return;
                }
            }
        }
    }

    fn accepted(&mut self, tcp: TcpStream, remote: SocketAddr, kind: ListenKind) {
        let shared = self.w.shared.clone();
        if self.conns.len() >= shared.config.max_connections {
            return add(&shared.counters.connections_rejected, 1); // and closes it
        }
        let (tls, is_peer, http1_only) = match kind {
            ListenKind::Grpc(tls) => (tls, false, false),
            ListenKind::Http(tls) => (tls, false, true),
            ListenKind::Peer(tls) => (tls, true, false),
        };
        sock::tune(&tcp, is_peer.then_some(peer::USER_TIMEOUT));
        let tls = match tls.map(rustls::ServerConnection::new).transpose() {
            Ok(tls) => tls.map(rustls::Connection::Server),
            Err(_) => return add(&shared.counters.connection_errors, 1),
        };
        let sock = Sock::new(tcp, tls);
        self.serial += 1;
        let entry = self.conns.vacant_entry();
        let token = entry.key();
        let conn = if is_peer {
            let link = self.next_inbound;
            self.next_inbound += 1;
            self.inbound.insert(link, token);
            Conn::Peer(Box::new(Peer::inbound(
                token,
                self.serial,
                link,
                sock,
                remote,
                &mut self.w,
            )))
        } else {
            add(&shared.counters.connections_accepted, 1);
            let template = self.template.clone();
            let client = Client::new(token, self.serial, sock, http1_only, template, &mut self.w);
            Conn::Client(Box::new(client))
        };
        entry.insert(Slot::new(conn));
        self.register(token);
    }

    /// Starts to watch a new connection (both directions, edge-triggered, once).
    pub(super) fn register(&mut self, token: usize) {
        let counters = &self.w.shared.counters;
        let (source, gauge) = match &mut self.conns[token].conn {
            Conn::Client(client) => (client.source(), &counters.connections),
            Conn::Peer(peer) => (peer.source(), &counters.peer_connections),
        };
        add(gauge, 1);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self
            .poll
            .registry()
            .register(source, Token(token + FIRST_CONNECTION), interest)
            .is_err()
        {
            self.close(token);
        }
    }

    pub(super) fn close(&mut self, token: usize) {
        let Some(mut slot) = self.conns.try_remove(token) else {
            return;
        };
        let shared = self.w.shared.clone();
        match &mut slot.conn {
            Conn::Client(client) => {
                let _ = self.poll.registry().deregister(client.source());
                client.bury(&mut self.w);
                sub(&shared.counters.connections, 1);
            }
            Conn::Peer(peer) => {
                let _ = self.poll.registry().deregister(peer.source());
                peer.bury();
                sub(&shared.counters.peer_connections, 1);
                let link = peer.link;
                if peer.outbound {
                    self.outbound_lost(link, peer.announced);
                } else {
                    self.inbound.remove(&link);
                    lock(&shared.links).remove(&link);
                    if peer.announced {
                        self.w.inbox.push(Event::PeerInboundClosed { link });
                    }
                }
            }
        }
    }

    pub fn close_all(&mut self) {
        self.links.clear(); // so that nothing reconnects
        let tokens: Vec<_> = self.conns.iter().map(|(token, _)| token).collect();
        for token in tokens {
            self.close(token);
        }
        self.publish();
    }

    // What Python asks.

    fn with_call(&mut self, id: u64, run: impl FnOnce(&mut Server<'_>, &mut Ops, usize)) {
        self.with_client(id, |client, w, call| {
            client.with_call(w, |server, ops| run(server, ops, call))
        });
    }

    fn with_client(&mut self, id: u64, run: impl FnOnce(&mut Client, &mut World, usize)) {
        let Some(call) = self.w.calls.find(id) else {
            return;
        };
        let token = self.w.calls.get(call).connection;
        let Some(slot) = self.conns.get_mut(token) else {
            return;
        };
        if let Conn::Client(client) = &mut slot.conn {
            run(client, &mut self.w, call);
            Self::mark_dirty(&mut self.dirty, token, slot);
        }
    }

    fn command(&mut self, command: Command, arena: &Arena) {
        match command {
            Command::Reply { call, message } => {
                self.with_call(call, |s, ops, slot| s.reply(ops, slot, message, arena))
            }
            Command::Finish { call, code, text } => {
                self.with_call(call, |s, ops, slot| s.finish(ops, slot, code, &text))
            }
            Command::StreamSend { call, message } => {
                self.with_call(call, |s, ops, slot| {
                    s.stream_send(ops, slot, message, arena)
                });
            }
            Command::HttpReply { call, reply } => {
                self.with_client(call, |client, w, slot| client.http_reply(w, slot, *reply));
            }
            Command::PeerSend { link, epoch, frame } => self.with_peer(link, |peer, w, scratch| {
                if peer.epoch() == epoch {
                    peer.send(w, &frame, arena, scratch);
                }
                true
            }),
            Command::PeerDecide { link, accept, text } => self.with_peer(link, |peer, w, _| {
                peer.decide(accept, &text);
                peer.resume(w)
            }),
            Command::PeerConnect {
                link,
                target,
                gauge,
            } => {
                let new = Link {
                    target,
                    gauge,
                    connection: None,
                    attempt: 0,
                    failures: 0,
                };
                self.links.insert(link, new);
                self.attempt(link);
            }
            Command::PeerResolved {
                link,
                attempt,
                addresses,
            } => self.resolved(link, attempt, &addresses),
            Command::PeerDisconnect { link } => {
                let token = self.peer_token(link);
                self.links.remove(&link); // first: so that closing does not reconnect or report
                if let Some(token) = token {
                    self.close(token);
                }
            }
            Command::Listen { socket, kind } => self.listen(socket, kind),
            Command::Shutdown { grace } => self.drain(grace),
        }
    }

    fn listen(&mut self, socket: std::net::TcpListener, kind: ListenKind) {
        let mut listener = TcpListener::from_std(socket);
        let token = Token(FIRST_LISTENER + self.listeners.len());
        if self
            .poll
            .registry()
            .register(&mut listener, token, Interest::READABLE)
            .is_ok()
        {
            self.listeners.push((listener, kind));
            self.accept(self.listeners.len() - 1);
        }
    }

    fn drain(&mut self, grace: Duration) {
        self.draining = true;
        self.listeners.clear();
        self.w.wheel.set(self.w.now + grace, Timer::Shutdown);
        let tokens: Vec<_> = self.conns.iter().map(|(token, _)| token).collect();
        for token in tokens {
            if let Conn::Client(client) = &mut self.conns[token].conn {
                let fate = client.drain(&mut self.w);
                self.settle(token, fate);
            }
        }
    }

    fn timer(&mut self, timer: Timer) {
        match timer {
            Timer::Call(id) => {
                let Some(slot) = self.w.calls.find(id) else {
                    return;
                };
                match self.w.calls.get(slot).deadline {
                    Some(at) if at <= self.w.now => {
                        self.with_call(id, |s, ops, slot| s.deadline(ops, slot))
                    }
                    _ => {}
                }
            }
            Timer::Connection { token, serial } => {
                let Some(slot) = self.conns.get_mut(token) else {
                    return;
                };
                let fate = match &mut slot.conn {
                    Conn::Client(client) if client.serial == serial => client.timer(&mut self.w),
                    Conn::Peer(peer) if peer.serial == serial && peer.timer(&self.w) => Fate::Close,
                    _ => Fate::Keep,
                };
                self.settle(token, fate);
            }
            Timer::Link { link, attempt } => {
                if self.links.get(&link).is_some_and(|l| l.attempt == attempt) {
                    self.attempt(link);
                }
            }
            Timer::Accept => (0..self.listeners.len()).for_each(|i| self.accept(i)),
            Timer::Shutdown => self.done = true,
        }
    }
}

fn peer_fate(read: Option<bool>) -> Fate {
    match read {
        None => Fate::Close,
        Some(true) => Fate::Again,
        Some(false) => Fate::Keep,
    }
}
