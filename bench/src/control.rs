//! A client of the daemon's control socket: JSON-RPC 2.0, one line per message.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::Error;

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    last_id: u64,
}

/// The result of `ping`.
#[derive(Debug, Deserialize)]
pub struct Pong {
    /// The daemon's pid.
    pub pid: u32,
}

/// The result of `start` and `upgrade`; only the needed fields.
#[derive(Debug, Deserialize)]
pub struct Outcome {
    /// `started`, `committed` or `rolled_back`.
    pub outcome: String,
    /// The reason of a rollback.
    pub reason: Option<String>,
    /// Time from the request to the end, in microseconds.
    pub took_us: u64,
    /// Time without accepts, in microseconds.
    pub accept_gap_us: Option<u64>,
    /// The phases in order.
    pub phases: Vec<Phase>,
}

/// One phase of an operation.
#[derive(Debug, Deserialize)]
pub struct Phase {
    /// Its name.
    pub phase: String,
    /// Its duration in microseconds.
    pub took_us: u64,
}

impl Client {
    /// Connects to the control socket at `path`.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        Ok(Self { stream: BufReader::new(UnixStream::connect(path)?), last_id: 0 })
    }

    /// Sends a request, and waits for its response; skips notifications. A refusal is an error.
    pub fn call<T: DeserializeOwned>(&mut self, method: &str, params: Value) -> Result<T, Error> {
        self.last_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params});
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err("the daemon closed the connection".into());
            }
            let mut answer: Value = serde_json::from_str(&line)?;
            if answer["id"] != self.last_id {
                continue;
            }
            if let Some(error) = answer.get("error") {
                return Err(format!("the daemon refused to {method}: {error}").into());
            }
            return Ok(serde_json::from_value(answer["result"].take())?);
        }
    }
}
