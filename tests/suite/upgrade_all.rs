//! An upgrade of all services: the order, what stops it, and its report.

use std::path::Path;

use crate::support::{Rig, service, version};
use handoff::control::api::{Request, State};
use serde_json::Value;

/// A service that runs version 1 with its own data. Its file now names a release with `fault`.
fn serve(rig: &Rig, name: &str, fault: &str, after: &str) -> std::net::SocketAddr {
    let first = rig.release(&format!("1-{name}"), "");
    let address = rig.write_service(name, &first, &format!("after = [{after}]"));
    let (file, data) = (rig.path(&format!("config/services/{name}.toml")), rig.path(&format!("data-{name}")));
    std::fs::create_dir(&data).unwrap();
    let replace = |from: &Path, to: &Path| {
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(&format!("{from:?}"), &format!("{to:?}"))).unwrap();
    };
    replace(&rig.path("data"), &data);
    rig.call(Request::Start(service(name))).unwrap();
    replace(&first, &rig.release(&format!("2-{name}"), fault));
    address
}

fn run(rig: &Rig, args: &[&str]) -> (Option<i32>, Vec<Value>) {
    let output = rig.run(args);
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// The services, in the order of their ends.
fn ended(objects: &[Value]) -> Vec<&str> {
    objects.iter().filter_map(|object| object["outcome"]["service"].as_str()).collect()
}

#[test]
fn each_is_upgraded_after_those_that_it_names_and_a_stopped_one_is_passed_over() {
    let rig = Rig::new();
    let web = serve(&rig, "a-web", "", "\"m-cache\"");
    serve(&rig, "m-cache", "", "\"z-db\"");
    let db = serve(&rig, "z-db", "", "");
    rig.call(Request::Stop(service("m-cache"))).unwrap();
    let (code, objects) = run(&rig, &["upgrade", "--all", "--max-parallel", "3", "--json"]);
    assert_eq!(code, Some(0), "{objects:?}");
    assert_eq!(ended(&objects), ["z-db", "a-web"]);
    assert_eq!((version(web), version(db)), ("2-a-web".to_owned(), "2-z-db".to_owned()));
    assert_eq!(rig.status("m-cache").state, State::Stopped);
    let summary = &objects.last().unwrap()["summary"];
    assert_eq!(summary["committed"], serde_json::json!(["z-db", "a-web"]));
    assert_eq!(summary["passed_over"], serde_json::json!(["m-cache"]));
    assert!(objects.iter().any(|object| object["progress"]["service"] == "a-web"));
}

#[test]
fn the_first_rollback_stops_it() {
    let rig = Rig::new();
    serve(&rig, "a", "", "");
    let bad = serve(&rig, "b", "exit-after-begin", "\"a\"");
    let last = serve(&rig, "c", "", "\"b\"");
    let output = rig.run(&["upgrade", "--all"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let (told, progress) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(told.ends_with("upgraded: a; rolled back: b; not begun: c.\n"), "{told}");
    assert!(
        progress.contains("a: +") && progress.contains("b: +") && !progress.contains("c: +"),
        "{progress}"
    );
    assert_eq!((version(bad), version(last)), ("1-b".to_owned(), "1-c".to_owned()));
}

#[test]
fn what_runs_beside_a_rollback_is_waited_for() {
    let rig = Rig::new();
    serve(&rig, "a", "exit-after-begin", "");
    let slow = serve(&rig, "b", "slow-start-3000", "");
    serve(&rig, "c", "", "");
    let (code, objects) = run(&rig, &["upgrade", "--all", "--max-parallel", "2", "--json"]);
    assert_eq!(code, Some(4));
    assert_eq!(ended(&objects), ["a", "b"]);
    assert_eq!(version(slow), "2-b");
    assert_eq!(objects.last().unwrap()["summary"]["not_begun"], serde_json::json!(["c"]));
}

#[test]
fn with_mistakes_in_a_file_nothing_begins() {
    let rig = Rig::new();
    let address = serve(&rig, "a", "", "\"b\"");
    let output = rig.run(&["upgrade", "--all"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("there is no service \"b\""));
    assert_eq!(version(address), "1-a");
    let member = ["upgrade", "--all", "--member", "server"];
    for wrong in
        [&["upgrade"][..], &["upgrade", "a", "--all"], &["upgrade", "a", "--max-parallel", "2"], &member]
    {
        assert_eq!(rig.run(wrong).status.code(), Some(64), "{wrong:?}");
    }
}
