//! The whole table, state by state and event by event, as the text of `table.txt`. A change of behavior is visible as a
//! changed line; `UPDATE_GOLDEN=1` rewrites the file.

use std::collections::{HashSet, VecDeque};
use std::fmt::Write;
use std::path::Path;

use super::*;

const FIRST: u32 = 1;
const OTHER: u32 = 2;

fn exit(code: i32) -> Exit {
    Exit { code: Some(code), signal: None }
}

fn events() -> Vec<(&'static str, LifeEvent)> {
    let named = |pid, is_ours, sender_is_ours| LifeEvent::MainPid { pid, is_ours, sender_is_ours };
    vec![
        ("started", LifeEvent::Started(FIRST)),
        ("serves", LifeEvent::Serves),
        ("names itself", named(FIRST, true, true)),
        ("names another", named(OTHER, true, true)),
        ("names a stranger", named(9, false, true)),
        ("a stranger names one", named(OTHER, true, false)),
        ("first ends with 0", LifeEvent::Exited(FIRST, Some(exit(0)))),
        ("first ends with 1", LifeEvent::Exited(FIRST, Some(exit(1)))),
        ("other ends", LifeEvent::Exited(OTHER, None)),
        ("none serves", LifeEvent::Unserved(Some(exit(1)))),
        ("nothing is left", LifeEvent::Empty),
        ("stop", LifeEvent::Stop),
        ("lingers", LifeEvent::Lingers),
        ("late", LifeEvent::Late),
        ("kill", LifeEvent::Kill),
    ]
}

#[test]
fn a_program_lives_as_written() {
    let start = Lifecycle::default();
    let (mut known, mut todo) = (HashSet::from([start.state]), VecDeque::from([start]));
    let mut text = String::new();
    while let Some(life) = todo.pop_front() {
        let _ = writeln!(text, "{:?}", life.state);
        let mut nothing = Vec::new();
        for (name, event) in events() {
            let mut next = life;
            let actions = next.step(event);
            if next.state == life.state && actions.is_empty() {
                nothing.push(name);
                continue;
            }
            let mut parts: Vec<String> = actions.iter().map(|action| format!("{action:?}")).collect();
            if next.state != life.state {
                parts.insert(0, format!("[{:?}]", next.state));
            }
            let _ = writeln!(text, "    {name} -> {}", parts.join(" "));
            if known.insert(next.state) {
                todo.push_back(next);
            }
        }
        let _ = writeln!(text, "    nothing: {}\n", nothing.join(", "));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/shim/life/table.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(golden, text, "{}: if the change is meant, run the test with UPDATE_GOLDEN=1", path.display());
}

#[test]
fn how_it_ended_is_what_the_process_says_that_counts() {
    let mut life = Lifecycle::default();
    life.step(LifeEvent::Started(FIRST));
    life.step(LifeEvent::MainPid { pid: OTHER, is_ours: true, sender_is_ours: true });
    life.step(LifeEvent::Serves);
    life.step(LifeEvent::Exited(FIRST, Some(exit(0))));
    assert_eq!((life.exit(), life.main()), (None, Some(OTHER)));
    assert_eq!(life.step(LifeEvent::Exited(OTHER, Some(exit(3)))), [LifeAction::AskRest]);
    assert_eq!(life.exit(), Some(exit(3)));
    assert_eq!(life.step(LifeEvent::Empty), [LifeAction::Fail]);
}

/// The exit status is known whether or not the end was requested.
#[test]
fn the_end_of_the_process_that_counts_is_known_also_when_it_was_wanted() {
    let began = || {
        let mut life = Lifecycle::default();
        life.step(LifeEvent::Started(FIRST));
        life.step(LifeEvent::Serves);
        life
    };
    let mut life = began();
    life.step(LifeEvent::Stop);
    life.step(LifeEvent::Exited(OTHER, Some(exit(7))));
    assert_eq!(life.exit(), None, "another one");
    life.step(LifeEvent::Exited(FIRST, Some(exit(3))));
    life.step(LifeEvent::Exited(OTHER, Some(exit(8))));
    life.step(LifeEvent::Empty);
    assert_eq!((life.state(), life.exit()), (LifeState::Ended, Some(exit(3))));

    // A daemon has no such process: the last one that ends counts, requested or not.
    for stops in [true, false] {
        let mut life = began();
        life.step(LifeEvent::Exited(FIRST, Some(exit(0))));
        if stops {
            life.step(LifeEvent::Stop);
        }
        life.step(LifeEvent::Exited(OTHER, Some(exit(5))));
        let last = life.step(LifeEvent::Empty);
        assert_eq!((last.contains(&LifeAction::Fail), life.exit()), (!stops, Some(exit(5))));
    }
}
