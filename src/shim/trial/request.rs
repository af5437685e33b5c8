//! A request that is in progress when the stop signal arrives.
//!
//! How a program ends does not show what it does with requests: one that finishes them may end by the signal
//! afterwards, and one that exits with 0 may cut them. So this catches a request in the middle: it stops the program
//! (SIGSTOP) shortly after the request, and retries with other delays until the program has read the request and not
//! begun to answer.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::super::program::Program;
use crate::slots::census::Census;

/// The fate of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestFate {
    /// It was answered as usual.
    Answered,
    /// It was answered partly, or not at all.
    Cut,
    /// No request could be caught: the program does not answer it, or answers too fast.
    NotSeen,
}

/// A program that has not begun to answer by then does not understand the request.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// A response is complete when nothing more arrives for this long.
const PAUSE: Duration = Duration::from_millis(100);
/// Time limit to catch a request.
const CATCH_WITHIN: Duration = Duration::from_secs(3);
/// Maximum difference in bytes between two responses to the same request: a date, or a header that announces the end of
/// the connection.
const SLACK: usize = 64;
/// This prefix of two responses to the same request is equal; in HTTP, the version and the status.
const HEAD: usize = 12;

/// The program is stopped and has read this request.
pub(super) struct OpenRequest {
    connection: TcpStream,
    usual: Vec<u8>,
}

/// Catches a request in the middle. On failure the program keeps running.
pub(super) fn catch(address: SocketAddr, request: &[u8], program: &Program) -> Option<OpenRequest> {
    // The first request of a program may take longer.
    ask(address, request)?;
    let (usual, latency) = ask(address, request)?;
    let until = Instant::now() + CATCH_WITHIN;
    for n in 1_u32.. {
        // The golden ratio covers the whole time evenly for any number of attempts.
        let part = (f64::from(n) * 0.618_033_988_75).fract();
        let connection = send(address, request).ok()?;
        wait_for(latency.mul_f64(part));
        if program.hold() && has_it(&connection) {
            return Some(OpenRequest { connection, usual });
        }
        program.let_go();
        if Instant::now() > until {
            return None;
        }
        receive(connection);
    }
    None
}

impl OpenRequest {
    /// Determines the fate once the program is gone.
    pub(super) fn fate(self) -> RequestFate {
        let answer = receive(self.connection);
        let head = |answer: &[u8]| answer[..answer.len().min(HEAD)].to_vec();
        match head(&answer) == head(&self.usual) && answer.len() + SLACK >= self.usual.len() {
            true => RequestFate::Answered,
            false => RequestFate::Cut,
        }
    }
}

/// Returns the response, and the time until it began.
fn ask(address: SocketAddr, request: &[u8]) -> Option<(Vec<u8>, Duration)> {
    let mut connection = send(address, request).ok()?;
    let asked_at = Instant::now();
    connection.set_read_timeout(Some(ANSWERS_WITHIN)).ok()?;
    let mut first = [0; 1];
    connection.read_exact(&mut first).ok()?;
    let latency = asked_at.elapsed();
    Some(([&first[..], &receive(connection)].concat(), latency))
}

fn send(address: SocketAddr, request: &[u8]) -> std::io::Result<TcpStream> {
    let mut connection = TcpStream::connect_timeout(&address, ANSWERS_WITHIN)?;
    connection.set_nodelay(true)?;
    connection.write_all(request)?;
    Ok(connection)
}

/// Reads until the end, or until a pause.
fn receive(mut connection: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    if connection.set_read_timeout(Some(PAUSE)).is_ok() {
        // A timeout or reset is an end like any other: the earlier data is still valid.
        let _ = connection.read_to_end(&mut answer);
    }
    answer
}

/// Whether the program has read the request and sent nothing.
fn has_it(connection: &TcpStream) -> bool {
    let silent = connection.set_nonblocking(true).is_ok()
        && connection.peek(&mut [0; 1]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        && connection.set_nonblocking(false).is_ok();
    let ends = connection.local_addr().ok().zip(connection.peer_addr().ok());
    silent && ends.is_some_and(|(own, server)| Census::has_read(own, server).unwrap_or(false))
}

/// Waits less than the kernel's minimum sleep.
fn wait_for(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::thread::yield_now();
    }
}
