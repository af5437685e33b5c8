//! Supervisors that the tests play, and a process for them.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use handoff::sys::channel::Channel;
use handoff::sys::inherit::ADOPT_VARIABLE;
use handoff::sys::limits::{Resource, UNLIMITED, set_limits};
use handoff::sys::process::Signal;
use handoff::sys::process::{Exit, kill, reap, reap_blocking};
use handoff::sys::socket::{self, AddressFamily, SockFlag, SockType, connect_path, set_receive_timeout};
use handoff::sys::spawn::{SpawnSpec, spawn};
use handoff::sys::wire::{recv_message, send_message};
use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::message::{
    Adopt, Adopted, Begin, Commit, FromService, Hello, Mode, Prepare, Ready, Seal, Stage, ToService, Welcome,
};
use handoff_protocol::version::{CURRENT, UNAGREED, VersionRange};

use crate::support::{LIMIT, Rig, service, wait_for};

/// Longer than any test.
pub const LEASE_MS: u64 = 600_000;
/// The time for which a working process may be silent.
pub const SILENCE_MS: u64 = 300;
/// Long enough to detect a busy thread.
pub const WHILE: Duration = Duration::from_millis(400);

/// Directories without a daemon.
pub fn rig() -> Rig {
    let root = tempfile::Builder::new().prefix("handoff-test-").tempdir().unwrap();
    std::fs::create_dir(root.path().join("data")).unwrap();
    Rig { root, daemon: None }
}

/// A supervisor, as one process sees it.
pub struct Supervisor {
    pub channel: Channel,
    pub id: HandoffId,
    /// The protocol version.
    pub version: u16,
}

impl Supervisor {
    pub fn of(channel: Channel, id: HandoffId) -> Self {
        set_receive_timeout(&channel, LIMIT).unwrap();
        Self { channel, id, version: CURRENT }
    }

    pub fn say(&self, message: ToService) {
        self.say_with(message, &[]);
    }

    pub fn say_with(&self, message: ToService, fds: &[BorrowedFd<'_>]) {
        send_message(&self.channel, self.version, self.id, &message, fds).unwrap();
    }

    /// The next message except signs of life. It must belong to this handoff.
    pub fn hear(&self) -> FromService {
        loop {
            match recv_message::<FromService>(&self.channel, self.version).unwrap() {
                Some((_, FromService::Progress(_), _)) => {}
                Some((id, message, _)) => {
                    assert_eq!(id, self.id);
                    return message;
                }
                None => panic!("the process closed the channel"),
            }
        }
    }

    /// Whether the process closes the channel, after nothing but signs of life.
    pub fn is_left(&self) -> bool {
        loop {
            match recv_message::<FromService>(&self.channel, self.version).unwrap() {
                Some((_, FromService::Progress(_), _)) => {}
                other => return other.is_none(),
            }
        }
    }

    pub fn drain(&self) {
        self.say(ToService::Prepare(Prepare { grace_ms: LEASE_MS, lease_ms: LEASE_MS }));
        assert!(matches!(self.hear(), FromService::Drained(_)));
    }

    pub fn seal(&self) {
        self.drain();
        self.say(ToService::Seal(Seal { lease_ms: LEASE_MS, cut: false }));
        assert!(matches!(self.hear(), FromService::Sealed(_)));
    }
}

/// The process of the service, and what its supervisor holds.
pub struct Process {
    pub pid: u32,
    pub pidfd: OwnedFd,
    pub listener: OwnedFd,
    pub address: SocketAddr,
    pub adopt: PathBuf,
    pub log: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
        let _ = kill(&self.pidfd, Signal::SIGKILL);
        let _ = reap_blocking(self.pidfd.as_fd());
    }
}

pub fn socket() -> OwnedFd {
    socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty()).unwrap()
}

impl Process {
    /// A process in its greeting. Its supervisor has not received anything yet.
    pub fn spawn(rig: &Rig, version: &str, fault: &str, listener: OwnedFd) -> (Self, Supervisor) {
        let id = HandoffId::from_bytes(rand_id());
        let adopt = rig.path(&format!("adopt-{version}"));
        let log = rig.path(&format!("log-{version}"));
        let output: OwnedFd = File::create(&log).unwrap().into();
        let (ours, theirs) = Channel::pair().unwrap();
        // A program that is open for writing cannot be started, and for a moment each child inherits every open
        // descriptor.
        static WRITES_AND_STARTS: Mutex<()> = Mutex::new(());
        let _alone = WRITES_AND_STARTS.lock().unwrap_or_else(PoisonError::into_inner);
        let spawned = spawn(SpawnSpec {
            binary: rig.release(version, fault),
            args: vec![rig.path("data").into()],
            env: vec![
                ("HANDOFF_ID".into(), id.to_string().into()),
                (ADOPT_VARIABLE.into(), adopt.clone().into()),
            ],
            working_dir: rig.root.path().to_owned(),
            stdout: output.try_clone().unwrap(),
            stderr: output,
            channel: Some(theirs),
            files_limit: None,
        })
        .unwrap();
        let address = TcpListener::from(listener.try_clone().unwrap()).local_addr().unwrap();
        let process = Self { pid: spawned.pid, pidfd: spawned.pidfd, listener, address, adopt, log };
        (process, Supervisor::of(ours, id))
    }

    /// A process that has been asked to start up.
    pub fn start(rig: &Rig, version: &str, fault: &str, mode: Mode) -> (Self, Supervisor) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::start_at(rig, version, fault, mode, listener.into())
    }

    pub fn start_at(
        rig: &Rig,
        version: &str,
        fault: &str,
        mode: Mode,
        listener: OwnedFd,
    ) -> (Self, Supervisor) {
        let (process, supervisor) = Self::spawn(rig, version, fault, listener);
        let hello = recv_message::<FromService>(&supervisor.channel, UNAGREED).unwrap().unwrap().1;
        assert_eq!(hello, FromService::Hello(Hello { versions: VersionRange::OURS, pid: process.pid }));
        let welcome = ToService::Welcome(Welcome {
            version: supervisor.version,
            service: service("s"),
            generation: Generation(7),
            mode,
            listeners: vec!["main".parse().unwrap()],
            lease_ms: SILENCE_MS,
        });
        send_message(
            &supervisor.channel,
            supervisor.version,
            supervisor.id,
            &welcome,
            &[process.listener.as_fd()],
        )
        .unwrap();
        supervisor.say(ToService::Prepare(Prepare { grace_ms: LEASE_MS, lease_ms: LEASE_MS }));
        assert!(matches!(supervisor.hear(), FromService::Prepared(_)));
        (process, supervisor)
    }

    /// A process that serves as the incumbent.
    pub fn serve(rig: &Rig, mode: Mode) -> (Self, Supervisor) {
        let (process, supervisor) = Self::start(rig, "1", "", mode);
        supervisor.say(ToService::Begin(Begin {}));
        assert!(matches!(supervisor.hear(), FromService::Ready(Ready { healthy: true, .. })));
        supervisor.say(ToService::Commit(Commit {}));
        (process, supervisor)
    }

    pub fn call(&self) -> Supervisor {
        let socket = socket();
        connect_path(&socket, self.adopt.as_ref()).unwrap();
        Supervisor::of(Channel::from_fd(socket).unwrap(), HandoffId::from_bytes(rand_id()))
    }

    /// Connects as another supervisor and adopts the process. Returns the answer.
    pub fn adopt(&self) -> (Supervisor, Adopted, Vec<OwnedFd>) {
        let supervisor = self.call();
        supervisor.say(adopt());
        let (adopted, fds) = self.answer(&supervisor);
        (supervisor, adopted, fds)
    }

    pub fn answer(&self, supervisor: &Supervisor) -> (Adopted, Vec<OwnedFd>) {
        let (id, answer, fds) =
            recv_message::<FromService>(&supervisor.channel, UNAGREED).unwrap().expect("an answer");
        let FromService::Adopted(adopted) = answer else { panic!("{answer:?}") };
        assert_eq!(id, supervisor.id);
        assert_eq!(
            (adopted.version, adopted.pid, adopted.generation),
            (supervisor.version, self.pid, Generation(7))
        );
        assert_eq!(
            (&adopted.service, &adopted.listeners[..]),
            (&service("s"), &["main".parse().unwrap()][..])
        );
        (adopted, fds)
    }

    pub fn adopted_at(&self, stage: Stage) -> Supervisor {
        let (supervisor, adopted, _) = self.adopt();
        assert_eq!(adopted.stage, stage);
        supervisor
    }

    pub fn end(&self) -> Exit {
        wait_for("the end of the process", || reap(self.pidfd.as_fd()).unwrap())
    }

    /// Whether the library uses no processor time for a while, and sends nothing to `supervisor`.
    pub fn is_at_rest(&self, supervisor: &Supervisor) -> bool {
        let before = self.ticks();
        set_receive_timeout(&supervisor.channel, WHILE).unwrap();
        let silent = recv_message::<FromService>(&supervisor.channel, supervisor.version)
            .is_err_and(|it| it.would_block());
        set_receive_timeout(&supervisor.channel, LIMIT).unwrap();
        silent && self.ticks() - before <= 3
    }

    /// The processor time of the library's thread, in ticks of 10 ms: fields 14 and 15 of its `stat`
    /// (proc_pid_stat(5)).
    pub fn ticks(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap().flatten();
        let mut lines = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        let line = lines.find(|line| line.contains("(handoff)")).expect("the thread of the library");
        let fields = line.rsplit_once(") ").expect("fields behind the name").1.split(' ');
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    pub fn limit_descriptors(&self, limit: Option<u64>) {
        set_limits(self.pid, Resource::RLIMIT_NOFILE, limit.unwrap_or(UNLIMITED), 1024).unwrap();
    }
}

pub fn adopt() -> ToService {
    ToService::Adopt(Adopt { versions: VersionRange::OURS, lease_ms: SILENCE_MS })
}

/// Ids only need to differ.
pub fn rand_id() -> [u8; 16] {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    u128::from(NEXT.fetch_add(1, Ordering::Relaxed)).to_be_bytes()
}
