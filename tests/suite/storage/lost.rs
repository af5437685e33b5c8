//! The daemon restores files that are removed while it runs. After damage no process stays unmanaged.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use handoff::control::api::{Ending, Request, State};
use handoff::sys::process::{Signal, children_of};
use handoff::sys::user::effective_user;
use handoff_protocol::log_image;
use handoff_protocol::record::{Fact, Standing, fold};

use crate::support::{self, Rig, SmallDisk, service, signal, version, wait_for};

struct RunningService {
    rig: Rig,
    address: SocketAddr,
}

impl RunningService {
    /// A service in its second generation.
    fn serve(more: &str) -> Self {
        let rig = Rig::new();
        let address = rig.serve("s", "1", "", more);
        rig.upgrade("s", &rig.release("2", "")).unwrap();
        rig.settled("s");
        Self { rig, address }
    }

    fn journal(&self) -> PathBuf {
        self.rig.path("state/services/s/journal")
    }

    /// The state in the journal file.
    fn standing(&self) -> Standing {
        fold(&log_image::parse(&fs::read(self.journal()).unwrap()).unwrap().records)
    }

    fn kill_daemon(&mut self) {
        signal(self.rig.daemon.as_ref().unwrap().id(), Signal::SIGKILL);
        self.rig.daemon.take().unwrap().wait().unwrap();
    }

    /// Damages the first record, which the disk has confirmed.
    fn damage_journal(&self) {
        let mut bytes = fs::read(self.journal()).unwrap();
        bytes[40] ^= 1;
        fs::write(self.journal(), bytes).unwrap();
    }

    fn said(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.rig.run(args);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }

    /// Checks that the earlier process still serves, that it is the only one, and that an upgrade and a stop work.
    #[track_caller]
    fn is_managed(&self, pid: u32) {
        assert_eq!(self.rig.settled("s").pid, Some(pid));
        let ours = ["testee-1", "testee-2"].map(|name| support::processes_of(&self.rig.path(name))).concat();
        assert_eq!(ours, [pid], "no second process waits for its lock");
        let before = self.rig.status("s").generation;
        let outcome = self.rig.upgrade("s", &self.rig.release("3", "")).unwrap();
        assert_eq!((outcome.outcome, outcome.generation), (Ending::Committed, before.next()));
        assert_eq!(version(self.address), "3");
        self.rig.call(Request::Stop(service("s"))).unwrap();
        assert!(TcpStream::connect(self.address).is_err());
        assert!(support::processes_of(&self.rig.path("data")).is_empty());
    }
}

#[test]
fn a_service_that_runs_is_taken_over_although_its_journal_is_damaged() {
    for mode in ["exclusive", "overlap"] {
        let mut kept = RunningService::serve(&format!("mode = \"{mode}\"\n"));
        let pid = kept.rig.status("s").pid.unwrap();
        kept.kill_daemon();
        kept.damage_journal();
        kept.rig.start_daemon();
        let status = kept.rig.settled("s");
        let problem = status.problem.expect("it is reported");
        let aside = kept.rig.path("state/services/s/journal.aside-1");
        assert!(problem.contains("damaged") && problem.contains(aside.to_str().unwrap()), "{problem}");
        assert!(problem.contains("You need not do anything") && !problem.contains("restore"), "{problem}");
        assert!(aside.exists() && status.generation.0 > 0);
        kept.is_managed(pid);
    }
}

#[test]
fn a_service_that_is_down_is_known_with_its_damaged_journal_and_the_remedy_works() {
    let mut kept = RunningService::serve("");
    kept.rig.stop_daemon();
    kept.damage_journal();
    let file = kept.rig.path("config/services/s.toml");
    let text = fs::read_to_string(&file).unwrap().replace("autostart = false", "autostart = true");
    fs::write(&file, text).unwrap();
    kept.rig.start_daemon();
    let (code, said) = kept.said(&["start", "s"]);
    assert!(code == Some(1) && said.contains("move it away") && said.contains("handoff start s"), "{said}");
    for verb in ["upgrade", "restart", "kill"] {
        let more = if verb == "kill" { &["-s", "HUP"][..] } else { &[] };
        let (code, said) = kept.said(&[&[verb, "s"], more].concat());
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains("move it away") && said.contains("Do that, then: handoff start s"),
            "{verb}: {said}"
        );
    }
    let (code, said) = kept.said(&["stop", "s"]);
    assert!(code == Some(0) && said.contains("does not run"), "{said}");
    assert!(kept.said(&["list"]).1.contains("failed"));
    let status = kept.rig.status("s");
    assert_eq!((status.state, status.pid), (State::Failed, None));
    assert!(status.problem.unwrap().contains("is damaged"));
    fs::rename(kept.journal(), kept.rig.path("moved")).unwrap();
    let (code, said) = kept.said(&["start", "s"]);
    assert_eq!(code, Some(0), "{said}");
    // The version in the service file.
    assert_eq!((version(kept.address).as_str(), kept.rig.status("s").generation.0), ("1", 1));
}

#[test]
fn a_service_whose_journal_is_gone_begins_again_and_that_is_reported() {
    for is_removed in [true, false] {
        let mut kept = RunningService::serve("");
        kept.rig.call(Request::Stop(service("s"))).unwrap();
        kept.kill_daemon();
        match is_removed {
            true => fs::remove_file(kept.journal()).unwrap(),
            false => fs::write(kept.journal(), "").unwrap(),
        }
        kept.rig.start_daemon();
        let told = |kept: &RunningService| {
            let problem = kept.rig.status("s").problem.unwrap_or_default();
            problem.contains("was missing or empty") && problem.contains(kept.journal().to_str().unwrap())
        };
        assert!(told(&kept), "{:?}", kept.rig.status("s"));
        kept.rig.call(Request::Start(service("s"))).unwrap();
        assert_eq!((version(kept.address).as_str(), kept.rig.settled("s").generation.0), ("1", 1));
        assert!(told(&kept), "{:?}", kept.rig.status("s"));
    }
}

/// The new service was never stopped, so autostart applies.
#[test]
fn a_service_file_that_is_new_after_a_lost_daemon_is_started() {
    let mut kept = RunningService::serve("");
    kept.rig.call(Request::Stop(service("s"))).unwrap();
    kept.kill_daemon();
    let address = kept.rig.write_service("t", &kept.rig.release("5", ""), "");
    let file = kept.rig.path("config/services/t.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("autostart = false"));
    fs::write(&file, text.replace("autostart = false", "autostart = true")).unwrap();
    kept.rig.start_daemon();
    assert_eq!(kept.rig.settled("t").state, State::Serving);
    assert_eq!((version(address).as_str(), kept.rig.status("t").problem), ("5", None));
    assert_eq!(kept.rig.status("s").state, State::Stopped);
}

#[test]
fn a_service_that_becomes_known_late_is_taken_over_with_what_runs() {
    let mut kept = RunningService::serve("");
    let pid = kept.rig.status("s").pid.unwrap();
    kept.kill_daemon();
    let file = kept.rig.path("config/services/s.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, "binary =").unwrap();
    fs::remove_file(kept.rig.path("state/services/s/running.toml")).unwrap();
    kept.rig.start_daemon();
    // The daemon answers after it has read all files.
    assert!(!kept.said(&["list"]).1.contains("testee"));
    fs::write(&file, text).unwrap();
    let (code, said) = kept.said(&["start", "s"]);
    assert!(code == Some(0) && said.contains(&format!("runs already, as pid {pid}")), "{said}");
    kept.is_managed(pid);
}

/// Kills the daemon and all processes of the service, and starts a daemon that cannot read the journal. Returns the new
/// path of the journal.
fn unreadable_after(kept: &mut RunningService, running: &[u32]) -> PathBuf {
    kept.kill_daemon();
    running.iter().for_each(|pid| support::kill(*pid));
    let away = kept.rig.path("away");
    fs::rename(kept.journal(), &away).unwrap();
    fs::create_dir(kept.journal()).unwrap();
    kept.rig.start_daemon();
    let problem = wait_for("the problem", || kept.rig.status("s").problem);
    assert!(problem.contains("journal"), "{problem}");
    away
}

fn make_readable(kept: &RunningService, away: &Path) {
    fs::remove_dir(kept.journal()).unwrap();
    fs::rename(away, kept.journal()).unwrap();
}

/// The intents, and the facts about ends and rollbacks.
fn ends(kept: &RunningService) -> Vec<String> {
    let records = log_image::parse(&fs::read(kept.journal()).unwrap()).unwrap().records;
    let facts = records.into_iter().map(|record| record.fact);
    let ends = facts.filter_map(|fact| match fact {
        Fact::Intent { generation, .. } => Some(format!("intent {}", generation.0)),
        Fact::Exited { generation, .. } => Some(format!("exited {}", generation.0)),
        Fact::RolledBack { .. } => Some("rolled back".to_owned()),
        _ => None,
    });
    ends.collect()
}

#[test]
fn a_service_that_runs_is_shown_as_it_is_and_left_alone_while_its_journal_cannot_be_read() {
    let mut kept = RunningService::serve("");
    let pid = kept.rig.status("s").pid.unwrap();
    let away = unreadable_after(&mut kept, &[]);
    let status = kept.rig.status("s");
    assert!(status.binary.ends_with("testee-2") && status.pid == Some(pid), "{status:?}");
    let next = kept.rig.release("3", "");
    for args in [&["upgrade", "s", "--binary", next.to_str().unwrap()][..], &["restart", "s"]] {
        let (code, said) = kept.said(args);
        assert!(code == Some(1) && said.contains("journal") && said.contains("Nothing was begun"), "{said}");
        assert_eq!((version(kept.address).as_str(), kept.rig.status("s").pid), ("2", Some(pid)), "{args:?}");
    }
    make_readable(&kept, &away);
    // The service file names the first version.
    let (code, said) = kept.said(&["upgrade", "s"]);
    assert!(code == Some(6) && said.contains("To go back"), "{said}");
    kept.is_managed(pid);
}

#[test]
fn what_ended_is_recorded_when_a_journal_can_be_read_again() {
    for autostart in [false, true] {
        let mut kept = RunningService::serve("");
        if autostart {
            let file = kept.rig.path("config/services/s.toml");
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, text.replace("autostart = false", "autostart = true")).unwrap();
        }
        let pid = kept.rig.status("s").pid.unwrap();
        let away = unreadable_after(&mut kept, &[pid]);
        make_readable(&kept, &away);
        if !autostart {
            let (code, said) = kept.said(&["start", "s"]);
            assert_eq!(code, Some(0), "{said}");
        }
        let status = kept.rig.settled("s");
        assert_eq!(version(kept.address), "2", "{status:?}");
        let told = ends(&kept);
        assert_eq!(told, ["intent 1", "intent 2", "exited 2", "intent 3"], "autostart: {autostart}");
        // A manual start clears earlier problems.
        let problem = status.problem.unwrap_or_default();
        let told = format!("While no daemon was there, the process {pid}");
        assert_eq!(problem.contains(&told), autostart, "{problem}");
    }
}

#[test]
fn a_dead_attempt_is_rolled_back_when_a_journal_can_be_read_again() {
    for autostart in [false, true] {
        let mut kept = RunningService::serve("");
        let next = kept.rig.release("3", "hang-while-warming");
        if autostart {
            let file = kept.rig.path("config/services/s.toml");
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, text.replace("autostart = false", "autostart = true")).unwrap();
        }
        let mut upgrade = kept.rig.handoff(&["upgrade", "s", "--binary"]).arg(&next).spawn().unwrap();
        wait_for("it to be warming", || {
            (kept.rig.status("s").phase.as_deref() == Some("warming")).then_some(())
        });
        let running = support::processes_of(&kept.rig.path("data"));
        assert_eq!(running.len(), 2, "{running:?}");
        let away = unreadable_after(&mut kept, &running);
        upgrade.wait().unwrap();
        make_readable(&kept, &away);
        if !autostart {
            let (code, said) = kept.said(&["start", "s"]);
            assert_eq!(code, Some(0), "{said}");
        }
        kept.rig.settled("s");
        assert_eq!(version(kept.address), "2");
        let told = ends(&kept);
        // An automatic start replaces the attempt, as at a start of the daemon.
        let ended: &[&str] = if autostart { &["exited 2"] } else { &["exited 2", "rolled back"] };
        let expected = [&["intent 1", "intent 2", "intent 3"], ended, &["intent 3"]].concat();
        assert_eq!(told, expected, "autostart: {autostart}");
        let history = kept.said(&["history", "s"]).1;
        assert!(!history.contains("under way") && history.contains("rolled back"), "{history}");
    }
}

/// A change to the journal of a running daemon.
type JournalDamage = fn(&RunningService);

const DEEDS: [(&str, JournalDamage); 4] = [
    ("removed", |kept| fs::remove_file(kept.journal()).unwrap()),
    ("moved", |kept| fs::rename(kept.journal(), kept.rig.path("moved")).unwrap()),
    ("replaced", |kept| {
        fs::copy(kept.journal(), kept.rig.path("older")).unwrap();
        fs::rename(kept.rig.path("older"), kept.journal()).unwrap();
    }),
    // The daemon may be writing its history there.
    ("gone with its directory", |kept| {
        let directory = kept.rig.path("state/services/s");
        wait_for("it to be gone", || fs::remove_dir_all(&directory).ok());
    }),
];

#[test]
fn a_journal_that_is_taken_away_is_written_again() {
    for (what, deed) in DEEDS {
        let mut kept = RunningService::serve("");
        deed(&kept);
        let outcome = kept.rig.upgrade("s", &kept.rig.release("3", "")).unwrap();
        assert_eq!((outcome.outcome, outcome.generation.0), (Ending::Committed, 3), "{what}");
        let problem = kept.rig.settled("s").problem.unwrap_or_default();
        assert!(problem.contains("written again from memory"), "{what}: {problem}");
        assert_eq!(kept.standing().generation().0, 3, "{what}");
        // Without an operation nothing is recorded. The next status detects the loss.
        deed(&kept);
        let problem = kept.rig.status("s").problem.unwrap_or_default();
        assert!(problem.contains("written again from memory"), "{what}: {problem}");
        assert_eq!(kept.standing().current.unwrap().process.unwrap().pid, kept.rig.status("s").pid.unwrap());

        kept.rig.stop_daemon();
        kept.rig.start_daemon();
        kept.rig.call(Request::Start(service("s"))).unwrap();
        let status = kept.rig.status("s");
        assert_eq!((version(kept.address).as_str(), status.generation.0), ("3", 4), "{what}");
    }
}

#[test]
fn a_journal_that_is_taken_away_in_the_middle_of_a_commit_has_the_commit() {
    let kept = RunningService::serve("lease = \"10s\"\n");
    let slow = kept.rig.release("3", "slow-begin-2000");
    let remove = || fs::remove_file(kept.journal()).unwrap();
    let outcome = kept.rig.upgrade_and("s", &slow, "beginning", remove).unwrap();
    assert_eq!((outcome.outcome, outcome.generation.0), (Ending::Committed, 3));
    assert_eq!(kept.standing().generation().0, 3);
}

#[test]
fn an_attempt_that_was_lost_has_an_end_when_a_read_only_disk_can_be_written_again() {
    if effective_user() != 0 {
        eprintln!("not run: it needs root");
        return;
    }
    let mut rig = Rig::new();
    rig.stop_daemon();
    let disk = SmallDisk::mount(&rig.path("state"));
    rig.start_daemon();
    let address = rig.serve("s", "2", "", "");
    let next = rig.release("3", "hang-while-warming");
    let mut upgrade = rig.handoff(&["upgrade", "s", "--binary"]).arg(&next).spawn().unwrap();
    wait_for("it to be warming", || (rig.status("s").phase.as_deref() == Some("warming")).then_some(()));
    let (serves, daemon) = (rig.status("s").pid.unwrap(), rig.daemon.as_ref().unwrap().id());
    let warming = support::processes_of(&rig.path("data")).into_iter().find(|pid| *pid != serves).unwrap();
    let others = children_of(daemon).into_iter().filter(|child| ![serves, warming].contains(child));
    // The keeper has the log open. A read-only remount fails while a file is open for writing.
    let keeper: Vec<u32> = others.collect();
    support::kill(daemon);
    rig.daemon.take().unwrap().wait().unwrap();
    upgrade.wait().unwrap();
    keeper.into_iter().chain([warming]).for_each(support::kill);
    disk.set_read_only(true);
    rig.start_daemon();
    assert_eq!(rig.settled("s").pid, Some(serves));
    disk.set_read_only(false);
    assert_eq!(rig.upgrade("s", &rig.release("4", "")).unwrap().outcome, Ending::Committed);
    assert_eq!(version(address), "4");
    let history = String::from_utf8(rig.run(&["history", "s"]).stdout).unwrap();
    assert!(!history.contains("under way") && history.contains("rolled back"), "{history}");
}
