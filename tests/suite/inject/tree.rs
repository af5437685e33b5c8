//! Process trees, and processes without privilege.

use std::os::unix::fs::PermissionsExt;

use handoff::shim::inject::InjectEvent;
use handoff::sys::user::effective_user;

use super::{Run, answer};
use crate::support::{arguments_for, free_address, signal};

#[test]
fn workers_that_each_bind_share_the_listener() {
    let address = free_address();
    let script = format!(
        "import os, socket\n\
         def work():\n s = socket.socket()\n s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n \
         s.bind(('127.0.0.1', {}))\n s.listen()\n c, _ = s.accept()\n c.recv(1)\n \
         c.sendall(str(os.getpid()).encode())\n c.close()\n os._exit(0)\n\
         workers = [os.fork() or work() for _ in range(3)]\nfor w in workers: os.waitpid(w, 0)\nprint('over')\n",
        address.port(),
    );
    let mut run = Run::python(&[&address.to_string()], false, &script);
    let events = run.bound(3);
    let bound = |pid: &str| {
        events
            .iter()
            .any(|event| matches!(event, InjectEvent::Bound { pid: by, .. } if by.to_string() == pid))
    };
    // Each process serves one connection and ends.
    let mut served: Vec<String> = (0..3).map(|_| answer(address)).collect();
    assert!(served.iter().all(|pid| bound(pid)), "{served:?} {events:?}");
    served.dedup();
    assert_eq!(served.len(), 3);
    assert_eq!(run.line(), "over");
}

#[test]
fn a_program_that_it_executes_is_answered_too_and_outlives_it() {
    let address = free_address();
    let script = format!(
        "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', {}))\ns.listen()\n\
         c, _ = s.accept()\nc.recv(1)\nc.sendall(b'grandchild')\nc.close()",
        address.port(),
    );
    let shell = format!("/usr/bin/python3 -c \"{script}\" & echo $!; exit 0");
    let mut run = Run::start(&[&address.to_string()], false, super::spec("/bin/sh", &["-c", &shell]));
    let grandchild: u32 = run.line().parse().unwrap();
    assert_eq!(super::end_of(&run.started).code, Some(0));
    assert_eq!(run.answer(address), "grandchild");
    signal(grandchild, handoff::sys::process::Signal::SIGKILL);
    // No process is left.
    run.joined();
}

#[test]
fn no_privilege_is_needed() {
    const INNER: &str = "HANDOFF_TEST_UNPRIVILEGED";
    let Some(dir) = std::env::var_os(INNER) else {
        if effective_user() == 0 {
            as_nobody(no_privilege_is_needed, INNER);
        } else {
            serve_one(super::handoff());
        }
        return;
    };
    assert!(effective_user() != 0);
    serve_one(&std::path::Path::new(&dir).join("handoff"));
}

/// Copies both programs to a place where every user can execute them, and runs the test there as `nobody`.
fn as_nobody(test: impl Fn(), variable: &str) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // Another process copies: a child of another test could inherit an open descriptor, and a file that is open for
    // writing cannot be executed.
    let copy = |from: &std::ffi::OsStr, to: &std::path::Path| {
        assert!(std::process::Command::new("/bin/cp").arg(from).arg(to).status().unwrap().success());
    };
    copy(super::handoff().as_os_str(), &dir.path().join("handoff"));
    let tests = dir.path().join("tests");
    copy(std::env::current_exe().unwrap().as_os_str(), &tests);
    let output = std::process::Command::new("/usr/bin/setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(tests)
        .args(arguments_for(test))
        .env(variable, dir.path())
        .output()
        .unwrap();
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

/// With an epoll registration, which needs the most calls.
fn serve_one(handoff: &std::path::Path) {
    let address = free_address();
    let script = format!(
        "import select, socket\ne = select.epoll()\ns = socket.socket()\ne.register(s, select.EPOLLIN)\n\
         s.bind(('127.0.0.1', {}))\ns.listen()\nassert e.poll(20)\nc, _ = s.accept()\nc.recv(1)\nc.sendall(b'served')\nc.close()\n\
         print([l.split()[1] for l in open('/proc/self/status') if l.startswith(('NoNewPrivs', 'Uid'))])",
        address.port(),
    );
    let mut run = Run::start_by(handoff, &[&address.to_string()], false, super::python(&script));
    assert_eq!(run.answer(address), "served");
    assert!(run.line().ends_with("'1']"));
}
