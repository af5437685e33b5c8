//! Slow operations, and wrong clocks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Rig, ask_meanwhile, signal, version, wait_for};
use handoff::control::Client;
use handoff::control::api::Ending;
use handoff::sys::process::Signal;
use handoff_protocol::log_image::{self, HEADER_LEN, PROVEN_AT};

/// Warm-up and begin take three leases each. The library sends signs of life, whatever the service does.
#[test]
fn a_start_may_take_many_leases_as_long_as_the_deadline_allows_it() {
    for mode in ["exclusive", "overlap"] {
        let rig = Rig::new();
        let limits = "lease = \"1s\"\ndrain_grace = \"1s\"\nresume_limit = \"1s\"";
        let address = rig.serve("s", "1", "", &format!("mode = \"{mode}\"\n{limits}"));
        let began = Instant::now();
        let outcome = rig.upgrade("s", &rig.release("2", "slow-start-3000")).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{mode}: {outcome:?}");
        assert!(began.elapsed() >= Duration::from_millis(6000));
        assert_eq!(version(address), "2");
        assert_eq!(rig.status("s").generation.0, 2);

        let late =
            rig.upgrade_with("s", &rig.release("3", "slow-start-3000"), Some(5000), Some(1000)).unwrap();
        assert_eq!(late.outcome, Ending::RolledBack, "{mode}: the deadline does not allow it");
        assert_eq!(version(address), "2");
    }
}

/// Every record has a wrong time: the clock was far ahead, at its beginning, or ran backwards.
#[test]
fn a_clock_that_was_wrong_changes_nothing() {
    let clocks: [fn(u64) -> u64; 4] = [
        |_| 0,
        |_| u64::MAX,
        |record| 4_000_000_000_000 + record,
        |record| 4_000_000_000_000 - 86_400_000 * record,
    ];
    let mut rig = Rig::new();
    let address = rig.serve("s", "0", "", "lease = \"2s\"");
    for (n, clock) in clocks.into_iter().enumerate() {
        let version_now = (n + 1).to_string();
        let outcome = rig.upgrade("s", &rig.release(&version_now, "")).unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
        let before = rig.settled("s");
        signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
        rig.daemon.take().unwrap().wait().unwrap();
        let journal = rig.path("state/services/s/journal");
        fs::write(&journal, with_clock(&fs::read(&journal).unwrap(), clock)).unwrap();
        rig.start_daemon();

        let after = rig.settled("s");
        assert_eq!((after.pid, after.generation), (before.pid, before.generation));
        assert_eq!((after.binary, after.restarts), (before.binary, before.restarts));
        assert_eq!(version(address), version_now);
        assert!(rig.run(&["status", "s"]).status.success(), "the status has a strange time, but it works");
        assert!(rig.run(&["list"]).status.success());
    }
    assert_eq!(rig.upgrade("s", &rig.release("last", "")).unwrap().outcome, Ending::Committed);
    assert_eq!(version(address), "last");
}

/// The id of the process that started later sorts before the id of the other one.
#[test]
fn a_clock_that_was_set_back_does_not_change_the_order_of_starts() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", "mode = \"overlap\"\nlease = \"20s\"");
    let leaving = rig.status("s").pid.unwrap();
    kill_daemon(&mut rig);
    let clock = clock_of_yesterday(&rig);
    start_daemon_with(&mut rig, &clock);
    rig.settled("s");
    let binary = rig.release("2", "");
    let slow = ask_meanwhile(address, "slow 8000");
    let daemon = rig.daemon.as_ref().unwrap().id();
    rig.upgrade_and("s", &binary, "retiring", || signal(daemon, Signal::SIGKILL)).unwrap_err();
    rig.daemon.take().unwrap().wait().unwrap();
    // The state of the old process is unknown until its lease ends. Until then it gets no connection.
    crate::support::stop(leaving);
    start_daemon_with(&mut rig, &clock);
    for _ in 0..20 {
        let asked = Instant::now();
        assert_eq!(version(address), "2");
        assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    }
    signal(leaving, Signal::SIGCONT);
    slow.join().unwrap().unwrap();
    rig.settled("s");
    assert_eq!(version(address), "2");
}

fn kill_daemon(rig: &mut Rig) {
    let mut daemon = rig.daemon.take().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

fn start_daemon_with(rig: &mut Rig, library: &Path) {
    let log = fs::File::options().create(true).append(true).open(rig.path("daemon.log")).unwrap();
    let mut daemon = rig.handoff(&["daemon"]);
    daemon.env("LD_PRELOAD", library).stdout(Stdio::null()).stderr(log);
    rig.daemon = Some(daemon.spawn().unwrap());
    wait_for("the daemon to answer", || Client::connect(&rig.path("run/control.sock")).ok());
}

/// A library whose wall clock is a day behind. The services of a daemon do not inherit its environment.
fn clock_of_yesterday(rig: &Rig) -> PathBuf {
    let (source, library) = (rig.path("clock.c"), rig.path("clock.so"));
    let text = "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
                int clock_gettime(clockid_t clock, struct timespec *now) {\n\
                int failed = syscall(SYS_clock_gettime, clock, now);\n\
                if (!failed && clock == CLOCK_REALTIME) now->tv_sec -= 86400;\n\
                return failed; }\n";
    fs::write(&source, text).unwrap();
    let built = Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(built.unwrap().success());
    library
}

/// The journal with other times.
fn with_clock(journal: &[u8], clock: fn(u64) -> u64) -> Vec<u8> {
    let mut records = log_image::parse(journal).unwrap().records;
    let mut bytes = log_image::header().to_vec();
    bytes[PROVEN_AT..].copy_from_slice(&journal[PROVEN_AT..HEADER_LEN]);
    for (sequence, record) in (1..).zip(&mut records) {
        record.at_unix_ms = clock(sequence);
        bytes.extend(log_image::encode(sequence, record).unwrap());
    }
    bytes
}
