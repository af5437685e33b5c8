//! The daemon is lost before an upgrade has started the new process. The next daemon reports the upgrade.

use std::process::Stdio;

use handoff::control::api::{History, Request, Response};
use handoff::history::{Ending, Entry, Operation};

use super::StoredService;
use crate::support::{self, service, version, wait_for};

fn history(stored: &StoredService) -> Vec<Entry> {
    match stored.rig.call(Request::History(History { service: Some(service("s")), limit: None })).unwrap() {
        Response::History(entries) => entries,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_daemon_was_at_when_it_ended_is_in_the_history() {
    let cases = [
        ("[update]\nversion_command = COMMAND\n", "it took in the new version", "importing"),
        ("preflight = COMMAND\n", "the preflight ran", "preflight"),
        ("[hooks]\npre_upgrade = COMMAND\n", "the hook before the upgrade ran", "hook"),
    ];
    for (key, doing, phase) in cases {
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (begun, go_on) = (place.path().join("begun"), place.path().join("go-on"));
        let script =
            format!("touch {}; until [ -e {} ]; do sleep 0.05; done", begun.display(), go_on.display());
        let hangs = key.replace("COMMAND", &format!("[\"/bin/sh\", \"-c\", {script:?}]"));
        // The first version passes.
        std::fs::write(&go_on, "").unwrap();
        let mut stored = StoredService::serve(&hangs);
        std::fs::remove_file(&go_on).unwrap();
        let _ = std::fs::remove_file(&begun);

        let next = stored.rig.release("2", "");
        let mut upgrade = stored.rig.handoff(&["upgrade", "s", "--binary"]);
        let mut upgrade = upgrade.arg(&next).stderr(Stdio::null()).spawn().unwrap();
        wait_for(doing, || begun.exists().then_some(()));
        // The daemon writes this file in the background, without waiting for the disk.
        let prepared = stored.rig.path("state/services/s/history.preparing");
        wait_for("the entry for the next daemon", || {
            std::fs::read_to_string(&prepared).ok()?.contains(doing).then_some(())
        });
        let mut daemon = stored.rig.daemon.take().unwrap();
        support::kill(daemon.id());
        daemon.wait().unwrap();
        upgrade.wait().unwrap();
        stored.rig.start_daemon();
        stored.rig.settled("s");

        let entries = history(&stored);
        let last = entries.last().unwrap();
        assert_eq!(
            (last.operation, last.outcome),
            (Operation::Upgrade, Ending::Rejected),
            "{doing}: {last:?}"
        );
        assert_eq!(last.reason.as_deref(), Some(&*format!("the daemon ended while {doing}")), "{last:?}");
        assert_eq!(last.to.as_ref().unwrap().path, next);
        assert!(last.by.command.contains("upgrade s --binary"), "{last:?}");
        assert_eq!(version(stored.address), "1");

        // The attempt is reported once, and later entries follow it.
        std::fs::write(&go_on, "").unwrap();
        stored.rig.upgrade("s", &next).unwrap();
        let after = history(&stored);
        assert_eq!(after[..after.len() - 1], entries[..], "{doing}");
        let committed = after.last().unwrap();
        assert_eq!((committed.operation, committed.outcome), (Operation::Upgrade, Ending::Committed));
        assert!(committed.phases.iter().any(|it| it.phase == phase), "{committed:?}");
        let left = stored.rig.path("state/services/s/history.preparing");
        wait_for("the file to be removed", || (!left.exists()).then_some(()));
    }
}
