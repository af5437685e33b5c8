//! Commands for several services at once.

use crate::support::{Rig, free_address};

/// Services `web-1`, `web-2` and `db`, each with its own data.
fn three() -> Rig {
    let rig = Rig::new();
    let binary = rig.release("1", "");
    for name in ["web-1", "web-2", "db"] {
        let data = rig.path(&format!("data-{name}"));
        std::fs::create_dir_all(&data).unwrap();
        let text = format!(
            "binary = {binary:?}\nargs = [{data:?}]\nautostart = false\nstore = false\n[listen]\nmain = \"{}\"\n",
            free_address()
        );
        std::fs::write(rig.path(&format!("config/services/{name}.toml")), text).unwrap();
    }
    rig
}

fn states(rig: &Rig) -> [&'static str; 3] {
    ["web-1", "web-2", "db"].map(|name| rig.status(name).state.as_str())
}

#[track_caller]
fn ran(rig: &Rig, args: &[&str], code: i32) -> String {
    let output = rig.run(args);
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    said
}

#[test]
fn names_and_patterns_and_all_select_services() {
    let rig = three();
    ran(&rig, &["start", "web-*"], 0);
    assert_eq!(states(&rig), ["serving", "serving", "stopped"]);
    // Those that run already are left as they are.
    let pid = rig.status("web-1").pid;
    let said = ran(&rig, &["start", "--all"], 0);
    assert!(said.contains("\"web-1\" runs already") && said.contains("db"), "{said}");
    assert_eq!((states(&rig), rig.status("web-1").pid), (["serving"; 3], pid));
    ran(&rig, &["restart", "web-?", "web-1"], 0);
    assert_ne!(rig.status("web-1").pid, pid);
    assert_eq!(["web-1", "web-2", "db"].map(|name| rig.status(name).generation.0), [2, 2, 1]);
    let said = ran(&rig, &["status", "db", "web-[2]"], 0);
    assert!(
        said.contains("db: serving") && said.contains("web-2: serving") && !said.contains("web-1:"),
        "{said}"
    );
    ran(&rig, &["stop", "db", "web-1", "db"], 0);
    assert_eq!(states(&rig), ["stopped", "serving", "stopped"]);
    let said = ran(&rig, &["stop", "--all"], 0);
    assert!(said.contains("\"db\" does not run"), "{said}");
    assert_eq!(states(&rig), ["stopped"; 3]);
}

#[test]
fn what_selects_nothing_is_an_error_and_one_failure_stops_no_other() {
    let rig = three();
    let said = ran(&rig, &["start", "mail-*"], 1);
    assert!(said.contains("No service has a name like \"mail-*\""), "{said}");
    ran(&rig, &["start"], 64);
    ran(&rig, &["start", "--all", "db"], 64);
    ran(&rig, &["start", "web-["], 64);
    std::fs::write(rig.path("config/services/web-1.toml"), "binary =").unwrap();
    let said = ran(&rig, &["start", "web-*"], 3);
    assert!(said.contains("web-1.toml:1"), "{said}");
    assert_eq!(rig.status("web-2").state.as_str(), "serving");
    let objects = ran(&rig, &["start", "web-2", "db", "--json"], 0);
    let objects: Vec<serde_json::Value> =
        objects.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(objects[0]["unchanged"].as_str().unwrap().contains("runs already"), "{objects:?}");
    assert_eq!(objects.last().unwrap()["outcome"]["outcome"], "started");
}
