//! A load generator for etcd's v3 API: one thread, raw HTTP/2, distinct keys, latencies of every call.
//!
//! It keeps exactly `connections x streams` calls in flight (closed loop), sends a given number of them and prints one
//! line of JSON. It exists because the usual generators either send one body for ever or need a core for themselves.

mod http2;
mod workload;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use http2::{Connection, Finished};
use mio::{Events, Interest, Poll, Token};
use workload::{Operation, Workload};

const USAGE: &str = "usage: raftkv-loader --endpoints HOST:PORT[,...] [--operation put|range|range-serializable] \
[--connections N] [--streams N] [--requests N] [--existing-keys N] [--new-per-mille N] [--value-bytes N] \
[--timeout-seconds N] [--seed N]";

struct Options {
    endpoints: Vec<SocketAddr>,
    operation: Operation,
    connections: usize,
    streams: usize,
    requests: usize,
    existing_keys: u64,
    new_per_mille: u64,
    value_bytes: usize,
    timeout: Duration,
    seed: u64,
}

fn parse_options() -> Result<Options, String> {
    let mut given: HashMap<String, String> = HashMap::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        given.insert(name, value);
    }
    let mut number = |name: &str, default: u64| -> Result<u64, String> {
        given
            .remove(name)
            .map_or(Ok(default), |v| v.parse().map_err(|e| format!("{name}: {e}")))
    };
    let (connections, streams) = (number("--connections", 10)?, number("--streams", 10)?);
    let (requests, existing_keys) = (number("--requests", 10_000)?, number("--existing-keys", 0)?);
    let (new_per_mille, value_bytes) = (number("--new-per-mille", 500)?, number("--value-bytes", 256)?);
    let (timeout_seconds, seed) = (number("--timeout-seconds", 120)?, number("--seed", 7)?);
    let operation = given.remove("--operation").unwrap_or_else(|| "put".to_owned());
    let endpoints = given.remove("--endpoints").ok_or("--endpoints is missing")?;
    if let Some(name) = given.keys().next() {
        return Err(format!("unknown option {name}"));
    }
    if connections == 0 || streams == 0 || streams > 1000 {
        return Err("--connections must be at least 1 and --streams 1 to 1000".to_owned());
    }
    if value_bytes > 16_000 {
        return Err("--value-bytes: at most 16000, so that a request fits one frame".to_owned());
    }
    Ok(Options {
        endpoints: endpoints
            .split(',')
            .map(|e| e.parse().map_err(|_| format!("--endpoints: '{e}' is not IP:PORT")))
            .collect::<Result<_, _>>()?,
        operation: Operation::parse(&operation).ok_or_else(|| format!("--operation: unknown '{operation}'"))?,
        connections: connections as usize,
        streams: streams as usize,
        requests: requests as usize,
        existing_keys,
        new_per_mille,
        value_bytes: value_bytes as usize,
        timeout: Duration::from_secs(timeout_seconds),
        seed,
    })
}

/// The closed loop over all connections.
struct Load<'a> {
    options: &'a Options,
    poll: Poll,
    connections: Vec<Connection>,
    workload: Workload,
    message: Vec<u8>,
    started_at: HashMap<(usize, u32), Instant>,
    sent: usize,
    errors: usize,
    latencies_us: Vec<u32>,
}

impl<'a> Load<'a> {
    fn connect(options: &'a Options) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(options.connections);
        for i in 0..options.connections {
            let endpoint = options.endpoints[i % options.endpoints.len()];
            let socket = std::net::TcpStream::connect(endpoint)?;
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
            let mut socket = mio::net::TcpStream::from_std(socket);
            poll.registry()
                .register(&mut socket, Token(i), Interest::READABLE | Interest::WRITABLE)?;
            connections.push(Connection::new(socket, &endpoint.to_string(), options.operation.path()));
        }
        let workload = Workload::new(
            options.operation,
            options.existing_keys,
            options.new_per_mille,
            options.value_bytes,
            options.seed,
        );
        Ok(Self {
            options,
            poll,
            connections,
            workload,
            message: Vec::new(),
            started_at: HashMap::with_capacity(options.connections * options.streams * 2),
            sent: 0,
            errors: 0,
            latencies_us: Vec::with_capacity(options.requests),
        })
    }

    /// Sends up to `count` further calls on a connection; returns how many it could not send for lack of window.
    fn send(&mut self, connection: usize, count: usize) -> usize {
        let now = Instant::now();
        for n in 0..count {
            if self.sent == self.options.requests {
                return 0;
            }
            if !self.connections[connection].has_room(self.options.value_bytes + 64) {
                return count - n;
            }
            self.workload.next(&mut self.message);
            let stream_id = self.connections[connection].request(&self.message);
            self.started_at.insert((connection, stream_id), now);
            self.sent += 1;
        }
        0
    }

    fn complete(&mut self, connection: usize, finished: &[Finished]) -> usize {
        let now = Instant::now();
        let mut ended = 0;
        for call in finished {
            // A reset may follow the trailers of a call that has ended already.
            let Some(start) = self.started_at.remove(&(connection, call.stream_id)) else {
                continue;
            };
            ended += 1;
            if call.ok {
                self.latencies_us
                    .push(u32::try_from(now.duration_since(start).as_micros()).unwrap_or(u32::MAX));
            } else {
                self.errors += 1;
            }
        }
        ended
    }

    fn run(&mut self) -> io::Result<Duration> {
        let start = Instant::now();
        let mut owed = vec![0; self.connections.len()];
        for (i, owed) in owed.iter_mut().enumerate() {
            *owed = self.send(i, self.options.streams);
            self.connections[i].flush()?;
        }
        let mut events = Events::with_capacity(1024);
        let mut scratch = vec![0; 1 << 18];
        let mut finished = Vec::new();
        while self.latencies_us.len() + self.errors < self.options.requests {
            if start.elapsed() > self.options.timeout {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "{} of {} calls ended within the time limit",
                        self.latencies_us.len() + self.errors,
                        self.options.requests
                    ),
                ));
            }
            self.poll.poll(&mut events, Some(Duration::from_secs(1)))?;
            for event in &events {
                let i = event.token().0;
                if event.is_readable() {
                    finished.clear();
                    self.connections[i].receive(&mut scratch, &mut finished)?;
                    owed[i] += self.complete(i, &finished);
                    owed[i] = self.send(i, owed[i]);
                }
                self.connections[i].flush()?;
            }
        }
        Ok(start.elapsed())
    }
}

fn percentile(sorted: &[u32], per_cent: f64) -> u32 {
    let rank = (per_cent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

fn report(load: &mut Load<'_>, elapsed: Duration) {
    load.latencies_us.sort_unstable();
    let sorted = &load.latencies_us;
    let mean = sorted.iter().map(|&l| f64::from(l)).sum::<f64>() / sorted.len().max(1) as f64;
    println!(
        "{{\"ok\": {}, \"errors\": {}, \"seconds\": {:.6}, \"per_second\": {:.1}, \"in_flight\": {}, \
         \"mean_us\": {:.1}, \"p50_us\": {}, \"p90_us\": {}, \"p99_us\": {}, \"p999_us\": {}, \"max_us\": {}}}",
        sorted.len(),
        load.errors,
        elapsed.as_secs_f64(),
        sorted.len() as f64 / elapsed.as_secs_f64(),
        load.options.connections * load.options.streams,
        mean,
        percentile(sorted, 50.0),
        percentile(sorted, 90.0),
        percentile(sorted, 99.0),
        percentile(sorted, 99.9),
        sorted.last().copied().unwrap_or(0),
    );
}

fn main() -> ExitCode {
    let options = match parse_options() {
        Ok(options) => options,
        Err(text) => {
            eprintln!("raftkv-loader: {text}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    let outcome = Load::connect(&options).and_then(|mut load| {
        let elapsed = load.run()?;
        report(&mut load, elapsed);
        Ok(load.errors)
    });
    match outcome {
        Ok(0) => ExitCode::SUCCESS,
        Ok(errors) => {
            eprintln!("raftkv-loader: {errors} calls failed");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("raftkv-loader: {e}");
            ExitCode::FAILURE
        }
    }
}
