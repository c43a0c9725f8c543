//! Outgoing links: connecting, and connecting again.
//!
//! An address is connected to at once; a name is resolved anew for each attempt, by a short-lived thread, because resolving
//! blocks and what a name means changes. A link has at most one attempt or connection at a time; `attempt` numbers them, so
//! that a timer or an answer that comes late is recognised.

use super::peer::{self, Peer};
use super::reactor::{Conn, Reactor, Slot, FIRST_INBOUND};
use super::serve::World;
use super::shared::{add, Command, Event, LinkGauge, PeerTarget};
use super::sock::{self, Sock};
use super::wheel::Timer;
use mio::net::TcpStream;
use rustls::pki_types::ServerName;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

/// An outgoing link: where to, and how it stands.
pub(super) struct Link {
    pub(super) target: Arc<PeerTarget>,
    pub(super) gauge: Arc<LinkGauge>,
    pub(super) connection: Option<usize>,
    /// Counts attempts; a timer or an answer of an earlier one means nothing.
    pub(super) attempt: u64,
    pub(super) failures: u32,
}

impl Reactor {
    pub(super) fn outbound_lost(&mut self, id: u64, was_up: bool) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.connection = None;
        if was_up {
            link.failures = 0;
            self.w.inbox.push(Event::PeerDown { link: id });
        }
        self.retry_later(id);
    }

    pub(super) fn retry_later(&mut self, id: u64) {
        let config = &self.w.shared.config;
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.attempt += 1;
        let full = config
            .peer_backoff_min
            .saturating_mul(1 << link.failures.min(16))
            .min(config.peer_backoff_max);
        link.failures += 1;
        // xorshift64: jitter needs no better
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let delay = full.mul_f64(0.5 + (self.random >> 11) as f64 / (1u64 << 54) as f64);
        let attempt = link.attempt;
        self.w
            .wheel
            .set(self.w.now + delay, Timer::Link { link: id, attempt });
    }

    /// Begins an attempt: an address is used at once, a name is resolved by a thread of its own.
    pub(super) fn attempt(&mut self, id: u64) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.attempt += 1;
        let target = link.target.clone();
        let literal = target.host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = literal.parse::<IpAddr>() {
            return self.connect(id, SocketAddr::new(ip, target.port));
        }
        let (shared, attempt) = (self.w.shared.clone(), link.attempt);
        let resolve = move || {
            let found = (target.host.as_str(), target.port).to_socket_addrs();
            let addresses = found.map(Iterator::collect).unwrap_or_default();
            let answer = Command::PeerResolved {
                link: id,
                attempt,
                addresses,
            };
            shared.submit(|outbox| outbox.commands.push(answer));
        };
        let spawned = std::thread::Builder::new()
            .name("engine-resolve".into())
            .spawn(resolve);
        if spawned.is_err() {
            self.retry_later(id);
        }
    }

    pub(super) fn connect(&mut self, id: u64, address: SocketAddr) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let target = link.target.clone();
        let Ok(tcp) = TcpStream::connect(address) else {
            return self.retry_later(id);
        };
        sock::tune(&tcp, Some(peer::USER_TIMEOUT));
        let tls = match &target.tls {
            None => None,
            Some(tls) => {
                let host = target
                    .host
                    .trim_start_matches('[')
                    .trim_end_matches(']')
                    .to_owned();
                let name = tls
                    .server_name
                    .clone()
                    .or_else(|| ServerName::try_from(host).ok());
                let session =
                    name.map(|name| rustls::ClientConnection::new(tls.config.clone(), name));
                match session {
                    Some(Ok(session)) => Some(rustls::Connection::Client(session)),
                    _ => return self.retry_later(id),
                }
            }
        };
        let sock = Sock::new(tcp, tls);
        self.serial += 1;
        let entry = self.conns.vacant_entry();
        let token = entry.key();
        let gauge = link.gauge.clone();
        link.connection = Some(token);
        let peer = Peer::outbound(
            token,
            self.serial,
            id,
            sock,
            address,
            gauge,
            &target.hello,
            &mut self.w,
        );
        entry.insert(Slot::new(Conn::Peer(Box::new(peer))));
        add(&self.w.shared.counters.peer_connects, 1);
        self.register(token);
    }

    pub(super) fn peer_token(&self, link: u64) -> Option<usize> {
        if link >= FIRST_INBOUND {
            return self.inbound.get(&link).copied();
        }
        self.links.get(&link).and_then(|link| link.connection)
    }

    pub(super) fn with_peer(
        &mut self,
        link: u64,
        run: impl FnOnce(&mut Peer, &mut World, &mut Vec<u8>) -> bool,
    ) {
        let Some(token) = self.peer_token(link) else {
            return;
        };
        let Some(slot) = self.conns.get_mut(token) else {
            return;
        };
        let Conn::Peer(peer) = &mut slot.conn else {
            return;
        };
        if run(peer, &mut self.w, &mut self.frame) {
            Self::mark_dirty(&mut self.dirty, token, slot);
        } else {
            self.close(token);
        }
    }

    pub(super) fn resolved(&mut self, id: u64, attempt: u64, addresses: &[SocketAddr]) {
        match self.links.get(&id) {
            // One address per attempt, in turn.
            Some(link) if link.attempt == attempt => {
                match addresses.get(link.failures as usize % addresses.len().max(1)) {
                    Some(address) => self.connect(id, *address),
                    None => self.retry_later(id),
                }
            }
            _ => {}
        }
    }
}
