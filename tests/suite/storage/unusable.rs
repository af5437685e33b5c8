//! A file of handoff that cannot be used is found before the serving process has to give up anything.

use std::fs;
use std::path::{Path, PathBuf};

use handoff::control::api::{Ending, Outcome, Request};

use crate::clients::BLOCKING;
use crate::support::{Rig, ask, free_address, service, version};

/// Puts a directory in the place of the file. Returns the path to which that was moved, if it existed.
fn replace(file: &Path) -> Option<PathBuf> {
    let aside = file.with_extension("aside");
    let moved = fs::rename(file, &aside).ok().map(|()| aside);
    fs::create_dir_all(file.join("x")).unwrap();
    moved
}

fn put_back(file: &Path, aside: Option<PathBuf>) {
    fs::remove_dir_all(file).unwrap();
    if let Some(aside) = aside {
        fs::rename(aside, file).unwrap();
    }
}

/// It is not asked to end, and serves on.
fn is_refused(outcome: &Outcome, file: &Path) {
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    let reason = outcome.reason.clone().unwrap();
    assert!(reason.contains(&file.display().to_string()), "{reason}");
    let given_up = outcome.phases.iter().find(|phase| matches!(&*phase.phase, "draining" | "sealing"));
    assert_eq!((given_up, outcome.restarted), (None, false), "{outcome:?}");
}

#[test]
fn an_upgrade_of_an_unmodified_program_is_refused_before_the_old_one_has_ended() {
    for warm in ["", "warm = true\n"] {
        let (rig, address) = (Rig::new(), free_address());
        let text = format!(
            "binary = {:?}\nargs = [\"-\", \"{address}\"]\nautostart = false\nstore = false\nadapter = \"inject\"\n\
             mode = \"exclusive\"\n{warm}[listen]\nmain = \"{address}\"\n",
            rig.release_of("plain", "0", "")
        );
        fs::write(rig.path("config/services/s.toml"), text).unwrap();
        rig.call(Request::Start(service("s"))).unwrap();
        let (next, first) = (rig.release_of("plain", "1", ""), ask(address, "pid").unwrap());
        for name in ["pair", "program.lock", ".handoff.lock"] {
            let file = rig.path("state/services/s").join(name);
            let aside = replace(&file);
            let outcome = rig.upgrade("s", &next).unwrap();
            is_refused(&outcome, &file);
            let reason = outcome.reason.unwrap();
            assert!(reason.contains("could not be started: handoff's own file"), "{reason}");
            assert!(reason.contains("move it away"), "{reason}");
            assert_eq!(ask(address, "pid").unwrap(), first, "{name}");
            put_back(&file, aside);
        }
        // The state can be read and not be replaced: the old program finds out, and serves on.
        let file = rig.path("state/services/s/pair.new");
        let aside = replace(&file);
        assert_eq!(rig.upgrade("s", &next).unwrap().outcome, Ending::RolledBack);
        assert_eq!(ask(address, "pid").unwrap(), first);
        put_back(&file, aside);
        assert_eq!(rig.upgrade("s", &next).unwrap().outcome, Ending::Committed);
        assert_eq!(version(address), "1");
    }
}

#[test]
fn an_upgrade_of_a_service_whose_data_cannot_be_locked_is_refused_before_the_old_process_drains() {
    let rig = Rig::new();
    let address = rig.serve("s", "1", "", "");
    let pid = rig.status("s").pid;
    let file = rig.path("data/.handoff.lock");
    let aside = replace(&file);
    is_refused(&rig.upgrade("s", &rig.release("2", "")).unwrap(), &file);
    assert_eq!((rig.status("s").pid, version(address)), (pid, "1".to_owned()));
    put_back(&file, aside);
    assert_eq!(rig.upgrade("s", &rig.release("2", "")).unwrap().outcome, Ending::Committed);
}

#[test]
fn the_same_holds_for_a_service_in_python() {
    let rig = Rig::new();
    let kind = BLOCKING;
    kind.serve(&rig, "0", "", "");
    let (pid, file) = (rig.status("s").pid, rig.path("data/.handoff.lock"));
    let aside = replace(&file);
    is_refused(&rig.upgrade("s", &kind.release(&rig, "1", "")).unwrap(), &file);
    assert_eq!(rig.status("s").pid, pid);
    put_back(&file, aside);
    assert_eq!(rig.upgrade("s", &kind.release(&rig, "1", "")).unwrap().outcome, Ending::Committed);
}
