//! The answers of commands while no daemon runs.

use std::time::{Duration, Instant};

use handoff::control::api::Request;
use serde_json::Value;

use crate::support::{Rig, kill, service, wait_for};

fn said(output: &std::process::Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn object(rig: &Rig, arguments: &[&str]) -> Value {
    let (code, stdout, stderr) = said(&rig.run(arguments));
    assert_eq!((code, stderr.as_str()), (Some(7), ""), "{arguments:?}: {stdout}");
    serde_json::from_str(&stdout).unwrap()
}

/// Waits until the file of the daemon says this about `web`.
fn written(rig: &Rig, state: &str, generation: u64) {
    wait_for("the status file", || {
        let text = std::fs::read_to_string(rig.path("state/status.json")).ok()?;
        let file: Value = serde_json::from_str(&text).expect("a whole file");
        let web = file["services"].as_array()?.iter().find(|it| it["service"] == "web")?;
        (web["state"] == state && web["generation"] == generation).then_some(())
    });
}

#[test]
fn the_last_state_is_shown_with_its_time_and_an_exit_code_of_its_own() {
    let mut rig = Rig::new();
    rig.serve("web", "1", "", "store = true");
    rig.upgrade("web", &rig.release("2", "")).unwrap();
    written(&rig, "serving", 2);
    rig.stop_daemon().unwrap();

    let (code, stdout, stderr) = said(&rig.run(&["list"]));
    assert_eq!(code, Some(7), "{stderr}");
    assert!(
        stdout.contains("web") && stdout.contains("stopped"),
        "the end of the daemon is written: {stdout}"
    );
    assert!(stderr.starts_with("The daemon does not run; state as of 20"), "{stderr}");
    for arguments in
        [&["status"][..], &["status", "web"], &["status", "w*"], &["ls"], &["history"], &["history", "web"]]
    {
        let (code, stdout, stderr) = said(&rig.run(arguments));
        assert!(code == Some(7) && stdout.contains("web"), "{arguments:?}: {stdout}{stderr}");
        assert!(stderr.contains("The daemon does not run; state as of"), "{arguments:?}: {stderr}");
    }
    let status = object(&rig, &["status", "web", "--json"]);
    assert_eq!((&status["state"], &status["stale"]["daemon"]), (&"stopped".into(), &"ended".into()));
    assert_eq!(object(&rig, &["list", "--json"])["services"][0]["generation"], 2);
    let versions = object(&rig, &["versions", "web", "--json"]);
    let current: Vec<&Value> =
        versions["versions"].as_array().unwrap().iter().filter(|it| it["current"] == true).collect();
    assert_eq!(current.len(), 1, "{versions}");
    assert_eq!(current[0]["generations"], serde_json::json!([2]), "{versions}");
    let history = rig.run(&["history", "web", "--json", "--limit", "2"]);
    let (code, stdout, _) = said(&history);
    assert_eq!((code, stdout.lines().count()), (Some(7), 2), "{stdout}");

    // What is unknown, and what needs a daemon, ends as before.
    let (code, _, stderr) = said(&rig.run(&["status", "wbe"]));
    assert!(code == Some(1) && stderr.contains("Did you mean \"web\"?"), "{stderr}");
    for verb in [&["start", "web"][..], &["is-active", "web"], &["upgrade", "web"], &["show", "web"]] {
        assert_eq!(rig.run(verb).status.code(), Some(2), "{verb:?}");
    }
    // A file that is none: as without one.
    std::fs::write(rig.path("state/status.json"), "{\"version\":").unwrap();
    assert_eq!(rig.run(&["list"]).status.code(), Some(2));
    rig.start_daemon();
    assert_eq!(rig.run(&["list"]).status.code(), Some(0));
}

#[test]
fn after_the_death_of_the_daemon_its_services_are_in_the_file() {
    let mut rig = Rig::new();
    rig.serve("web", "1", "", "lease = \"3s\"");
    let pid = rig.settled("web").pid.unwrap();
    written(&rig, "serving", 1);
    kill(rig.daemon.as_ref().unwrap().id());
    rig.daemon.take().unwrap().wait().unwrap();
    let status = object(&rig, &["status", "web", "--json"]);
    assert_eq!((&status["state"], &status["pid"]), (&"serving".into(), &pid.into()));
    assert_eq!(status["stale"]["daemon"], "ended");
    // Of another boot: nothing of it runs.
    let path = rig.path("state/status.json");
    let mut file: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    file["daemon"]["boot_id"] = "11111111-1111-1111-1111-111111111111".into();
    std::fs::write(&path, file.to_string()).unwrap();
    let (code, _, stderr) = said(&rig.run(&["list"]));
    assert!(code == Some(7) && stderr.contains("the machine was started again since"), "{stderr}");
    rig.start_daemon();
}

/// At rest nothing is written, and many changes are written together.
#[test]
fn the_file_is_written_seldom() {
    let rig = Rig::new();
    rig.serve("web", "1", "", "");
    rig.settled("web");
    written(&rig, "serving", 1);
    let inode =
        || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(rig.path("state/status.json")).unwrap());
    let upgrades = 5;
    for number in 0..upgrades {
        rig.upgrade("web", &rig.release(&format!("2-{number}"), "")).unwrap();
    }
    written(&rig, "serving", 1 + upgrades);
    // A moment without changes: each write makes another file.
    let (mut seen, mut writes) = (inode(), 0);
    let until = Instant::now() + Duration::from_secs(1);
    let mut last_write = Instant::now();
    while Instant::now() < until {
        if inode() != seen {
            (seen, last_write) = (inode(), Instant::now());
            writes += 1;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(writes <= 2, "{writes} writes at rest");
    assert!(last_write < until - Duration::from_millis(300), "it is written at rest");
    rig.call(Request::Stop(service("web"))).unwrap();
}
