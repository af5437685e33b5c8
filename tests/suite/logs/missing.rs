//! A log whose directory or disk is not there: lines are missing with a count, and nothing else.

use handoff::control::api::Request;
use handoff::sys::user::effective_user;

use super::{Talker, numbers};
use crate::support::{SmallDisk, service, wait_for};

#[test]
fn a_directory_that_is_removed_is_made_again() {
    let talker = Talker::serve("");
    talker.out(b"before\n");
    talker.objects("before");
    std::fs::remove_dir_all(talker.rig.path("state/services/web/log")).unwrap();
    talker.out(b"after\n");
    let objects = talker.objects("after");
    assert!(objects.iter().all(|object| object["line"] != "before"));
}

#[test]
fn a_full_disk_loses_lines_with_a_count_and_holds_nothing_up() {
    if effective_user() != 0 {
        println!("skipped: only root can mount a disk");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(place.path());
    let talker = Talker::serve(&format!("dir = {:?}", place.path().join("web")));
    talker.ask("lines 0 100 10");
    wait_for("the lines", || (numbers(&talker.logs(&["--text"])).len() == 100).then_some(()));
    assert!(!talker.rig.path("state/services/web/log").exists());
    disk.fill();
    // Long ones: what is in the pipe when there is room again must fit on the disk.
    talker.ask("lines 100 2100 200");
    disk.make_room();
    talker.out(b"again\n");
    // Each line that is not there is counted.
    let text = wait_for("the count of all lines", || {
        let text = talker.logs(&["--text"]);
        let missing: usize = text
            .lines()
            .filter_map(|line| line.strip_prefix("handoff: ")?.split_once(" lines are missing here ("))
            .filter(|(_, rest)| rest.contains("because they could not be written: No space left"))
            .map(|(count, _)| count.parse::<usize>().unwrap())
            .sum();
        (missing > 0 && numbers(&text).len() + missing == 2_100).then_some(text)
    });
    wait_for("the line after them", || talker.logs(&["--text"]).ends_with("again\n").then_some(()));
    assert!(text.starts_with("line 0 "), "{}", &text[..100]);
    talker.rig.call(Request::Stop(service("web"))).unwrap();
}

#[test]
fn lines_that_are_too_old_are_removed_although_none_are_added() {
    let talker = Talker::serve("max_age = \"2s\"\nfiles = 3");
    talker.out(b"old\n");
    talker.objects("old");
    let directory = talker.rig.path("state/services/web/log");
    wait_for("its removal", || {
        let names = std::fs::read_dir(&directory).unwrap().flatten();
        let texts = names.map(|entry| std::fs::read_to_string(entry.path()).unwrap_or_default());
        texts.collect::<String>().is_empty().then_some(())
    });
    talker.out(b"new\n");
    talker.objects("new");
}
