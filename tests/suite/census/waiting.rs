//! Requests that have arrived and that the server has not begun.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use handoff::slots::census::Census;

use super::{Puppet, serve};
use crate::support::wait_for;

#[test]
fn an_unread_request_waits_and_a_read_one_is_work() {
    let (mut puppet, address, mut census) = serve();
    let mut client = TcpStream::connect(address).unwrap();
    client.set_nodelay(true).unwrap();
    puppet.does("accept");
    let mut seen = |puppet: &Puppet| {
        let survey = census.survey(puppet.tree()).unwrap();
        (survey.work, survey.waiting)
    };
    // The first request of a client counts as work, read or not, so that it is not lost.
    client.write_all(b"request").unwrap();
    wait_for("it to be seen", || (seen(&puppet) == (1, 0)).then_some(()));
    for _ in 0..4 {
        puppet.does("read 0 7");
        puppet.does("write 0 6");
        client.read_exact(&mut [0; 6]).unwrap();
        wait_for("rest", || (seen(&puppet) == (0, 0)).then_some(()));
        client.write_all(b"request").unwrap();
    }
    wait_for("it to wait", || (seen(&puppet) == (0, 1)).then_some(()));
    puppet.does("read 0 3");
    assert_eq!(seen(&puppet), (1, 0), "a part of it was read, the rest is unread");
    puppet.does("read 0 4");
    let until = Instant::now() + Duration::from_millis(400);
    while Instant::now() < until {
        assert_eq!(seen(&puppet), (1, 0), "it remains work while it waits");
        std::thread::sleep(Duration::from_millis(20));
    }
    puppet.does("write 0 6");
    client.read_exact(&mut [0; 6]).unwrap();
    assert_eq!(seen(&puppet), (0, 0));
}

/// A connection with earlier requests. With `polls`, the server polls before it reads.
fn used(polls: bool) -> (Puppet, Census, TcpStream) {
    let (mut puppet, address, mut census) = serve();
    let mut client = TcpStream::connect(address).unwrap();
    client.set_nodelay(true).unwrap();
    puppet.does("accept");
    for _ in 0..4 {
        client.write_all(b"request").unwrap();
        puppet.does("read 0 7");
        puppet.does("write 0 6");
        client.read_exact(&mut [0; 6]).unwrap();
    }
    if polls {
        puppet.does("polls 0");
    }
    wait_for("rest", || (census.survey(puppet.tree()).unwrap().work == 0).then_some(()));
    (puppet, census, client)
}

#[test]
fn what_is_held_back_waits_until_it_is_let_in() {
    for polls in [true, false] {
        let (mut puppet, mut census, mut client) = used(polls);
        match census.hold_back(true) {
            Ok(all) => assert!(all),
            // Dropping packets needs privilege, and some containers forbid it.
            Err(error) => {
                eprintln!("not allowed here: {error}");
                continue;
            }
        }
        client.write_all(b"request").unwrap();
        puppet.begins("some 0");
        if polls {
            wait_for("it to wait", || (census.survey(puppet.tree()).unwrap().waiting == 1).then_some(()));
        }
        let until = Instant::now() + Duration::from_millis(30);
        while Instant::now() < until {
            assert_eq!(census.survey(puppet.tree()).unwrap().work, 0, "no process has read it");
            std::thread::sleep(Duration::from_millis(10));
        }
        census.release_held_back();
        puppet.ends();
        wait_for("it to be work", || (census.survey(puppet.tree()).unwrap().work == 1).then_some(()));
    }
}

#[test]
fn a_long_request_differs_from_one_that_misses_its_rest() {
    for polls in [true, false] {
        let (mut puppet, mut census, mut client) = used(polls);
        client.write_all(b"request").unwrap();
        puppet.does("read 0 7");
        wait_for("it to be begun", || (census.survey(puppet.tree()).unwrap().work == 1).then_some(()));
        match census.hold_back(true) {
            Ok(all) => assert!(all),
            Err(error) => {
                eprintln!("not allowed here: {error}");
                continue;
            }
        }
        let until = Instant::now() + Duration::from_millis(200);
        while Instant::now() < until {
            assert_eq!(census.survey(puppet.tree()).unwrap().stuck, 0, "the client has sent all of it");
            assert!(census.hold_back(true).unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
        // Twice: a second rest that is missed is let in as well.
        for _ in 0..2 {
            client.write_all(b"rest").unwrap();
            wait_for("the rest to be missed", || {
                (census.survey(puppet.tree()).unwrap().stuck == 1).then_some(())
            });
            assert!(!census.hold_back(true).unwrap(), "it is let in");
            puppet.does("read 0 4");
            wait_for("it to be held back again", || {
                census.survey(puppet.tree()).unwrap();
                census.hold_back(true).unwrap().then_some(())
            });
        }
        puppet.does("write 0 6");
        client.read_exact(&mut [0; 6]).unwrap();
        wait_for("rest", || (census.survey(puppet.tree()).unwrap().work == 0).then_some(()));
    }
}
