//! A request that is under way when the stop signal comes.
//!
//! How a program ends tells nothing about what it does with a request: one that finishes them may end by the signal afterwards, and one
//! that exits with 0 may cut them. So a request is caught in the middle: the program is held (SIGSTOP) a moment after
//! it was asked, again and again, until it has read the request and said nothing yet.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::super::program::Program;
use crate::slots::census::Census;

/// What became of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It was answered as ever.
    Answered,
    /// It was not, or not to its end.
    Cut,
    /// None could be caught: the program does not answer such a request, or too fast.
    NotSeen,
}

/// A program that has not begun to answer by then does not understand the request.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// An answer is whole when nothing more comes for so long.
const PAUSE: Duration = Duration::from_millis(100);
/// For how long it is tried to catch one.
const CATCH_WITHIN: Duration = Duration::from_secs(3);
/// Two answers to the same request are as long, but for a date or a header that says that the connection ends.
const SLACK: usize = 64;
/// As much of two answers to the same request is the same; in HTTP the version and the status.
const HEAD: usize = 12;

/// The program is held, and has this request.
pub(super) struct UnderWay {
    connection: TcpStream,
    usual: Vec<u8>,
}

/// Catches a request in the middle. Without one the program runs on.
pub(super) fn catch(address: SocketAddr, request: &[u8], program: &Program) -> Option<UnderWay> {
    // The first one of its life may take a program longer.
    ask(address, request)?;
    let (usual, latency) = ask(address, request)?;
    let until = Instant::now() + CATCH_WITHIN;
    for n in 1_u32.. {
        // The golden ratio: every part of the time is tried, in any number of tries.
        let part = (f64::from(n) * 0.618_033_988_75).fract();
        let connection = send(address, request).ok()?;
        wait_for(latency.mul_f64(part));
        if program.hold() && has_it(&connection) {
            return Some(UnderWay { connection, usual });
        }
        program.let_go();
        if Instant::now() > until {
            return None;
        }
        receive(connection);
    }
    None
}

impl UnderWay {
    /// The program is gone.
    pub(super) fn fate(self) -> Fate {
        let answer = receive(self.connection);
        let head = |answer: &[u8]| answer[..answer.len().min(HEAD)].to_vec();
        match head(&answer) == head(&self.usual) && answer.len() + SLACK >= self.usual.len() {
            true => Fate::Answered,
            false => Fate::Cut,
        }
    }
}

/// The answer, and after what time it began.
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

/// All that comes until the end, or until a pause.
fn receive(mut connection: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    if connection.set_read_timeout(Some(PAUSE)).is_ok() {
        // The end of the time and a reset are ends like any other: what came before them is there.
        let _ = connection.read_to_end(&mut answer);
    }
    answer
}

/// Whether the program has read the request, and has said nothing.
fn has_it(connection: &TcpStream) -> bool {
    let silent = connection.set_nonblocking(true).is_ok()
        && connection.peek(&mut [0; 1]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        && connection.set_nonblocking(false).is_ok();
    let ends = connection.local_addr().ok().zip(connection.peer_addr().ok());
    silent && ends.is_some_and(|(own, server)| Census::has_read(own, server).unwrap_or(false))
}

/// Shorter than the kernel lets anyone sleep.
fn wait_for(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::thread::yield_now();
    }
}
