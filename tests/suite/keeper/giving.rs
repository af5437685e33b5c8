//! Descriptors for a keeper: the sender does not wait, nothing is stored twice, and the next keeper can get them again.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Instant;

use handoff::keeper::{Client, Error};
use handoff::sys::limits::{Resource, limits, set_limits};
use handoff::sys::log_pipe::{log_pipe, log_pipes_of};
use handoff::sys::process::Signal;

use super::{Fixture, listener, open_fds, program};
use crate::support::{signal, wait_for};

#[test]
fn a_refusal_is_reported_by_the_next_call_which_is_carried_out() {
    let mut keeper = Fixture::new();
    let listener = listener();
    let long = "k".repeat(handoff::keeper::KEY_MAX_BYTES + 1);
    keeper.client.store([(long.as_str(), listener.as_fd())]).unwrap();
    // A call that waits for its own answer gets that answer.
    assert_eq!(keeper.client.stats().unwrap().held, 0);
    let error = keeper.client.store([("short", listener.as_fd())]).unwrap_err();
    assert!(matches!(&error, Error::Refused(reason) if reason.contains("512 bytes")), "{error}");
    keeper.client.settle().unwrap();
    assert_eq!(keeper.client.list().unwrap(), ["short"]);
}

#[test]
fn no_client_waits_for_a_frozen_keeper() {
    let mut keeper = Fixture::new();
    let listener = listener();
    signal(keeper.client.pid(), Signal::SIGSTOP);
    let began = Instant::now();
    for number in 0..50 {
        keeper.client.store([(format!("key {number}").as_str(), listener.as_fd())]).unwrap();
    }
    keeper.client.drop_key("key 7").unwrap();
    let took = began.elapsed();
    assert!(took < handoff::keeper::TIMEOUT, "{took:?}");
    assert!(!keeper.client.hear().unwrap());
    signal(keeper.client.pid(), Signal::SIGCONT);
    keeper.client.settle().unwrap();
    assert_eq!(keeper.client.list().unwrap().len(), 49);
}

#[test]
fn a_keeper_without_room_says_so_and_keeps_what_it_has() {
    let mut keeper = Fixture::new();
    let listener = listener();
    keeper.client.store([("first", listener.as_fd())]).unwrap();
    keeper.client.settle().unwrap();
    let (own, hard) = limits(Resource::RLIMIT_NOFILE).unwrap();
    let set = |pid, current| set_limits(pid, Resource::RLIMIT_NOFILE, current, hard).unwrap();
    set(keeper.client.pid(), open_fds(keeper.client.pid()) as u64 + 2);
    let keys: Vec<String> = (0..10).map(|number| format!("more {number}")).collect();
    keeper.client.store(keys.iter().map(|key| (key.as_str(), listener.as_fd()))).unwrap();
    let error = keeper.client.settle().unwrap_err();
    assert!(matches!(&error, Error::Refused(reason) if reason.contains("RLIMIT_NOFILE")), "{error}");
    assert_eq!(keeper.client.list().unwrap(), ["first"]);
    set(keeper.client.pid(), own);
    keeper.client.store(keys.iter().map(|key| (key.as_str(), listener.as_fd()))).unwrap();
    keeper.client.settle().unwrap();
    assert_eq!(keeper.client.list().unwrap().len(), 11);
}

#[test]
fn what_a_supervisor_asked_for_before_it_died_is_done() {
    let mut keeper = Fixture::new();
    let listener = listener();
    keeper.client.settle().unwrap();
    signal(keeper.client.pid(), Signal::SIGSTOP);
    for number in 0..50 {
        keeper.client.store([(format!("key {number}").as_str(), listener.as_fd())]).unwrap();
    }
    keeper.client.drop_key("key 7").unwrap();
    let mut next = Client::reach(&keeper.socket()).unwrap();
    // The next client connects and sends a request before the keeper reads anything.
    next.ask_for_sign().unwrap();
    let first = std::mem::replace(&mut keeper.client, next);
    drop(first);
    signal(keeper.client.pid(), Signal::SIGCONT);
    assert_eq!(keeper.client.list().unwrap().len(), 49);
}

#[test]
fn very_many_requests_are_answered_although_no_client_waits() {
    let mut keeper = Fixture::new();
    let listener = listener();
    for number in 0..3000 {
        let key = format!("{}", number % 10);
        keeper.client.store([(key.as_str(), listener.as_fd())]).unwrap();
        keeper.client.drop_key(&key).unwrap();
    }
    keeper.client.settle().unwrap();
    assert_eq!(keeper.client.list().unwrap(), [""; 0]);
}

#[test]
fn a_pipe_that_is_given_twice_is_read_once() {
    let mut keeper = Fixture::new();
    let (reader, writer) = log_pipe().unwrap();
    let spec = keeper.spec(1 << 20, 5);
    let before = open_fds(keeper.client.pid());
    for _ in 0..3 {
        keeper.client.log(&spec, reader.as_fd()).unwrap();
    }
    assert_eq!(keeper.client.stats().unwrap().pipes, 1);
    assert_eq!(open_fds(keeper.client.pid()), before + 1);
    let mut writer = File::from(writer);
    writeln!(writer, "once").unwrap();
    keeper.wait_for_end("once\n");
    assert_eq!(keeper.text(), "once\n");
    drop((reader, writer));
    wait_for("the end of the pipe", || (keeper.client.stats().unwrap().pipes == 0).then_some(()));
}

#[test]
fn no_line_is_lost_or_doubled_when_supervisor_and_keeper_die() {
    let mut keeper = Fixture::new();
    let (reader, writer) = log_pipe().unwrap();
    let spec = keeper.spec(1 << 20, 5);
    keeper.client.log(&spec, reader.as_fd()).unwrap();
    // Prints each line, and then confirms it.
    let script = r#"while read line; do echo "$line"; echo >&2; done"#;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).stdin(Stdio::piped()).stdout(writer).stderr(Stdio::piped());
    let mut service = command.spawn().unwrap();
    drop(command);
    let (mut stdin, mut told) = (service.stdin.take().unwrap(), service.stderr.take().unwrap());
    let mut say = |numbers: std::ops::Range<u32>| {
        for number in numbers {
            writeln!(stdin, "line {number:03}").unwrap();
            told.read_exact(&mut [0]).unwrap();
        }
    };
    say(0..100);
    keeper.wait_for_end("line 099\n");

    drop(reader);
    keeper.client.kill();
    keeper.wait_until_it_is_gone();
    say(100..200);
    assert!(keeper.text().ends_with("line 099\n"));

    keeper.client = Client::start(program(), &keeper.socket()).unwrap();
    let (_, again) = log_pipes_of(service.id()).unwrap().pop().unwrap();
    keeper.client.log(&spec, again.as_fd()).unwrap();
    drop(again);
    say(200..300);
    drop(stdin);
    assert!(service.wait().unwrap().success());
    wait_for("the end of the pipe", || (keeper.client.stats().unwrap().pipes == 0).then_some(()));
    let expected: String = (0..300).map(|number| format!("line {number:03}\n")).collect();
    assert_eq!(keeper.text(), expected);
}
