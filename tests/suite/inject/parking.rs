//! Binds that wait for the release.

use std::io::Read;

use handoff::shim::inject::InjectEvent;
use handoff::sys::descriptor::unread;
use handoff::sys::process::Signal;
use handoff::sys::process::kill;

use super::{Run, answer};
use crate::support::{again, free_address, signal, wait_for};

fn is_parked(event: &InjectEvent) -> bool {
    matches!(event, InjectEvent::Parked { .. })
}

/// Whether the program has written nothing so far.
fn is_silent(run: &Run) -> bool {
    unread(run.output.get_ref()).unwrap() == 0 && run.output.buffer().is_empty()
}

#[test]
fn a_bind_waits_until_it_is_released() {
    let address = free_address();
    let script = format!(
        "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', {}))\ns.listen()\nprint('bound', flush=True)\n\
         c, _ = s.accept()\nc.recv(1)\nc.sendall(b'served')\nc.close()\n",
        address.port(),
    );
    let mut run = Run::python(&[&address.to_string()], true, &script);
    let pid = run.started.pid;
    assert_eq!(run.events(1, is_parked), [InjectEvent::Parked { name: "a".into(), pid }]);
    assert!(is_silent(&run));
    run.injector.release();
    // The bind returns after the release.
    assert!(matches!(run.bound(1)[1], InjectEvent::Bound { pid: by, .. } if by == pid));
    assert_eq!(run.line(), "bound");
    assert_eq!(answer(address), "served");
}

#[test]
fn binds_of_several_threads_and_processes_are_released_at_once() {
    let (first, second) = (free_address(), free_address());
    // Each thread keeps its listener until the process ends.
    let script = format!(
        "import os, socket, threading\nkept = []\ndef up(port):\n s = socket.socket()\n \
         s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n s.bind(('127.0.0.1', port))\n s.listen()\n \
         kept.append(s)\n print('bound\\n', end='', flush=True)\n\
         os.fork()\nthreads = [threading.Thread(target=up, args=(port,)) for port in ({0}, {1}, {0})]\n\
         for t in threads: t.start()\nfor t in threads: t.join()\n\
         import signal\nsignal.pause()\n",
        first.port(),
        second.port(),
    );
    let mut run = Run::python(&[&first.to_string(), &second.to_string()], true, &script);
    let events = run.events(6, is_parked);
    let mut pids: Vec<u32> = events
        .iter()
        .map(|event| match event {
            InjectEvent::Parked { pid, .. } => *pid,
            other => panic!("{other}"),
        })
        .collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 2, "the pids are those of processes: {events:?}");
    assert!(is_silent(&run));
    run.injector.release();
    for _ in 0..6 {
        assert_eq!(run.line(), "bound");
    }
    assert_eq!(run.bound(6).len(), run.bound(6).len());
    for pid in pids {
        signal(pid, Signal::SIGKILL);
    }
}

#[test]
fn what_binds_after_the_release_does_not_wait() {
    let address = free_address();
    let script =
        format!("import socket\nsocket.socket().bind(('127.0.0.1', {}))\nprint('bound')", address.port());
    let mut run = Run::python(&[&address.to_string()], true, &script);
    run.events(1, is_parked);
    run.injector.release();
    assert_eq!(run.line(), "bound");
    let script =
        format!("import socket\nsocket.socket().bind(('127.0.0.1', {}))\nprint('again')", address.port());
    assert_eq!(run.again(&script).line(), "again");
}

#[test]
fn other_calls_go_on_while_one_waits() {
    let address = free_address();
    let script = format!(
        "import socket, threading\n\
         threading.Thread(target=lambda: socket.socket().bind(('127.0.0.1', {})), daemon=True).start()\n\
         o = socket.socket(); o.bind(('127.0.0.1', 0)); o.listen(); print('other', flush=True)\n\
         import signal\nsignal.pause()\n",
        address.port(),
    );
    let mut run = Run::python(&[&address.to_string()], true, &script);
    run.events(1, is_parked);
    assert_eq!(run.line(), "other");
}

#[test]
fn signals_do_not_disturb_a_bind_that_waits() {
    let address = free_address();
    let script = format!(
        "import signal, socket\ncount = [0]\ndef on(*_): count[0] += 1\nsignal.signal(signal.SIGUSR1, on)\n\
         s = socket.socket()\nprint('ready', flush=True)\ns.bind(('127.0.0.1', {}))\ns.listen()\n\
         print('bound', count[0] > 0, flush=True)\n",
        address.port(),
    );
    let mut run = Run::python(&[&address.to_string()], true, &script);
    assert_eq!(run.line(), "ready");
    run.events(1, is_parked);
    for _ in 0..50 {
        kill(&run.started.pidfd, Signal::SIGUSR1).unwrap();
        std::thread::yield_now();
    }
    run.injector.release();
    assert_eq!(run.line(), "bound True");
    run.bound(1);
    let parked = run.events(1, is_parked).into_iter().filter(is_parked).count();
    assert_eq!(parked, 1, "it waited without interruption");
}

#[test]
fn nothing_is_left_of_a_program_that_is_killed_while_it_waits() {
    let address = free_address();
    let text = address.to_string();
    let script = format!("import socket\nsocket.socket().bind(('127.0.0.1', {}))", address.port());
    let mut first = Run::python(&[&text], true, &script);
    first.events(1, is_parked);
    assert_eq!(first.end().signal, Some(9));
    first.injector.release();
    assert!(
        !first
            .bound(0)
            .iter()
            .any(|event| matches!(event, InjectEvent::Bound { .. } | InjectEvent::Failed { .. }))
    );
    // The output ends, so no process has its descriptors.
    first.output.read_to_string(&mut String::new()).unwrap();
}

#[test]
fn descriptors_of_the_answering_process_do_not_grow() {
    const INNER: &str = "HANDOFF_TEST_DESCRIPTORS";
    if std::env::var_os(INNER).is_none() {
        // In a separate process, where no other test opens descriptors.
        let output = again(descriptors_of_the_answering_process_do_not_grow, INNER, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let address = free_address();
    let script = format!(
        "import os, select, socket\nfor n in range(50):\n e = select.epoll()\n s = socket.socket()\n \
         e.register(s)\n s.bind(('127.0.0.1', {}))\n s.listen()\n e.unregister(s)\n s.close()\n e.close()\n \
         t = socket.socket(); t.bind(('127.0.0.1', 0)); t.listen(); t.close()\n\
         print('done', flush=True)\nimport signal\nsignal.pause()\n",
        address.port(),
    );
    let mut run = Run::python(&[&address.to_string()], false, &script);
    run.bound(1);
    assert_eq!(run.line(), "done");
    // One call may still be about to end.
    wait_for("the last descriptors to be closed", || {
        let before = open();
        (before < 40).then_some(before)
    });
}
