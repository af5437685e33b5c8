//! Services in other languages: their releases and interpreters.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use handoff::control::api::{Request, State};

use crate::support::at_end::SetOnDrop;
use crate::support::{LIMIT, Rig, free_address, pause, service, write_program};

/// A test service and its settings.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// The file in `services/`.
    pub file: &'static str,
    /// The required lines of the service file.
    pub settings: &'static str,
    /// The oldest supported version of the interpreter.
    interpreter: Interpreter,
}

#[derive(Debug, Clone, Copy)]
struct Interpreter {
    program: &'static str,
    check: &'static [&'static str],
    wanted: &'static str,
}

const PYTHON: Interpreter = Interpreter {
    program: "python3",
    check: &["-c", "import sys; sys.exit(sys.version_info < (3, 9))"],
    wanted: "Python 3.9 or newer",
};
const NODE: Interpreter = Interpreter {
    program: "node",
    check: &["-e", "process.exit(+(Number(process.versions.node.split('.')[0]) < 18))"],
    wanted: "Node 18 or newer",
};

pub const BLOCKING: Kind =
    Kind { file: "blocking.py", settings: "mode = \"exclusive\"", interpreter: PYTHON };
pub const LOOP: Kind = Kind { file: "loop.py", settings: "mode = \"overlap\"", interpreter: PYTHON };
pub const SCRIPT: Kind =
    Kind { file: "script.mjs", settings: "mode = \"overlap\"\nchannel = \"stream\"", interpreter: NODE };
pub const ALL: [Kind; 3] = [BLOCKING, LOOP, SCRIPT];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Kind {
    /// The same service with other settings.
    pub fn with(self, settings: &'static str) -> Self {
        Self { settings, ..self }
    }

    /// Whether only one process at a time may use the data.
    pub fn is_exclusive(self) -> bool {
        self.settings.contains("exclusive")
    }

    /// An executable file with one release of the service.
    pub fn release(self, rig: &Rig, version: &str, fault: &str) -> PathBuf {
        let source = root().join("tests/suite/clients/services").join(self.file);
        let text = std::fs::read_to_string(&source).unwrap();
        let stamped = ["VERSION, FAULT = \"0\", \"\"", "[VERSION, FAULT] = [\"0\", \"\"]"]
            .iter()
            .find(|line| text.contains(**line))
            .map(|line| {
                let new =
                    line.replace("\"0\"", &format!("{version:?}")).replace("\"\"", &format!("{fault:?}"));
                text.replace(line, &new)
            })
            .expect("a line to be stamped");
        let path = rig.path(&format!("release-{version}-{}", self.file));
        write_program(&path, stamped.as_bytes());
        path
    }

    /// Writes the service file of `s`, which includes `more`, and starts the service.
    pub fn serve(self, rig: &Rig, version: &str, fault: &str, more: &str) -> SocketAddr {
        self.interpreter.check();
        let address = free_address();
        let (binary, data) = (self.release(rig, version, fault), rig.path("data"));
        let settings = self.settings;
        let python = root().join("clients/python");
        let javascript = root().join("clients/javascript/index.js");
        let text = format!(
            "binary = {binary:?}\nargs = [{data:?}]\nautostart = false\nstore = false\n{settings}\n{more}\n[listen]\nmain = \"{address}\"\n\
             [env]\nPYTHONPATH = {python:?}\nPYTHONDONTWRITEBYTECODE = \"1\"\nHANDOFF_CLIENT = {javascript:?}\n"
        );
        std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
        rig.call(Request::Start(service("s"))).unwrap();
        address
    }
}

impl Interpreter {
    fn check(&self) {
        let Self { program, wanted, .. } = self;
        match Command::new(program).args(self.check).status() {
            Ok(status) if status.success() => {}
            Ok(_) => panic!("{program} is too old: these tests need {wanted}"),
            Err(error) => panic!("{program} cannot run ({error}): these tests need {wanted} in the PATH"),
        }
    }
}

/// What a client with one connection per request has seen.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ClientObservations {
    pub answers: usize,
    pub failures: Vec<String>,
}

/// Sends one request. Returns the version and the pid from the answer.
pub fn get(address: SocketAddr, path: &str) -> io::Result<(String, u32)> {
    answer_to(begin(address, path)?)
}

/// Begins a request over its own connection.
pub fn begin(address: SocketAddr, path: &str) -> io::Result<TcpStream> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(LIMIT))?;
    write!(connection, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    Ok(connection)
}

/// Returns the answer to such a request.
pub fn answer_to(mut connection: TcpStream) -> io::Result<(String, u32)> {
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let cut = || io::Error::new(ErrorKind::UnexpectedEof, format!("cut: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(cut)?;
    let length = head
        .to_lowercase()
        .split("content-length: ")
        .nth(1)
        .and_then(|rest| rest.lines().next()?.parse().ok());
    if !head.starts_with("HTTP/1.1 200") || length != Some(body.len()) {
        return Err(cut());
    }
    let (version, pid) = body.split_once(' ').ok_or_else(cut)?;
    Ok((version.to_owned(), pid.parse().map_err(|_| cut())?))
}

pub fn version(address: SocketAddr) -> String {
    get(address, "/").unwrap().0
}

/// Sends requests continuously until `work` has returned.
pub fn under_load<T>(address: SocketAddr, work: impl FnOnce() -> T) -> (T, ClientObservations) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = || {
            let mut seen = ClientObservations::default();
            while !stop.load(Ordering::Relaxed) {
                match get(address, "/") {
                    Ok(_) => seen.answers += 1,
                    Err(error) => seen.failures.push(error.to_string()),
                }
                pause();
            }
            seen
        };
        let clients = [scope.spawn(client), scope.spawn(client)];
        let guard = SetOnDrop(&stop);
        let done = work();
        drop(guard);
        let mut all = ClientObservations::default();
        for seen in clients.map(|client| client.join().unwrap()) {
            assert!(seen.answers > 0, "a client that got no answer saw nothing");
            all.answers += seen.answers;
            all.failures.extend(seen.failures);
        }
        (done, all)
    })
}

/// Waits until the daemon has no operation in progress.
pub fn wait_until_serving(rig: &Rig) {
    crate::support::wait_for("it to serve", || (rig.status("s").state == State::Serving).then_some(()));
}
