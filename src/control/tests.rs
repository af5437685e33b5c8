//! Tests of server and client over real sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use handoff_protocol::ids::{Generation, HandoffId, ServiceName};
use proptest::prelude::*;
use serde_json::Value;

use super::api::{Ending, Outcome, Pong, Progress, Request, Response};
use super::*;
use crate::sys::user::{become_on_this_thread, effective_user};

/// Limit of all waits. Each one waits for a condition.
const BOUND: Duration = Duration::from_secs(20);

/// A daemon on its own thread, in its own directory.
struct Daemon {
    socket: PathBuf,
    /// Lets the operations of the fake end.
    go_on: tokio::sync::watch::Sender<bool>,
    /// The operations that have ended.
    ended: mpsc::Receiver<String>,
    thread: Option<std::thread::JoinHandle<()>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    _dir: tempfile::TempDir,
}

/// Answers pings; `start` reports progress and waits until it may end; `stop` panics.
struct Fake {
    go_on: tokio::sync::watch::Receiver<bool>,
    ended: mpsc::Sender<String>,
}

impl Handler for Fake {
    async fn call(&self, request: Request, _: Caller, progress: ProgressSink) -> Result<Response, Error> {
        match request {
            Request::Ping => Ok(Response::Pong(Pong { version: "1".into(), pid: 7 })),
            Request::List => Ok(Response::List(vec![])),
            Request::Start(service) => {
                progress.send(step(&service, "spawn", 1));
                progress.send(step(&service, "begin", 2));
                self.go_on.clone().wait_for(|go| *go).await.map_err(Error::internal)?;
                progress.send(step(&service, "commit", 3));
                self.ended.send(service.to_string()).map_err(Error::internal)?;
                Ok(Response::Outcome(Box::new(outcome(service))))
            }
            Request::Stop(_) => panic!("this handler is broken on purpose"),
            Request::Status(service) => Err(Error::unknown_service(&service, ["s3"])),
            Request::Enable(_)
            | Request::Disable(_)
            | Request::Restart(_)
            | Request::Upgrade(_)
            | Request::Install(_)
            | Request::Rollback(_)
            | Request::Cancel(_)
            | Request::Kill(_)
            | Request::Versions(_)
            | Request::Pin(_)
            | Request::Gc(_)
            | Request::Subscribe(_)
            | Request::Unsubscribe(_)
            | Request::History(_)
            | Request::Reload(_)
            | Request::Register(_)
            | Request::Unregister(_)
            | Request::Remove(_)
            | Request::Destroy(_) => Err(Error::internal("not part of this test")),
        }
    }
}

fn step(service: &ServiceName, phase: &str, at_us: u64) -> Progress {
    Progress {
        service: service.clone(),
        handoff: Some(HandoffId::NIL),
        phase: phase.into(),
        at_us,
        detail: None,
    }
}

fn outcome(service: ServiceName) -> Outcome {
    Outcome {
        service,
        handoff: Some(HandoffId::NIL),
        outcome: Ending::Started,
        reason: None,
        generation: Generation(1),
        pid: Some(7),
        shim: None,
        binary: "/b".into(),
        sha256: None,
        stored: None,
        version: None,
        took_us: 10,
        accept_gap_us: None,
        restarted: false,
        connections: None,
        lost_datagrams: 0,
        phases: vec![],
        killed: vec![],
        last_lines: None,
    }
}

impl Daemon {
    fn start() -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let listener = Listener::bind(&socket).unwrap();
        let (go_on, go_on_seen) = tokio::sync::watch::channel(false);
        let (ended_tell, ended) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let handler = Rc::new(Fake { go_on: go_on_seen, ended: ended_tell });
            tokio::task::LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    served = serve(listener, handler) => panic!("{served:?}"),
                    _ = stopped => {}
                }
            });
        });
        Daemon { socket, go_on, ended, thread: Some(thread), stop: Some(stop), _dir: dir }
    }

    fn connect(&self) -> Client {
        Client::connect(&self.socket).unwrap()
    }

    fn raw(&self) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        BufReader::new(stream)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        let joined = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            joined.unwrap();
            assert!(!self.socket.exists(), "an orderly end removes the socket");
        }
    }
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn say(stream: &mut BufReader<UnixStream>, line: &str) {
    stream.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn hear(stream: &mut BufReader<UnixStream>) -> Value {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}"))
}

fn ping(client: &mut Client) -> Response {
    client.call(&Request::Ping, &mut |_| {}).unwrap()
}

#[test]
fn answers_errors_and_progress_arrive_in_order() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    assert_eq!(ping(&mut client), Response::Pong(Pong { version: "1".into(), pid: 7 }));
    assert_eq!(client.call(&Request::List, &mut |_| {}).unwrap(), Response::List(vec![]));
    daemon.go_on.send(true).unwrap();
    let mut phases = Vec::new();
    let answer =
        client.call(&Request::Start(name("s3")), &mut |progress| phases.push(progress.phase)).unwrap();
    assert_eq!(answer, Response::Outcome(Box::new(outcome(name("s3")))));
    assert_eq!(phases, ["spawn", "begin", "commit"]);
    match client.call(&Request::Status(name("s4")), &mut |_| {}) {
        Err(ClientError::Refused(error)) => assert_eq!(error.kind, Kind::UnknownService),
        other => panic!("{other:?}"),
    }
    ping(&mut client);
}

#[test]
fn a_panic_is_an_answer_and_the_connection_goes_on() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    match client.call(&Request::Stop(name("s3")), &mut |_| {}) {
        Err(ClientError::Refused(error)) => assert_eq!(error.kind, Kind::Internal),
        other => panic!("{other:?}"),
    }
    ping(&mut client);
}

#[test]
fn garbage_is_answered_and_the_connection_goes_on() {
    let daemon = Daemon::start();
    let mut stream = daemon.raw();
    say(&mut stream, "\u{1}garbage\n\n{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"method\":\"reboot\"}");
    assert_eq!(hear(&mut stream)["error"]["code"], -32700);
    let refused = hear(&mut stream);
    assert_eq!((&refused["error"]["code"], &refused["id"]), (&(-32601).into(), &"a".into()));
    assert_eq!(refused["error"]["data"]["kind"], "unknown_method");
    stream.get_mut().write_all(br#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#).unwrap();
    stream.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    let pong = hear(&mut stream);
    assert_eq!(
        (&pong["result"]["pid"], &pong["id"]),
        (&7.into(), &2.into()),
        "the last line needs no newline"
    );
}

#[test]
fn a_line_without_end_closes_the_connection() {
    let daemon = Daemon::start();
    let mut stream = daemon.raw();
    // The daemon hangs up when it has read enough, maybe during this write.
    let _ = stream.get_mut().write_all(&vec![b'x'; LINE_MAX_BYTES + 1]);
    let refused = hear(&mut stream);
    assert!(refused["error"]["message"].as_str().unwrap().contains("longer than 65536"), "{refused}");
    let mut rest = Vec::new();
    assert!(!matches!(stream.read_to_end(&mut rest), Ok(length) if length > 0));

    let longest =
        format!("{:<width$}", r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, width = LINE_MAX_BYTES - 1);
    let mut stream = daemon.raw();
    say(&mut stream, &longest);
    assert_eq!(hear(&mut stream)["result"]["pid"], 7);
}

#[test]
fn a_hang_up_does_not_stop_the_operation() {
    let daemon = Daemon::start();
    let mut stream = daemon.raw();
    say(&mut stream, r#"{"jsonrpc":"2.0","id":1,"method":"start","params":{"service":"s3"}}"#);
    assert_eq!(hear(&mut stream)["params"]["phase"], "spawn");
    drop(stream);
    daemon.go_on.send(true).unwrap();
    assert_eq!(daemon.ended.recv_timeout(BOUND).unwrap(), "s3");
}

#[test]
fn silent_clients_lock_nobody_out_and_busy_ones_stay() {
    let daemon = Daemon::start();
    let mut busy = daemon.raw();
    say(&mut busy, r#"{"jsonrpc":"2.0","id":1,"method":"start","params":{"service":"s3"}}"#);
    assert_eq!(hear(&mut busy)["params"]["phase"], "spawn");
    let mut silent: Vec<_> = (1..CONNECTIONS_MAX).map(|_| daemon.raw()).collect();
    ping(&mut daemon.connect());
    let mut byte = [0];
    assert_eq!(silent[0].read(&mut byte).unwrap(), 0, "the oldest silent client had to leave");
    say(&mut silent[CONNECTIONS_MAX - 2], r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#);
    assert_eq!(hear(&mut silent[CONNECTIONS_MAX - 2])["id"], 1, "the others stay");
    daemon.go_on.send(true).unwrap();
    assert_eq!(hear(&mut busy)["params"]["phase"], "begin");
    assert_eq!(hear(&mut busy)["params"]["phase"], "commit");
    assert_eq!(hear(&mut busy)["result"]["outcome"], "started");
}

#[test]
fn one_more_than_all_busy_is_told_so() {
    let daemon = Daemon::start();
    let clients: Vec<_> = (0..CONNECTIONS_MAX)
        .map(|_| {
            let mut busy = daemon.raw();
            say(&mut busy, r#"{"jsonrpc":"2.0","id":1,"method":"start","params":{"service":"s3"}}"#);
            hear(&mut busy);
            busy
        })
        .collect();
    match daemon.connect().call(&Request::Ping, &mut |_| {}) {
        Err(ClientError::Refused(error)) => assert_eq!(error.kind, Kind::TooManyClients),
        other => panic!("{other:?}"),
    }
    drop(clients);
}

#[test]
fn another_user_is_refused() {
    if effective_user() != 0 {
        return; // Only root can become another user.
    }
    let daemon = Daemon::start();
    let open = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
    open(daemon.socket.parent().unwrap());
    open(&daemon.socket);
    let socket = daemon.socket.clone();
    let answer = std::thread::spawn(move || {
        become_on_this_thread(65_534).unwrap();
        Client::connect(&socket).unwrap().call(&Request::Ping, &mut |_| {})
    });
    match answer.join().unwrap() {
        Err(ClientError::Refused(error)) => {
            assert_eq!(error.kind, Kind::PermissionDenied);
            assert!(error.message.contains("65534"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    ping(&mut daemon.connect());
}

#[test]
fn the_socket_is_private_and_replaces_only_a_dead_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.sock");
    let listener = Listener::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(matches!(Listener::bind(&path), Err(BindError::InUse(_))));
    drop(listener);
    assert!(!path.exists());

    // What a killed daemon leaves behind. A child of another test may have it until its exec.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let until = Instant::now() + BOUND;
    let listener = loop {
        match Listener::bind(&path) {
            Err(BindError::InUse(_)) if Instant::now() < until => {}
            bound => break bound.unwrap(),
        }
    };
    std::fs::remove_file(&path).unwrap();
    let successor = Listener::bind(&path).unwrap();
    drop(listener);
    assert!(path.exists(), "the path belongs to another listener now");
    drop(successor);

    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Listener::bind(&path), Err(BindError::NotASocket(_))));
    let long = dir.path().join("x".repeat(108));
    assert!(Listener::bind(&long).unwrap_err().to_string().contains("at most 107"));
    let nowhere = dir.path().join("missing/c.sock");
    assert!(matches!(Listener::bind(&nowhere), Err(BindError::Io { .. })));
}

#[test]
fn an_unreachable_daemon_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.sock");
    let until = Instant::now() + BOUND;
    let cause = || loop {
        match Client::connect(&path) {
            Err(ClientError::Unreachable { cause, .. }) => break cause,
            // A child of another test may have the listener until its exec.
            Ok(_) if Instant::now() < until => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(cause(), "there is no such socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut client = Client::connect(&path).unwrap();
    drop(listener);
    assert_eq!(cause(), "the socket is there, but no process behind it");
    let lost = client.call(&Request::Ping, &mut |_| {}).unwrap_err().to_string();
    assert!(lost.contains("closed the connection without an answer"), "{lost}");
}

#[test]
fn a_stranger_is_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut client = Client::connect(&path).unwrap();
    listener.accept().unwrap().0.write_all(b"220 mail.example ESMTP\r\n").unwrap();
    assert!(matches!(client.call(&Request::Ping, &mut |_| {}), Err(ClientError::Strange { .. })));
}

#[test]
fn arbitrary_bytes_never_harm_the_daemon() {
    let daemon = Daemon::start();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(64)
    });
    let bytes = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..5);
    runner
        .run(&bytes, |writes| {
            let mut stream = daemon.raw();
            for write in &writes {
                stream.get_mut().write_all(write).unwrap();
            }
            stream.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
            let mut answers = String::new();
            stream.read_to_string(&mut answers).unwrap();
            for answer in answers.lines() {
                prop_assert!(serde_json::from_str::<Value>(answer).is_ok(), "{}", answer);
            }
            ping(&mut daemon.connect());
            Ok(())
        })
        .unwrap();
}
