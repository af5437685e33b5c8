//! Files and moments that a reload must survive.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use handoff::control::api::{Ending, FileChange, Request};
use handoff::control::{ClientError, Kind};

use super::{edit, file, reload, reload_as, shown};
use crate::support::{Rig, ask_meanwhile, service, version, wait_for};

fn is_busy(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(error) if error.kind == Kind::Busy)
}

#[test]
fn a_reload_during_an_upgrade_is_refused_and_an_upgrade_during_a_reload_too() {
    let rig = Rig::new();
    let address = rig.serve("svc", "1", "none", "drain_grace = \"20s\"\n");
    let next = rig.release("2", "none");
    let slow = ask_meanwhile(address, "slow 8000");
    wait_for("the request to be there", || rig.status("svc").pid);
    let upgraded = rig.upgrade_and("svc", &next, "draining", || {
        edit(&rig, "svc", "[listen]", "[env]\nA = \"b\"\n[listen]");
        let refused = reload_as(&rig, false, false).unwrap_err();
        assert!(is_busy(&refused) && refused.to_string().contains("draining"), "{refused}");
        assert!(refused.to_string().contains("Nothing was reloaded"), "{refused}");
        let refused = rig.call(Request::Remove(service("svc"))).unwrap_err();
        assert!(is_busy(&refused) && file(&rig, "svc").exists(), "{refused}");
        // To look is always possible.
        assert_eq!(shown(&reload_as(&rig, true, false).unwrap()), ["svc changed handoff env.A"]);
    });
    assert_eq!(upgraded.unwrap().outcome, Ending::Committed);
    slow.join().unwrap().unwrap();
    rig.settled("svc");

    edit(&rig, "svc", "A = \"b\"", "A = \"c\"");
    let slow = ask_meanwhile(address, "slow 8000");
    std::thread::scope(|scope| {
        let reloading = scope.spawn(|| reload(&rig));
        wait_for("the drain", || rig.status("svc").phase.filter(|phase| phase == "draining"));
        let refused = rig.upgrade("svc", &next).unwrap_err();
        assert!(is_busy(&refused), "{refused}");
        let refused = reload_as(&rig, false, false).unwrap_err();
        assert!(is_busy(&refused) && refused.to_string().contains("Another reload"), "{refused}");
        let reloaded = reloading.join().unwrap();
        assert_eq!(reloaded.results[0].outcome.as_ref().unwrap().outcome, Ending::Committed);
    });
    slow.join().unwrap().unwrap();
    assert_eq!(version(address), "2");
}

#[test]
fn files_that_are_none_break_the_plan_and_hold_nothing_up() {
    let rig = Rig::new();
    rig.serve("svc", "1", "none", "");
    let pid = rig.status("svc").pid;
    assert!(Command::new("mkfifo").arg(file(&rig, "fifo")).status().unwrap().success());
    std::fs::File::create(file(&rig, "large")).unwrap().set_len(1 << 30).unwrap();
    std::fs::create_dir(file(&rig, "directory")).unwrap();
    symlink("/nowhere/at/all", file(&rig, "link")).unwrap();
    symlink(file(&rig, "loop"), file(&rig, "loop")).unwrap();
    std::fs::write(file(&rig, "bytes"), b"binary = \"\xff\"").unwrap();
    std::fs::write(file(&rig, "empty"), "").unwrap();
    std::fs::write(file(&rig, "a b"), "binary = \"/bin/true\"").unwrap();
    let begin = Instant::now();
    let refused = reload(&rig);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert!(!refused.applied);
    let broken: Vec<String> = shown(&refused);
    for name in ["-", "bytes", "directory", "empty", "fifo", "large", "link", "loop"] {
        assert!(broken.contains(&format!("{name} broken nothing")), "{name}: {broken:?}");
    }
    assert_eq!(rig.status("svc").pid, pid);
}

#[test]
fn a_directory_that_is_gone_ends_no_service() {
    let rig = Rig::new();
    let address = rig.serve("svc", "1", "none", "");
    std::fs::rename(rig.path("config/services"), rig.path("config/elsewhere")).unwrap();
    let refused = reload_as(&rig, false, true).unwrap();
    assert!(refused.refused.unwrap().contains("config/services"), "{:?}", refused.plan);
    assert_eq!(version(address), "1");
    std::fs::write(rig.path("config/services"), "").unwrap();
    let refused = reload_as(&rig, false, true).unwrap();
    assert!(refused.refused.is_some(), "{:?}", refused.plan);
    std::fs::remove_file(rig.path("config/services")).unwrap();
    std::fs::rename(rig.path("config/elsewhere"), rig.path("config/services")).unwrap();
    assert_eq!(shown(&reload(&rig)), [""; 0]);
}

#[test]
fn a_thousand_files_are_read_and_one_change_is_found() {
    let rig = Rig::new();
    let number = crate::support::all_or(1_000, 200);
    for at in 0..number {
        let text = "binary = \"/bin/true\"\nautostart = false\nstore = false\n";
        std::fs::write(file(&rig, &format!("s{at}")), text).unwrap();
    }
    let added = reload(&rig);
    assert!(added.applied && added.plan.len() == number, "{}", added.plan.len());
    assert!(added.plan.iter().all(|row| row.change == FileChange::Added));
    let begin = Instant::now();
    edit(&rig, "s7", "store", "deadline = \"9m\"\nstore");
    let changed = reload(&rig);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    // They have never run, so each is as new as before.
    assert!(changed.applied && changed.plan.len() == number);
    rig.call(Request::Status(service("s7"))).unwrap();
}

#[test]
fn a_file_that_is_broken_at_any_key_is_reported_at_its_line() {
    let rig = Rig::new();
    rig.serve("svc", "1", "none", "");
    let pid = rig.status("svc").pid;
    for key in handoff::config::known_keys() {
        // No key takes a date.
        let binary = if *key == "binary" { "" } else { "binary = \"/bin/true\"\n" };
        std::fs::write(file(&rig, "bad"), format!("{binary}{key} = 2026-01-01\n")).unwrap();
        let refused = reload(&rig);
        let row = refused.plan.iter().find(|row| row.service == Some(service("bad"))).unwrap();
        assert_eq!((refused.applied, row.change), (false, FileChange::Broken), "{key}");
        let line = 1 + binary.lines().count() as u32;
        assert!(row.errors.iter().any(|error| error.at.is_some_and(|at| at.line == line)), "{key}: {row:?}");
    }
    assert_eq!(rig.status("svc").pid, pid);
}
