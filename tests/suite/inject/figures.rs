//! The cost of the adapter. `cargo test --test inject figures -- --nocapture` prints the figures.

use super::{Run, output, python};
use crate::support::free_address;

const SYSTEM_CALLS: &str = "import os, time\n\
    def take():\n t = time.perf_counter_ns()\n for _ in range(100000): os.getppid()\n \
    return (time.perf_counter_ns() - t) // 100000\n\
    print(min(take() for _ in range(7)))\n";

#[test]
fn a_bind_costs_little_and_other_calls_nothing() {
    let address = free_address();
    let script = format!(
        "import socket, time\ndef take(port):\n s = socket.socket()\n \
         s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n t = time.perf_counter_ns()\n \
         s.bind(('127.0.0.1', port)); return (time.perf_counter_ns() - t) // 1000\n\
         for port in ({}, 0):\n all = sorted(take(port) for _ in range(201)); print(all[20], all[100], all[199], flush=True)\n\
         {SYSTEM_CALLS}",
        address.port(),
    );
    let (spec, reader) = python(SYSTEM_CALLS);
    let without: u64 = output(spec, reader).trim().parse().unwrap();
    let mut run = Run::python(&[&address.to_string()], false, &script);
    let mut three = || {
        let line = run.line();
        let times: Vec<u64> = line.split(' ').map(|time| time.parse().unwrap()).collect();
        <[u64; 3]>::try_from(times).unwrap()
    };
    let (given, passed) = (three(), three());
    let with: u64 = run.line().parse().unwrap();
    println!("a bind that gets a listener: {} µs (p50), {} µs (p99)", given[1], given[2]);
    println!("a bind that is passed on:    {} µs (p50), {} µs (p99)", passed[1], passed[2]);
    println!("another system call:         {with} ns with the filter, {without} ns without");
    // A busy machine is slow, but not each time. An unnecessary wait would take longer.
    assert!(given[0] < 50_000, "{given:?}");
}
