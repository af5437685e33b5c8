//! The duration of an attempt and of each of its phases is the same in every report.

use serde_json::Value;

use super::say;
use crate::support::Rig;

fn object(rig: &Rig, args: &[&str]) -> Value {
    let said = say(rig, args);
    let last = said.stdout.lines().last().unwrap_or_else(|| panic!("{said:?}"));
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

#[test]
fn the_answer_the_status_and_the_history_tell_the_same() {
    let rig = Rig::new();
    rig.write_service("s", &rig.release("1", ""), "store = true\n");
    let (second, bad) = (rig.release("2", ""), rig.release("3", "unhealthy"));
    for args in [
        &["start", "s"][..],
        &["upgrade", "s", "--binary", second.to_str().unwrap()],
        &["upgrade", "s", "--binary", bad.to_str().unwrap()],
        &["installed", "s", bad.to_str().unwrap()],
        &["restart", "s"],
        &["rollback", "s"],
        &["stop", "s"],
    ] {
        let answer = object(&rig, &[args, &["--json"]].concat())["outcome"].clone();
        let status = object(&rig, &["status", "s", "--json"])["last_handoff"].clone();
        let history = object(&rig, &["history", "s", "--last", "--json"]);
        let entry = if history["phases"].is_null() { history["entry"].clone() } else { history };
        for key in ["took_us", "phases", "accept_gap_us"] {
            assert_eq!(answer[key], status[key], "{key} of {args:?}");
            assert_eq!(answer[key], entry[key], "{key} of {args:?}");
        }
        assert!(answer["took_us"].as_u64().unwrap() > 0 && answer["phases"].is_array(), "{answer}");
    }
}
