//! The service in the upgrade tests: it answers each request line with its version, appends each line that begins
//! with `put ` to a file before it answers, and fails as its release stamp says.
//!
//! A stamp is a last line `testee version=2 fault=…` after the ELF file, so that one build makes many releases.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use handoff::sys::poll::{PollFlags, poll_one};
use handoff_service::{self as service, BoxError, Drain, Seal, Server, State};

mod handing;
mod misbehavior;
mod stamp;

use handing::Inherited;
use stamp::Stamp;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testee: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), BoxError> {
    let stamp = Stamp::of_this_program()?;
    let data = std::env::args_os().nth(1).map(PathBuf::from);
    if data.as_deref() == Some(Path::new("--version")) {
        println!("testee {}", stamp.version);
        return Ok(());
    }
    println!("testee {} starts", stamp.version);
    if stamp.fault.starts_with("rude-") {
        return misbehavior::run(&stamp.fault);
    }
    match stamp.fault.as_str() {
        "exit-at-once" => return Err("told to exit at once".into()),
        "silent" => wait_for_ever(),
        _ => {}
    }
    let mut starting = service::start()?;
    if let Some(version) = stamp.fault.strip_prefix("says-") {
        starting = starting.version(version);
    }
    // Tests of unix sockets and UDP set this variable.
    let listener = match std::env::var_os("TESTEE_UNIX") {
        Some(path) => Listener::Unix(starting.unix_listener("main", Path::new(&path))?),
        None if std::env::var_os("TESTEE_UDP").is_some() => {
            Listener::Udp(starting.udp_socket("main", "127.0.0.1:0")?)
        }
        None => {
            let address = std::env::var("TESTEE_ADDRESS").unwrap_or_else(|_| "127.0.0.1:0".to_owned());
            Listener::Tcp(starting.tcp_listener("main", &address)?)
        }
    };
    match stamp.fault.as_str() {
        "exit-while-warming" => return Err("told to exit while warming".into()),
        "hang-while-warming" => wait_for_ever(),
        "unhealthy" => return Err(starting.unhealthy("told to be unhealthy").into()),
        slow if slow.starts_with("slow-start-") => std::thread::sleep(milliseconds(slow)),
        _ => {}
    }
    let mut begun = starting.begin(data.as_deref())?;
    let inherited = Inherited::default();
    if let Some(state) = begun.state()
        && let Err(error) = inherited.take(&stamp.fault, state)
    {
        return Err(begun.unhealthy(&error.to_string()).into());
    }
    println!("testee {} begins", stamp.version);
    match stamp.fault.as_str() {
        "exit-after-begin" => return Err("told to exit after begin".into()),
        "hang-after-begin" => wait_for_ever(),
        "unhealthy-after-begin" => return Err(begun.unhealthy("told to be unhealthy").into()),
        slow if slow.starts_with("slow-begin-") || slow.starts_with("slow-start-") => {
            std::thread::sleep(milliseconds(slow))
        }
        _ => {}
    }
    let testee = Testee::open(&stamp, listener, data, inherited)?;
    let serving = begun.ready()?;
    if stamp.fault == "exit-after-ready" {
        return Err("told to exit after ready".into());
    }
    serving.run(testee)?;
    println!("testee {} ends", stamp.version);
    Ok(())
}

fn milliseconds(fault: &str) -> Duration {
    Duration::from_millis(fault.rsplit('-').next().and_then(|ms| ms.parse().ok()).unwrap_or_default())
}

fn wait_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
    /// Each datagram is a request.
    Udp(UdpSocket),
}

/// A connection, with separate descriptors to read and write.
type Connection = (Box<dyn Read + Send>, Box<dyn Write + Send>);

impl Listener {
    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(listener) => listener.set_nonblocking(true),
            Self::Udp(socket) => socket.set_nonblocking(true),
        }
    }

    fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(Self::Tcp),
            Self::Unix(listener) => listener.try_clone().map(Self::Unix),
            Self::Udp(socket) => socket.try_clone().map(Self::Udp),
        }
    }

    fn accept(&self) -> io::Result<Connection> {
        let limit = Some(Duration::from_secs(20));
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(limit)?;
                Ok((Box::new(stream.try_clone()?), Box::new(stream)))
            }
            Self::Udp(socket) => {
                let mut line = vec![0; 1500];
                let (length, client) = socket.recv_from(&mut line)?;
                line.truncate(length);
                Ok((Box::new(io::Cursor::new(line)), Box::new(Answer(socket.try_clone()?, client))))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(limit)?;
                Ok((Box::new(stream.try_clone()?), Box::new(stream)))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
        }
    }
}

/// Sends answers to a client.
struct Answer(UdpSocket, SocketAddr);

impl Write for Answer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_to(bytes, self.1)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Testee {
    shared: Arc<Shared>,
    listener: Listener,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    stamp: Stamp,
    file: Mutex<Option<std::fs::File>>,
    data: Option<PathBuf>,
    inherited: Inherited,
    stop: AtomicBool,
    busy: AtomicUsize,
}

impl Testee {
    fn open(
        stamp: &Stamp,
        listener: Listener,
        data: Option<PathBuf>,
        inherited: Inherited,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            stamp: stamp.clone(),
            file: Mutex::default(),
            data,
            inherited,
            stop: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
        });
        let mut testee = Self { shared, listener, acceptor: None };
        testee.accept()?;
        Ok(testee)
    }

    fn accept(&mut self) -> io::Result<()> {
        *self.shared.file.lock().unwrap() = self.shared.data.as_deref().map(open_lines).transpose()?;
        self.shared.stop.store(false, Ordering::SeqCst);
        // The wait is limited, so that the acceptor notices a stop.
        self.listener.set_nonblocking()?;
        let (listener, shared) = (self.listener.try_clone()?, Arc::clone(&self.shared));
        self.acceptor = Some(std::thread::spawn(move || {
            let tick = Duration::from_millis(2);
            while !shared.stop.load(Ordering::SeqCst) {
                let _ = poll_one(&listener, PollFlags::POLLIN, Some(tick));
                while !shared.stop.load(Ordering::SeqCst) {
                    let Ok(connection) = listener.accept() else { break };
                    let shared = Arc::clone(&shared);
                    shared.busy.fetch_add(1, Ordering::SeqCst);
                    std::thread::spawn(move || {
                        let _ = shared.answer(connection);
                        shared.busy.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
        }));
        Ok(())
    }
}

fn open_lines(data: &Path) -> io::Result<std::fs::File> {
    std::fs::File::options().append(true).create(true).open(data.join("lines"))
}

impl Shared {
    /// One request per connection.
    fn answer(&self, (reader, mut writer): Connection) -> io::Result<()> {
        let mut line = String::new();
        BufReader::new(reader).read_line(&mut line)?;
        if line.starts_with("put ")
            && let Some(file) = self.file.lock().unwrap().as_mut()
        {
            file.write_all(line.as_bytes())?;
        }
        if let Some(text) = line.trim().strip_prefix("say ") {
            println!("{text}");
        }
        if let Some(ms) = line.trim().strip_prefix("slow ") {
            std::thread::sleep(Duration::from_millis(ms.parse().unwrap_or(0)));
        }
        if line.trim() == "states" {
            line = format!("{}\n", self.inherited.count());
        }
        if line.trim() == "state" {
            line = format!("{}\n", self.inherited.description());
        }
        writer.write_all(format!("{} {line}", self.stamp.version).as_bytes())
    }
}

impl Server for Testee {
    fn drain(&mut self, drain: Drain) -> Result<(), BoxError> {
        match self.shared.stamp.fault.as_str() {
            "drain-error" => return Err("told to fail in drain".into()),
            "drain-panic" => panic!("told to panic in drain"),
            "drain-exit" => std::process::exit(7),
            "drain-hang" => wait_for_ever(),
            _ => {}
        }
        if let Some(state) = handing::state(&self.shared.stamp.fault, handing::FROM_DRAIN) {
            for _ in 0..=handing::burst(&self.shared.stamp.fault) {
                drain.hand_over(&state)?;
            }
        }
        while self.shared.busy.load(Ordering::SeqCst) > 0 && !drain.wait(Duration::from_millis(1)) {}
        Ok(())
    }

    fn seal(&mut self, seal: Seal) -> Result<(), BoxError> {
        match self.shared.stamp.fault.as_str() {
            "seal-error" => return Err("told to fail in seal".into()),
            "seal-panic" => panic!("told to panic in seal"),
            "seal-exit" => std::process::exit(7),
            "seal-hang" => wait_for_ever(),
            exits if exits.starts_with("hands-over-and-exits-") => std::process::exit(7),
            slow if slow.starts_with("slow-seal-") => std::thread::sleep(milliseconds(slow)),
            _ => {}
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().map_err(|_| "the acceptor panicked")?;
        }
        while self.shared.busy.load(Ordering::SeqCst) > 0 && !seal.may_cut() {
            std::thread::yield_now();
        }
        if let Some(file) = self.shared.file.lock().unwrap().take() {
            file.sync_data()?;
        }
        if let Some(state) = handing::state(&self.shared.stamp.fault, handing::FROM_SEAL) {
            seal.hand_over(&state)?;
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), BoxError> {
        match self.shared.stamp.fault.as_str() {
            "resume-error" => return Err("told to fail in resume".into()),
            "resume-panic" => panic!("told to panic in resume"),
            _ => {}
        }
        if self.acceptor.is_none() { Ok(self.accept()?) } else { Ok(()) }
    }

    fn take_over(&mut self, state: State) -> Result<(), BoxError> {
        self.shared.inherited.take(&self.shared.stamp.fault, state)
    }
}
