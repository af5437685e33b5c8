//! Ctrl-C while the daemon works.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use handoff::control::api::{Ending, Request, Response};
use handoff::sys::process::Signal;

use super::{CommandOutput, say};
use crate::support::{Rig, service, signal, version, wait_for};

/// Starts a command with SIGINT enabled. A test that runs in the background ignores SIGINT, and a child would inherit
/// that.
pub(super) fn begin(rig: &Rig, args: &[&str]) -> Child {
    let whole = rig.handoff(args);
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(whole.get_program()).args(whole.get_args());
    command.envs(whole.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Interrupts a command during the warm-up of its upgrade.
fn interrupted(rig: &Rig, args: &[&str]) -> CommandOutput {
    let mut command = begin(rig, args);
    wait_for("the upgrade to warm up", || {
        (rig.status("s").phase.as_deref() == Some("warming")).then_some(())
    });
    signal(command.id(), Signal::SIGINT);
    wait_for("the command to end", || command.try_wait().unwrap());
    let said = CommandOutput::of(command.wait_with_output().unwrap());
    assert_eq!(said.code, Some(130), "{said:?}");
    assert_eq!(rig.status("s").phase.as_deref(), Some("warming"), "the upgrade goes on");
    match rig.call(Request::Cancel(service("s"))).unwrap() {
        Response::Outcome(outcome) => assert_eq!(outcome.outcome, Ending::RolledBack),
        other => panic!("{other:?}"),
    }
    said
}

#[test]
fn the_upgrade_goes_on_and_the_command_says_how_to_watch_it_and_call_it_off() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let slow = rig.release("2", "hang-while-warming");
    let upgrade = ["upgrade", "s", "--binary", slow.to_str().unwrap()];
    let said = interrupted(&rig, &upgrade);
    let last = said.stderr.lines().last().unwrap();
    assert_eq!(
        last,
        "The upgrade of s goes on in the daemon. Watch it: handoff status s; call it off: handoff cancel s"
    );
    let said = interrupted(&rig, &[&upgrade[..], &["--json"]].concat());
    let object: serde_json::Value = serde_json::from_str(said.stdout.lines().last().unwrap()).unwrap();
    let error = &object["error"];
    assert!(error["kind"] == "interrupted" && error["exit"] == 130, "{object}");
    assert!(error["hint"].as_str().unwrap().contains("handoff cancel s"), "{object}");
    let said = interrupted(&rig, &["installed", "s", slow.to_str().unwrap()]);
    assert!(said.stderr.contains("handoff cancel s"), "{said:?}");
    assert_eq!(version(address), "1");
}

/// A service with its own data directory.
fn serve_beside(rig: &Rig) -> SocketAddr {
    let address = rig.write_service("t", &rig.release("10", ""), "after = [\"s\"]\n");
    let (file, data) = (rig.path("config/services/t.toml"), rig.path("beside"));
    std::fs::create_dir(&data).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(rig.path("data").to_str().unwrap(), data.to_str().unwrap())).unwrap();
    rig.call(Request::Start(service("t"))).unwrap();
    address
}

#[test]
fn of_all_upgrades_those_under_way_are_named_and_no_other_begins() {
    let rig = Rig::new();
    rig.serve("s", "1", "", "");
    let later = serve_beside(&rig);
    let file = rig.path("config/services/s.toml");
    let slow = rig.release("2", "hang-while-warming");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(rig.path("testee-1").to_str().unwrap(), slow.to_str().unwrap()))
        .unwrap();
    let said = interrupted(&rig, &["upgrade", "--all"]);
    let last = said.stderr.lines().last().unwrap();
    assert!(last.contains("No other upgrade begins; under way in the daemon: s."), "{said:?}");
    assert!(last.contains("handoff status NAME") && last.contains("handoff cancel NAME"), "{said:?}");
    assert_eq!(rig.status("t").generation.0, 1);
    assert_eq!(version(later), "10");
    assert_eq!(say(&rig, &["status", "s"]).code, Some(0));
}
