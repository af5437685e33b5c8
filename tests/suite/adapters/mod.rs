//! Programs that do not speak the protocol, upgraded by the real daemon: by socket activation, and by swapping their
//! sockets.

mod busy;
mod called_off;
mod counted;
mod death;
mod elsewhere;
mod ending;
mod ends;
mod frozen;
mod helpers;
mod kept;
mod left;
mod leftovers;
mod moment;
mod paths;
mod pauses;
mod plain;
mod privileges;
mod receivers;
mod runtimes;
mod saving;
mod shut;
mod threads;
mod unaccepted;
mod unseen;

use std::net::TcpStream;
use std::os::unix::fs::FileTypeExt;

use crate::support::{ask, ask_over, service, version, wait_for};
use handoff::control::Client;
use handoff::control::api::{Ending, Request};
use handoff::slots::census::Census;
use plain::{Load, Plain};

const ALL: [(&str, &str); 4] =
    [("inject", "overlap"), ("inject", "exclusive"), ("listen-fds", "overlap"), ("listen-fds", "exclusive")];

#[test]
fn no_request_fails_while_a_program_that_dies_at_once_is_upgraded() {
    for (adapter, mode) in ALL {
        let plain = Plain::serve(adapter, mode, "");
        let load = Load::start(plain.address, 4);
        for n in 1..=5 {
            let outcome = plain.upgrade(&n.to_string(), "");
            assert_eq!(outcome.outcome, Ending::Committed, "{adapter} {mode}: {outcome:?}");
            assert_eq!(version(plain.address), n.to_string(), "{adapter} {mode}");
        }
        load.finish();
        let lines = std::fs::read_to_string(plain.rig.path("data/lines")).unwrap();
        assert!(!lines.is_empty(), "the load has written something");
    }
}

#[test]
fn a_bad_version_rolls_back_and_no_request_fails() {
    for (adapter, mode) in ALL {
        let plain = Plain::serve(adapter, mode, "");
        // Only for versions that never pass the probe: on a busy machine a good one may take longer.
        plain.add("[probe]\ntcp = true\nlimit = \"300ms\"\ntimeout = \"200ms\"\n");
        let load = Load::start(plain.address, 2);
        for fault in ["exit-at-once", "exit-slowly", "never-accepts"] {
            let outcome = plain.upgrade("bad", fault);
            assert_eq!(outcome.outcome, Ending::RolledBack, "{adapter} {mode} {fault}: {outcome:?}");
            // A version that accepts nothing has nothing to finish: its drain would take 30 s.
            assert!(outcome.took_us < 20_000_000, "{adapter} {mode} {fault}: {outcome:?}");
            assert_eq!(version(plain.address), "0", "{adapter} {mode} {fault}");
        }
        plain.add("[probe]\ntcp = true\n");
        let outcome = plain.upgrade("1", "");
        assert_eq!(outcome.outcome, Ending::Committed, "{adapter} {mode}: {outcome:?}");
        load.finish();
    }
}

#[test]
fn the_probe_asks_the_new_process_before_it_gets_a_connection() {
    for (adapter, mode) in ALL {
        let probe = "[probe]\nhttp = \"/health\"\nbody = \"1\"\nlimit = \"300ms\"\n";
        let plain = Plain::write(adapter, mode, probe);
        // Version 0 does not pass the probe; the service starts with another file.
        plain.rig.call(Request::Start(service("s"))).expect_err("version 0 does not answer 1");
        plain.rig.call(Request::Stop(service("s"))).unwrap();
        let plain = Plain::serve(adapter, mode, "");
        plain.add(probe);
        let outcome = plain.upgrade("2", "");
        assert_eq!(outcome.outcome, Ending::RolledBack, "{adapter} {mode}: {outcome:?}");
        let reason = outcome.reason.unwrap();
        assert!(reason.contains("does not contain \"1\""), "{adapter} {mode}: {reason}");
        assert_eq!(version(plain.address), "0");
        let outcome = plain.upgrade("1", "");
        assert_eq!(outcome.outcome, Ending::Committed, "{adapter} {mode}: {outcome:?}");
        assert_eq!(version(plain.address), "1");
    }
}

#[test]
fn a_long_request_is_finished_by_the_old_program() {
    for (adapter, mode) in ALL {
        let plain = Plain::serve(adapter, mode, "");
        let address = plain.address;
        let connection = TcpStream::connect(address).unwrap();
        let client = connection.local_addr().unwrap();
        let slow = std::thread::spawn(move || ask_over(connection, "slow 1500"));
        wait_for("it to be accepted", || Census::is_accepted(client, address).unwrap().then_some(()));
        let outcome = plain.upgrade("1", "");
        assert_eq!(outcome.outcome, Ending::Committed, "{adapter} {mode}: {outcome:?}");
        let answer = slow.join().unwrap().unwrap_or_else(|error| panic!("{adapter} {mode}: {error}"));
        assert!(answer.starts_with("0 "), "{adapter} {mode}: {answer}");
        assert_eq!(version(address), "1");
    }
}

#[test]
fn a_program_that_says_when_it_is_ready_is_waited_for() {
    for (adapter, notify) in [("inject", "true"), ("listen-fds", "true"), ("inject", "\"abstract\"")] {
        let plain = Plain::serve(adapter, "overlap", "");
        plain.set(&format!("notify = {notify}\n"));
        let outcome = plain.upgrade("1", "slow-start-300");
        assert_eq!(outcome.outcome, Ending::Committed, "{adapter}: {outcome:?}");
        assert!(outcome.took_us >= 300_000, "{adapter}: {outcome:?}");
        assert_eq!(version(plain.address), "1");
    }
}

#[test]
fn a_program_that_never_binds_has_a_deadline() {
    let plain = Plain::serve("inject", "overlap", "");
    plain.set("deadline = \"500ms\"\ndrain_grace = \"100ms\"\n");
    let outcome = plain.upgrade("1", "never-binds");
    assert_eq!(outcome.outcome, Ending::RolledBack, "{outcome:?}");
    assert_eq!(version(plain.address), "0");
}

#[test]
fn a_warm_program_is_held_where_it_binds() {
    let plain = Plain::serve("inject", "exclusive", "");
    plain.set("warm = true\nargs = [\"-\", \"ADDRESS\"]\n");
    let load = Load::start(plain.address, 2);
    let outcome = plain.upgrade("1", "slow-start-6000");
    assert_eq!(outcome.outcome, Ending::Committed, "{outcome:?}");
    assert!(outcome.took_us >= 6_000_000, "{outcome:?}");
    assert!(outcome.accept_gap_us.unwrap() < 5_000_000, "the gap does not include the start: {outcome:?}");
    load.finish();
    assert_eq!(version(plain.address), "1");
}

/// The family of its datagram socket cannot answer clients of the listener.
#[test]
fn a_warm_program_whose_bind_is_refused_is_not_waited_for() {
    let (rig, server) = (
        crate::support::Rig::new(),
        "#!/usr/bin/python3\nimport socket, sys, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        try:\n    s.bind((\"0.0.0.0\", int(sys.argv[1])))\nexcept OSError:\n    time.sleep(1000)\n",
    );
    let port = crate::support::free_address().port();
    let binary = rig.path("server");
    std::fs::write(&binary, server).unwrap();
    crate::support::executable(&binary);
    let text = format!(
        "binary = {binary:?}\nargs = [\"{port}\"]\nautostart = false\nstore = false\nadapter = \"inject\"\nmode = \"exclusive\"\n\
         warm = true\n[listen]\nmain = \"udp:*:{port}\"\n"
    );
    std::fs::write(rig.path("config/services/s.toml"), text).unwrap();
    let begun = std::time::Instant::now();
    let error = rig.call(Request::Start(service("s"))).unwrap_err().to_string();
    assert!(error.contains("could not answer"), "{error}");
    assert!(begun.elapsed() < crate::support::LIMIT, "{:?}", begun.elapsed());
}

#[test]
fn an_idle_connection_is_no_request() {
    for adapter in ["inject", "listen-fds"] {
        let plain = Plain::serve(adapter, "exclusive", "");
        plain.set("drain_grace = \"20s\"\n");
        let idle = TcpStream::connect(plain.address).unwrap();
        idle.set_read_timeout(Some(crate::support::LIMIT)).unwrap();
        let client = idle.local_addr().unwrap();
        wait_for("it to be accepted", || Census::is_accepted(client, plain.address).unwrap().then_some(()));
        let outcome = plain.upgrade("1", "");
        assert_eq!(outcome.outcome, Ending::Committed, "{adapter}: {outcome:?}");
        assert!(outcome.took_us < 15_000_000, "{adapter}: {outcome:?}");
        drop(idle);
    }
}

#[test]
fn a_unix_socket_is_as_good() {
    for (adapter, mode) in ALL {
        let plain = Plain::serve_unix(adapter, mode);
        let ask = || plain.ask_unix("x").unwrap_or_else(|error| panic!("{adapter} {mode}: {error}"));
        assert!(ask().starts_with("0 "), "{adapter} {mode}");
        for n in 1..=3 {
            let outcome = plain.upgrade(&n.to_string(), "");
            assert_eq!(outcome.outcome, Ending::Committed, "{adapter} {mode}: {outcome:?}");
            assert!(ask().starts_with(&format!("{n} ")), "{adapter} {mode}");
        }
    }
}

#[test]
fn a_crash_is_followed_by_a_start_on_the_same_listener() {
    for (adapter, mode) in ALL {
        let plain = Plain::serve(adapter, mode, "");
        let load = Load::start_forgiving(plain.address, 2);
        let first = plain.program();
        assert_eq!(plain.rig.status("s").pid, Some(first));
        crate::support::signal(first, handoff::sys::process::Signal::SIGKILL);
        wait_for("another program to serve", || {
            let answer = ask(plain.address, "pid").ok()?;
            (!answer.ends_with(&format!(" {first}"))).then_some(())
        });
        wait_for("the restart to be reported", || (plain.rig.status("s").restarts == 1).then_some(()));
        assert_eq!(load.finish_counting_refused(), 0, "{adapter} {mode}");
    }
}

#[test]
fn a_program_is_known_again_after_the_runtime_directory_was_removed() {
    let mut plain = Plain::serve("inject", "exclusive", "");
    let program = plain.program();
    // The daemon may create files during the removal. Then the removal is retried.
    wait_for("it to be removed", || std::fs::remove_dir_all(plain.rig.path("run")).ok());
    let status = wait_for("the daemon to answer", || {
        Client::connect(&plain.rig.path("run/control.sock")).ok().map(|_| plain.rig.status("s"))
    });
    assert_eq!((status.pid, status.shim.is_some()), (Some(program), true));
    crate::support::kill(plain.rig.daemon.as_ref().unwrap().id());
    plain.rig.daemon.take().unwrap().wait().unwrap();
    wait_for("the shim to be found again", || {
        let mut found = std::fs::read_dir(plain.rig.path("run/adopt")).ok()?.flatten();
        found.any(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket())).then_some(())
    });
    plain.rig.start_daemon();
    assert_eq!(plain.rig.settled("s").pid, Some(program));
    assert_eq!(plain.upgrade("1", "").outcome, Ending::Committed);
    assert_ne!(plain.program(), program);
}

#[test]
fn a_stop_leaves_nothing_behind() {
    for (adapter, mode) in ALL {
        let mut plain = Plain::serve(adapter, mode, "");
        plain.upgrade("1", "forks");
        wait_for("shim, program and what it has started", || (plain.processes().len() == 4).then_some(()));
        plain.rig.call(Request::Stop(service("s"))).unwrap();
        assert_eq!(plain.processes(), Vec::<u32>::new(), "{adapter} {mode}");
        assert!(plain.rig.stop_daemon().unwrap().success());
        let run = std::fs::read_dir(plain.rig.path("run/adopt")).unwrap().flatten();
        assert_eq!(run.map(|entry| entry.file_name()).collect::<Vec<_>>(), Vec::<std::ffi::OsString>::new());
    }
}
