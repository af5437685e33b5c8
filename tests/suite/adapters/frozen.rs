//! Programs that are stopped while they start or resume. Their shims live, and give signs of life.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use handoff::control::api::{Ending, Request};
use handoff::sys::process::is_frozen;

use super::ending::Slow;
use crate::support::{LIMIT, executable, service, stop, wait_for};

const KEYS: &str = "lease = \"1s\"\ndeadline = \"60s\"\nstop_grace = \"20s\"\nnotify = true\n";

/// The server that runs beside or after `first`.
fn next(slow: &Slow, first: u32) -> u32 {
    wait_for("the next process", || {
        let all = crate::support::processes_of(&slow.rig.path("server"));
        all.into_iter().find(|pid| *pid != first)
    })
}

/// Whether the server has bound its listener.
fn has_bound(slow: &Slow) -> bool {
    std::net::TcpStream::connect(slow.address).is_ok()
        && handoff::sys::held::sockets_of(next(slow, 0)).is_ok_and(|sockets| sockets.count() > 0)
}

/// A debugger that stops a process. `None` if it may not.
fn debugged(pid: u32) -> Option<Child> {
    let attach = format!(
        "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, {pid}, None, None) == 0\nwhile True:\n    os.waitpid({pid}, 0)"
    );
    let mut python = Command::new("python3");
    let mut debugger = python.args(["-c", &attach]).stderr(Stdio::null()).spawn().unwrap();
    let is_attached = wait_for("the debugger", || {
        let has_ended = debugger.try_wait().unwrap().is_some();
        (has_ended || is_frozen(pid)).then_some(!has_ended)
    });
    is_attached.then_some(debugger)
}

#[test]
fn a_new_program_that_is_stopped_before_it_is_ready_rolls_back_after_the_lease() {
    for (holds, by_debugger) in [("opens", false), ("opens", true), ("holds", false)] {
        let slow = Slow::wrapped("exclusive", "0", KEYS, &["READY=1"], "exec SERVER");
        let first = slow.pid();
        let file = slow.rig.path(&format!("data/said.{holds}"));
        std::fs::write(&file, "").unwrap();
        let begun = Instant::now();
        let outcome = std::thread::scope(|scope| {
            let asked = scope.spawn(|| slow.restart());
            let server = next(&slow, first);
            if holds == "holds" {
                wait_for("its bind", || has_bound(&slow).then_some(()));
            }
            let debugger = by_debugger.then(|| debugged(server)).flatten();
            if debugger.is_none() {
                stop(server);
            }
            // For the old version.
            std::fs::remove_file(&file).unwrap();
            let outcome = asked.join().unwrap();
            if let Some(mut debugger) = debugger {
                let _ = debugger.kill();
                debugger.wait().unwrap();
            }
            let reason = outcome.reason.clone().unwrap_or_default();
            let told = format!("its process {server} (server) is stopped, by a signal or a debugger");
            assert!(reason.contains(&told), "{holds}: {reason}");
            outcome
        });
        assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
        assert!(begun.elapsed() < LIMIT / 2, "{:?}", begun.elapsed());
        slow.pid();
    }
}

#[test]
fn an_old_program_that_is_stopped_while_it_resumes_is_started_again() {
    let slow = Slow::wrapped("exclusive", "0", KEYS, &["READY=1"], "exec SERVER");
    let (first, file, bad) = (slow.pid(), slow.rig.path("data/said.opens"), slow.rig.path("bad"));
    std::fs::write(&bad, "#!/bin/sh\nexit 1\n").unwrap();
    executable(&bad);
    std::fs::write(&file, "").unwrap();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| slow.rig.upgrade("s", &bad));
        stop(next(&slow, first));
        std::fs::remove_file(&file).unwrap();
        drop(asked.join().unwrap());
    });
    slow.pid();
    assert!(begun.elapsed() < LIMIT / 2, "{:?}", begun.elapsed());
    let log = std::fs::read_to_string(slow.rig.path("state/services/s/log/current")).unwrap();
    let status = slow.rig.status("s");
    let told = "is stopped, by a signal or a debugger";
    assert!(
        log.contains(told) || status.problem.clone().unwrap_or_default().contains(told),
        "{status:?}\n{log}"
    );
    slow.rig.call(Request::Stop(service("s"))).unwrap();
}
