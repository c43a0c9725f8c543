//! A non-blocking TCP socket, plain or under TLS, with what waits to be written on it.
//!
//! Sockets are registered edge-triggered for both directions once, so no system call is spent on changing interest. The
//! price is that the owner must read until there is nothing more; [`Sock::read`] says so, and remembers.

use mio::net::TcpStream;
use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

/// A write buffer that grew beyond this is freed when it has drained.
const KEPT_BUFFER_BYTES: usize = 16 << 10;
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

pub struct Sock {
    pub tcp: TcpStream,
    tls: Option<Box<rustls::Connection>>,
    /// Under TLS: plain bytes, gathered so that small frames share a record.
    plain: Vec<u8>,
    out: Vec<u8>,
    written: usize,
    /// Whether the kernel may have bytes for us.
    pub readable: bool,
    /// The other side has closed; a short read does not mean that all has been read.
    pub hung_up: bool,
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Got {
    Bytes(usize),
    Nothing,
    End,
}

/// Sets what every connection wants: no delay of small packets, and an end to dead peers. Best effort: a socket that
/// refuses an option still works. `user_timeout`: how long sent data may stay unacknowledged.
pub fn tune(tcp: &TcpStream, user_timeout: Option<Duration>) {
    let socket = socket2::SockRef::from(tcp);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_user_timeout(user_timeout);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(3);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

impl Sock {
    pub fn new(tcp: TcpStream, tls: Option<rustls::Connection>) -> Self {
        Sock {
            tcp,
            tls: tls.map(|mut tls| {
                tls.set_buffer_limit(None); // bounded by what we hand over, not by rustls
                Box::new(tls)
            }),
            plain: Vec::new(),
            out: Vec::new(),
            written: 0,
            readable: true,
            hung_up: false,
        }
    }

    pub fn alpn_is_h2(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.alpn_protocol() == Some(b"h2"))
    }

    /// Bytes that wait to be written.
    pub fn pending(&self) -> usize {
        self.plain.len() + self.out.len() - self.written
    }

    /// Reads plain bytes into `buf`. `Nothing` means that the kernel has no more for now.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<Got> {
        let Some(tls) = &mut self.tls else {
            return self.read_plain(buf);
        };
        loop {
            match tls.reader().read(buf) {
                Ok(0) => return Ok(Got::End),
                Ok(n) => return Ok(Got::Bytes(n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
            if !self.readable {
                return Ok(Got::Nothing);
            }
            match tls.read_tls(&mut self.tcp) {
                Ok(0) => return Ok(Got::End),
                Ok(_) => {
                    let result = tls.process_new_packets();
                    if tls.wants_write() {
                        let _ = tls.write_tls(&mut self.out); // handshake answers, alerts; a Vec takes all
                    }
                    result.map_err(|e| io::Error::new(ErrorKind::InvalidData, e))?;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(Got::Nothing);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Queues bytes; [`Sock::flush`] writes them.
    pub fn send(&mut self, bytes: &[u8]) {
        match self.tls {
            None => self.out.extend_from_slice(bytes),
            Some(_) => self.plain.extend_from_slice(bytes),
        }
    }

    /// Says goodbye under TLS.
    pub fn send_close(&mut self) {
        self.encrypt();
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        self.encrypt();
    }

    /// Turns what is gathered into records. Neither step can fail: rustls' buffer has no limit here, a Vec takes all.
    fn encrypt(&mut self) {
        let Some(tls) = &mut self.tls else { return };
        if !self.plain.is_empty() {
            let _ = tls.writer().write_all(&self.plain);
            self.plain.clear();
            if self.plain.capacity() > KEPT_BUFFER_BYTES {
                self.plain = Vec::new();
            }
        }
        while tls.wants_write() && tls.write_tls(&mut self.out).is_ok_and(|n| n > 0) {}
    }

    /// Writes what the kernel takes; says how much that was. What is left waits for a writable event.
    pub fn flush(&mut self) -> io::Result<usize> {
        self.encrypt();
        let before = self.written;
        let mut total = 0;
        while self.written < self.out.len() {
            match self.tcp.write(&self.out[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.written += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    total = self.written - before;
                    if self.written > self.out.len() / 2 {
                        self.out.drain(..self.written);
                        self.written = 0;
                    }
                    return Ok(total);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        total += self.written - before;
        self.written = 0;
        self.out.clear();
        if self.out.capacity() > KEPT_BUFFER_BYTES {
            self.out = Vec::new();
        }
        Ok(total)
    }

    fn read_plain(&mut self, buf: &mut [u8]) -> io::Result<Got> {
        if !self.readable {
            return Ok(Got::Nothing);
        }
        loop {
            match self.tcp.read(buf) {
                Ok(0) => return Ok(Got::End),
                Ok(n) => {
                    // A short read has emptied the kernel's buffer (epoll(7)); what comes later raises an event.
                    self.readable = n == buf.len() || self.hung_up;
                    return Ok(Got::Bytes(n));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(Got::Nothing);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}
