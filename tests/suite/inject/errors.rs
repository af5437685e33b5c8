//! Programs that cannot be started, and parents that end.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use handoff::shim::exec::{Spec, StartedProgram, start_by};
use handoff::sys::process::pidfd_open;
use handoff::sys::seccomp::Calls;

use super::{end_of, handoff, python, spec};
use crate::support::{again, arguments_for, wait_for};

fn refused(change: impl FnOnce(&mut Spec)) -> std::io::Error {
    let (mut spec, mut reader) = spec("/bin/true", &[]);
    change(&mut spec);
    let error = start_by(handoff(), spec).unwrap_err();
    // No process has the pipe any more, so nothing is left of the program.
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
    error
}

#[test]
fn what_is_wrong_with_a_program_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path
    };
    let plain = file("plain", "#!/bin/sh\n", 0o644);
    let script = file("script", "#!/nonexistent/interpreter\n", 0o755);
    let garbage = file("garbage", "\x01\x02\x03", 0o755);
    for seccomp in [None, Some(Calls::Sockets)] {
        let told = |binary: &Path| {
            let error = refused(|spec| (spec.binary, spec.seccomp) = (binary.to_owned(), seccomp));
            let text = error.to_string();
            assert!(text.contains(&format!("{binary:?}")), "{text}");
            (error.kind(), text)
        };
        let (kind, text) = told(Path::new("/nonexistent/program"));
        assert_eq!(kind, std::io::ErrorKind::NotFound);
        assert!(text.contains("No such file"), "{text}");
        assert!(told(&script).1.contains("interpreter"));
        assert!(told(&plain).1.contains("not executable"));
        assert!(told(dir.path()).1.contains("is a directory"));
        assert!(told(&garbage).1.contains("Exec format error"));
        assert!(told(Path::new("bin/true")).1.contains("not absolute"));
    }
}

#[test]
fn what_is_wrong_with_the_rest_is_said() {
    let text = refused(|spec| spec.working_dir = "/nonexistent/dir".into()).to_string();
    assert!(text.contains("working directory \"/nonexistent/dir\""), "{text}");
    let text = refused(|spec| spec.args.push("x".repeat(4 << 20).into())).to_string();
    assert!(text.contains("too long"), "{text}");
    let text = refused(|spec| spec.args.push("a\0b".into())).to_string();
    assert!(text.contains("zero byte"), "{text}");
    let text = refused(|spec| spec.inherited = (0..300).map(|_| super::null()).collect()).to_string();
    assert!(text.contains("301 descriptors"), "{text}");
}

#[test]
fn the_trampoline_alone_does_nothing() {
    let output = std::process::Command::new(handoff()).arg(handoff::shim::exec::VERB).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is an internal command of handoff"));
}

#[test]
fn a_program_under_another_supervisor_of_calls_is_refused() {
    const INNER: &str = "HANDOFF_TEST_UNDER_A_SUPERVISOR";
    if std::env::var_os(INNER).is_some() {
        let (spec, _reader) = spec("/bin/true", &[]);
        let error = start_by(handoff(), Spec { seccomp: Some(Calls::Sockets), ..spec }).unwrap_err();
        println!("{:?}: {error}", error.kind());
        return;
    }
    let program = std::env::current_exe().unwrap();
    let test = arguments_for(a_program_under_another_supervisor_of_calls_is_refused);
    let (spec, reader) = spec(program.to_str().unwrap(), &test);
    let mut env = spec.env.clone();
    env.push((INNER.into(), "1".into()));
    let text = super::output(Spec { env, seccomp: Some(Calls::Sockets), ..spec }, reader);
    assert!(text.contains("ResourceBusy") && text.contains("the kernel allows only one"), "{text}");
}

#[test]
fn a_program_dies_with_its_parent() {
    const INNER: &str = "HANDOFF_TEST_PARENT";
    if std::env::var_os(INNER).is_some() {
        let (spec, _reader) = spec("/bin/sleep", &["1000"]);
        let started = start_by(handoff(), spec).unwrap();
        println!("pid {}", started.pid);
        // Waits until the other end is closed.
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        std::process::exit(0);
    }
    let mut parent = again(a_program_dies_with_its_parent, INNER, "1")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let pid = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("pid ")?.1.parse().unwrap()));
    let program = pidfd_open(pid.unwrap()).unwrap();
    assert_eq!(handoff::sys::exit::life(&program).unwrap(), handoff::sys::exit::ProcessStatus::Runs);
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_for("the program to end", || {
        (handoff::sys::exit::life(&program).unwrap() != handoff::sys::exit::ProcessStatus::Runs).then_some(())
    });
}

#[test]
fn only_a_program_without_privilege_loses_setuid() {
    let status =
        "import re\nprint(re.findall('(?:NoNewPrivs|Seccomp):\\t(.)', open('/proc/self/status').read()))";
    let (spec, reader) = python(status);
    let text = super::output(Spec { seccomp: Some(Calls::Sockets), ..spec }, reader);
    let effective = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = effective.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let privileged = u64::from_str_radix(effective.trim(), 16).unwrap() & 1 << 21 != 0;
    assert_eq!(text, if privileged { "['0', '2']\n" } else { "['1', '2']\n" });
}

#[test]
fn a_child_that_is_killed_has_an_end() {
    let (spec, _reader) = spec("/bin/sleep", &["1000"]);
    let started: StartedProgram = start_by(handoff(), spec).unwrap();
    handoff::sys::process::kill(&started.pidfd, handoff::sys::process::Signal::SIGTERM).unwrap();
    assert_eq!(end_of(&started).signal, Some(15));
}
