//! Services that are registered, unregistered, removed and destroyed.

use std::path::Path;

use handoff::control::api::{Ending, Outcome, Register, Removed, Request, Response};
use handoff::control::{ClientError, Kind};
use handoff::sys::process::Signal;

use super::{file, serves};
use crate::support::{Rig, free_address, service, signal, version, wait_for};

/// The text of a service file with an address of its own, and that address.
fn text_of(rig: &Rig, binary: &Path, more: &str) -> (String, std::net::SocketAddr) {
    let (address, data) = (free_address(), rig.path("data"));
    let text = format!(
        "binary = {binary:?}\nargs = [{data:?}]\nmode = \"overlap\"\nstore = false\n{more}\n[listen]\nmain = \"{address}\"\n"
    );
    (text, address)
}

fn register(rig: &Rig, name: &str, text: &str, ephemeral: bool) -> Result<Outcome, ClientError> {
    let register = Register { service: service(name), text: text.to_owned(), ephemeral };
    match rig.call(Request::Register(register))? {
        Response::Outcome(outcome) => Ok(*outcome),
        other => panic!("{other:?}"),
    }
}

fn removed(rig: &Rig, request: Request) -> Result<Removed, ClientError> {
    match rig.call(request)? {
        Response::Removed(removed) => Ok(*removed),
        other => panic!("{other:?}"),
    }
}

fn kind(error: &ClientError) -> Kind {
    match error {
        ClientError::Refused(error) => error.kind,
        other => panic!("{other:?}"),
    }
}

fn is_unknown(rig: &Rig, name: &str) -> bool {
    rig.call(Request::Status(service(name))).is_err_and(|error| kind(&error) == Kind::UnknownService)
}

/// All files below the directories of the rig that have this name in their path.
fn traces(rig: &Rig, name: &str) -> Vec<String> {
    let output = std::process::Command::new("find")
        .arg(rig.root.path())
        .args(["-path", &format!("*{name}*")])
        .output();
    String::from_utf8(output.unwrap().stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_service_is_registered_once_and_unregistered_once() {
    let rig = Rig::new();
    let (text, address) = text_of(&rig, &rig.release("1", "none"), "");
    assert_eq!(register(&rig, "web", &text, false).unwrap().outcome, Ending::Started);
    assert_eq!(version(address), "1");
    assert_eq!(std::fs::read_to_string(file(&rig, "web")).unwrap(), text);
    let pid = rig.status("web").pid;
    assert_eq!(register(&rig, "web", &text, false).unwrap().outcome, Ending::Unchanged);
    let other = register(&rig, "web", &format!("{text}\n# more"), false).unwrap_err();
    assert!(kind(&other) == Kind::ConfigInvalid && other.to_string().contains("handoff reload"), "{other}");
    assert_eq!(
        (rig.status("web").pid, std::fs::read_to_string(file(&rig, "web")).unwrap()),
        (pid, text.clone())
    );

    let gone = removed(&rig, Request::Unregister(service("web"))).unwrap();
    assert_eq!((gone.was_there, gone.stopped, gone.kept), (true, true, None));
    assert!(!serves(address) && !file(&rig, "web").exists() && is_unknown(&rig, "web"));
    assert!(
        !removed(&rig, Request::Unregister(service("web"))).unwrap().was_there,
        "once more is no failure"
    );
    // The name is free, and starts at its first generation.
    assert_eq!(register(&rig, "web", &text, false).unwrap().generation.0, 1);
}

#[test]
fn a_registration_that_fails_leaves_no_trace() {
    let rig = Rig::new();
    let holder = rig.serve("holder", "1", "none", "mode = \"overlap\"\n");
    let (bad, _) = text_of(&rig, Path::new("/bin/false"), "deadline = \"3s\"\ndrain_grace = \"1s\"");
    let (taken, own) = text_of(&rig, &rig.release("2", "none"), "");
    let taken = taken.replace(&own.to_string(), &holder.to_string());
    let table = [
        ("binary = \"/bin/true\"\nmode = \"often\"\n", ":2:8: mode", Kind::ConfigInvalid),
        ("binary = \"/no/such/file\"\n", "/no/such/file", Kind::ConfigInvalid),
        (&taken, "\"holder\"", Kind::ConfigInvalid),
        (&bad, "Nothing is left of it", Kind::ServiceDown),
    ];
    for (text, told, expected) in table {
        let refused = register(&rig, "zzweb", text, false).unwrap_err();
        assert_eq!(kind(&refused), expected, "{text}: {refused}");
        assert!(refused.to_string().contains(told), "{text}: {refused}");
        wait_for("all files to be gone", || traces(&rig, "zzweb").is_empty().then_some(()));
        assert!(is_unknown(&rig, "zzweb"), "{text}");
    }
    assert_eq!(version(holder), "1");
    assert_eq!(rig.status("holder").problem, None);
}

#[test]
fn an_ephemeral_service_survives_a_daemon_and_no_restart_of_the_machine() {
    let mut rig = Rig::new();
    let (text, address) = text_of(&rig, &rig.release("1", "none"), "");
    register(&rig, "job", &text, true).unwrap();
    assert!(!file(&rig, "job").exists() && rig.path("run/services/job.toml").exists());
    let pid = rig.status("job").pid;
    signal(rig.daemon.as_ref().unwrap().id(), Signal::SIGQUIT);
    rig.daemon.take().unwrap().wait().unwrap();
    rig.start_daemon();
    assert_eq!((rig.settled("job").pid, version(address).as_str()), (pid, "1"));
    assert_eq!(super::shown(&super::reload(&rig)), [""; 0]);
    assert_eq!(rig.status("job").problem, None);
    rig.stop_daemon();
    rig.start_daemon();
    assert_eq!(rig.settled("job").generation.0, 2, "it starts with the daemon");

    // As after a restart of the machine.
    rig.stop_daemon();
    std::fs::write(rig.path("run/services/boot-id"), "another boot").unwrap();
    rig.start_daemon();
    assert!(is_unknown(&rig, "job") && !serves(address));
    let (text, address) = text_of(&rig, &rig.release("2", "none"), "");
    register(&rig, "job", &text, true).unwrap();
    assert_eq!(version(address), "2");
    assert!(removed(&rig, Request::Unregister(service("job"))).unwrap().was_there);
    assert!(!rig.path("run/services/job.toml").exists() && !serves(address));
}

#[test]
fn a_removed_service_keeps_its_data_and_a_destroyed_one_nothing_of_handoff() {
    let rig = Rig::new();
    let address = rig.serve("web", "1", "none", "mode = \"overlap\"\n");
    let refused = removed(&rig, Request::Unregister(service("web"))).unwrap_err();
    assert!(refused.to_string().contains("handoff remove web"), "{refused}");
    assert!(serves(address), "nothing has happened");
    let text = std::fs::read_to_string(file(&rig, "web")).unwrap();
    let gone = removed(&rig, Request::Remove(service("web"))).unwrap();
    let aside = rig.path("config/services/web.toml.removed");
    assert_eq!((gone.was_there, gone.stopped, gone.kept.as_deref()), (true, true, Some(&*aside)));
    assert!(!serves(address) && is_unknown(&rig, "web"));
    assert_eq!(std::fs::read_to_string(&aside).unwrap(), text);
    assert!(rig.path("state/services/web/history").exists() && rig.path("state/services/web/log").exists());
    assert!(!removed(&rig, Request::Remove(service("web"))).unwrap().was_there);
    let told = String::from_utf8(rig.run(&["gc"]).stdout).unwrap();
    assert!(told.contains("handoff destroy web"), "{told}");

    // The name used again starts with what its file says, also in a later daemon.
    std::fs::write(file(&rig, "web"), &text).unwrap();
    rig.call(Request::Start(service("web"))).unwrap();
    assert_eq!((rig.status("web").generation.0, version(address).as_str()), (1, "1"));
    assert!(rig.path("state/removed/web/history").exists());

    std::fs::write(rig.path("state/services/web/mine"), "").unwrap();
    let refused = rig.run(&["destroy", "web"]);
    assert_eq!(refused.status.code(), Some(64), "it cannot ask");
    assert!(serves(address));
    let destroyed = rig.run(&["destroy", "web", "--yes"]);
    let told = String::from_utf8(destroyed.stdout).unwrap();
    assert!(destroyed.status.success() && told.contains("state/services/web/mine"), "{told}");
    assert!(!serves(address) && is_unknown(&rig, "web"));
    let left: Vec<_> = std::fs::read_dir(rig.path("state/services/web")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(!rig.path("state/removed/web").exists());
    assert!(rig.path("data").exists(), "the data of the program is not handoff's");
    assert!(rig.run(&["destroy", "web", "--yes"]).status.success(), "once more");
}

#[test]
fn the_command_line_names_the_service_by_its_file() {
    let rig = Rig::new();
    let (text, address) = text_of(&rig, &rig.release("1", "none"), "");
    let path = rig.path("web.toml");
    std::fs::write(&path, &text).unwrap();
    let registered = rig.run(&["register", path.to_str().unwrap()]);
    assert!(registered.status.success(), "{registered:?}");
    assert_eq!(version(address), "1");
    assert!(
        rig.run(&["register", path.to_str().unwrap(), "--name", "web"]).status.success(),
        "the same again"
    );
    assert_eq!(rig.run(&["register", "-"]).status.code(), Some(64));
    assert_eq!(rig.run(&["register", path.to_str().unwrap(), "--name", "Bad Name"]).status.code(), Some(64));
    let fifo = rig.path("fifo.toml");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert_eq!(rig.run(&["register", fifo.to_str().unwrap()]).status.code(), Some(1), "it does not wait");
    let gone = rig.run(&["unregister", "web"]);
    assert!(gone.status.success() && !serves(address), "{gone:?}");
}
