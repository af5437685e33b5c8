//! `handoff doctor` tries programs of all kinds, and leaves nothing behind.

mod copies;
mod kernel;
mod stop;

use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Rig, executable, free_address, processes_of, service, signal, version, wait_for};
use handoff::control::api::Request;
use serde_json::Value;

/// For programs that never do what the doctor waits for.
const SHORT: &str = "1500ms";
/// For programs that do a part of it, which takes time on a busy machine.
const FAIR: &str = "5s";
/// For programs that do all of it, however slow the machine is.
const LONG: &str = "30s";

/// Directories without a daemon.
fn rig() -> Rig {
    let root = tempfile::Builder::new().prefix("handoff-test-").tempdir().unwrap();
    for name in ["config/services", "data", "tmp"] {
        std::fs::create_dir_all(root.path().join(name)).unwrap();
    }
    Rig { root, daemon: None }
}

fn write(rig: &Rig, binary: &Path, args: &[&str], more: &str, listen: &str) {
    let text = format!("binary = {binary:?}\nargs = {args:?}\n{more}\n[listen]\nmain = \"{listen}\"\n");
    std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
}

/// Writes an overlap service with the program `plain`, which binds `binds`.
fn write_plain(rig: &Rig, fault: &str, adapter: &str, binds: SocketAddr, listen: SocketAddr) {
    let binary = rig.release_of("plain", "1", fault);
    let more = format!("adapter = {adapter:?}\nmode = \"overlap\"");
    write(rig, &binary, &["-", &binds.to_string()], &more, &listen.to_string());
}

fn command(rig: &Rig, timeout: &str, more: &[&str]) -> Command {
    let mut command = rig.handoff(&["doctor", "s", "--json", "--timeout", timeout]);
    command.args(more).env("TMPDIR", rig.path("tmp"));
    command
}

/// The report, and the exit code. Checks that nothing is left behind.
fn examine(rig: &Rig, timeout: &str, more: &[&str]) -> (Value, i32) {
    examine_by(rig, command(rig, timeout, more))
}

fn examine_by(rig: &Rig, mut command: Command) -> (Value, i32) {
    let before = processes_of(rig.root.path());
    let state = names_below(&rig.path("state"));
    let output = command.output().unwrap();
    let left: Vec<u32> =
        processes_of(rig.root.path()).into_iter().filter(|pid| !before.contains(pid)).collect();
    assert!(left.is_empty(), "processes {left:?} are left: {output:?}");
    assert_eq!(names_below(&rig.path("tmp")), Vec::<String>::new(), "files are left");
    assert_eq!(names_below(&rig.path("state")), state, "the doctor does not change the state directory");
    let said = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (said, output.status.code().unwrap())
}

fn names_below(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        names.push(entry.path().display().to_string());
        names.extend(names_below(&entry.path()));
    }
    names.sort();
    names
}

/// The verdict on an adapter, and its reason.
fn of<'v>(said: &'v Value, adapter: &str) -> (&'v str, &'v str) {
    let found = said["adapters"].as_array().unwrap().iter().find(|it| it["adapter"] == adapter).unwrap();
    (found["verdict"].as_str().unwrap(), found["why"].as_str().unwrap())
}

fn verdicts(said: &Value) -> [&str; 3] {
    ["handoff", "listen-fds", "inject"].map(|adapter| of(said, adapter).0)
}

#[test]
fn a_program_that_takes_descriptors_can_use_both_adapters_of_a_shim() {
    let rig = rig();
    let address = free_address();
    write_plain(&rig, "", "inject", address, address);
    // The program does not speak the protocol, so the doctor waits for the whole time.
    let (said, code) = examine(&rig, "5s", &[]);
    assert_eq!(verdicts(&said), ["does-not", "works", "works"], "{said:#}");
    assert_eq!((code, &said["advised"]), (0, &Value::from("inject")), "{said:#}");
    let advice = said["advice"].as_str().unwrap();
    assert!(advice.contains("notify = true") && advice.contains("\"listen-fds\" works too"), "{advice}");
    assert!(said["remarks"][0].as_str().unwrap().contains("SIGTERM ends it at once"), "{said:#}");
}

#[test]
fn a_program_with_the_library_says_hello() {
    let rig = rig();
    let address = free_address();
    let env = format!("env = {{ TESTEE_ADDRESS = \"{address}\" }}");
    write(&rig, &rig.release("1", ""), &[], &env, &address.to_string());
    let (said, code) = examine(&rig, LONG, &[]);
    assert_eq!(
        (of(&said, "handoff").0, code, &said["advised"]),
        ("works", 0, &Value::from("handoff")),
        "{said:#}"
    );
    assert!(of(&said, "handoff").1.contains("Hello"), "{said:#}");
    // Without the protocol the program runs standalone, and binds its configured address.
    assert_eq!(of(&said, "inject").0, "works", "{said:#}");
}

#[test]
fn a_server_in_python_can_be_injected_only() {
    let rig = rig();
    let address = free_address();
    let (port, directory) = (address.port().to_string(), rig.path("data"));
    let args = ["-m", "http.server", "--bind", "127.0.0.1", "-d", directory.to_str().unwrap(), &port];
    let more = "adapter = \"listen-fds\"\nmode = \"overlap\"";
    write(&rig, Path::new("/usr/bin/python3"), &args, more, &address.to_string());
    let (said, code) = examine(&rig, "5s", &[]);
    assert_eq!(verdicts(&said), ["does-not", "does-not", "works"], "{said:#}");
    assert!(of(&said, "listen-fds").1.contains("binds main by itself"), "{said:#}");
    // The adapter in the service file does not work.
    assert_eq!((code, &said["advised"]), (1, &Value::from("inject")));
    assert!(said["advice"].as_str().unwrap().contains("which says \"listen-fds\""), "{said:#}");
}

#[test]
fn a_program_that_binds_nothing_or_something_else_is_reported() {
    let rig = rig();
    let (address, elsewhere) = (free_address(), free_address());
    write_plain(&rig, "never-binds", "inject", address, address);
    let (said, code) = examine(&rig, SHORT, &[]);
    assert_eq!((verdicts(&said), code), (["does-not"; 3], 1), "{said:#}");
    assert!(of(&said, "inject").1.contains("was not seen to bind anything"), "{said:#}");
    assert!(said["advised"].is_null());

    write_plain(&rig, "", "inject", elsewhere, address);
    let (said, code) = examine(&rig, FAIR, &[]);
    let (verdict, why) = of(&said, "inject");
    assert_eq!((verdict, code), ("does-not", 1), "{said:#}");
    assert!(why.contains(&elsewhere.to_string()) && why.contains("has no such listener"), "{why}");

    write_plain(&rig, "exit-at-once", "inject", address, address);
    let (said, _) = examine(&rig, LONG, &[]);
    assert_eq!(verdicts(&said), ["does-not"; 3]);
    let why = of(&said, "inject").1;
    assert!(why.contains("exited with code 1") && why.contains("told to exit at once"), "{why}");

    // The program binds, and does nothing else.
    write_plain(&rig, "never-accepts", "inject", address, address);
    let (said, _) = examine(&rig, FAIR, &[]);
    assert_eq!(verdicts(&said), ["does-not"; 3]);
    assert!(of(&said, "inject").1.contains("has not accepted"), "{said:#}");
}

/// Two ports that the kernel could have chosen, a fixed one, and a unix socket with its pid in the name.
const BINDS_MORE: &str = r#"#!/usr/bin/python3
import os, socket, sys
def bind(family, address):
    one = socket.socket(family)
    one.bind(address)
    return one
port = lambda number: bind(socket.AF_INET, ("127.0.0.1", number))
first = int(open("/proc/sys/net/ipv4/ip_local_port_range").read().split()[0])
kept = [port(first + 7), port(first + 8), port(first - 1), bind(socket.AF_UNIX, f"{sys.argv[2]}.{os.getpid()}")]
listener = port(int(sys.argv[1]))
listener.listen()
while True:
    listener.accept()
"#;

#[test]
fn what_may_collide_with_the_next_generation_is_reported_once() {
    let (rig, address) = (rig(), free_address());
    let (binary, name) = (rig.path("server"), rig.path("data/s"));
    std::fs::write(&binary, BINDS_MORE).unwrap();
    executable(&binary);
    let args = [&address.port().to_string(), name.to_str().unwrap()];
    let modes = [("overlap", "", 2), ("exclusive", "", 0), ("exclusive", "warm = true", 2)];
    for (mode, more, count) in modes {
        let more = format!("adapter = \"inject\"\nmode = {mode:?}\n{more}");
        write(&rig, &binary, &args, &more, &address.to_string());
        let (said, code) = examine(&rig, FAIR, &["--yes-run-it"]);
        assert_eq!((of(&said, "inject").0, code), ("works", 0), "{said:#}");
        let remarks = said["remarks"].as_array().unwrap().iter().filter_map(Value::as_str);
        let told: Vec<&str> = remarks.filter(|remark| remark.contains("may collide")).collect();
        assert_eq!(told.len(), count, "{mode} {more}: {said:#}");
        assert!(told.iter().skip(1).all(|told| told.contains("and 1 more, of the ports")), "{told:?}");
    }
}

#[test]
fn what_cannot_be_started_is_not_started() {
    let rig = rig();
    let script = rig.path("server");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    executable(&script);
    let more = "adapter = \"inject\"\nmode = \"overlap\"";
    write(&rig, &script, &[], more, &free_address().to_string());
    let (said, code) = examine(&rig, LONG, &[]);
    assert_eq!((verdicts(&said), code), (["does-not"; 3], 1));
    let why = of(&said, "inject").1;
    assert!(why.contains("interpreter") && why.contains("/no/such/interpreter"), "{why}");

    std::fs::write(&script, "#!/usr/bin/env no-such-language\n").unwrap();
    let (said, _) = examine(&rig, LONG, &[]);
    assert!(of(&said, "inject").1.contains("no-such-language, which is not in the PATH"), "{said:#}");
}

#[test]
fn what_a_program_has_left_behind_is_ended() {
    let rig = rig();
    let address = free_address();
    write_plain(&rig, "forks-deaf", "listen-fds", address, address);
    let (said, code) = examine(&rig, "5s", &[]);
    assert_eq!((of(&said, "listen-fds").0, code), ("works", 0), "{said:#}");
    // The program got its stop signal, and a part of it ignored the signal.
    assert!(said["remarks"].to_string().contains("which it has started, does not"), "{said:#}");
}

#[test]
fn the_running_service_is_not_touched() {
    let mut rig = rig();
    rig.start_daemon();
    let address = free_address();
    write_plain(&rig, "", "inject", address, address);
    rig.call(Request::Start(service("s"))).unwrap();
    let pid = rig.status("s").pid;
    let next = rig.release_of("plain", "2", "");
    let (said, code) = examine(&rig, "5s", &["--binary", next.to_str().unwrap()]);
    assert_eq!((verdicts(&said), code), (["does-not", "works", "works"], 0), "{said:#}");
    assert_eq!((version(address).as_str(), rig.status("s").pid), ("1", pid));
    assert_eq!(rig.status("s").restarts, 0);
}

#[test]
fn in_exclusive_mode_there_is_no_second_writer_without_an_explicit_option() {
    let mut rig = rig();
    rig.start_daemon();
    let address = free_address();
    let data = rig.path("data");
    let binary = rig.release_of("plain", "1", "");
    let args = [data.to_str().unwrap(), &address.to_string()];
    write(&rig, &binary, &args, "adapter = \"inject\"", &address.to_string());
    rig.call(Request::Start(service("s"))).unwrap();
    let (said, code) = examine(&rig, LONG, &[]);
    assert_eq!((verdicts(&said), code), (["not-tried"; 3], 1), "{said:#}");
    assert!(of(&said, "inject").1.contains("--yes-run-it"), "{said:#}");
    // The doctor runs the program, which exits because it cannot lock its data.
    let (said, code) = examine(&rig, LONG, &["--yes-run-it"]);
    assert_eq!((verdicts(&said), code), (["does-not"; 3], 1), "{said:#}");
    assert_eq!(version(address), "1");
    // The daemon is killed, and its service serves on.
    rig.daemon.as_mut().unwrap().kill().unwrap();
    rig.daemon.take().unwrap().wait().unwrap();
    let (said, _) = examine(&rig, LONG, &[]);
    assert!(of(&said, "inject").1.contains("something runs already"), "{said:#}");

    rig.start_daemon();
    wait_for("the service to be stopped", || rig.call(Request::Stop(service("s"))).ok());
    let (said, code) = examine(&rig, "5s", &[]);
    assert_eq!((verdicts(&said), code), (["does-not", "works", "works"], 0), "{said:#}");
}

#[test]
fn an_address_that_cannot_be_had_a_second_time_is_reported() {
    let rig = rig();
    let path = rig.path("data/s.sock");
    let _taken = UnixListener::bind(&path).unwrap();
    let binary = rig.release_of("plain", "1", "");
    let listen = format!("unix:{}", path.display());
    let more = "adapter = \"inject\"\nmode = \"overlap\"";
    write(&rig, &binary, &["-", &listen], more, &listen);
    let (said, code) = examine(&rig, LONG, &[]);
    assert_eq!((verdicts(&said), code), (["not-tried"; 3], 1), "{said:#}");
    assert!(of(&said, "inject").1.contains("in use"), "{said:#}");
    assert!(path.exists());

    // This address is reserved for documentation; no machine has it.
    write(&rig, &binary, &["-", "192.0.2.1:9000"], more, "192.0.2.1:9000");
    let (said, _) = examine(&rig, LONG, &[]);
    assert_eq!(verdicts(&said), ["not-tried"; 3], "{said:#}");
    assert!(of(&said, "inject").1.contains("does not have the address"), "{said:#}");
}

#[test]
fn a_unix_socket_without_a_process_is_tried_and_removed() {
    let rig = rig();
    let path = rig.path("data/s.sock");
    let listen = format!("unix:{}", path.display());
    let more = "adapter = \"inject\"\nmode = \"overlap\"";
    write(&rig, &rig.release_of("plain", "1", ""), &["-", &listen], more, &listen);
    let (said, code) = examine(&rig, "5s", &[]);
    assert_eq!((verdicts(&said), code), (["does-not", "works", "works"], 0), "{said:#}");
    assert_eq!(names_below(&rig.path("data")), Vec::<String>::new());
}

#[test]
fn a_program_does_not_outlive_the_doctor() {
    let rig = rig();
    let address = free_address();
    let path = rig.path("data/s.sock");
    let binary = rig.release_of("plain", "1", "never-binds");
    let listen = format!("unix:{}", path.display());
    write(&rig, &binary, &["-", &address.to_string()], "adapter = \"inject\"\nmode = \"overlap\"", &listen);
    // In the first trial the doctor waits for the protocol, and no listener exists yet.
    let mut doctor = command(&rig, "3s", &[]).stdout(Stdio::null()).spawn().unwrap();
    let runs = || processes_of(rig.root.path()).into_iter().any(|pid| runs_from(pid, "plain-1"));
    wait_for("the program to run", || (runs() && path.exists()).then_some(()));
    signal(doctor.id(), handoff::sys::process::Signal::SIGKILL);
    doctor.wait().unwrap();
    wait_for("everything to be gone", || processes_of(rig.root.path()).is_empty().then_some(()));
    // The listeners end with the trial. The next daemon removes the copy.
    assert_eq!(names_below(&rig.path("data")), Vec::<String>::new());
}

fn runs_from(pid: u32, program: &str) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|found| found.ends_with(program))
}

#[test]
fn people_get_a_table_and_a_sentence() {
    let rig = rig();
    let address = free_address();
    write_plain(&rig, "", "listen-fds", address, address);
    let output =
        rig.handoff(&["doctor", "s", "--timeout", "5s"]).env("TMPDIR", rig.path("tmp")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains(" ADAPTER     ANSWER    WHY"), "{text}");
    assert!(
        text.lines().any(|line| line.starts_with(" handoff     does not  it has not said Hello")),
        "{text}"
    );
    assert!(text.contains("\nUse adapter = \"listen-fds\", as "), "{text}");
    assert_eq!(rig.run(&["doctor", "unknown"]).status.code(), Some(1));
}
