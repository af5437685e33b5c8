//! A keeper at its limit of open files.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use handoff::keeper::Client;
use handoff::sys::limits::{Resource, set_limits};

use super::{Fixture, listener, open_fds};

/// User and system time, in clock ticks of times(2): a hundred per second.
fn ticks_of(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_connection_for_which_it_has_no_descriptor_waits_and_costs_nothing() {
    let mut keeper = Fixture::new();
    let pid = keeper.client.pid();
    let held = listener();
    keeper.client.store([("held", held.as_fd())]).unwrap();
    keeper.client.settle().unwrap();
    // The exact number of its descriptors.
    let limit = open_fds(pid) as u64;
    set_limits(pid, Resource::RLIMIT_NOFILE, limit, limit).unwrap();
    let mut waiting = Client::reach(&keeper.socket()).unwrap();
    let (before, began) = (ticks_of(pid), Instant::now());
    while began.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let ticks = ticks_of(pid) - before;
    assert!(
        ticks < 25,
        "it has worked for {ticks} of {} hundredths of a second",
        began.elapsed().as_millis() / 10
    );
    keeper.client.drop_key("held").unwrap();
    keeper.client.settle().unwrap();
    waiting.ping().unwrap();
    assert_eq!(open_fds(pid) as u64, limit);
}
