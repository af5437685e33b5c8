//! A client that sends one request after the other, each over a new connection, and tracks the longest wait.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Error;
use crate::rig::wait_for;

/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running client.
#[derive(Debug)]
pub struct Prober {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<Vec<u64>, Error>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    requests: AtomicU64,
    longest_us: AtomicU64,
}

impl Prober {
    /// Starts sending requests to `address`, with `pause` after each answer.
    pub fn start(address: SocketAddr, pause: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || run(address, pause, &theirs));
        Self { shared, thread: Some(thread) }
    }

    /// Resets the longest wait.
    pub fn forget(&self) {
        self.shared.longest_us.store(0, Ordering::SeqCst);
    }

    /// The longest wait of a request since [`Prober::forget`] in microseconds, including requests in progress then or
    /// now.
    pub fn longest_us(&self) -> Result<u64, Error> {
        let requests = || self.shared.requests.load(Ordering::SeqCst);
        let before = requests();
        wait_for("a request to be answered", || {
            if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                return Err("a request failed".into());
            }
            Ok((requests() > before + 1).then_some(()))
        })?;
        Ok(self.shared.longest_us.load(Ordering::SeqCst))
    }

    /// Stops. Returns the duration of each request in microseconds, or why one failed.
    pub fn stop(mut self) -> Result<Vec<u64>, Error> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().ok_or("it was stopped already")?;
        thread.join().unwrap_or_else(|_| Err("the prober panicked".into()))
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

fn run(address: SocketAddr, pause: Duration, shared: &Shared) -> Result<Vec<u64>, Error> {
    let mut all = Vec::new();
    while !shared.stop.load(Ordering::SeqCst) {
        let began = Instant::now();
        ask(address).map_err(|error| format!("request {}: {error}", all.len() + 1))?;
        let took_us = began.elapsed().as_micros().try_into()?;
        shared.longest_us.fetch_max(took_us, Ordering::SeqCst);
        shared.requests.fetch_add(1, Ordering::SeqCst);
        all.push(took_us);
        // Even a sleep of zero length is a system call.
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    Ok(all)
}

fn ask(address: SocketAddr) -> Result<(), Error> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.write_all(b"probe\n")?;
    let mut answer = String::new();
    BufReader::new(connection).read_line(&mut answer)?;
    match answer.as_str() {
        "probe\n" => Ok(()),
        _ => Err(format!("the answer was {answer:?}").into()),
    }
}
