//! The load of the service of the tests: lines, each over a connection of its own, and at the end a look at the file.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use handoff::crash_test::Error;
use tokio::signal::unix::{SignalKind, signal};

use crate::gap::{Gap, LoadResult};

const CLIENTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(2);
/// A client that has waited for so long has been forgotten.
const LIMIT: Duration = Duration::from_secs(30);

struct Shared {
    address: SocketAddr,
    over: AtomicBool,
    gap: Gap,
    result: Mutex<LoadResult>,
    acknowledged: Mutex<BTreeSet<String>>,
}

pub fn load(file: &Path) -> Result<bool, Error> {
    let shared = Shared {
        address: std::env::var("HANDOFF_LISTEN_MAIN")?.parse()?,
        over: AtomicBool::new(false),
        gap: Gap::begin(),
        result: Mutex::default(),
        acknowledged: Mutex::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut terminate = runtime.block_on(async { signal(SignalKind::terminate()) })?;
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let shared = &shared;
            scope.spawn(move || shared.work(client));
        }
        runtime.block_on(terminate.recv());
        shared.over.store(true, Ordering::Relaxed);
    });
    let found = shared.conclude(file)?;
    println!("{}", serde_json::to_string(&found)?);
    Ok(found.ok)
}

impl Shared {
    fn work(&self, client: usize) {
        let mut number = 0;
        while !self.over.load(Ordering::Relaxed) {
            number += 1;
            let line = format!("put {client}-{number}-{}", std::process::id());
            match ask(self.address, &line) {
                Ok(answer) => {
                    self.gap.answered();
                    self.judge(line, &answer);
                }
                Err(error) => self.count(&error),
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn judge(&self, line: String, answer: &str) {
        if answer.split_once(' ').is_some_and(|(_, echoed)| echoed == line) {
            lock(&self.acknowledged).insert(line);
        } else {
            let mut found = lock(&self.result);
            found.wrong += 1;
            found.first.get_or_insert(format!("{line:?} was answered by {answer:?}"));
        }
    }

    fn count(&self, error: &io::Error) {
        let mut found = lock(&self.result);
        match error.kind() {
            io::ErrorKind::ConnectionRefused => found.refused += 1,
            io::ErrorKind::UnexpectedEof => found.cut += 1,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => found.reset += 1,
            // No answer in time, or something that should not be.
            _ => found.wrong += 1,
        }
        found.first.get_or_insert(error.to_string());
    }

    fn conclude(self, file: &Path) -> Result<LoadResult, Error> {
        let mut found = self.result.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let text = std::fs::read_to_string(file)?;
        let written: BTreeSet<&str> = text.lines().collect();
        let acknowledged = lock(&self.acknowledged);
        let lost: Vec<&String> =
            acknowledged.iter().filter(|line| !written.contains(line.as_str())).collect();
        if let Some(line) = lost.first() {
            found.first.get_or_insert(format!("{line:?} was acknowledged and is not in the file"));
        }
        found.acknowledged = acknowledged.len() as u64;
        found.lost = lost.len() as u64;
        found.longest_gap_ms = self.gap.longest_ms();
        found.ok = found.lost + found.wrong + found.refused == 0;
        Ok(found)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn ask(address: SocketAddr, line: &str) -> io::Result<String> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(LIMIT))?;
    connection.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(connection).read_line(&mut answer)?;
    if !answer.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer.trim_end().to_owned())
}
