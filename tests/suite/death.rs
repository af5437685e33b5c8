//! A process dies or freezes in the middle of an operation. In the end exactly one process serves, without any manual
//! action.

use std::path::Path;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use crate::support::{Rig, ask_meanwhile, service, signal, version, wait_for};
use handoff::control::ClientError;
use handoff::control::api::{Ending, Outcome, Request, State};
use handoff::sys::errno::Errno;
use handoff::sys::process::Signal;
use handoff::sys::socket::{AddressFamily, SockFlag, SockType, connect_path, socket};
use handoff::sys::user::effective_user;

/// Long enough for a busy machine, on which a process may be silent for a second.
const LEASE: &str = "lease = \"2s\"\nresume_limit = \"5s\"";
const THREE_LEASES: Duration = Duration::from_secs(6);

/// Begins an upgrade of service `s`, and returns when it is in `phase`.
fn upgrade_until<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    rig: &'scope Rig,
    binary: &'scope Path,
    phase: &str,
) -> ScopedJoinHandle<'scope, Result<Outcome, ClientError>> {
    let upgrade = scope.spawn(|| rig.upgrade("s", binary));
    wait_for(phase, || (rig.status("s").phase.as_deref() == Some(phase)).then_some(()));
    upgrade
}

fn daemon(rig: &Rig) -> u32 {
    rig.daemon.as_ref().unwrap().id()
}

/// The process of `binary`.
fn process_of(binary: &Path) -> u32 {
    wait_for("its process", || crate::support::processes_of(binary).first().copied())
}

#[test]
fn a_frozen_old_process_is_replaced() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    signal(rig.status("s").pid.unwrap(), Signal::SIGSTOP);
    let outcome = rig.upgrade("s", &rig.release("2", "")).unwrap();
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    assert_eq!(version(address), "2");
}

#[test]
fn a_frozen_new_process_is_given_up() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    for (n, fault) in ["hang-while-warming", "slow-begin-20000"].iter().enumerate() {
        let binary = rig.release(&format!("frozen-{n}"), fault);
        let phase = if n == 0 { "warming" } else { "beginning" };
        std::thread::scope(|scope| {
            let upgrade = upgrade_until(scope, &rig, &binary, phase);
            signal(process_of(&binary), Signal::SIGSTOP);
            let outcome = upgrade.join().unwrap().unwrap();
            assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
            assert!(outcome.reason.unwrap().contains("no sign of life"));
        });
        assert_eq!(version(address), "1");
    }
}

#[test]
fn the_new_process_goes_on_when_the_daemon_dies_after_begin() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    let binary = rig.release("2", "slow-begin-6000");
    std::thread::scope(|scope| {
        let upgrade = upgrade_until(scope, &rig, &binary, "beginning");
        // Before it holds the lock, the old process could still take the lock.
        wait_for("it to have the lock", || {
            let log = rig.run(&["logs", "s"]).stdout;
            String::from_utf8_lossy(&log).contains("testee 2 begins").then_some(())
        });
        signal(daemon(&rig), Signal::SIGKILL);
        upgrade.join().unwrap().unwrap_err();
    });
    rig.daemon.take().unwrap().wait().unwrap();
    assert_eq!(version(address), "2", "it got Begin, so it serves");
    // The old process is the standby. Only the kernel hands it the lock.
    signal(process_of(&binary), Signal::SIGKILL);
    assert_eq!(version(address), "1");
}

#[test]
fn the_old_process_goes_on_when_the_daemon_dies_before_begin() {
    for (fault, phase) in [("", "draining"), ("slow-seal-4000", "sealing")] {
        let mut rig = Rig::new();
        let address = rig.serve("s", "1", fault, LEASE);
        let binary = rig.release("2", "");
        let slow = (phase == "draining").then(|| ask_meanwhile(address, "slow 8000"));
        std::thread::scope(|scope| {
            let upgrade = upgrade_until(scope, &rig, &binary, phase);
            signal(daemon(&rig), Signal::SIGKILL);
            upgrade.join().unwrap().unwrap_err();
        });
        rig.daemon.take().unwrap().wait().unwrap();
        assert_eq!(version(address), "1", "killed while {phase}");
        wait_for("the new process to leave", || {
            crate::support::processes_of(&binary).is_empty().then_some(())
        });
        if let Some(slow) = slow {
            assert_eq!(slow.join().unwrap().unwrap(), "1 slow 8000");
        }
    }
}

#[test]
fn a_frozen_daemon_causes_no_outage_longer_than_the_lease_and_agrees_afterwards() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "slow-seal-4000", "lease = \"4s\"\nresume_limit = \"5s\"");
    let binary = rig.release("2", "");
    std::thread::scope(|scope| {
        let upgrade = upgrade_until(scope, &rig, &binary, "sealing");
        signal(daemon(&rig), Signal::SIGSTOP);
        // The old process has sealed, and then hears nothing: it resumes by itself.
        wait_for("the service to stop answering", || crate::support::is_dark(address).then_some(()));
        assert_eq!(version(address), "1");
        signal(daemon(&rig), Signal::SIGCONT);
        let outcome = upgrade.join().unwrap().unwrap();
        assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    });
    assert_eq!(version(address), "1");
    assert_eq!(rig.status("s").state, State::Serving);
    assert_eq!(rig.upgrade("s", &rig.release("3", "")).unwrap().outcome, Ending::Committed);
}

#[test]
fn a_daemon_that_is_frozen_for_long_at_any_phase_agrees_with_what_happened() {
    for phase in ["greeting", "warming", "draining", "beginning"] {
        let rig = Rig::new();
        let address = rig.serve("s", "1", "", LEASE);
        let binary = rig.release("2", "slow-begin-300");
        let slow = ask_meanwhile(address, "slow 400");
        std::thread::scope(|scope| {
            let upgrade = scope.spawn(|| rig.upgrade("s", &binary));
            wait_for(phase, || {
                let status = rig.status("s");
                // A phase may end before it is seen. A later phase counts, too.
                let is_there = status.phase.as_deref() == Some(phase) || status.generation.0 == 2;
                (is_there || upgrade.is_finished()).then_some(())
            });
            crate::support::freeze(daemon(&rig), THREE_LEASES);
            let outcome = upgrade.join().unwrap().unwrap();
            let serves = version(address);
            match outcome.outcome {
                Ending::Committed => assert_eq!(serves, "2", "{phase}: {outcome:?}"),
                _ => assert_eq!(serves, "1", "{phase}: {outcome:?}"),
            }
        });
        slow.join().unwrap().unwrap();
        assert_eq!(rig.status("s").state, State::Serving);
    }
}

/// This happens when a container or the machine is paused. The process that continues first must not treat the silence
/// as a failure of the others.
#[test]
fn a_pause_of_all_processes_in_an_upgrade_kills_none() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    let binary = rig.release("2", "");
    let slow = ask_meanwhile(address, "slow 12000");
    std::thread::scope(|scope| {
        let upgrade = upgrade_until(scope, &rig, &binary, "draining");
        let services = [rig.status("s").pid.unwrap(), process_of(&binary)];
        services.iter().for_each(|pid| signal(*pid, Signal::SIGSTOP));
        crate::support::freeze(daemon(&rig), THREE_LEASES);
        // The daemon has read its clock by now.
        rig.status("s");
        services.iter().for_each(|pid| signal(*pid, Signal::SIGCONT));
        let outcome = upgrade.join().unwrap().unwrap();
        assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    });
    assert!(slow.join().unwrap().unwrap().starts_with("1 "), "the old process was not killed");
    assert_eq!(version(address), "2");
}

/// `flock`, which holds the lock of the data or waits for it. It ends when this is dropped.
struct Stranger(std::process::Child);

impl Stranger {
    fn new(rig: &Rig) -> Self {
        let lock = rig.path("data/.handoff.lock");
        let command = std::process::Command::new("flock").arg(lock).args(["sleep", "1000"]).spawn();
        Self(command.unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        for pid in handoff::sys::process::tree_of(self.0.id()) {
            crate::support::kill(pid);
        }
        let _ = self.0.wait();
    }
}

#[test]
fn the_holder_of_the_lock_of_the_data_is_named() {
    let rig = Rig::new();
    let address = rig.write_service("s", &rig.release("1", ""), "");
    let stranger = Stranger::new(&rig);
    wait_for("the stranger to have the lock", || {
        std::fs::read_to_string("/proc/locks")
            .unwrap()
            .contains(&format!(" {} ", stranger.pid()))
            .then_some(())
    });
    std::thread::scope(|scope| {
        let start = scope.spawn(|| rig.call(Request::Start(service("s"))));
        let problem = wait_for("the problem to be reported", || rig.looked_at("s").problem);
        let told = format!("process {} (flock)", stranger.pid());
        assert!(problem.contains(&told) && problem.contains("holds the lock of its data"), "{problem}");
        drop(stranger);
        start.join().unwrap().unwrap();
    });
    assert_eq!(version(address), "1");
    assert_eq!(rig.looked_at("s").problem, None);
}

#[test]
fn an_upgrade_is_refused_while_another_process_waits_for_the_lock() {
    let rig = Rig::new();
    let mark = rig.path("preflight-ran");
    let address = rig.serve("s", "1", "", &format!("preflight = [\"/usr/bin/touch\", {mark:?}]"));
    let pid = rig.status("s").pid;
    let stranger = Stranger::new(&rig);
    wait_for("the stranger to wait", || {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        locks
            .lines()
            .any(|line| line.contains("->") && line.contains(&format!(" {} ", stranger.pid())))
            .then_some(())
    });
    let next = rig.release("2", "");
    let refused = rig.upgrade("s", &next).unwrap_err().to_string();
    assert!(refused.contains(&format!("process {} (flock) waits for the lock", stranger.pid())), "{refused}");
    assert!(!mark.exists(), "nothing is run for an upgrade that cannot be made");
    assert_eq!((version(address).as_str(), rig.status("s").pid), ("1", pid));
    drop(stranger);
    assert_eq!(rig.upgrade("s", &next).unwrap().outcome, Ending::Committed);
    assert_eq!(version(address), "2");
}

/// Listens at a path as another user, until its standard input is closed.
const STRANGER: &str = "import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.bind(sys.argv[1] + '.other')
os.rename(sys.argv[1] + '.other', sys.argv[1])
os.setuid(65534)
s.listen(4)
print('listens', flush=True)
sys.stdin.read()";

/// Needs root, to become another user.
#[test]
fn a_socket_at_which_another_user_listens_is_not_that_of_the_process() {
    use std::io::BufRead;
    let mut rig = Rig::new();
    if effective_user() != 0 {
        eprintln!("not run: it needs root to become another user");
        return;
    }
    let address = rig.serve("s", "1", "", LEASE);
    let pid = rig.status("s").pid;
    let mut lost = rig.daemon.take().unwrap();
    lost.kill().unwrap();
    lost.wait().unwrap();
    let sockets = std::fs::read_dir(rig.path("run/adopt")).unwrap().map(|entry| entry.unwrap().path());
    let socket = sockets.into_iter().find(|path| path.extension().is_none()).unwrap();
    // In one step, because the process would recreate its own socket.
    let mut stranger = std::process::Command::new("python3")
        .args(["-c", STRANGER])
        .arg(&socket)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(stranger.stdout.take().unwrap()).read_line(&mut line).unwrap();
    rig.start_daemon();
    let status = rig.settled("s");
    drop(stranger.stdin.take());
    stranger.wait().unwrap();
    let problem = status.problem.unwrap();
    assert!(problem.contains("cannot be reached") && problem.contains("of user 65534"), "{problem}");
    assert_eq!((status.pid, version(address)), (pid, "1".to_owned()));
}

/// As after many daemons that came and went meanwhile: their connections stay in its queue.
#[test]
fn a_frozen_process_that_lets_no_further_daemon_in_is_replaced() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    let pid = rig.status("s").pid.unwrap();
    signal(pid, Signal::SIGSTOP);
    let mut lost = rig.daemon.take().unwrap();
    lost.kill().unwrap();
    lost.wait().unwrap();
    let sockets = std::fs::read_dir(rig.path("run/adopt")).unwrap().map(|entry| entry.unwrap().path());
    let path = sockets.into_iter().find(|path| path.extension().is_none()).unwrap();
    let connect = || {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_NONBLOCK)?;
        connect_path(&socket, &path).map(|()| socket)
    };
    let mut others = Vec::new();
    let error = loop {
        match connect() {
            Ok(socket) if others.len() < 1000 => others.push(socket),
            full => break full.err(),
        }
    };
    assert_eq!(error, Some(Errno::EAGAIN));
    rig.start_daemon();
    let status = rig.settled("s");
    assert_ne!(status.pid, Some(pid));
    assert_eq!(version(address), "1");
}

#[test]
fn sockets_that_are_removed_one_by_one_come_back_and_the_next_daemon_finds_them() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    let pid = rig.status("s").pid;
    let mut lost = rig.daemon.take().unwrap();
    lost.kill().unwrap();
    lost.wait().unwrap();
    // The sockets below adopt/, and those of the daemon and of the keeper.
    for directory in ["run/adopt", "run"] {
        for path in std::fs::read_dir(rig.path(directory)).unwrap().map(|entry| entry.unwrap().path()) {
            if !path.is_dir() {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
    rig.start_daemon();
    assert_eq!(rig.settled("s").pid, pid);
    assert_eq!(rig.looked_at("s").problem, None);
    assert_eq!(rig.upgrade("s", &rig.release("2", "")).unwrap().outcome, Ending::Committed);
    assert_eq!(version(address), "2");
}
