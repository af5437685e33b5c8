//! A fake daemon, and the real command, which connects to it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::rc::Rc;
use std::sync::mpsc;

use handoff::control::api::{
    Ending, ListenerStatus, Outcome, PhaseTime, Pong, Progress, Request, Response, ServiceStatus, State,
};
use handoff::control::{Caller, Error, Handler, Listener, ProgressSink, serve};
use handoff_protocol::ids::{Generation, HandoffId, ServiceName};
use handoff_protocol::message::Mode;

type Answer = Box<dyn Fn(Request, &ProgressSink) -> Result<Response, Error> + Send>;

/// A set of directories, and on demand a fake daemon behind their control socket.
pub struct World {
    pub dir: tempfile::TempDir,
    daemon: Option<Daemon>,
}

struct Daemon {
    thread: std::thread::JoinHandle<()>,
    stop: tokio::sync::oneshot::Sender<()>,
    seen: mpsc::Receiver<Request>,
}

struct FakeDaemon {
    answer: Answer,
    seen: mpsc::Sender<Request>,
}

impl Handler for FakeDaemon {
    async fn call(&self, request: Request, _: Caller, progress: ProgressSink) -> Result<Response, Error> {
        if request == Request::Ping {
            return Ok(Response::Pong(Pong { version: "0".into(), pid: 1 }));
        }
        self.seen.send(request.clone()).map_err(Error::internal)?;
        (self.answer)(request, &progress)
    }
}

impl World {
    /// Creates directories without a daemon.
    pub fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        for name in ["etc/services", "var", "run"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        World { dir, daemon: None }
    }

    /// Starts a daemon that answers pings itself, and everything else by `answer`.
    pub fn with_daemon(
        answer: impl Fn(Request, &ProgressSink) -> Result<Response, Error> + Send + 'static,
    ) -> World {
        let mut world = World::new();
        let listener = Listener::bind(&world.path("run/control.sock")).unwrap();
        let (seen_tell, seen) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let answer: Answer = Box::new(answer);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let fake = Rc::new(FakeDaemon { answer, seen: seen_tell });
            tokio::task::LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    served = serve(listener, fake) => panic!("{served:?}"),
                    _ = stopped => {}
                }
            });
        });
        world.daemon = Some(Daemon { thread, stop, seen });
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        path
    }

    /// The next request that the daemon received.
    pub fn seen(&self) -> Request {
        self.daemon.as_ref().unwrap().seen.try_recv().expect("the daemon was asked")
    }

    /// The command with `arguments`, in these directories, without a terminal.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_handoff"));
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("HANDOFF_CONFIG_DIR", self.path("etc"));
        command.env("HANDOFF_STATE_DIR", self.path("var"));
        command.env("HANDOFF_RUNTIME_DIR", self.path("run"));
        command
    }

    pub fn run(&self, arguments: &[&str]) -> CommandOutput {
        CommandOutput::of(self.command(arguments).output().unwrap())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(Daemon { thread, stop, .. }) = self.daemon.take() {
            let _ = stop.send(());
            let joined = thread.join();
            if !std::thread::panicking() {
                joined.unwrap();
            }
        }
    }
}

/// The result of a command.
#[derive(Debug)]
pub struct CommandOutput {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl CommandOutput {
    pub fn of(output: Output) -> CommandOutput {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        CommandOutput { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Standard output, with one JSON value per line.
    pub fn objects(&self) -> Vec<serde_json::Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
        self.stdout.lines().map(parse).collect()
    }
}

pub fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

pub fn progress(phase: &str, at_us: u64, detail: Option<&str>) -> Progress {
    let detail = detail.map(str::to_owned);
    Progress { service: name("s3"), handoff: Some(HandoffId::NIL), phase: phase.into(), at_us, detail }
}

pub fn outcome(ending: Ending, reason: Option<&str>) -> Outcome {
    Outcome {
        service: name("s3"),
        handoff: Some(HandoffId::NIL),
        outcome: ending,
        reason: reason.map(str::to_owned),
        generation: Generation(2),
        pid: Some(4242),
        shim: None,
        binary: "/srv/s3".into(),
        sha256: Some("ab".repeat(32)),
        stored: None,
        version: None,
        took_us: 2_100,
        accept_gap_us: (ending == Ending::Committed).then_some(600),
        restarted: false,
        connections: None,
        lost_datagrams: 0,
        phases: vec![PhaseTime { phase: "spawn".into(), started_us: 0, took_us: 900 }],
        killed: vec![],
        last_lines: None,
    }
}

pub fn status() -> ServiceStatus {
    ServiceStatus {
        service: name("s3"),
        state: State::Serving,
        phase: None,
        detail: None,
        generation: Generation(2),
        pid: Some(4242),
        shim: None,
        binary: "/srv/s3".into(),
        sha256: Some("ab".repeat(32)),
        stored: None,
        version: None,
        skew: None,
        named: None,
        staged: None,
        started_at: Some(0),
        autostart: Default::default(),
        restarts: 1,
        last_exit: None,
        mode: Mode::Exclusive,
        listeners: vec![ListenerStatus { name: "http".parse().unwrap(), address: "127.0.0.1:9000".into() }],
        file: None,
        last_handoff: Some(outcome(Ending::RolledBack, Some("the new process exited with status 1"))),
        next_try_at: None,
        problem: Some("The binary was replaced.".into()),
        last_lines: None,
    }
}
