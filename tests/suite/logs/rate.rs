//! A service that writes much: nothing is lost, or it is counted, and other services have their lines.

use std::time::{Duration, Instant};

use handoff::control::api::Request;

use super::{Talker, numbers};
use crate::support::{ask, free_address, service, wait_for};

#[test]
fn a_flood_is_dropped_with_a_count_and_delays_no_other_service() {
    let talker = Talker::serve("max_rate = \"16KiB\"");
    let other = free_address();
    talker.write("other", other, "");
    talker.rig.call(Request::Start(service("other"))).unwrap();
    talker.ask("lines 0 50000 100");
    ask(other, "out 68656c6c6f0a").unwrap();
    wait_for("the line of the other service", || {
        let output = talker.rig.run(&["logs", "other", "--grep", "^hello$"]).stdout;
        (!output.is_empty()).then_some(())
    });
    // The last note comes at the end of the second, although nothing more is written.
    let text = wait_for("the count of all lines", || {
        let text = talker.logs(&["--text"]);
        let missing: usize = text
            .lines()
            .filter_map(|line| line.strip_prefix("handoff: ")?.split_once(" lines are missing here ("))
            .filter(|(_, rest)| rest.ends_with("because the service wrote more than log.max_rate"))
            .map(|(count, _)| count.parse::<usize>().unwrap())
            .sum();
        (numbers(&text).len() + missing == 50_000).then_some(text)
    });
    assert!(numbers(&text).len() < 25_000, "{}", numbers(&text).len());
    assert!(numbers(&text).starts_with(&[0, 1, 2]));
}

/// User and system time in seconds.
fn cpu_of(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    let ticks: u64 = [fields[11], fields[12]].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}

#[test]
fn ten_megabytes_a_second_arrive_whole_and_cost_the_daemon_nothing() {
    const LINES: u32 = 10_000;
    const SECONDS: u32 = 5;
    let talker = Talker::serve("max_size = \"100MiB\"\nfiles = 3");
    let (daemon, keeper) = (talker.rig.daemon.as_ref().unwrap().id(), talker.keeper());
    let before = (cpu_of(daemon), cpu_of(keeper), Instant::now());
    for tenth in 0..10 * SECONDS {
        let due = before.2 + Duration::from_millis(100) * tenth;
        while Instant::now() < due {
            std::thread::sleep(Duration::from_millis(1));
        }
        // A thousand lines of a thousand bytes.
        let first = tenth * LINES / 10;
        talker.ask(&format!("lines {first} {} 985", first + LINES / 10));
    }
    let all = (LINES * SECONDS) as usize;
    let took = before.2.elapsed().as_secs_f64();
    let (daemon, keeper) = (cpu_of(daemon) - before.0, cpu_of(keeper) - before.1);
    let megabytes = f64::from(LINES * SECONDS) * 998.0 / 1e6;
    println!(
        "{megabytes:.0} MB in {took:.1} s: daemon {:.1} %, keeper {:.1} % of a processor",
        100.0 * daemon / took,
        100.0 * keeper / took
    );
    wait_for("all lines", || {
        let text = talker.logs(&["--text"]);
        // A slow disk loses lines, with a count.
        let found = numbers(&text);
        let is_slow = text.contains(" lines are missing here (");
        (is_slow || found == (0..all as u32).collect::<Vec<_>>()).then_some(())
    });
    assert!(daemon / took < 0.05 || cfg!(debug_assertions), "{daemon} s in {took} s");
}
