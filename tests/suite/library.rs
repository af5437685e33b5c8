//! Features for a server that embeds the library: a start without a supervisor, and each kind of listener.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{Rig, service, version, wait_for};
use handoff::control::api::{self, Ending, Request, Response};
use handoff::history::Entry;

/// Ends the process at the end of the test, also after a panic.
struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn alone(program: &Path, address: &str, data: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .arg(data)
        .env("TESTEE_ADDRESS", address)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

#[test]
fn without_a_supervisor_the_same_binary_binds_and_runs() {
    let rig = Rig::new();
    let address = crate::support::free_address();
    let program = rig.release("1", "");
    let _first = ChildGuard(alone(&program, &address.to_string(), &rig.path("data")).spawn().unwrap());
    wait_for("it to listen", || TcpStream::connect(address).ok());
    assert_eq!(version(address), "1");
    // The data directory has one writer, even among servers without a supervisor.
    let other = crate::support::free_address().to_string();
    let second = alone(&program, &other, &rig.path("data")).output().unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use"), "{second:?}");
}

#[test]
fn a_channel_that_is_none_is_an_error_and_not_a_standalone_start() {
    let rig = Rig::new();
    let output = alone(&rig.release("1", ""), "127.0.0.1:0", &rig.path("data"))
        .env("HANDOFF_FD", "77")
        .env("HANDOFF_ID", "x")
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("HANDOFF_FD"), "{output:?}");
}

fn ask_unix(path: &Path, line: &str) -> std::io::Result<String> {
    let mut connection = UnixStream::connect(path)?;
    connection.set_read_timeout(Some(crate::support::LIMIT))?;
    writeln!(connection, "{line}")?;
    let mut answer = String::new();
    BufReader::new(connection).read_line(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}

#[test]
fn a_unix_socket_is_upgraded_in_both_modes_and_gone_after_a_stop() {
    for mode in ["exclusive", "overlap"] {
        let rig = Rig::new();
        let socket = rig.path("s.sock");
        let (binary, data) = (rig.release("1", ""), rig.path("data"));
        let toml = format!(
            "binary = {binary:?}\nargs = [{data:?}]\nautostart = false\nstore = false\nmode = \"{mode}\"\n\
             [listen]\nmain = \"unix:{}\"\n[env]\nTESTEE_UNIX = {socket:?}\n",
            socket.display()
        );
        std::fs::write(rig.path("config/services/s.toml"), toml).unwrap();
        rig.call(Request::Start(service("s"))).unwrap();
        assert_eq!(ask_unix(&socket, "x").unwrap(), "1 x");
        for n in 2..=4 {
            let outcome = rig.upgrade("s", &rig.release(&n.to_string(), "")).unwrap();
            assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
            assert_eq!(ask_unix(&socket, "x").unwrap(), format!("{n} x"));
        }
        rig.call(Request::Stop(service("s"))).unwrap();
        assert!(!socket.exists());
        assert_eq!(
            std::fs::read_dir(rig.root.path())
                .unwrap()
                .flatten()
                .filter(|e| { e.file_name().to_string_lossy().contains(".sock") })
                .count(),
            0,
            "no name of a slot is left"
        );
    }
}

#[test]
fn one_dual_stack_listener_takes_both_families() {
    let rig = Rig::new();
    let port = crate::support::free_address().port();
    let (binary, data) = (rig.release("1", ""), rig.path("data"));
    let toml = format!(
        "binary = {binary:?}\nargs = [{data:?}]\nautostart = false\nstore = false\n[listen]\nmain = \"*:{port}\"\n"
    );
    std::fs::write(rig.path("config/services/s.toml"), toml).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        assert_eq!(version(address.parse().unwrap()), "1");
    }
    rig.upgrade("s", &rig.release("2", "")).unwrap();
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        assert_eq!(version(address.parse().unwrap()), "2");
    }
}

#[test]
fn a_listener_that_the_service_file_does_not_have_is_named() {
    let rig = Rig::new();
    rig.write_service("s", &rig.release("1", ""), "");
    let file = rig.path("config/services/s.toml");
    let toml = std::fs::read_to_string(&file).unwrap().replace("main = ", "other = ");
    std::fs::write(&file, toml).unwrap();
    rig.call(Request::Start(service("s"))).unwrap_err();
    wait_for("the reason in the log", || {
        let output = rig.run(&["logs", "s"]);
        let log = String::from_utf8_lossy(&output.stdout).into_owned();
        (log.contains("no listener named") && log.contains("other")).then_some(())
    });
}

#[test]
fn a_service_holds_no_descriptor_but_its_own() {
    let rig = Rig::new();
    rig.serve("s", "1", "", "");
    rig.upgrade("s", &rig.release("2", "")).unwrap();
    let pid = rig.status("s").pid.unwrap();
    let fds: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|fd| Some(std::fs::read_link(fd.path()).ok()?.to_string_lossy().into_owned()))
        .collect();
    // The standard streams, the channel and its queue, the socket for another supervisor, the listener three times (one
    // for the acceptor, one for another supervisor), the lock, the data.
    assert!(fds.len() <= 11, "{fds:?}");
    let log_pipes = fds.iter().filter(|fd| fd.starts_with("pipe:")).count();
    assert_eq!(log_pipes, 2, "{fds:?}");
}

fn last_of_history(rig: &Rig) -> Entry {
    let limit = Some(1);
    match rig.call(Request::History(api::History { service: Some(service("s")), limit })).unwrap() {
        Response::History(mut entries) => entries.pop().expect("an entry"),
        other => panic!("{other:?}"),
    }
}

/// The file name contains a different version.
#[test]
fn a_server_says_its_version_itself_and_the_store_remembers_it() {
    let mut rig = Rig::new();
    rig.serve("s", "1", "", "store = true");
    assert_eq!(rig.status("s").version.as_deref(), Some("testee 1"), "the version from the file");
    let outcome = rig.upgrade("s", &rig.release("2", "says-9.8-é")).unwrap();
    assert_eq!((outcome.outcome, outcome.version.as_deref()), (Ending::Committed, Some("9.8-é")));
    let entry = last_of_history(&rig);
    assert_eq!(entry.to.unwrap().version.as_deref(), Some("9.8-é"));
    assert_eq!(entry.from.unwrap().version.as_deref(), Some("testee 1"));
    rig.call(Request::Stop(service("s"))).unwrap();
    rig.stop_daemon().unwrap();
    rig.start_daemon();
    assert_eq!(rig.status("s").version.as_deref(), Some("9.8-é"), "no process could report it");
    match rig.call(Request::Versions(service("s"))).unwrap() {
        Response::Versions(versions) => {
            let names: Vec<_> = versions.iter().map(|it| it.version.as_deref()).collect();
            assert_eq!(names, [Some("9.8-é"), Some("testee 1")]);
        }
        other => panic!("{other:?}"),
    }
}

/// For a version that runs in place, no stored name exists.
#[test]
fn the_next_daemon_learns_the_version_as_well() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "says-1.0.7", "");
    assert_eq!(rig.status("s").version.as_deref(), Some("1.0.7"));
    let pid = rig.status("s").pid;
    let mut daemon = rig.daemon.take().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    rig.start_daemon();
    let version = wait_for("the version to be reported", || rig.settled("s").version);
    assert_eq!((version.as_str(), rig.status("s").pid), ("1.0.7", pid));
    assert_eq!(crate::support::version(address), "1");
}

#[test]
fn a_version_that_never_serves_is_reported_by_its_own_name() {
    let rig = Rig::new();
    rig.serve("s", "1", "seal-error", "store = true");
    let outcome = rig.upgrade("s", &rig.release("2", "says-2.0.1")).unwrap();
    assert_eq!((outcome.outcome, outcome.version.as_deref()), (Ending::RolledBack, Some("testee 1")));
    assert_eq!(last_of_history(&rig).to.unwrap().version.as_deref(), Some("2.0.1"));
}
