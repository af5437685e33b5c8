//! The client in Python on the page of the control API works.

use std::process::Command;

use super::{blocks, read, section};
use crate::support::Rig;

/// What a program does with the client. It prints `done` at its end.
const PROGRAM: &str = r#"
import sys
handoff = Handoff()
assert handoff.call("ping")["pid"] == int(sys.argv[1])
assert [it["state"] for it in handoff.call("list")] == ["stopped"]
seen = handoff.call("subscribe", services=["web"])
assert seen["subscription"] == 1 and seen["states"][0]["state"] == "stopped", seen
notified = []
outcome = handoff.call("start", lambda *it: notified.append(it), service="web")
assert outcome["outcome"] == "started", outcome
assert {method for method, params in notified} == {"progress", "event"}, notified
other = Handoff(sys.argv[2])
assert other.call("stop", service="web")["outcome"] == "stopped"
states = []
for event in handoff.events():
    states.append(event["event"]["state"])
    if states[-1] == "stopped":
        break
assert "stopping" in states, states
try:
    handoff.call("status", service="nope")
    raise AssertionError("it knows a service that is none")
except Refused as refused:
    assert refused.args[0] == "unknown_service", refused
print("done")
"#;

#[test]
fn the_client_in_python_works_and_is_short() {
    let text = read("docs/control-api.md");
    let client = blocks(&text, "python").into_iter().next().expect("a client");
    assert!(client.lines().count() <= 30, "{} lines", client.lines().count());
    assert!(section("## A client in Python").contains("```python"));
    let rig = Rig::new();
    rig.write_service("web", &rig.release("1", ""), "");
    let script = rig.path("client.py");
    std::fs::write(&script, indented(&text) + PROGRAM).unwrap();
    let mut command = Command::new("timeout");
    command.args(["60", "python3"]).arg(&script).arg(rig.daemon.as_ref().unwrap().id().to_string());
    let ran = command.arg(rig.path("run")).env("HANDOFF_RUNTIME_DIR", rig.path("run")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "done\n", "{}", String::from_utf8_lossy(&ran.stderr));
}

/// The first block of Python, with its indentation.
fn indented(text: &str) -> String {
    let block = text.split_once("```python\n").expect("a block").1;
    block.split_once("```").expect("its end").0.to_owned()
}
