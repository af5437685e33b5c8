//! An unmodified server, for the tests of the other adapters: it binds the addresses in its arguments, or uses the
//! listeners of socket activation, and answers each line with its version. SIGTERM ends it at once, even with a request
//! in progress, as with most programs.
//!
//! `plain <data> <address>…`, where `<data>` is one of: `-`; a directory for one process at a time, where a second
//! process fails; `+` and a directory that several processes may use at once.
//!
//! A release with the fault `in-order` ends cleanly at SIGTERM: it closes idle connections, answers requests in
//! progress, and exits. At SIGUSR1 it reports a drain request.
//!
//! | line | effect |
//! |---|---|
//! | `put <text>` | appends the line to a file in its data, then answers with it |
//! | `note <path> <text>` | appends the text to that file, then answers |
//! | `slow <ms>` | answers after that time |
//! | `after <ms> <path> <text>` | appends the text to that file, and answers after that time |
//! | `pid` | answers with its pid |
//! | anything else | answers |
//!
//! At an address `udp:…` each datagram is a line, and so is its answer, which consists of version, process and line.
//! There, `busy <ms>` is answered after that much work.
//!
//! Releases are stamped like those of the other test service.

use std::error::Error;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use handoff::sys::file_lock::{FlockArg, flock};
use handoff::sys::poll::{PollFlags, poll_one};
use handoff::sys::process::Signal;
use handoff::sys::signal_fd::signal_fd;
use handoff::sys::socket::{AddressFamily, SockType, family_of, kind_of};

#[path = "../testee/stamp.rs"]
mod stamp;

use stamp::Stamp;

struct Server {
    stamp: Stamp,
    data: Option<(PathBuf, File)>,
    /// Of a release that ends cleanly: each connection, and whether a request is in progress on it.
    connections: Mutex<Vec<(TcpStream, Arc<AtomicBool>)>>,
    /// Whether it was asked to end. No request begins after that.
    leaves: Mutex<bool>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plain: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let stamp = Stamp::of_this_program()?;
    let mut args = std::env::args().skip(1);
    let data = args.next().filter(|data| data != "-").map(PathBuf::from);
    match stamp.fault.as_str() {
        "exit-at-once" => return Err("told to exit at once".into()),
        "exit-slowly" => {
            std::thread::sleep(Duration::from_millis(50));
            return Err("told to exit".into());
        }
        "never-binds" => wait_for_ever(),
        slow if slow.starts_with("slow-start-") => {
            std::thread::sleep(Duration::from_millis(slow["slow-start-".len()..].parse()?))
        }
        _ => {}
    }
    let data = data.map(open).transpose()?;
    let server = Arc::new(Server { stamp, data, connections: Mutex::default(), leaves: Mutex::default() });
    if server.stamp.fault == "in-order" {
        server.end_in_order_at_sigterm()?;
    }
    let mut given = handoff::sys::listen_fds::take_listen_fds()?.into_iter().map(|(_, fd)| fd);
    for address in args {
        let listener = given.next().map_or_else(|| bind(&address), Ok)?;
        let server = Arc::clone(&server);
        std::thread::spawn(move || server.accept(listener));
    }
    notify_ready()?;
    println!("plain {} serves", server.stamp.version);
    match server.stamp.fault.as_str() {
        "forks" => fork(&server, "sleep 1000; :"),
        "forks-deaf" => fork(&server, "trap '' TERM; sleep 1000; :"),
        _ => wait_for_ever(),
    }
}

/// Only the holder of the data may write.
fn open(data: PathBuf) -> Result<(PathBuf, File), Box<dyn Error>> {
    if let Some(shared) = data.to_str().and_then(|data| data.strip_prefix('+')) {
        return Ok((PathBuf::from(shared), File::open(shared)?));
    }
    let lock = File::options().create(true).append(true).open(data.join("writer"))?;
    flock(&lock, FlockArg::LockExclusiveNonblock).map_err(|_| "TWO WRITERS: the data is in use")?;
    Ok((data, lock))
}

fn bind(address: &str) -> Result<OwnedFd, Box<dyn Error>> {
    if let Some(path) = address.strip_prefix("unix:") {
        let _ = std::fs::remove_file(path);
        return Ok(UnixListener::bind(path)?.into());
    }
    Ok(match address.strip_prefix("udp:") {
        Some(address) => UdpSocket::bind(address)?.into(),
        None => TcpListener::bind(address)?.into(),
    })
}

/// sd_notify(3), for a program that reports readiness.
fn notify_ready() -> Result<(), Box<dyn Error>> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1\nSTATUS=serving", &address)?;
    Ok(())
}

/// A child in its own session that inherits the listeners: what a careless program leaves behind.
fn fork(server: &Server, script: &str) -> Result<(), Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let script = ["sh", "-c", script].map(OsStr::new).into_iter().chain([program.as_os_str()]);
    let child = std::process::Command::new("setsid").args(script).spawn()?;
    println!("plain {} has started {}", server.stamp.version, child.id());
    wait_for_ever()
}

fn work_for(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

fn wait_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

impl Server {
    fn accept(self: Arc<Self>, listener: OwnedFd) {
        if self.stamp.fault == "never-accepts" {
            wait_for_ever();
        }
        if kind_of(&listener) == Ok(Some(SockType::Datagram)) {
            return self.answer_datagrams(&listener.into());
        }
        let is_unix = family_of(&listener) == Ok(Some(AddressFamily::Unix));
        if is_unix {
            let listener = UnixListener::from(listener);
            for connection in listener.incoming().flatten() {
                let server = Arc::clone(&self);
                let reader = connection.try_clone();
                std::thread::spawn(move || reader.map(|reader| server.serve(reader, connection)));
            }
        } else {
            let listener = TcpListener::from(listener);
            for connection in listener.incoming().flatten() {
                let server = Arc::clone(&self);
                let reader = connection.try_clone();
                std::thread::spawn(move || reader.map(|reader| server.serve_known(reader, connection)));
            }
        }
    }

    /// A duplicate keeps a connection open, so only a release that needs one has it, and only while the connection
    /// exists.
    fn serve_known(&self, reader: TcpStream, writer: TcpStream) {
        let busy = Arc::new(AtomicBool::new(false));
        if self.stamp.fault == "in-order"
            && let Ok(duplicate) = writer.try_clone()
        {
            self.connections.lock().unwrap().push((duplicate, Arc::clone(&busy)));
        }
        self.serve_noting(reader, writer, &busy);
        self.connections.lock().unwrap().retain(|(_, of)| !Arc::ptr_eq(of, &busy));
    }

    /// Starts a thread for it. All later threads inherit the blocked signal.
    fn end_in_order_at_sigterm(self: &Arc<Self>) -> std::io::Result<()> {
        let terminated = signal_fd(Signal::SIGTERM)?;
        let drains = signal_fd(Signal::SIGUSR1)?;
        let version = self.stamp.version.clone();
        std::thread::spawn(move || {
            let _ = poll_one(&drains, PollFlags::POLLIN, None);
            println!("plain {version} is asked to drain");
        });
        let server = Arc::clone(self);
        std::thread::spawn(move || {
            let _ = poll_one(&terminated, PollFlags::POLLIN, None);
            *server.leaves.lock().unwrap() = true;
            loop {
                let connections = server.connections.lock().unwrap();
                for (connection, busy) in connections.iter() {
                    if !busy.load(Ordering::SeqCst) {
                        let _ = connection.shutdown(Shutdown::Both);
                    }
                }
                if connections.iter().all(|(_, busy)| !busy.load(Ordering::SeqCst)) {
                    std::process::exit(0);
                }
                drop(connections);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Ok(())
    }

    fn answer_datagrams(&self, socket: &UdpSocket) {
        let mut line = [0; 1500];
        loop {
            // The socket may be nonblocking, because of an earlier program.
            let _ = poll_one(socket, PollFlags::POLLIN, None);
            let Ok((length, client)) = socket.recv_from(&mut line) else { continue };
            let busy_ms =
                std::str::from_utf8(&line[..length]).ok().and_then(|line| line.strip_prefix("busy "));
            if let Some(ms) = busy_ms.and_then(|ms| ms.trim().parse().ok()) {
                work_for(Duration::from_millis(ms));
            }
            let head = format!("{} {} ", self.stamp.version, std::process::id());
            let _ = socket.send_to(&[head.as_bytes(), &line[..length]].concat(), client);
        }
    }

    fn serve(&self, reader: impl Read, writer: impl Write) {
        self.serve_noting(reader, writer, &AtomicBool::default());
    }

    fn serve_noting(&self, reader: impl Read, mut writer: impl Write, busy: &AtomicBool) {
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            match self.leaves.lock().unwrap() {
                leaves if *leaves => return,
                _still => busy.store(true, Ordering::SeqCst),
            }
            let is_put = line.starts_with("put ");
            if is_put && self.put(&line).is_err() {
                return;
            }
            if let Some((path, text)) = line.strip_prefix("note ").and_then(|note| note.split_once(' '))
                && append(Path::new(path), text).is_err()
            {
                return;
            }
            if let Some((ms, note)) = line.strip_prefix("after ").and_then(|line| line.split_once(' ')) {
                let Some((path, text)) = note.split_once(' ') else { return };
                let (Ok(ms), Ok(())) = (ms.parse(), append(Path::new(path), text)) else { return };
                std::thread::sleep(Duration::from_millis(ms));
            }
            if let Some(ms) = line.strip_prefix("slow ").and_then(|ms| ms.parse().ok()) {
                std::thread::sleep(Duration::from_millis(ms));
            }
            // An HTTP request of a probe, which ends with an empty line.
            let answer = match line.as_str() {
                line if line.starts_with("GET /bad") => continue,
                line if line.ends_with(" HTTP/1.1") || line.contains(": ") => continue,
                "" => format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}",
                    self.stamp.version.len(),
                    self.stamp.version
                ),
                _ if is_put => format!("{} {line}\n", self.stamp.version),
                _ => format!("{} {}\n", self.stamp.version, std::process::id()),
            };
            if writer.write_all(answer.as_bytes()).is_err() {
                return;
            }
            busy.store(false, Ordering::SeqCst);
        }
    }

    fn put(&self, line: &str) -> std::io::Result<()> {
        self.data.as_ref().map_or(Ok(()), |(data, _)| append(&data.join("lines"), line))
    }
}

fn append(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::options().create(true).append(true).open(path)?;
    file.write_all(format!("{text}\n").as_bytes())
}
