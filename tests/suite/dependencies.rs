//! Services that depend on others: the order of starts and stops, and what a missing or failed one holds up.

use handoff::control::api::{Request, State};

use crate::support::{Rig, service, wait_for};

/// Writes the file of a program without listeners. It appends its name to a file when it starts, and again, after a
/// while, when it ends.
fn write(rig: &Rig, name: &str, keys: &str) {
    let order = rig.path("order");
    let script = format!(
        "echo +{name} >> {0}; trap 'sleep 0.2; echo -{name} >> {0}; exit' TERM; while :; do sleep 0.02; done",
        order.display()
    );
    write_program(rig, name, &script, keys);
}

fn write_program(rig: &Rig, name: &str, script: &str, keys: &str) {
    let text = format!("binary = \"/bin/sh\"\nargs = [\"-c\", {script:?}]\nstore = false\n{keys}\n");
    std::fs::write(rig.path(&format!("config/services/{name}.toml")), text).unwrap();
}

const SERVER: &str = "adapter = \"listen-fds\"\ndrain = \"nothing\"\n";

fn server(keys: &str) -> String {
    format!("{SERVER}{keys}")
}

fn order(rig: &Rig) -> Vec<String> {
    std::fs::read_to_string(rig.path("order")).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn awaits(rig: &Rig, name: &str, state: State) {
    wait_for(&format!("{name} to be {state:?}"), || (rig.status(name).state == state).then_some(()));
}

fn code(rig: &Rig, words: &[&str]) -> (Option<i32>, String) {
    let ran = rig.run(words);
    (ran.status.code(), String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned())
}

fn restart_daemon(rig: &mut Rig) {
    assert!(rig.stop_daemon().is_some_and(|status| status.success()));
    rig.start_daemon();
}

#[test]
fn what_depends_on_others_starts_after_them_and_stops_before_them() {
    let mut rig = Rig::new();
    // Sorted by name, the order would be the wrong one.
    write(&rig, "a-web", &server("requires = [\"b-app\"]"));
    write(&rig, "b-app", &server("wants = [\"c-db\"]"));
    write(&rig, "c-db", &server("after = [\"d-job\"]"));
    let job = format!("sleep 0.3; echo +d-job >> {}", rig.path("order").display());
    write_program(&rig, "d-job", &job, "type = \"oneshot\"");
    restart_daemon(&mut rig);
    awaits(&rig, "a-web", State::Serving);
    assert_eq!(order(&rig), ["+d-job", "+c-db", "+b-app", "+a-web"]);
    assert!(rig.stop_daemon().is_some_and(|status| status.success()));
    assert_eq!(order(&rig)[4..], ["-a-web", "-b-app", "-c-db"]);
}

#[test]
fn a_start_starts_what_it_needs_and_a_stop_stops_what_needs_it() {
    let rig = Rig::new();
    write(&rig, "web", &server("autostart = false\nrequires = [\"app\"]"));
    write(
        &rig,
        "app",
        &server("autostart = false\nrequires = [\"db\"]\nwants = [\"cache\"]\nafter = [\"other\"]"),
    );
    for name in ["db", "cache", "other"] {
        write(&rig, name, &server("autostart = false"));
    }
    let (exit, said) = code(&rig, &["start", "web"]);
    assert_eq!(exit, Some(0), "{said}");
    assert_eq!(order(&rig), ["+db", "+cache", "+app", "+web"]);
    assert_eq!(rig.status("other").state, State::Stopped, "after starts nothing");
    // What is only wanted may go.
    assert_eq!(code(&rig, &["stop", "cache"]).0, Some(0));
    assert_eq!(rig.status("app").state, State::Serving);
    let (exit, said) = code(&rig, &["stop", "db"]);
    assert_eq!(exit, Some(0), "{said}");
    assert!(said.contains("web, app, which require it"), "{said}");
    assert_eq!(order(&rig)[4..], ["-cache", "-web", "-app", "-db"]);
    // That the others were stopped with it is no decision about them.
    assert!(!rig.status("db").autostart.starts);
    assert_eq!(rig.status("web").autostart.decided_by, handoff::control::api::DecidedBy::File);
}

#[test]
fn a_failed_dependency_is_named_and_holds_up_only_what_requires_it() {
    let mut rig = Rig::new();
    write(&rig, "web", &server("requires = [\"db\"]"));
    write(&rig, "log", &server("wants = [\"db\"]"));
    write(&rig, "mail", &server(""));
    write_program(&rig, "db", "exit 7", "type = \"oneshot\"");
    restart_daemon(&mut rig);
    awaits(&rig, "mail", State::Serving);
    awaits(&rig, "db", State::Failed);
    awaits(&rig, "log", State::Serving);
    let status = rig.status("web");
    assert_eq!(status.state, State::Waiting, "{status:?}");
    let problem = status.problem.unwrap();
    assert!(
        problem.contains("waits for db: db does not run") && problem.contains("handoff start db"),
        "{problem}"
    );
    let (exit, said) = code(&rig, &["start", "web"]);
    assert_eq!(exit, Some(1), "{said}");
    assert!(said.contains("\"web\" is not started, because it requires \"db\""), "{said}");
    assert_eq!(rig.status("web").state, State::Waiting);
    write_program(&rig, "db", "exit 0", "type = \"oneshot\"");
    rig.call(Request::Start(service("db"))).unwrap();
    awaits(&rig, "web", State::Serving);
    assert_eq!(rig.status("web").problem, None);
}

#[test]
fn a_start_that_waits_can_be_called_off() {
    let mut rig = Rig::new();
    write(&rig, "web", &server("requires = [\"job\"]"));
    let job = format!("while [ ! -e {} ]; do sleep 0.02; done", rig.path("go").display());
    write_program(&rig, "job", &job, "type = \"oneshot\"");
    restart_daemon(&mut rig);
    awaits(&rig, "job", State::Running);
    awaits(&rig, "web", State::Waiting);
    assert_eq!(code(&rig, &["stop", "web"]).0, Some(0));
    assert_eq!(rig.status("web").state, State::Stopped);
    std::fs::write(rig.path("go"), "").unwrap();
    awaits(&rig, "job", State::Exited);
    assert_eq!((rig.status("web").state, rig.status("web").problem), (State::Stopped, None));
    assert_eq!(code(&rig, &["start", "web"]).0, Some(0), "the job is done");
}

#[test]
fn an_upgrade_or_a_crash_of_a_dependency_disturbs_nothing() {
    let rig = Rig::new();
    rig.serve("db", "1", "", "");
    write(&rig, "web", &server("autostart = false\nrequires = [\"db\"]"));
    rig.call(Request::Start(service("web"))).unwrap();
    let pid = rig.status("web").pid;
    rig.upgrade("db", &rig.release("2", "")).unwrap();
    let db = rig.status("db").pid.unwrap();
    crate::support::signal(db, handoff::sys::process::Signal::SIGKILL);
    wait_for("db to be back", || rig.settled("db").pid.filter(|pid| *pid != db));
    assert_eq!((rig.status("web").pid, rig.status("web").state), (pid, State::Serving));
}

#[test]
fn a_cycle_is_reported_with_its_path_and_a_missing_service_by_name() {
    let mut rig = Rig::new();
    write(&rig, "a", &server("requires = [\"b\"]"));
    write(&rig, "b", &server("wants = [\"c\"]"));
    write(&rig, "c", &server("after = [\"a\"]"));
    write(&rig, "lost", &server("requires = [\"databse\"]"));
    write(&rig, "tolerant", &server("wants = [\"nothing\"]"));
    let (exit, said) = code(&rig, &["check"]);
    assert_eq!(exit, Some(3), "{said}");
    for text in [
        "a.toml:6:12: requires: a would wait for itself: a after b after c after a",
        "c.toml:6:9: after: c would wait for itself: c after a after b after c",
        "lost.toml:6:12: requires: there is no service \"databse\"",
    ] {
        assert!(said.contains(text), "no {text:?} in {said}");
    }
    restart_daemon(&mut rig);
    awaits(&rig, "tolerant", State::Serving);
    assert_eq!(rig.status("a").state, State::Failed);
}
