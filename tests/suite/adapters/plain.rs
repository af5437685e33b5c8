//! A service whose program does not know the supervisor, and clients that detect every failure.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use handoff::control::api::{Outcome, Request};

use crate::support::{LIMIT, Rig, ask, free_address, pause, processes_of, service};

/// The service `s`.
pub struct Plain {
    pub rig: Rig,
    pub address: SocketAddr,
    head: String,
    listen: String,
}

impl Plain {
    /// Writes the service file, and does not start the service.
    pub fn write(adapter: &str, mode: &str, tables: &str) -> Self {
        let address = free_address();
        Self::write_at(adapter, mode, tables, address, address.to_string())
    }

    fn write_at(adapter: &str, mode: &str, tables: &str, address: SocketAddr, listen: String) -> Self {
        let rig = Rig::new();
        let binary = rig.release_of("plain", "0", "");
        // In overlap mode two processes work at the same time.
        let data = if mode == "exclusive" { rig.path("data") } else { PathBuf::from("-") };
        let head = format!(
            "binary = {binary:?}\nautostart = false\nstore = false\nadapter = {adapter:?}\nmode = {mode:?}\ndrain_grace = \"5s\"\n\
             args = [{data:?}, {listen:?}]\n"
        );
        let plain = Self { rig, address, head, listen };
        std::fs::write(plain.rig.path("data/lines"), "begin\n").unwrap();
        plain.rewrite("", tables);
        plain
    }

    /// Starts the service. It serves version 0.
    pub fn serve(adapter: &str, mode: &str, tables: &str) -> Self {
        let plain = Self::write(adapter, mode, tables);
        plain
            .rig
            .call(Request::Start(service("s")))
            .unwrap_or_else(|error| panic!("{adapter} {mode}: {error}"));
        plain
    }

    /// The same over a unix socket.
    pub fn serve_unix(adapter: &str, mode: &str) -> Self {
        let address = free_address();
        let plain = Self::write_at(adapter, mode, "", address, "unix:PATH".to_owned());
        let path = plain.rig.path("s.sock");
        let listen = format!("unix:{}", path.display());
        let plain = Self { head: plain.head.replace("unix:PATH", &listen), listen, ..plain };
        plain.rewrite("", "");
        plain
            .rig
            .call(Request::Start(service("s")))
            .unwrap_or_else(|error| panic!("{adapter} {mode}: {error}"));
        plain
    }

    fn rewrite(&self, head: &str, tables: &str) {
        let head = head.replace("ADDRESS", &self.listen);
        let is_replaced = |line: &&str| {
            let key = line.split(" = ").next().unwrap_or_default();
            !head.lines().any(|other| other.split(" = ").next() == Some(key))
        };
        let kept: String = self.head.lines().filter(is_replaced).map(|line| format!("{line}\n")).collect();
        let text = format!("{kept}{head}[listen]\nmain = {:?}\n{tables}", self.listen);
        std::fs::write(self.rig.path("config/services/s.toml"), text).unwrap();
    }

    /// Sets these keys for the next process.
    pub fn set(&self, head: &str) {
        self.rewrite(head, "");
    }

    /// Adds these tables for the next process.
    pub fn add(&self, tables: &str) {
        self.rewrite("", tables);
    }

    pub fn upgrade(&self, version: &str, fault: &str) -> Outcome {
        self.rig.upgrade("s", &self.rig.release_of("plain", version, fault)).unwrap()
    }

    pub fn ask_unix(&self, line: &str) -> std::io::Result<String> {
        let mut connection = UnixStream::connect(self.rig.path("s.sock"))?;
        connection.set_read_timeout(Some(LIMIT))?;
        connection.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(connection).read_line(&mut answer)?;
        Ok(answer)
    }

    /// The process that answers requests.
    pub fn program(&self) -> u32 {
        let answer = ask(self.address, "pid").unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Whether this version answers within a short time. Without an accepting process, clients wait.
    pub fn address_answers(&self, version: &str) -> bool {
        let Ok(mut connection) = std::net::TcpStream::connect(self.address) else { return false };
        connection.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
        let mut answer = String::new();
        connection.write_all(b"x\n").is_ok()
            && BufReader::new(connection).read_line(&mut answer).is_ok()
            && answer.starts_with(&format!("{version} "))
    }

    /// The shim of the service, as the daemon reports it.
    pub fn shim(&self) -> u32 {
        self.rig.status("s").shim.unwrap()
    }

    /// All processes of the service.
    pub fn processes(&self) -> Vec<u32> {
        let is_ours = |pid: &u32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let directory = self.rig.path("run").to_string_lossy().into_owned();
            String::from_utf8_lossy(&environment).contains(&directory)
        };
        let daemon = self.rig.daemon.as_ref().map(std::process::Child::id);
        let mut found = processes_of(self.rig.root.path());
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        found
            .extend(pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(is_ours));
        found.retain(|pid| Some(*pid) != daemon && !is_keeper(*pid));
        found.sort_unstable();
        found.dedup();
        found
    }
}

fn is_keeper(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "handoff-keeper")
}

/// Clients that send requests continuously, each over a new connection.
pub struct Load {
    stop: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<usize>>,
}

impl Load {
    /// Panics at any failure.
    pub fn start(address: SocketAddr, clients: usize) -> Self {
        Self::begin(address, clients, false)
    }

    /// Counts refused connections, and panics at any other failure.
    pub fn start_forgiving(address: SocketAddr, clients: usize) -> Self {
        Self::begin(address, clients, true)
    }

    fn begin(address: SocketAddr, clients: usize, forgives: bool) -> Self {
        let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |n: usize| {
            let (stop, refused) = (Arc::clone(&stop), Arc::clone(&refused));
            std::thread::spawn(move || {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    match ask(address, &format!("put {n}.{count}")) {
                        Ok(_) => count += 1,
                        Err(error) if forgives => {
                            let is_refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
                            refused.fetch_add(usize::from(is_refused), Ordering::Relaxed);
                        }
                        Err(error) => panic!("request {count} of client {n}: {error}"),
                    }
                    pause();
                }
                count
            })
        };
        Self { clients: (0..clients).map(client).collect(), stop, refused }
    }

    pub fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            assert!(client.join().expect("no request fails") > 0);
        }
    }

    pub fn finish_counting_refused(self) -> usize {
        let refused = Arc::clone(&self.refused);
        self.finish();
        refused.load(Ordering::Relaxed)
    }
}
