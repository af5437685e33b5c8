//! The environment of a program at its start.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use handoff::shim::exec::Spec;
use handoff::sys::descriptor::set_close_on_exec;
use handoff::sys::file_lock::{FlockArg, flock};

use super::{output, python, spec};
use crate::support::wait_for;

/// Prints the open descriptors.
const OPEN: &str = "import os\ndef is_open(n):\n try: return bool(os.fstat(n))\n except OSError: return False\n\
    print([n for n in range(1000) if is_open(n)])\n";

/// Signals that the C library reserves, and leaves ignored in its children.
const OF_THE_C_LIBRARY: u64 = 1 << 31 | 1 << 32;

fn listeners(count: usize) -> (Vec<(String, OwnedFd)>, Vec<u16>) {
    let all: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports = all.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    (all.into_iter().enumerate().map(|(at, listener)| (format!("n{at}"), listener.into())).collect(), ports)
}

#[test]
fn it_gets_its_environment_and_nothing_else() {
    let (spec, reader) = spec("/usr/bin/env", &[]);
    let env = [("A", "1"), ("LISTEN_PID", "1"), ("LISTEN_FDS", "3"), ("LISTEN_FDNAMES", "x")];
    let env = env.map(|(name, value)| (name.into(), value.into())).to_vec();
    assert_eq!(output(Spec { env, ..spec }, reader), "A=1\n");
}

#[test]
fn it_starts_like_any_other_program() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, reader) = python(
        "import os, signal\n\
         status = dict(line.split(':\\t', 1) for line in open('/proc/self/status').read().splitlines())\n\
         print(os.getcwd(), os.readlink('/proc/self/fd/0'), os.getsid(0) == os.getpid())\n\
         print(int(status['SigBlk'], 16), status['Seccomp'])",
    );
    let text = output(Spec { working_dir: dir.path().into(), ..spec }, reader);
    let dir = dir.path().canonicalize().unwrap();
    assert_eq!(text, format!("{} /dev/null True\n0 0\n", dir.display()));
}

#[test]
fn no_signal_is_ignored_that_was_not() {
    let (spec, reader) = spec("/bin/grep", &["SigIgn", "/proc/self/status"]);
    let text = output(spec, reader);
    let ignored = u64::from_str_radix(text.strip_prefix("SigIgn:").unwrap().trim(), 16).unwrap();
    assert_eq!(ignored & !OF_THE_C_LIBRARY, 0, "{text}");
}

#[test]
fn only_what_is_meant_is_open() {
    // Without close-on-exec, like a careless parent.
    let (_reader, writer) = std::io::pipe().unwrap();
    set_close_on_exec(&writer, false).unwrap();
    let (nothing, reader) = python(OPEN);
    assert_eq!(output(nothing, reader), "[0, 1, 2]\n");

    let (two, reader) = python(OPEN);
    let (listeners, _) = listeners(2);
    let inherited = vec![writer.into()];
    let text = output(Spec { listeners, inherited, ..two }, reader);
    // An inherited descriptor marks the processes of a program. Its high number avoids conflicts.
    assert_eq!(text, "[0, 1, 2, 3, 4, 200]\n");
}

#[test]
fn listeners_are_where_it_looks_for_them() {
    const TELL: &str = "import os, socket\nprint(os.environ['LISTEN_PID'] == str(os.getpid()), \
        os.environ['LISTEN_FDS'], os.environ['LISTEN_FDNAMES'])\n\
        print([socket.socket(fileno=3 + n).getsockname()[1] for n in range(int(os.environ['LISTEN_FDS']))])";
    for through_a_shell in [false, true] {
        let (spec, reader) = match through_a_shell {
            false => python(TELL),
            true => spec("/bin/sh", &["-c", "exec /usr/bin/python3 -c \"$0\"", TELL]),
        };
        let (listeners, ports) = listeners(3);
        let text = output(Spec { listeners, ..spec }, reader);
        assert_eq!(text, format!("True 3 n0:n1:n2\n{ports:?}\n"));
    }
}

#[test]
fn many_descriptors_keep_their_order() {
    let (spec, reader) =
        python("import socket\nprint([socket.socket(fileno=3 + n).getsockname()[1] for n in range(100)])");
    let (listeners, ports) = listeners(100);
    let inherited = (0..100).map(|_| super::null()).collect();
    assert_eq!(output(Spec { listeners, inherited, ..spec }, reader), format!("{ports:?}\n"));
}

#[test]
fn a_lock_is_held_as_long_as_the_program_lives() {
    let dir = tempfile::tempdir().unwrap();
    let open = || std::fs::File::options().create(true).append(true).open(dir.path().join("lock")).unwrap();
    let lock = open();
    flock(&lock, FlockArg::LockExclusive).unwrap();
    let (spec, _reader) = spec("/bin/sleep", &["1000"]);
    let spec = Spec { inherited: vec![lock.into()], ..spec };
    let started = handoff::shim::exec::start_by(super::handoff(), spec).unwrap();
    assert!(flock(open(), FlockArg::LockExclusiveNonblock).is_err());
    handoff::sys::process::kill(&started.pidfd, handoff::sys::process::Signal::SIGKILL).unwrap();
    super::end_of(&started);
    // A child that another test has just forked holds the lock as well, until it executes its program.
    wait_for("the lock", || flock(open(), FlockArg::LockExclusiveNonblock).ok());
}

#[test]
fn arguments_and_environment_may_be_long_and_odd() {
    let (spec, reader) = python(
        "import os, sys\nprint(len(os.environb[b'LONG']), os.environb[b'ODD'], os.fsencode(sys.argv[1]))",
    );
    let mut args = spec.args.clone();
    args.push(OsString::from_vec(vec![b'a', 0xff]));
    let long = OsString::from("x".repeat(120_000));
    let env = vec![("LONG".into(), long), ("ODD".into(), OsString::from_vec(vec![0xfe]))];
    assert_eq!(output(Spec { args, env, ..spec }, reader), "120000 b'\\xfe' b'a\\xff'\n");
}

#[test]
fn the_limit_of_open_files_is_its_own() {
    let before = handoff::sys::files::files_limit();
    let (spec, reader) = spec("/bin/sh", &["-c", "ulimit -n"]);
    assert_eq!(output(Spec { files_limit: Some(77), ..spec }, reader), "77\n");
    assert_eq!(handoff::sys::files::files_limit(), before);
}
