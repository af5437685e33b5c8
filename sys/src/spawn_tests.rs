use super::*;
use crate::channel::Channel;
use crate::process::{Exit, reap_blocking};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A spec for `binary` whose output goes to the returned pipe.
fn spec(binary: &Path, args: &[&str]) -> (SpawnSpec, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    let stdout = OwnedFd::from(writer);
    let spec = SpawnSpec {
        binary: binary.to_owned(),
        args: args.iter().map(OsString::from).collect(),
        env: vec![("ONLY".into(), "this".into())],
        working_dir: "/".into(),
        stderr: stdout.try_clone().unwrap(),
        stdout,
        channel: None,
        files_limit: None,
    };
    (spec, File::from(OwnedFd::from(reader)))
}

fn shell(script: &str) -> (SpawnSpec, File) {
    spec(Path::new("/bin/sh"), &["-c", script])
}

fn run((spec, mut output): (SpawnSpec, File)) -> (String, Exit) {
    let spawned = spawn(spec).unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    (text, reap_blocking(spawned.pidfd.as_fd()).unwrap())
}

fn listeners(count: usize) -> Vec<TcpListener> {
    (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect()
}

#[test]
fn only_the_standard_streams_and_the_channel_are_inherited() {
    for count in [0, 3, 10] {
        let _held = listeners(count);
        let (ours, theirs) = Channel::pair().unwrap();
        let number = theirs.as_raw_fd();
        let (mut spec, output) = shell("echo $HANDOFF_FD; echo hi >&2; exec ls -l /proc/self/fd");
        spec.channel = Some(theirs);
        let (text, exit) = run((spec, output));
        assert_eq!(exit, Exit { code: Some(0), signal: None });
        let (head, list) = text.split_once("total").unwrap();
        assert_eq!(head, format!("{number}\nhi\n"));
        // ls itself opens the directory.
        let fds =
            list.lines().filter(|line| !line.contains("/proc/")).filter_map(|line| line.split_once(" -> "));
        let found: BTreeSet<c_int> =
            fds.map(|(left, _)| left.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(found, BTreeSet::from([0, 1, 2, number]), "{count} listeners: {text}");
        assert!(ours.recv(&mut Vec::new()).unwrap().is_none(), "no other copy of the channel is left");
    }
}

/// Other tests and inherited files use the lowest numbers here.
#[test]
fn listeners_are_inherited_from_number_three_on_in_their_order() {
    for held in [0, 3, 10] {
        let _held = listeners(held);
        let (ours, theirs) = Channel::pair().unwrap();
        let given = listeners(4);
        let (mut spec, mut output) =
            shell("echo $HANDOFF_FD; for fd in 3 4 5 6; do readlink /proc/$$/fd/$fd; done");
        spec.channel = Some(theirs);
        let fds: Vec<_> = given.iter().map(AsFd::as_fd).collect();
        let spawned = spawn_with_listeners(spec, &fds).unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(reap_blocking(spawned.pidfd.as_fd()).unwrap().code, Some(0));
        let (channel, found) = text.split_once('\n').unwrap();
        assert!(channel.parse::<c_int>().unwrap() >= 7, "{text}");
        let sockets: Vec<_> = given
            .iter()
            .map(|socket| fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap())
            .map(|link| link.to_string_lossy().into_owned())
            .collect();
        assert_eq!(found.lines().collect::<Vec<_>>(), sockets);
        assert!(ours.recv(&mut Vec::new()).unwrap().is_none(), "no other copy of the channel is left");
    }
}

#[test]
fn environment_directory_session_and_signals_are_what_is_meant() {
    let (mut spec, output) =
        shell("env; pwd; readlink /proc/$$/fd/0; exec cat /proc/self/stat /proc/self/status");
    spec.env.push((CHANNEL_VARIABLE.into(), "99".into()));
    spec.working_dir = "/proc".into();
    let (text, _) = run((spec, output));
    assert!(
        text.contains("ONLY=this\n") && !text.contains("HOME=") && !text.contains("HANDOFF_FD"),
        "{text}"
    );
    assert!(text.contains("\n/proc\n/dev/null\n"), "{text}");
    let stat = text.lines().find(|line| line.contains("(cat)")).unwrap();
    let fields: Vec<&str> = stat.split_whitespace().collect();
    assert_eq!(fields[0], fields[5], "leader of its session: {stat}");
    let signals = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    // Signals 32 and 33 belong to the C library, which ignores them in processes that it spawns.
    assert_eq!((signals("SigBlk:"), signals("SigIgn:") & !(3 << 31)), (0, 0));
}

/// Another process writes it: a child of another test may hold for a moment what is open for writing in this one, and such a file
/// cannot be executed.
fn write_executable(path: &Path, text: &str) {
    let script = "printf %s \"$2\" > \"$1\" && chmod 755 \"$1\"";
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).arg(path).arg(text);
    assert!(command.status().unwrap().success());
}

#[test]
fn what_cannot_be_started_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    fs::write(&plain, "no program").unwrap();
    let script = dir.path().join("script");
    write_executable(&script, "#!/nonexistent/interpreter\n");
    let garbage = dir.path().join("garbage");
    write_executable(&garbage, "neither script nor program");
    let busy = dir.path().join("busy");
    let _writer = OpenOptions::new().write(true).create_new(true).mode(0o755).open(&busy).unwrap();

    for count in [0, 3, 10] {
        let _held = listeners(count);
        let refused = |binary: &Path, args: &[&str]| {
            let (mut spec, mut output) = spec(binary, args);
            let (ours, theirs) = Channel::pair().unwrap();
            spec.channel = Some(theirs);
            let error = spawn(spec).unwrap_err().to_string();
            assert!(error.contains(binary.to_str().unwrap()), "{error}");
            assert!(ours.recv(&mut Vec::new()).unwrap().is_none(), "the child's end is closed");
            assert_eq!(output.read(&mut [0]).unwrap(), 0, "so is its output");
            error
        };
        assert!(refused(&dir.path().join("missing"), &[]).contains("No such file"));
        assert!(refused(&plain, &[]).contains("not executable"));
        assert!(refused(dir.path(), &[]).contains("is a directory"));
        assert!(refused(&script, &[]).contains("interpreter"));
        assert!(refused(&garbage, &[]).contains("Exec format error"));
        assert!(refused(&busy, &[]).contains("busy"));
        assert!(refused(Path::new("/bin/true"), &[&"x".repeat(4 << 20)]).contains("too long"));
        assert!(refused(Path::new("bin/true"), &[]).contains("not absolute"));
    }
}

#[test]
fn a_missing_working_directory_is_not_blamed_on_the_binary() {
    let (mut spec, _output) = shell("true");
    spec.working_dir = "/nonexistent/dir".into();
    let error = spawn(spec).unwrap_err().to_string();
    assert!(error.contains("working directory \"/nonexistent/dir\""), "{error}");
    let (mut spec, _output) = shell("true");
    spec.args.push("a\0b".into());
    assert!(spawn(spec).unwrap_err().to_string().contains("zero byte"));
}

#[test]
fn streams_that_are_standard_streams_here_are_not_clobbered() {
    let dup = |fd: c_int| {
        // SAFETY: the standard streams of a test are open.
        unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().unwrap()
    };
    let moved = InheritedFd::Moved(duplicate_from(dup(1), 3).unwrap());
    assert!(moved.as_fd().as_raw_fd() > 2);
    // SAFETY: forgotten below, so that it stays open.
    let standard = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(2) };
    assert!(from(FIRST_LISTENER, &standard).unwrap().as_fd().as_raw_fd() > 2);
    std::mem::forget(standard);
}

#[test]
fn inherited_descriptors_can_be_sealed() {
    let (reader, writer) = std::io::pipe().unwrap();
    set_close_on_exec(&writer, false).unwrap();
    close_all_on_exec().unwrap();
    assert!(is_close_on_exec(&writer).unwrap());
    drop(reader);
}
