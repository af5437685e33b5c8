//! The daemon is killed, and a new daemon takes over its services.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::at_end::SetOnDrop;
use crate::support::{Rig, ask, ask_meanwhile, signal, version, wait_for};
use handoff::control::api::{Ending, State};
use handoff::sys::process::Signal;

const LEASE: &str = "lease = \"2s\"\nresume_limit = \"5s\"";
const OVERLAP: &str = "mode = \"overlap\"\nlease = \"2s\"\nresume_limit = \"5s\"";

fn kill_daemon(rig: &mut Rig) {
    let mut daemon = rig.daemon.take().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

fn keeper(rig: &Rig) -> u32 {
    let line = format!("{}\0", rig.path("run/keeper.sock").display());
    wait_for("a keeper", || {
        crate::support::processes_of(rig.root.path()).into_iter().find(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found.ends_with(line.as_bytes()))
        })
    })
}

fn upgrades(rig: &Rig, address: SocketAddr, to: &str) {
    let outcome = rig.upgrade("s", &rig.release(to, "")).unwrap();
    assert_eq!((outcome.outcome, &outcome.reason), (Ending::Committed, &None), "{outcome:?}");
    assert_eq!(version(address), to);
}

/// Sends requests continuously while `work` runs. Every request must be answered.
fn asking<T>(address: SocketAddr, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) || count == 0 {
                ask(address, "x").unwrap_or_else(|error| panic!("request {count}: {error}"));
                count += 1;
            }
        });
        let at_end = SetOnDrop(&stop);
        let done = work();
        drop(at_end);
        client.join().unwrap();
        done
    })
}

#[test]
fn what_runs_goes_on_and_can_be_upgraded() {
    for (mode, victims) in [(LEASE, 1), (OVERLAP, 1), (LEASE, 2), (OVERLAP, 2)] {
        let mut rig = Rig::new();
        let address = rig.serve("s", "1", "", mode);
        upgrades(&rig, address, "2");
        let before = rig.status("s");
        asking(address, || {
            for round in 0..3 {
                if victims == 2 {
                    let keeper = keeper(&rig);
                    kill_daemon(&mut rig);
                    signal(keeper, Signal::SIGKILL);
                    let gone = || (!Path::new(&format!("/proc/{keeper}/fd/0")).exists()).then_some(());
                    wait_for("the keeper to be gone", gone);
                } else {
                    kill_daemon(&mut rig);
                }
                rig.start_daemon();
                let after = rig.settled("s");
                assert_eq!(
                    (after.pid, after.generation, after.restarts, after.started_at, &after.binary),
                    (before.pid, before.generation, before.restarts, before.started_at, &before.binary),
                    "{mode}, {victims} killed, round {round}"
                );
                assert_eq!(rig.looked_at("s").problem, None);
            }
            upgrades(&rig, address, "3");
            upgrades(&rig, address, "4");
        });
        rig.call(handoff::control::api::Request::Stop(crate::support::service("s"))).unwrap();
        assert!(std::net::TcpStream::connect(address).is_err(), "stopped, so refused");
        assert_eq!(std::fs::read_dir(rig.path("run/adopt")).unwrap().count(), 0);
    }
}

#[test]
fn a_process_that_ended_meanwhile_is_reported_and_replaced_on_the_same_listener() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    let pid = rig.status("s").pid.unwrap();
    kill_daemon(&mut rig);
    crate::support::kill(pid);
    // The keeper has the listener, so this request waits until the next process answers it.
    let waiting = std::thread::spawn(move || version(address));
    rig.start_daemon();
    assert_eq!(waiting.join().unwrap(), "1");
    let status = rig.settled("s");
    assert_eq!((status.restarts, status.generation.0), (1, 2));
    let problem = status.problem.unwrap();
    assert!(problem.contains("While no daemon was there"), "{problem}");
    if std::fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|release| knows_exits(&release)) {
        assert!(problem.contains("killed by signal 9"), "{problem}");
    }
    upgrades(&rig, address, "2");
}

/// Since Linux 6.15, a pidfd reports the exit status of a process to any process, not only to its parent.
fn knows_exits(release: &str) -> bool {
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(15))
}

#[test]
fn an_upgrade_that_was_under_way_is_ended_and_reported() {
    let cases = [
        ("draining", "", "", Ending::RolledBack),
        ("sealing", "slow-seal-4000", "", Ending::RolledBack),
        ("warming", "", "hang-while-warming", Ending::RolledBack),
        ("beginning", "", "slow-begin-6000", Ending::Committed),
    ];
    for (mode, cases) in [(LEASE, &cases[..]), (OVERLAP, &cases[2..])] {
        for (phase, old_fault, new_fault, ending) in cases {
            let mut rig = Rig::new();
            let address = rig.serve("s", "1", old_fault, mode);
            let binary = rig.release("2", new_fault);
            let slow = (*phase == "draining").then(|| ask_meanwhile(address, "slow 8000"));
            std::thread::scope(|scope| {
                let upgrade = scope.spawn(|| rig.upgrade("s", &binary));
                wait_for(phase, || (rig.status("s").phase.as_deref() == Some(phase)).then_some(()));
                if *phase == "beginning" {
                    wait_for("it to hold the lock", || {
                        let log = rig.run(&["logs", "s"]).stdout;
                        String::from_utf8_lossy(&log).contains("testee 2 begins").then_some(())
                    });
                }
                signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
                upgrade.join().unwrap().unwrap_err();
            });
            rig.daemon.take().unwrap().wait().unwrap();
            rig.start_daemon();
            let status = rig.settled("s");
            let last = status.last_handoff.unwrap_or_else(|| panic!("{mode}, {phase}: not reported"));
            assert_eq!(last.outcome, *ending, "{mode}, {phase}: {last:?}");
            assert!(
                last.reason.as_ref().is_some_and(|reason| !reason.is_empty()),
                "{mode}, {phase}: {last:?}"
            );
            let expected = if *ending == Ending::Committed { "2" } else { "1" };
            assert_eq!(version(address), expected, "{mode}, {phase}");
            if let Some(slow) = slow {
                slow.join().unwrap().unwrap();
            }
            upgrades(&rig, address, "3");
        }
    }
}

/// This holds even if several daemons die in turn: the new version is neither committed nor restarted.
#[test]
fn what_does_not_pass_its_probe_is_not_committed_by_another_daemon() {
    for mode in [LEASE, OVERLAP] {
        let mut rig = Rig::new();
        let (check, well) = (rig.path("check"), rig.path("well"));
        let first = rig.path("testee-1");
        let script = format!(
            "#!/bin/sh\ntest -e {} || test \"$(readlink /proc/$HANDOFF_PID/exe)\" = {}\n",
            well.display(),
            first.display()
        );
        std::fs::write(&check, script).unwrap();
        crate::support::executable(&check);
        let probe = format!("{mode}\nliveness = \"100ms\"\n[probe]\nexec = [{check:?}]\nlimit = \"5m\"\n");
        let address = rig.serve("s", "1", "", &probe);
        let old = rig.status("s").pid;
        let binary = rig.release("2", "");
        let until_probed = |rig: &Rig| {
            wait_for("the probe", || (rig.status("s").phase.as_deref() == Some("probing")).then_some(()));
        };
        std::thread::scope(|scope| {
            let upgrade = scope.spawn(|| rig.upgrade("s", &binary));
            until_probed(&rig);
            signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
            upgrade.join().unwrap().unwrap_err();
        });
        rig.daemon.take().unwrap().wait().unwrap();
        rig.start_daemon();
        until_probed(&rig);
        kill_daemon(&mut rig);
        let path = rig.path("config/services/s.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("5m", "300ms")).unwrap();
        rig.start_daemon();
        let last = wait_for("the end to be reported", || rig.status("s").last_handoff);
        assert_eq!((last.outcome, last.generation.0), (Ending::RolledBack, 1), "{mode}: {last:?}");
        let reason = last.reason.unwrap();
        assert!(reason.contains("does not pass the probe"), "{mode}: {reason}");
        let status = rig.settled("s");
        assert_eq!((status.pid, status.restarts, version(address).as_str()), (old, 0, "1"), "{mode}");
        wait_for("the new process to be gone", || {
            crate::support::processes_of(&rig.path("testee-2")).is_empty().then_some(())
        });
        std::fs::write(&well, "").unwrap();
        upgrades(&rig, address, "3");
    }
}

/// The deadline holds even if several daemons die in between. The old process waits for the data lock, and stays
/// healthy.
#[test]
fn an_upgrade_has_one_deadline_whichever_daemon_is_there() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", "lease = \"2s\"\nresume_limit = \"20s\"");
    let old = rig.status("s").pid;
    let binary = rig.release("2", "hang-after-begin");
    let began = Instant::now();
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| rig.upgrade_with("s", &binary, Some(12_000), Some(10_000)));
        wait_for("it to hold the lock", || {
            let log = rig.run(&["logs", "s"]).stdout;
            String::from_utf8_lossy(&log).contains("testee 2 begins").then_some(())
        });
        signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
        upgrade.join().unwrap().unwrap_err();
    });
    rig.daemon.take().unwrap().wait().unwrap();
    for next in [4_000, 7_000] {
        rig.start_daemon();
        let until = began + Duration::from_millis(next);
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        kill_daemon(&mut rig);
    }
    rig.start_daemon();
    assert_eq!(version(address), "1");
    // The service file grants five minutes.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert!(began.elapsed() >= Duration::from_secs(12), "the new process got all of its time");
    let status = rig.settled("s");
    assert_eq!((status.pid, status.restarts, status.generation.0), (old, 0, 1));
    let last = status.last_handoff.unwrap();
    let reason = last.reason.unwrap_or_default();
    assert!(reason.contains("was not ready before the deadline"), "{reason}");
    upgrades(&rig, address, "3");
}

#[test]
fn a_process_that_is_frozen_is_replaced_when_it_does_not_answer() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    let pid = rig.status("s").pid.unwrap();
    signal(pid, Signal::SIGSTOP);
    kill_daemon(&mut rig);
    rig.start_daemon();
    let status = rig.settled("s");
    assert_ne!(status.pid, Some(pid));
    assert_eq!(version(address), "1");
    upgrades(&rig, address, "2");
}

#[test]
fn a_stop_that_was_under_way_is_completed_and_what_is_stopped_stays_so() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "slow-seal-5000", LEASE);
    std::thread::scope(|scope| {
        let stop =
            scope.spawn(|| rig.call(handoff::control::api::Request::Stop(crate::support::service("s"))));
        wait_for("it to stop", || (rig.status("s").state == State::Stopping).then_some(()));
        signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
        stop.join().unwrap().unwrap_err();
    });
    rig.daemon.take().unwrap().wait().unwrap();
    for _ in 0..2 {
        rig.start_daemon();
        wait_for("it to be stopped", || (rig.status("s").state == State::Stopped).then_some(()));
        assert!(std::net::TcpStream::connect(address).is_err());
        kill_daemon(&mut rig);
    }
    rig.start_daemon();
}

#[test]
fn a_daemon_that_is_killed_repeatedly_disturbs_no_client() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    let pid = rig.status("s").pid;
    asking(address, || {
        for round in 0..10 {
            signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
            rig.daemon.take().unwrap().wait().unwrap();
            let mut early = rig.handoff(&["daemon"]);
            let mut early = early
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            // After this time the daemon is somewhere in its start or in the takeover.
            let until = Instant::now() + Duration::from_micros(800) * round;
            while Instant::now() < until {
                std::thread::yield_now();
            }
            early.kill().unwrap();
            early.wait().unwrap();
            rig.start_daemon();
            assert_eq!(rig.settled("s").pid, pid);
        }
    });
    upgrades(&rig, address, "2");
}

#[test]
fn a_new_version_of_the_daemon_takes_over_after_the_old_one_has_left() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    let pid = rig.status("s").pid;
    asking(address, || {
        for _ in 0..3 {
            let mut daemon = rig.daemon.take().unwrap();
            signal(daemon.id(), Signal::SIGQUIT);
            assert_eq!(daemon.wait().unwrap().code(), Some(0));
            rig.start_daemon();
            assert_eq!(rig.settled("s").pid, pid);
        }
    });
    upgrades(&rig, address, "2");
}

#[test]
fn no_line_of_the_log_is_lost_or_doubled_when_daemon_and_keeper_are_killed() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    for round in 0..6 {
        ask(address, &format!("say line-{round}-before")).unwrap();
        let keeper = keeper(&rig);
        kill_daemon(&mut rig);
        if round % 2 == 0 {
            signal(keeper, Signal::SIGKILL);
        }
        ask(address, &format!("say line-{round}-between")).unwrap();
        rig.start_daemon();
        rig.settled("s");
        ask(address, &format!("say line-{round}-after")).unwrap();
    }
    let expected: Vec<String> = (0..6)
        .flat_map(|round| ["before", "between", "after"].map(|when| format!("line-{round}-{when}")))
        .collect();
    wait_for("all lines", || {
        let log = String::from_utf8(rig.run(&["logs", "s", "--text"]).stdout).unwrap();
        let found: Vec<String> =
            log.lines().filter(|line| line.starts_with("line-")).map(str::to_owned).collect();
        (found == expected).then_some(())
    });
}

#[test]
fn a_process_that_cannot_be_asked_serves_on_and_can_be_stopped() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    let pid = rig.status("s").pid;
    kill_daemon(&mut rig);
    for entry in std::fs::read_dir(rig.path("run/adopt")).unwrap() {
        let path = entry.unwrap().path();
        // The process recreates its socket, unless the path is taken.
        wait_for("a directory in its place", || {
            let _ = std::fs::remove_file(&path);
            std::fs::create_dir(&path).ok()
        });
    }
    rig.start_daemon();
    let status = rig.settled("s");
    assert_eq!(status.pid, pid);
    assert!(status.problem.unwrap().contains("cannot be reached"));
    let error = rig.upgrade("s", &rig.release("2", "")).unwrap_err().to_string();
    assert!(error.contains("closed its channel"), "{error}");
    assert_eq!(version(address), "1");
    let service = crate::support::service("s");
    rig.call(handoff::control::api::Request::Stop(service.clone())).unwrap();
    rig.call(handoff::control::api::Request::Start(service)).unwrap();
    upgrades(&rig, address, "3");
}

#[test]
fn what_was_bound_counts_whatever_became_of_the_service_file() {
    let mut rig = Rig::new();
    let address = rig.serve("s", "1", "", LEASE);
    let file = rig.path("config/services/s.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let other = crate::support::free_address();
    for changed in [Some(text.replace(&address.to_string(), &other.to_string())), None] {
        kill_daemon(&mut rig);
        match &changed {
            Some(changed) => std::fs::write(&file, changed).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        rig.start_daemon();
        rig.settled("s");
        assert_eq!(version(address), "1");
    }
    upgrades(&rig, address, "2");
    std::fs::write(&file, text.replace(&address.to_string(), &other.to_string())).unwrap();
    let error = rig.upgrade("s", &rig.release("3", "")).unwrap_err().to_string();
    assert!(error.contains("[listen] table"), "{error}");
    let service = crate::support::service("s");
    rig.call(handoff::control::api::Request::Stop(service.clone())).unwrap();
    rig.call(handoff::control::api::Request::Start(service)).unwrap();
    assert_eq!(version(other), "2");
}

#[test]
fn a_unix_socket_stays_at_its_path() {
    let mut rig = Rig::new();
    for (name, mode) in [("e", LEASE), ("o", OVERLAP)] {
        let path = rig.path(&format!("{name}.sock"));
        let listen = format!("main = \"unix:{}\"", path.display());
        let more = format!("{mode}\n[env]\nTESTEE_UNIX = {path:?}");
        rig.write_service(name, &rig.release("1", ""), &more);
        let file = rig.path(&format!("config/services/{name}.toml"));
        let text = std::fs::read_to_string(&file).unwrap();
        let (head, _) = text.split_once("[listen]").unwrap();
        std::fs::write(&file, format!("{head}[listen]\n{listen}\n")).unwrap();
        rig.call(handoff::control::api::Request::Start(crate::support::service(name))).unwrap();
        for n in 2..5 {
            let keeper = keeper(&rig);
            kill_daemon(&mut rig);
            if n % 2 == 0 {
                signal(keeper, Signal::SIGKILL);
            }
            rig.start_daemon();
            rig.settled(name);
            assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
            let outcome = rig.upgrade(name, &rig.release(&n.to_string(), "")).unwrap();
            assert_eq!(outcome.outcome, Ending::Committed);
        }
        rig.call(handoff::control::api::Request::Stop(crate::support::service(name))).unwrap();
        let left: Vec<_> = std::fs::read_dir(rig.root.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name.to_string_lossy().contains("sock"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        std::fs::remove_file(&file).unwrap();
    }
}
