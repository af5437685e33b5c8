//! Programs that bind a different port than the service file names, and processes that send notifications for a
//! program.

use std::time::{Duration, Instant};

use handoff::control::api::{Ending, Request};

use crate::support::{Rig, ask, free_address, service, wait_for};

/// Binds its first argument. After the number of seconds in the third argument, binds the second one and answers there.
const PYTHON: &str = r#"
import socket, sys, threading
def listen(text):
    host, port = text.split(":")
    return socket.create_server((host, int(port)))
first = listen(sys.argv[1])
threading.Event().wait(float(sys.argv[3]))
second = listen(sys.argv[2])
while True:
    connection, _ = second.accept()
    if connection.recv(100):
        connection.sendall(b"here\n")
    connection.close()
"#;

fn service_file(args: &[&str], listen: &str) -> String {
    let args: String = args.iter().map(|text| format!(", {text:?}")).collect();
    format!(
        "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {PYTHON:?}{args}]\nautostart = false\nstore = false\n\
         adapter = \"inject\"\nmode = \"exclusive\"\nstop_grace = \"5s\"\n[listen]\nmain = \"{listen}\"\n"
    )
}

#[test]
fn a_program_at_another_port_is_reported_at_once_with_the_line_to_write() {
    let rig = Rig::new();
    let [wanted, first, second] = [(); 3].map(|()| free_address().to_string());
    let file = rig.path("config/services/s.toml");
    std::fs::write(&file, service_file(&[&first, &second, "0"], &wanted)).unwrap();
    let began = Instant::now();
    let failed = std::thread::scope(|scope| {
        let start = scope.spawn(|| rig.call(Request::Start(service("s"))));
        let problem = wait_for("the mismatch to be reported", || {
            rig.status("s").problem.filter(|problem| problem.contains(&second))
        });
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}: {problem}", began.elapsed());
        let line = format!("write main = \"{second}\" in [listen]");
        assert!(problem.contains(&line), "{problem}");
        assert!(problem.contains(&format!("main = \"{wanted}\"")), "{problem}");
        start.join().unwrap().unwrap_err().to_string()
    });
    assert!(failed.contains(&format!("write main = \"{second}\" in [listen]")), "{failed}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    rig.call(Request::Stop(service("s"))).unwrap();

    // Now the line is correct.
    std::fs::write(&file, service_file(&[&first, &second, "0"], &second)).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    assert_eq!(ask(second.parse().unwrap(), "x").unwrap(), "here");
    assert_eq!(rig.looked_at("s").problem, None);
}

#[test]
fn a_program_that_comes_to_its_port_later_is_waited_for() {
    let rig = Rig::new();
    let [wanted, first] = [(); 2].map(|()| free_address().to_string());
    let text = service_file(&[&first, &wanted, "3"], &wanted);
    std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    assert_eq!(ask(wanted.parse().unwrap(), "x").unwrap(), "here");
    assert_eq!(rig.looked_at("s").problem, None);
    assert_eq!(rig.status("s").last_handoff.unwrap().outcome, Ending::Started);
}

/// The main process keeps its user. A worker with the user `nobody` names another process as the main process.
const WORKER: &str = r#"
import os, socket, sys, threading
host, port = sys.argv[1].split(":")
listener = socket.create_server((host, int(port)))
def say(text):
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
if os.fork() == 0:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    say("MAINPID=" + sys.argv[2])
    while True:
        threading.Event().wait(1)
say("READY=1")
while True:
    connection, _ = listener.accept()
    if connection.recv(100):
        connection.sendall(b"%d\n" % os.getpid())
    connection.close()
"#;

#[test]
fn a_worker_that_names_an_unrelated_process_gets_it_no_signal() {
    let rig = Rig::new();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(rig.root.path(), PermissionsExt::from_mode(0o711)).unwrap();
    let mut stranger = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let (address, named) = (free_address(), stranger.id());
    let text = format!(
        "binary = \"/usr/bin/python3\"\nargs = [\"-c\", {WORKER:?}, \"{address}\", \"{named}\"]\nautostart = false\nstore = false\n\
         adapter = \"inject\"\nmode = \"exclusive\"\nnotify = true\nstop_grace = \"1s\"\ndrain_grace = \"10s\"\n[listen]\nmain = \"{address}\"\n"
    );
    std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    let server: u32 = ask(address, "x").unwrap().parse().unwrap();
    let problem = wait_for("the refusal to be reported", || rig.looked_at("s").problem);
    let told = format!("MAINPID={named} of process");
    assert!(problem.contains(&told) && problem.contains("(sleep) is not part of the program"), "{problem}");
    assert_eq!(rig.status("s").pid, Some(server));
    // Everything that ends a program: an upgrade, a signal, the death of its shim, a stop.
    rig.call(Request::Restart(service("s"))).unwrap();
    let second = rig.status("s");
    assert_ne!(second.pid, Some(server));
    crate::support::signal(second.shim.unwrap(), handoff::sys::process::Signal::SIGKILL);
    wait_for("another shim", || rig.status("s").shim.filter(|shim| Some(*shim) != second.shim));
    rig.settled("s");
    rig.call(Request::Stop(service("s"))).unwrap();
    let alive = stranger.try_wait().unwrap().is_none();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(alive, "a process outside the program was ended");
}
