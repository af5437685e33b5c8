//! Requests while the service is at work: the answer names the phase, and what can be done in it.

use handoff::control::api::{Ending, Request};
use handoff::sys::process::Signal;

use super::interrupt::begin;
use super::{CommandOutput, say};
use crate::support::{Rig, ask_meanwhile, service, signal, wait_for};

fn is_in(rig: &Rig, phase: &str) -> Option<()> {
    (rig.status("s").phase.as_deref() == Some(phase)).then_some(())
}

/// Both requests need the turn of the service, which an upgrade has until its end.
fn are_refused(rig: &Rig, doing: &str, hint: &str) {
    for verb in [&["rollback", "s", "1"][..], &["gc", "s"]] {
        let said = say(rig, verb);
        assert_eq!(said.code, Some(5), "{said:?}");
        assert!(said.stderr.contains(doing) && said.stderr.contains(hint), "{verb:?}: {said:?}");
    }
}

#[test]
fn in_a_canary_the_phase_is_named_and_the_way_out() {
    let rig = Rig::new();
    rig.serve("s", "1", "", "store = true\nmode = \"overlap\"\ncanary = [\"5% 10m\"]");
    let second = rig.release("2", "");
    let outcome = rig.upgrade_and("s", &second, "canary", || {
        are_refused(&rig, "it is being upgraded, phase canary", "call it off: handoff cancel s");
        rig.call(Request::Cancel(service("s"))).unwrap();
    });
    assert_eq!(outcome.unwrap().outcome, Ending::RolledBack);
}

#[test]
fn a_stop_in_the_probation_is_no_success_of_the_upgrade() {
    let rig = Rig::new();
    rig.serve("s", "1", "", "store = true\nprobation = \"10m\"");
    let second = rig.release("2", "");
    let upgrade = begin(&rig, &["upgrade", "s", "--binary", second.to_str().unwrap()]);
    wait_for("the probation", || is_in(&rig, "probation"));
    are_refused(&rig, "its new version is on probation", "call it off: handoff cancel s");
    assert_eq!(say(&rig, &["stop", "s"]).code, Some(0));
    let said = CommandOutput::of(upgrade.wait_with_output().unwrap());
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stdout.contains("s is stopped"), "{said:?}");
    assert!(said.stderr.contains("Another command has stopped s."), "{said:?}");
    // Its entry, and that of the stop, may have one id: all of it names both.
    let entries = say(&rig, &["history", "s", "--json"]).stdout;
    let ids: Vec<serde_json::Value> = entries
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].clone())
        .collect();
    for id in &ids {
        let said = say(&rig, &["history", "--id", id.as_str().unwrap()]);
        assert_eq!(said.code, Some(0), "{said:?}");
        let told = said.stdout.matches(id.as_str().unwrap()).count();
        assert_eq!(told, ids.iter().filter(|other| *other == id).count(), "{said:?}");
    }
    assert!(ids.len() >= 3, "{ids:?}");
}

#[test]
fn after_the_commit_the_way_back_is_a_rollback() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "store = true\nmode = \"overlap\"");
    let slow = ask_meanwhile(address, "slow 8000");
    let second = rig.release("2", "");
    let mut upgrade = begin(&rig, &["upgrade", "s", "--binary", second.to_str().unwrap()]);
    wait_for("the old process to leave", || is_in(&rig, "retiring"));
    are_refused(&rig, "it is being upgraded, phase retiring", "Wait until it is done");
    let said = say(&rig, &["cancel", "s"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("phase retiring") && said.stderr.contains("handoff rollback s"), "{said:?}");
    signal(upgrade.id(), Signal::SIGINT);
    wait_for("the command to end", || upgrade.try_wait().unwrap());
    let said = CommandOutput::of(upgrade.wait_with_output().unwrap());
    assert_eq!(said.code, Some(130), "{said:?}");
    assert!(said.stderr.ends_with("; to go back when it is done: handoff rollback s\n"), "{said:?}");
    assert_eq!(slow.join().unwrap().unwrap(), "1 slow 8000");
    rig.settled("s");
}
