//! A process whose supervisor is gone is taken over by another one. The test plays the supervisors.

mod handing;
mod played;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use crate::support::{ask, version, wait_for};
use handoff::sys::lock::DataLock;
use handoff::sys::process::Signal;
use handoff::sys::process::{Exit, kill};
use handoff::sys::socket::cookie_of;
use handoff::sys::wire::{recv_message, send_message};
use handoff_protocol::frame;
use handoff_protocol::ids::HandoffId;
use handoff_protocol::message::{
    Abort, Adopt, Begin, Commit, FromService, Mode, Progress, Ready, Resume, Stage, ToService,
};
use handoff_protocol::version::VersionRange;
use played::{Process, SILENCE_MS, Supervisor, adopt, rig};

const LEFT: Exit = Exit { code: Some(0), signal: None };

#[test]
fn a_serving_process_is_adopted_with_its_listeners_and_can_be_sent_away() {
    for mode in [Mode::Exclusive, Mode::Overlap] {
        let rig = rig();
        let (process, first) = Process::serve(&rig, mode);
        assert_eq!(std::fs::metadata(&process.adopt).unwrap().permissions().mode() & 0o777, 0o600);
        drop(first);
        let (second, adopted, fds) = process.adopt();
        assert_eq!((adopted.stage, fds.len()), (Stage::Serving, 1));
        let cookie = |fd: &OwnedFd| cookie_of(fd).unwrap();
        assert_eq!(cookie(&fds[0]), cookie(&process.listener), "the same socket");
        assert_eq!(version(process.address), "1");
        second.seal();
        assert!(DataLock::try_take(&rig.path("data")).unwrap().is_some());
        second.say(ToService::Commit(Commit {}));
        assert_eq!(process.end(), LEFT);
        assert!(!process.adopt.exists());
    }
}

#[test]
fn one_supervisor_after_the_other_is_heard() {
    let rig = rig();
    let (process, mut supervisor) = Process::serve(&rig, Mode::Exclusive);
    for round in 0..4 {
        // The supervisor dies at different moments. The third one does not die: it is superseded.
        match round {
            0 => drop(supervisor),
            1 => {
                supervisor.drain();
                drop(supervisor);
            }
            2 => {
                let next = process.adopted_at(Stage::Serving);
                assert!(supervisor.is_left());
                drop(next);
            }
            _ => {
                supervisor.seal();
                drop(supervisor);
            }
        }
        let (next, adopted, _) = process.adopt();
        match adopted.stage {
            Stage::Serving => {}
            Stage::Working => assert!(matches!(next.hear(), FromService::Resumed(_))),
            other => panic!("{other:?}"),
        }
        assert_eq!(version(process.address), "1");
        supervisor = next;
    }
    supervisor.drain();
    supervisor.say(ToService::Resume(Resume {}));
    assert!(matches!(supervisor.hear(), FromService::Resumed(_)));
}

#[test]
fn a_sealed_incumbent_waits_for_the_lock_and_resumes_for_the_new_supervisor() {
    let rig = rig();
    let (process, first) = Process::serve(&rig, Mode::Exclusive);
    first.seal();
    let held = DataLock::try_take(&rig.path("data")).unwrap().expect("a free lock");
    drop(first);
    let second = process.adopted_at(Stage::Waiting);
    // The process now works for the second supervisor: it sends signs of life at that supervisor's rate.
    let (id, sign, _) = recv_message::<FromService>(&second.channel, second.version).unwrap().unwrap();
    assert_eq!((id, sign), (second.id, FromService::Progress(Progress { note: String::new() })));
    held.release().unwrap();
    assert!(matches!(second.hear(), FromService::Resumed(_)));
    assert_eq!(version(process.address), "1");
    second.seal();
}

#[test]
fn a_successor_that_got_begin_gets_ready_for_the_new_supervisor() {
    let rig = rig();
    let held = DataLock::try_take(&rig.path("data")).unwrap().expect("a free lock");
    let (process, first) = Process::start(&rig, "1", "", Mode::Exclusive);
    // The process finds everything at once: the last message of the first supervisor, its end, and the second
    // supervisor.
    kill(&process.pidfd, Signal::SIGSTOP).unwrap();
    first.say(ToService::Begin(Begin {}));
    drop(first);
    let second = process.call();
    second.say(adopt());
    kill(&process.pidfd, Signal::SIGCONT).unwrap();
    assert_eq!(process.answer(&second).0.stage, Stage::Waiting);
    held.release().unwrap();
    assert!(matches!(second.hear(), FromService::Ready(Ready { healthy: true, .. })));
    second.say(ToService::Commit(Commit {}));
    assert_eq!(version(process.address), "1");
    second.seal();
    second.say(ToService::Commit(Commit {}));
    assert_eq!(process.end(), LEFT);
}

#[test]
fn a_successor_that_is_not_wanted_by_the_new_supervisor_leaves() {
    let rig = rig();
    let _held = DataLock::try_take(&rig.path("data")).unwrap().expect("a free lock");
    let (process, first) = Process::start(&rig, "1", "", Mode::Exclusive);
    first.say(ToService::Begin(Begin {}));
    drop(first);
    process.adopted_at(Stage::Waiting).say(ToService::Abort(Abort {}));
    assert_eq!(process.end(), LEFT);
}

#[test]
fn a_process_without_begin_is_never_adopted() {
    for closes in [true, false] {
        let rig = rig();
        let (process, first) = Process::start(&rig, "1", "", Mode::Exclusive);
        let second = process.call();
        let first = if closes { None } else { Some(first) };
        // The process may be gone already.
        let _ = send_message(&second.channel, second.version, second.id, &adopt(), &[]);
        assert!(second.is_left());
        assert_eq!(process.end(), LEFT);
        assert!(!process.adopt.exists());
        drop(first);
    }
}

#[test]
fn the_standby_and_the_new_process_are_both_adopted() {
    let rig = rig();
    let (old, to_old) = Process::serve(&rig, Mode::Exclusive);
    let listener = old.listener.try_clone().unwrap();
    let (new, to_new) = Process::start_at(&rig, "2", "slow-begin-5000", Mode::Exclusive, listener);
    to_old.seal();
    to_new.say(ToService::Begin(Begin {}));
    wait_for("the new process to have the lock", || {
        match DataLock::try_take(&rig.path("data")).unwrap() {
            // A child of another test may hold a lock that is only dropped, just as the new process would.
            Some(free) => free.release().map(|()| None).unwrap(),
            None => Some(()),
        }
    });
    drop((to_old, to_new));
    let (to_old, to_new) = (old.adopted_at(Stage::Waiting), new.adopted_at(Stage::Working));
    assert!(matches!(to_new.hear(), FromService::Ready(Ready { healthy: true, .. })));
    for to in [&to_new, &to_old] {
        to.say(ToService::Commit(Commit {}));
    }
    assert_eq!(old.end(), LEFT);
    assert_eq!(version(new.address), "2");
    to_new.drain();
}

/// Sends `bytes`, and expects that the process closes the connection.
fn is_sent_away(stranger: &Supervisor, bytes: &[u8], fd: Option<&OwnedFd>) {
    let fds: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
    stranger.channel.send(bytes, &fds).unwrap();
    assert!(stranger.is_left());
}

#[test]
fn strangers_change_nothing() {
    let rig = rig();
    let (process, supervisor) = Process::serve(&rig, Mode::Exclusive);
    supervisor.drain();
    let framed = |version, message| frame::encode(version, HandoffId::NIL, &message).unwrap();
    let far = VersionRange { minimum: 90, current: 99 };

    is_sent_away(&process.call(), b"GET / HTTP/1.1\r\n\r\n and so on, and so on", None);
    is_sent_away(&process.call(), &framed(1, ToService::Commit(Commit {})), None);
    is_sent_away(&process.call(), &framed(0, ToService::Commit(Commit {})), None);
    is_sent_away(&process.call(), &framed(1, adopt())[..40], None);
    is_sent_away(&process.call(), &framed(1, adopt()), Some(&process.listener));
    is_sent_away(
        &process.call(),
        &framed(1, ToService::Adopt(Adopt { versions: far, lease_ms: SILENCE_MS })),
        None,
    );
    drop(process.call());
    // Of the silent supervisors, the newest ones are kept.
    let silent: Vec<Supervisor> = (0..12).map(|_| process.call()).collect();
    assert!(silent[0].is_left());
    assert!(process.is_at_rest(&supervisor));

    supervisor.say(ToService::Resume(Resume {}));
    assert!(matches!(supervisor.hear(), FromService::Resumed(_)), "the lease and the channel are as before");
    drop(supervisor);
    process.adopted_at(Stage::Serving).drain();
}

#[test]
fn a_process_without_descriptors_to_spare_is_adopted_when_it_has_some() {
    let rig = rig();
    let (process, first) = Process::serve(&rig, Mode::Exclusive);
    process.limit_descriptors(Some(3));
    let waiting = process.call();
    assert!(process.is_at_rest(&first));
    // The existing channel still works.
    first.drain();
    first.say(ToService::Resume(Resume {}));
    assert!(matches!(first.hear(), FromService::Resumed(_)));
    process.limit_descriptors(Some(1024));
    drop((first, waiting));
    assert_eq!(ask(process.address, "x").unwrap(), "1 x");
    let second = process.adopted_at(Stage::Serving);
    assert!(process.is_at_rest(&second));
    second.drain();
}

#[test]
fn a_path_that_is_taken_is_reported_and_left_alone() {
    let rig = rig();
    std::fs::write(rig.path("adopt-1"), "mine").unwrap();
    let (process, supervisor) = Process::serve(&rig, Mode::Exclusive);
    let log = std::fs::read_to_string(&process.log).unwrap();
    assert_eq!(log.matches("no other supervisor can adopt").count(), 1, "{log}");
    assert!(log.contains("adopt-1"), "{log}");
    supervisor.seal();
    supervisor.say(ToService::Commit(Commit {}));
    assert_eq!(process.end(), LEFT);
    assert_eq!(std::fs::read_to_string(&process.adopt).unwrap(), "mine");
}
