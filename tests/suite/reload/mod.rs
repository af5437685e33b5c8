//! Service files that are changed, added, broken and removed while the daemon runs.

mod bad;
mod registration;

use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use handoff::control::api::{Cost, Ending, FileChange, Reload, Reloaded, Request, Response, State};
use handoff::control::{ClientError, Kind};
use handoff::sys::process::Signal;

use crate::support::{Rig, free_address, service, signal, version, wait_for};

/// Two services of a test have the same data, which only one of them can lock.
const OVERLAP: &str = "mode = \"overlap\"\n";

fn reload_as(rig: &Rig, dry_run: bool, allow_stop: bool) -> Result<Reloaded, ClientError> {
    match rig.call(Request::Reload(Reload { dry_run, allow_stop }))? {
        Response::Reload(reloaded) => Ok(*reloaded),
        other => panic!("{other:?}"),
    }
}

fn reload(rig: &Rig) -> Reloaded {
    reload_as(rig, false, false).unwrap()
}

fn file(rig: &Rig, name: &str) -> std::path::PathBuf {
    rig.path(&format!("config/services/{name}.toml"))
}

/// Replaces a part of a service file.
fn edit(rig: &Rig, name: &str, from: &str, to: &str) {
    let path = file(rig, name);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

/// The services that differ, in one line each.
fn shown(reloaded: &Reloaded) -> Vec<String> {
    let differ = reloaded.plan.iter().filter(|row| row.change != FileChange::Unchanged);
    let one = |row: &handoff::control::api::PlannedService| {
        let name = row.service.as_ref().map_or("-", |name| name.as_str());
        format!("{name} {} {} {}", row.change.as_str(), row.cost.as_str(), row.keys.join(","))
    };
    differ.map(|row| one(row).trim_end().to_owned()).collect()
}

fn serves(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}

/// The value of a variable in the environment of a process.
fn variable(pid: u32, name: &str) -> Option<String> {
    let text = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let entries = text.split(|byte| *byte == 0).map(|entry| String::from_utf8_lossy(entry).into_owned());
    entries
        .filter_map(|entry| Some(entry.split_once('=')?.1.to_owned()).filter(|_| entry.starts_with(name)))
        .next()
}

#[test]
fn a_changed_variable_is_handed_over_and_no_client_notices() {
    let rig = Rig::new();
    let address = rig.serve("svc", "1", "none", "env = { FLAVOUR = \"old\" }\n");
    let before = rig.status("svc");
    edit(&rig, "svc", "old", "new");
    let mark = rig.status("svc").file.unwrap();
    assert_eq!(
        (mark.is, mark.keys.join(" ").as_str(), mark.cost),
        (FileChange::Changed, "env.FLAVOUR", Cost::Handoff)
    );
    let told = String::from_utf8(rig.run(&["list"]).stdout).unwrap();
    assert!(told.contains("Its service file has changed (env.FLAVOUR") && !told.contains("new"), "{told}");

    let planned = reload_as(&rig, true, false).unwrap();
    assert_eq!(
        (shown(&planned), planned.applied),
        (vec!["svc changed handoff env.FLAVOUR".to_owned()], false)
    );
    assert_eq!(rig.status("svc").pid, before.pid, "a dry run changes nothing");

    let stop = std::sync::atomic::AtomicBool::new(false);
    let (applied, refused) = std::thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let mut refused = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                refused += u32::from(crate::support::ask(address, "version").is_err());
            }
            refused
        });
        let applied = reload(&rig);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (applied, clients.join().unwrap())
    });
    assert_eq!(refused, 0, "no client notices");
    assert!(applied.applied, "{applied:?}");
    assert_eq!(applied.results[0].outcome.as_ref().unwrap().outcome, Ending::Committed);
    let after = rig.settled("svc");
    assert_ne!(after.pid, before.pid);
    assert_eq!(variable(after.pid.unwrap(), "FLAVOUR").as_deref(), Some("new"));
    assert_eq!(after.file, None);
    assert_eq!(shown(&reload(&rig)), [""; 0], "the second one finds nothing");
    assert_eq!(rig.settled("svc").pid, after.pid);
}

#[test]
fn what_costs_nothing_keeps_its_process() {
    let rig = Rig::new();
    rig.serve("svc", "1", "none", "");
    let before = rig.status("svc");
    edit(&rig, "svc", "autostart", "deadline = \"3m\"\nautostart");
    let applied = reload(&rig);
    assert_eq!(shown(&applied), ["svc changed nothing deadline"]);
    assert_eq!(rig.status("svc").pid, before.pid);
    assert_eq!(shown(&reload(&rig)), [""; 0]);
}

#[test]
fn a_handoff_that_fails_leaves_the_old_process_with_the_old_settings() {
    let mut rig = Rig::new();
    let address = rig.serve("svc", "1", "none", "working_dir = \"/\"\n");
    let before = rig.status("svc");
    edit(&rig, "svc", "working_dir = \"/\"", "working_dir = \"/nowhere/at/all\"");
    let output = rig.run(&["reload"]);
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(4), "{told}");
    assert!(told.contains("/nowhere") && told.contains("serves on with its old settings"), "{told}");
    assert_eq!((rig.settled("svc").pid, version(address).as_str()), (before.pid, "1"));
    assert_eq!(rig.status("svc").file.unwrap().keys, ["working_dir"], "it is not applied");
    // A process that ends by itself starts again with the settings that work.
    signal(before.pid.unwrap(), Signal::SIGKILL);
    wait_for("another process", || rig.settled("svc").pid.filter(|pid| Some(*pid) != before.pid));
    assert_eq!(version(address), "1");

    // A new daemon knows by which file the process was started.
    signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGQUIT);
    rig.daemon.take().unwrap().wait().unwrap();
    rig.start_daemon();
    rig.settled("svc");
    assert_eq!(shown(&reload_as(&rig, true, false).unwrap()), ["svc changed handoff working_dir"]);
}

#[test]
fn one_broken_file_keeps_all_others_from_being_applied() {
    let rig = Rig::new();
    rig.serve("svc", "1", "none", "");
    let new = rig.write_service("new", &rig.release("2", "none"), OVERLAP);
    edit(&rig, "new", "autostart = false", "autostart = true");
    edit(&rig, "svc", "[listen]", "[env]\nA = \"b\"\n[listen]");
    let pid = rig.status("svc").pid;
    std::fs::write(file(&rig, "broken"), "binary = \"/bin/true\"\nmode = \"often\"\n").unwrap();
    let output = rig.run(&["reload"]);
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("broken.toml:2:8: mode"), "{told}");
    assert!(told.contains("Nothing was applied"), "{told}");
    assert!(!serves(new) && rig.status("svc").pid == pid);
    let status = rig.status("broken");
    assert_eq!(status.file.unwrap().is, FileChange::Broken);

    std::fs::remove_file(file(&rig, "broken")).unwrap();
    let applied = reload(&rig);
    assert_eq!(shown(&applied), ["new added start", "svc changed handoff env.A"]);
    assert_eq!(version(new), "2");
    assert_ne!(rig.status("svc").pid, pid);
}

#[test]
fn what_refuses_clients_is_not_done_without_being_asked_for() {
    let rig = Rig::new();
    let (moved, gone) = (rig.serve("moved", "1", "none", OVERLAP), rig.serve("gone", "2", "none", OVERLAP));
    let other = free_address();
    edit(&rig, "moved", &moved.to_string(), &other.to_string());
    std::fs::remove_file(file(&rig, "gone")).unwrap();
    assert_eq!(rig.status("gone").file.unwrap().is, FileChange::Removed);
    let refused = reload(&rig);
    assert_eq!(shown(&refused), ["gone removed stop", "moved changed restart listen.main"]);
    let why = refused.refused.unwrap();
    assert!(why.contains("gone (stop), moved (restart)") && why.contains("--allow-stop"), "{why}");
    assert!(serves(moved) && serves(gone));
    // A signal cannot ask for it either.
    signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGHUP);
    wait_for("the log to say so", || rig.daemon_log().contains("Nothing was applied").then_some(()));
    assert!(serves(moved) && serves(gone));

    let applied = reload_as(&rig, false, true).unwrap();
    assert!(applied.applied && applied.results.iter().all(|result| result.error.is_none()), "{applied:?}");
    assert!(serves(other) && !serves(moved) && !serves(gone));
    let unknown = rig.call(Request::Status(service("gone"))).unwrap_err();
    assert!(
        matches!(&unknown, ClientError::Refused(error) if error.kind == Kind::UnknownService),
        "{unknown:?}"
    );
}

#[test]
fn two_services_swap_their_addresses() {
    let rig = Rig::new();
    let (one, two) = (rig.serve("one", "1", "none", OVERLAP), rig.serve("two", "2", "none", OVERLAP));
    edit(&rig, "one", &one.to_string(), "THERE");
    edit(&rig, "two", &two.to_string(), &one.to_string());
    edit(&rig, "one", "THERE", &two.to_string());
    let applied = reload_as(&rig, false, true).unwrap();
    assert!(applied.results.iter().all(|result| result.error.is_none()), "{applied:?}");
    assert_eq!((version(one), version(two)), ("2".to_owned(), "1".to_owned()));
}

#[test]
fn an_established_service_keeps_its_address_against_a_newcomer() {
    let rig = Rig::new();
    let address = rig.serve("web", "1", "none", "");
    let pid = rig.status("web").pid;
    // The name of the newcomer sorts first.
    let binary = rig.release("2", "none");
    rig.write_service("a", &binary, "");
    let text = std::fs::read_to_string(file(&rig, "web")).unwrap().replace("testee-1", "testee-2");
    std::fs::write(file(&rig, "a"), text).unwrap();
    let refused = reload(&rig);
    assert_eq!(shown(&refused), ["a broken nothing"]);
    assert!(refused.plan[0].errors[0].cause.contains("of service web"), "{refused:?}");
    let started = rig.run(&["start", "a"]);
    let told = String::from_utf8(started.stderr).unwrap();
    assert!(started.status.code() == Some(3) && told.contains("\"web\""), "{told}");
    assert_eq!((rig.status("web").pid, version(address).as_str()), (pid, "1"));
    assert_eq!(rig.status("web").problem, None);
}

#[test]
fn a_signal_reloads_and_another_binary_is_upgraded_to() {
    let rig = Rig::new();
    let address = rig.serve("svc", "1", "none", "");
    let next = rig.release("2", "none");
    edit(&rig, "svc", "testee-1", Path::new(&next).file_name().unwrap().to_str().unwrap());
    signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGHUP);
    wait_for("the new version", || (version(address) == "2").then_some(()));
    let status = rig.settled("svc");
    assert_eq!((status.state, status.generation.0, status.file), (State::Serving, 2, None));
}
