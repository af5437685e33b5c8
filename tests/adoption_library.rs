//! A process whose supervisor is gone is taken over by another one. The supervisors are played by the test.

mod support;

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use handoff::sys::channel::Channel;
use handoff::sys::inherit::ADOPT_VARIABLE;
use handoff::sys::lock::DataLock;
use handoff::sys::process::{Exit, kill, reap, reap_blocking};
use handoff::sys::spawn::{SpawnSpec, spawn};
use handoff::sys::wire::{recv_message, send_message};
use handoff_protocol::frame;
use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::message::{
    Abort, Adopt, Adopted, Begin, Commit, FromService, Hello, Mode, Prepare, Progress, Ready, Resume, Seal,
    Stage, ToService, Welcome,
};
use handoff_protocol::version::{UNAGREED, VersionRange};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use support::{LIMIT, Rig, ask, service, version, wait_for};

/// Longer than any test.
const LEASE_MS: u64 = 600_000;
/// What a process that works may be silent for.
const SILENCE_MS: u64 = 300;

/// No daemon, only its directories.
fn rig() -> Rig {
    let root = tempfile::Builder::new().prefix("handoff-test-").tempdir().unwrap();
    std::fs::create_dir(root.path().join("data")).unwrap();
    Rig { root, daemon: None }
}

/// A supervisor, as far as one process sees it.
struct Supervisor {
    channel: Channel,
    id: HandoffId,
}

impl Supervisor {
    fn of(channel: Channel, id: HandoffId) -> Self {
        sockopt::set_socket_timeout(&channel, Timeout::Recv, Some(LIMIT)).unwrap();
        Self { channel, id }
    }

    fn say(&self, message: ToService) {
        send_message(&self.channel, 1, self.id, &message, &[]).unwrap();
    }

    /// The next message that is no sign of life; it must be of this handoff.
    fn hear(&self) -> FromService {
        loop {
            match recv_message::<FromService>(&self.channel, 1).unwrap() {
                Some((_, FromService::Progress(_), _)) => {}
                Some((id, message, _)) => {
                    assert_eq!(id, self.id);
                    return message;
                }
                None => panic!("the process closed the channel"),
            }
        }
    }

    /// Whether the process hangs up, after signs of life at most.
    fn is_left(&self) -> bool {
        loop {
            match recv_message::<FromService>(&self.channel, 1).unwrap() {
                Some((_, FromService::Progress(_), _)) => {}
                other => return other.is_none(),
            }
        }
    }

    fn drain(&self) {
        self.say(ToService::Prepare(Prepare { grace_ms: LEASE_MS, lease_ms: LEASE_MS }));
        assert!(matches!(self.hear(), FromService::Drained(_)));
    }

    fn seal(&self) {
        self.drain();
        self.say(ToService::Seal(Seal { lease_ms: LEASE_MS, cut: false }));
        assert!(matches!(self.hear(), FromService::Sealed(_)));
    }
}

/// The process of the service, and what its supervisor would hold.
struct Process {
    pid: u32,
    pidfd: OwnedFd,
    listener: OwnedFd,
    address: SocketAddr,
    adopt: PathBuf,
    log: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
        let _ = kill(&self.pidfd, Signal::KILL);
        let _ = reap_blocking(self.pidfd.as_fd());
    }
}

fn socket() -> OwnedFd {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

impl Process {
    /// A process in its greeting: what its supervisor has heard nothing of.
    fn spawn(rig: &Rig, version: &str, fault: &str, listener: OwnedFd) -> (Self, Supervisor) {
        let id = HandoffId::from_bytes(rand_id());
        let adopt = rig.path(&format!("adopt-{version}"));
        let log = rig.path(&format!("log-{version}"));
        let output: OwnedFd = File::create(&log).unwrap().into();
        let (ours, theirs) = Channel::pair().unwrap();
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
        })
        .unwrap();
        let address = TcpListener::from(listener.try_clone().unwrap()).local_addr().unwrap();
        let process = Self { pid: spawned.pid, pidfd: spawned.pidfd, listener, address, adopt, log };
        (process, Supervisor::of(ours, id))
    }

    /// A process that was asked to start up.
    fn start(rig: &Rig, version: &str, fault: &str, mode: Mode) -> (Self, Supervisor) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::start_at(rig, version, fault, mode, listener.into())
    }

    fn start_at(rig: &Rig, version: &str, fault: &str, mode: Mode, listener: OwnedFd) -> (Self, Supervisor) {
        let (process, supervisor) = Self::spawn(rig, version, fault, listener);
        let hello = recv_message::<FromService>(&supervisor.channel, UNAGREED).unwrap().unwrap().1;
        assert_eq!(hello, FromService::Hello(Hello { versions: VersionRange::OURS, pid: process.pid }));
        let welcome = ToService::Welcome(Welcome {
            version: 1,
            service: service("s"),
            generation: Generation(7),
            mode,
            listeners: vec!["main".parse().unwrap()],
            lease_ms: SILENCE_MS,
        });
        send_message(&supervisor.channel, 1, supervisor.id, &welcome, &[process.listener.as_fd()]).unwrap();
        supervisor.say(ToService::Prepare(Prepare { grace_ms: LEASE_MS, lease_ms: LEASE_MS }));
        assert!(matches!(supervisor.hear(), FromService::Prepared(_)));
        (process, supervisor)
    }

    /// The incumbent.
    fn serve(rig: &Rig, mode: Mode) -> (Self, Supervisor) {
        let (process, supervisor) = Self::start(rig, "1", "", mode);
        supervisor.say(ToService::Begin(Begin {}));
        assert!(matches!(supervisor.hear(), FromService::Ready(Ready { healthy: true, .. })));
        supervisor.say(ToService::Commit(Commit {}));
        (process, supervisor)
    }

    fn call(&self) -> Supervisor {
        let socket = socket();
        connect(&socket, &SocketAddrUnix::new(&self.adopt).unwrap()).unwrap();
        Supervisor::of(Channel::from_fd(socket).unwrap(), HandoffId::from_bytes(rand_id()))
    }

    /// What another supervisor does, and what it is told.
    fn adopt(&self) -> (Supervisor, Adopted, Vec<OwnedFd>) {
        let supervisor = self.call();
        supervisor.say(adopt());
        let (id, answer, fds) =
            recv_message::<FromService>(&supervisor.channel, UNAGREED).unwrap().expect("an answer");
        let FromService::Adopted(adopted) = answer else { panic!("{answer:?}") };
        assert_eq!(id, supervisor.id);
        assert_eq!((adopted.version, adopted.pid, adopted.generation), (1, self.pid, Generation(7)));
        assert_eq!(
            (&adopted.service, &adopted.listeners[..]),
            (&service("s"), &["main".parse().unwrap()][..])
        );
        (supervisor, adopted, fds)
    }

    fn adopted_at(&self, stage: Stage) -> Supervisor {
        let (supervisor, adopted, _) = self.adopt();
        assert_eq!(adopted.stage, stage);
        supervisor
    }

    fn end(&self) -> Exit {
        wait_for("the end of the process", || reap(self.pidfd.as_fd()).unwrap())
    }

    fn limit_descriptors(&self, limit: Option<u64>) {
        let pid = Pid::from_raw(self.pid as i32);
        prlimit(pid, Resource::Nofile, Rlimit { current: limit, maximum: Some(1024) }).unwrap();
    }
}

fn adopt() -> ToService {
    ToService::Adopt(Adopt { versions: VersionRange::OURS, lease_ms: SILENCE_MS })
}

/// Ids need only differ.
fn rand_id() -> [u8; 16] {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    u128::from(NEXT.fetch_add(1, Ordering::Relaxed)).to_be_bytes()
}

const LEFT: Exit = Exit { code: Some(0), signal: None };

#[test]
fn who_serves_is_adopted_with_its_listeners_and_can_be_sent_away() {
    for mode in [Mode::Exclusive, Mode::Overlap] {
        let rig = rig();
        let (process, first) = Process::serve(&rig, mode);
        assert_eq!(std::fs::metadata(&process.adopt).unwrap().permissions().mode() & 0o777, 0o600);
        drop(first);
        let (second, adopted, fds) = process.adopt();
        assert_eq!((adopted.stage, fds.len()), (Stage::Serving, 1));
        let cookie = |fd: &OwnedFd| sockopt::socket_cookie(fd).unwrap();
        assert_eq!(cookie(&fds[0]), cookie(&process.listener), "the same socket");
        assert_eq!(version(process.address), "1");
        second.seal();
        assert!(DataLock::try_take(&rig.path("data")).unwrap().is_some());
        second.say(ToService::Commit(Commit {}));
        assert_eq!(process.end(), LEFT);
        assert!(!process.adopt.exists());
    }
}

#[test]
fn one_supervisor_after_the_other_is_heard() {
    let rig = rig();
    let (process, mut supervisor) = Process::serve(&rig, Mode::Exclusive);
    for round in 0..4 {
        // It dies at different moments; the third is not even dead, only superseded.
        match round {
            0 => drop(supervisor),
            1 => {
                supervisor.drain();
                drop(supervisor);
            }
            2 => {
                let next = process.adopted_at(Stage::Serving);
                assert!(supervisor.is_left());
                drop(next);
            }
            _ => {
                supervisor.seal();
                drop(supervisor);
            }
        }
        let (next, adopted, _) = process.adopt();
        match adopted.stage {
            Stage::Serving => {}
            Stage::Working => assert!(matches!(next.hear(), FromService::Resumed(_))),
            other => panic!("{other:?}"),
        }
        assert_eq!(version(process.address), "1");
        supervisor = next;
    }
    supervisor.drain();
    supervisor.say(ToService::Resume(Resume {}));
    assert!(matches!(supervisor.hear(), FromService::Resumed(_)));
}

#[test]
fn a_sealed_incumbent_waits_for_the_lock_and_resumes_for_the_new_supervisor() {
    let rig = rig();
    let (process, first) = Process::serve(&rig, Mode::Exclusive);
    first.seal();
    let held = DataLock::try_take(&rig.path("data")).unwrap().expect("a free lock");
    drop(first);
    let second = process.adopted_at(Stage::Waiting);
    // It works for the second: signs of life come in its rhythm.
    let (id, sign, _) = recv_message::<FromService>(&second.channel, 1).unwrap().unwrap();
    assert_eq!((id, sign), (second.id, FromService::Progress(Progress { note: String::new() })));
    held.release().unwrap();
    assert!(matches!(second.hear(), FromService::Resumed(_)));
    assert_eq!(version(process.address), "1");
    second.seal();
}

#[test]
fn a_successor_that_was_told_to_begin_gets_ready_for_the_new_supervisor() {
    let rig = rig();
    let held = DataLock::try_take(&rig.path("data")).unwrap().expect("a free lock");
    let (process, first) = Process::start(&rig, "1", "", Mode::Exclusive);
    first.say(ToService::Begin(Begin {}));
    drop(first);
    let second = process.adopted_at(Stage::Waiting);
    held.release().unwrap();
    assert!(matches!(second.hear(), FromService::Ready(Ready { healthy: true, .. })));
    second.say(ToService::Commit(Commit {}));
    assert_eq!(version(process.address), "1");
    second.seal();
    second.say(ToService::Commit(Commit {}));
    assert_eq!(process.end(), LEFT);
}

#[test]
fn a_successor_that_is_not_wanted_by_the_new_supervisor_leaves() {
    let rig = rig();
    let _held = DataLock::try_take(&rig.path("data")).unwrap().expect("a free lock");
    let (process, first) = Process::start(&rig, "1", "", Mode::Exclusive);
    first.say(ToService::Begin(Begin {}));
    drop(first);
    process.adopted_at(Stage::Waiting).say(ToService::Abort(Abort {}));
    assert_eq!(process.end(), LEFT);
}

#[test]
fn a_process_that_was_not_told_to_begin_is_never_adopted() {
    for closes in [true, false] {
        let rig = rig();
        let (process, first) = Process::start(&rig, "1", "", Mode::Exclusive);
        let second = process.call();
        let first = if closes { None } else { Some(first) };
        // It may be gone already.
        let _ = send_message(&second.channel, 1, second.id, &adopt(), &[]);
        assert!(second.is_left());
        assert_eq!(process.end(), LEFT);
        assert!(!process.adopt.exists());
        drop(first);
    }
}

#[test]
fn the_standby_and_the_new_process_are_both_adopted() {
    let rig = rig();
    let (old, to_old) = Process::serve(&rig, Mode::Exclusive);
    let listener = old.listener.try_clone().unwrap();
    let (new, to_new) = Process::start_at(&rig, "2", "slow-begin-300", Mode::Exclusive, listener);
    to_old.seal();
    to_new.say(ToService::Begin(Begin {}));
    wait_for("the new process to have the lock", || {
        DataLock::try_take(&rig.path("data")).unwrap().is_none().then_some(())
    });
    drop((to_old, to_new));
    let (to_old, to_new) = (old.adopted_at(Stage::Waiting), new.adopted_at(Stage::Working));
    assert!(matches!(to_new.hear(), FromService::Ready(Ready { healthy: true, .. })));
    for to in [&to_new, &to_old] {
        to.say(ToService::Commit(Commit {}));
    }
    assert_eq!(old.end(), LEFT);
    assert_eq!(version(new.address), "2");
    to_new.drain();
}

/// Sends `bytes` and sees the connection closed.
fn is_sent_away(stranger: &Supervisor, bytes: &[u8], fd: Option<&OwnedFd>) {
    let fds: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
    stranger.channel.send(bytes, &fds).unwrap();
    assert!(stranger.is_left());
}

#[test]
fn strangers_change_nothing() {
    let rig = rig();
    let (process, supervisor) = Process::serve(&rig, Mode::Exclusive);
    supervisor.drain();
    let framed = |version, message| frame::encode(version, HandoffId::NIL, &message).unwrap();
    let far = VersionRange { minimum: 90, current: 99 };

    is_sent_away(&process.call(), b"GET / HTTP/1.1\r\n\r\n and so on, and so on", None);
    is_sent_away(&process.call(), &framed(1, ToService::Commit(Commit {})), None);
    is_sent_away(&process.call(), &framed(0, ToService::Commit(Commit {})), None);
    is_sent_away(&process.call(), &framed(1, adopt())[..40], None);
    is_sent_away(&process.call(), &framed(1, adopt()), Some(&process.listener));
    is_sent_away(
        &process.call(),
        &framed(1, ToService::Adopt(Adopt { versions: far, lease_ms: SILENCE_MS })),
        None,
    );
    drop(process.call());
    // Of those that are silent the newest are kept.
    let silent: Vec<Supervisor> = (0..12).map(|_| process.call()).collect();
    assert!(silent[0].is_left());

    supervisor.say(ToService::Resume(Resume {}));
    assert!(matches!(supervisor.hear(), FromService::Resumed(_)), "the lease and the channel are as before");
    drop(supervisor);
    process.adopted_at(Stage::Serving).drain();
}

#[test]
fn a_process_without_descriptors_to_spare_is_adopted_when_it_has_some() {
    let rig = rig();
    let (process, first) = Process::serve(&rig, Mode::Exclusive);
    process.limit_descriptors(Some(3));
    let waiting = process.call();
    // What it has goes on.
    first.drain();
    first.say(ToService::Resume(Resume {}));
    assert!(matches!(first.hear(), FromService::Resumed(_)));
    process.limit_descriptors(Some(1024));
    drop((first, waiting));
    assert_eq!(ask(process.address, "x").unwrap(), "1 x");
    process.adopted_at(Stage::Serving).drain();
}

#[test]
fn a_path_that_is_taken_is_told_and_left_alone() {
    let rig = rig();
    std::fs::write(rig.path("adopt-1"), "mine").unwrap();
    let (process, supervisor) = Process::serve(&rig, Mode::Exclusive);
    let log = std::fs::read_to_string(&process.log).unwrap();
    assert_eq!(log.matches("cannot be taken over").count(), 1, "{log}");
    assert!(log.contains("adopt-1"), "{log}");
    supervisor.seal();
    supervisor.say(ToService::Commit(Commit {}));
    assert_eq!(process.end(), LEFT);
    assert_eq!(std::fs::read_to_string(&process.adopt).unwrap(), "mine");
}
