//! The supervisor owns the path of a unix socket. Clients find the socket at every moment, whatever the program or a
//! person does to the path.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use handoff::control::api::{Ending, Request};
use handoff::sys::process::Signal;
use handoff::sys::user::effective_user;

use super::ALL;
use crate::support::{LIMIT, Rig, executable, free_address, service, signal, wait_for};

/// A server with configurable habits. It answers one line with its version, and ends in order.
const SERVER: &str = r#"#!/usr/bin/python3
import os, signal, socket, sys
VERSION = "@VERSION"
path, habits = sys.argv[1], sys.argv[2].split(",")
busy, leaving = False, False
os.umask(0o027)

if "LISTEN_FDS" in os.environ:
    listener = socket.socket(fileno=3)
else:
    if "removes-before" in habits and os.path.exists(path):
        os.remove(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
if "closes-to-others" in habits:
    os.chmod(path, 0o600)

def leave():
    if "removes-own-name" in habits:
        os.unlink(listener.getsockname())
    if "removes-path" in habits:
        os.unlink(path)
    if "renames-path" in habits:
        os.rename(path, path + ".old")
    os._exit(0)

def told(*_):
    global leaving
    leaving = True
    if not busy:
        leave()

signal.signal(signal.SIGTERM, told)
signal.signal(signal.SIGUSR1, lambda *_: leave())
while not leaving:
    connection, _ = listener.accept()
    busy = True
    if connection.makefile().readline():
        connection.sendall((VERSION + "\n").encode())
    connection.close()
    busy = False
leave()
"#;

struct Service {
    rig: Rig,
    adapter: &'static str,
    mode: &'static str,
}

impl Service {
    fn serve(adapter: &'static str, mode: &'static str, habits: &str, access: &str) -> Self {
        let rig = Rig::new();
        let served = Self { rig, adapter, mode };
        let text = format!(
            "binary = {:?}\nargs = [{:?}, {habits:?}]\nadapter = {adapter:?}\nmode = {mode:?}\nautostart = false\n\
             store = false\ndrain_grace = \"5s\"\n[listen.main]\naddress = \"unix:{}\"\n{access}\n",
            served.release("0"),
            served.path(),
            served.path().display(),
        );
        fs::write(served.rig.path("config/services/s.toml"), text).unwrap();
        served.rig.call(Request::Start(service("s"))).unwrap_or_else(|error| panic!("{served}: {error}"));
        served
    }

    fn path(&self) -> PathBuf {
        self.rig.path("s.sock")
    }

    fn release(&self, version: &str) -> PathBuf {
        let path = self.rig.path(&format!("server-{version}"));
        fs::write(&path, SERVER.replace("@VERSION", version)).unwrap();
        executable(&path);
        path
    }

    fn upgrade(&self, version: &str) {
        let outcome = self.rig.upgrade("s", &self.release(version)).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{self}: {outcome:?}");
        assert_eq!(self.ask().unwrap().trim(), version, "{self}");
    }

    fn ask(&self) -> std::io::Result<String> {
        let mut connection = UnixStream::connect(self.path())?;
        connection.set_read_timeout(Some(LIMIT))?;
        connection.write_all(b"x\n")?;
        let mut answer = String::new();
        BufReader::new(connection).read_line(&mut answer)?;
        Ok(answer)
    }

    fn access(&self) -> Option<u32> {
        Some(fs::metadata(self.path()).ok()?.permissions().mode() & 0o777)
    }
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.adapter, self.mode)
    }
}

/// Clients that connect without a pause, and check the mode of the path.
struct Clients {
    stop: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<usize>>,
}

impl Clients {
    fn start(path: PathBuf, access: u32) -> Self {
        let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |_| {
            let (path, stop, refused) = (path.clone(), Arc::clone(&stop), Arc::clone(&refused));
            std::thread::spawn(move || {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    count += 1;
                    match UnixStream::connect(&path) {
                        Ok(mut connection) => {
                            let _ = connection.write_all(b"x\n");
                            let _ = connection.set_read_timeout(Some(LIMIT));
                            let _ = BufReader::new(connection).read_line(&mut String::new());
                        }
                        Err(error)
                            if [ErrorKind::NotFound, ErrorKind::ConnectionRefused]
                                .contains(&error.kind()) =>
                        {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => panic!("{error}"),
                    }
                    let found = fs::metadata(&path).map(|found| found.permissions().mode() & 0o777);
                    assert!(
                        found.is_err() || found.as_ref().is_ok_and(|found| *found == access),
                        "{found:?}"
                    );
                }
                count
            })
        };
        Self { threads: (0..2).map(client).collect(), stop, refused }
    }

    fn finish_counting_refused(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            assert!(thread.join().expect("no client fails") > 0);
        }
        self.refused.load(Ordering::Relaxed)
    }
}

#[test]
fn a_path_leads_to_the_service_whatever_its_programs_remove() {
    let without_a_trace = "removes-before,closes-to-others,removes-own-name,removes-path,renames-path";
    for (adapter, mode) in ALL {
        // A program that gets its listeners as descriptors does not search for them at a path.
        let habits = if adapter == "inject" { without_a_trace } else { "closes-to-others,removes-own-name" };
        let served = Service::serve(adapter, mode, habits, "");
        wait_for("the mode that the program sets", || (served.access() == Some(0o600)).then_some(()));
        let clients = Clients::start(served.path(), 0o600);
        for n in 1..=3 {
            served.upgrade(&n.to_string());
        }
        assert_eq!(clients.finish_counting_refused(), 0, "{served}");
        assert_eq!(served.access(), Some(0o600), "{served}");

        // The program exits by itself, which counts as a crash.
        let program = served.rig.status("s").pid.unwrap();
        signal(program, Signal::SIGUSR1);
        wait_for("another program", || {
            (served.rig.status("s").pid? != program && served.ask().is_ok_and(|answer| answer == "3\n"))
                .then_some(())
        });
        assert_eq!(served.access(), Some(0o600), "{served}");

        served.rig.call(Request::Stop(service("s"))).unwrap();
        let left = fs::read_dir(served.rig.root.path()).unwrap().flatten().map(|entry| entry.file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("s.sock")).collect();
        assert!(left.is_empty(), "{served}: {left:?}");
    }
}

#[test]
fn a_path_that_is_removed_comes_back() {
    for (adapter, mode) in [("inject", "exclusive"), ("listen-fds", "overlap")] {
        let served = Service::serve(adapter, mode, "", "");
        for version in ["0", "1"] {
            if version == "1" {
                served.upgrade(version);
            }
            fs::remove_file(served.path()).unwrap();
            wait_for("the path to be back", || served.ask().ok().filter(|answer| answer.trim() == version));
            fs::rename(served.path(), served.rig.path("elsewhere")).unwrap();
            wait_for("the path to be back", || served.ask().ok().filter(|answer| answer.trim() == version));
            fs::remove_file(served.rig.path("elsewhere")).unwrap();
            fs::write(served.rig.path("other"), "").unwrap();
            fs::rename(served.rig.path("other"), served.path()).unwrap();
            wait_for("the path to be back", || served.ask().ok().filter(|answer| answer.trim() == version));
        }
    }
}

#[test]
fn the_file_the_program_or_a_person_decides_about_access() {
    // The mode in the service file, what the program does, and the resulting mode.
    let rows = [
        ("inject", "", "", 0o750),
        ("inject", "mode = \"0620\"", "", 0o620),
        ("inject", "mode = \"0620\"", "closes-to-others", 0o600),
        ("listen-fds", "", "", 0o666),
        ("listen-fds", "mode = \"0660\"\nuser = \"0\"\ngroup = \"0\"", "", 0o660),
    ];
    for (adapter, said, habits, expected) in rows {
        let is_root = effective_user() == 0;
        if said.contains("user") && !is_root {
            continue;
        }
        let mode = if habits.is_empty() { "exclusive" } else { "overlap" };
        let served = Service::serve(adapter, mode, habits, said);
        if !habits.is_empty() {
            // The answer shows that the program has changed the mode, which it does after its bind.
            assert_eq!(served.ask().unwrap().trim(), "0");
        }
        assert_eq!(served.access(), Some(expected), "{served} {said:?}");
        fs::set_permissions(served.path(), PermissionsExt::from_mode(0o640)).unwrap();
        let after = if habits.is_empty() { 0o640 } else { 0o600 };
        for n in 1..=2 {
            served.upgrade(&n.to_string());
            assert_eq!(served.access(), Some(after), "{served} {said:?}");
        }
        served.rig.call(Request::Stop(service("s"))).unwrap();
        served.rig.call(Request::Start(service("s"))).unwrap();
        let what = format!("{served} {said:?}: the access from the beginning");
        wait_for(&what, || (served.access() == Some(expected)).then_some(()));
    }
}

/// One of two addresses cannot be switched. The other one must not wait for a program that never starts to serve.
#[test]
fn an_upgrade_that_cannot_steer_one_address_leaves_the_other_one_in_service() {
    // In overlap mode a first failure must not stop the remaining switches. In exclusive mode the first switch is
    // undone.
    for (mode, tcp, unix) in [("exclusive", "a", "b"), ("overlap", "b", "a")] {
        let (rig, address) = (Rig::new(), free_address());
        let (binary, directory) = (rig.release_of("plain", "0", ""), rig.path("sockets"));
        fs::create_dir(&directory).unwrap();
        let path = format!("unix:{}", directory.join("s.sock").display());
        let text = format!(
            "binary = {binary:?}\nargs = [\"-\", \"{address}\", {path:?}]\nadapter = \"inject\"\nmode = {mode:?}\n\
             autostart = false\nstore = false\n[listen]\n{tcp} = \"{address}\"\n{unix} = {path:?}\n"
        );
        fs::write(rig.path("config/services/s.toml"), text).unwrap();
        rig.call(Request::Start(service("s"))).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        let outcome = rig.upgrade("s", &rig.release_of("plain", "1", "")).unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.write_all(b"x\n").unwrap();
        let mut answer = String::new();
        let read = BufReader::new(client).read_line(&mut answer);
        let serves = if outcome.outcome == Ending::Committed { "1 " } else { "0 " };
        assert!(answer.starts_with(serves), "{mode}: {read:?} {answer:?} after {outcome:?}");
        assert_eq!(outcome.outcome == Ending::Committed, mode == "overlap", "{outcome:?}");
    }
}
