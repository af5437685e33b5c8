//! Commands that behave, and commands that do not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use super::*;
use crate::sys::process::Signal;
use crate::sys::signals::send_plain;

fn shell(script: &str, limit_ms: u64) -> Command {
    Command { argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(), limit_ms }
}

async fn run_shell(script: &str, limit_ms: u64) -> Result<Output, HookError> {
    run(&shell(script, limit_ms), None, &[("WHO".to_owned(), "me".to_owned())], Path::new("/")).await
}

/// Whether a process with this pid exists and is not a zombie.
fn lives(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')))
}

/// A killed process exits a moment after the signal.
fn goes_away(pid: &str) -> bool {
    let until = Instant::now() + Duration::from_secs(10);
    while lives(pid) {
        if Instant::now() > until {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[tokio::test(flavor = "current_thread")]
async fn one_that_exits_with_0_has_done_its_work() {
    let output =
        run_shell("echo \"$WHO in $(pwd)\"; echo and this >&2; read x || true", 10_000).await.unwrap();
    assert_eq!(output, Output { stdout: "me in /\n".to_owned(), stderr: "and this\n".to_owned() });
}

#[tokio::test(flavor = "current_thread")]
async fn its_environment_is_what_it_is_given_and_what_services_have() {
    let output = run_shell("env | cut -d= -f1", 10_000).await.unwrap();
    for name in output.stdout.lines() {
        // The shell adds three of its own.
        let known = std::env::var_os(name).is_some() && name != "CARGO_MANIFEST_DIR";
        assert!(known || ["WHO", "PWD", "SHLVL", "_"].contains(&name), "{name}");
    }
    assert!(!output.stdout.contains("CARGO"), "{}", output.stdout);
}

#[tokio::test(flavor = "current_thread")]
async fn one_that_fails_is_told_with_its_last_lines() {
    let error =
        run_shell("echo out; printf 'one\\ntwo\\nthree\\nfour\\n' >&2; exit 3", 10_000).await.unwrap_err();
    let output_tail = error.to_string();
    assert!(output_tail.ends_with("exited with code 3: two; three; four"), "{output_tail}");
    let output_tail = run_shell("echo only this; kill -9 $$", 10_000).await.unwrap_err().to_string();
    assert!(output_tail.ends_with("was killed by signal 9: only this"), "{output_tail}");
}

#[tokio::test(flavor = "current_thread")]
async fn one_that_hangs_is_killed_with_all_that_it_started() {
    let began = Instant::now();
    // Long enough for a shell on a busy machine to say something.
    let error = run_shell("sleep 1000 & echo $!; trap '' TERM; wait", 2_000).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(20));
    let HookError::TooLong { output_tail, limit_ms: 2_000, .. } = &error else { panic!("{error}") };
    assert!(goes_away(output_tail), "{error}");
    assert!(error.to_string().contains("did not end within 2s and was killed"), "{error}");
}

#[tokio::test(flavor = "current_thread")]
async fn one_that_leaves_something_behind_is_not_waited_for() {
    let began = Instant::now();
    let output = run_shell("sleep 1000 & echo $!", 100_000).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "the pipe was open for the sleeping one");
    assert!(goes_away(output.stdout.trim()), "{output:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn one_that_leaves_its_group_holds_nothing_up() {
    let began = Instant::now();
    let output = run_shell("setsid sleep 1000 & echo $!", 100_000).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(20));
    let pid = output.stdout.trim().parse::<u32>().unwrap();
    // It left the group on purpose; this test must end it.
    send_plain(pid, Signal::SIGKILL);
}

#[tokio::test(flavor = "current_thread")]
async fn a_flood_is_read_and_its_end_is_kept() {
    let output = run_shell("yes | head -c 5000000; echo the end; yes >&2 | head -c 0", 100).await;
    // The second flood has no end: the time limit ends it.
    let error = output.unwrap_err();
    assert!(matches!(error, HookError::TooLong { .. }), "{error}");
    let output = run_shell("yes | head -c 5000000; echo the end", 60_000).await.unwrap();
    assert!(output.stdout.len() <= 16 << 10, "{}", output.stdout.len());
    assert!(output.stdout.ends_with("y\nthe end\n"));
}

#[tokio::test(flavor = "current_thread")]
async fn while_one_floods_others_go_on() {
    let flood = shell("yes", 4_000);
    let flood = run(&flood, None, &[], Path::new("/"));
    let mut turns = 0;
    let others = async {
        // On a busy machine each turn takes many times as long.
        let until = Instant::now() + Duration::from_secs(3);
        while turns <= 20 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
            turns += 1;
        }
    };
    let (flood, ()) = tokio::join!(flood, others);
    assert!(matches!(flood, Err(HookError::TooLong { .. })));
    assert!(turns > 20, "only {turns} turns in 3 s");
}

#[tokio::test(flavor = "current_thread")]
async fn one_that_is_given_up_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pid");
    let command = shell(&format!("echo $$ > {0}.new; mv {0}.new {0}; sleep 1000", path.display()), 100_000);
    {
        let running = run(&command, None, &[], Path::new("/"));
        tokio::pin!(running);
        let until = Instant::now() + Duration::from_secs(20);
        while !path.exists() && Instant::now() < until {
            let _ = tokio::time::timeout(Duration::from_millis(5), &mut running).await;
        }
    }
    assert!(goes_away(fs::read_to_string(&path).unwrap().trim()));
}

#[tokio::test(flavor = "current_thread")]
async fn the_binary_is_filled_in() {
    let command = |words: &[&str]| Command {
        argv: words.iter().map(|word| (*word).to_owned()).collect(),
        limit_ms: 10_000,
    };
    let binary = Path::new("/bin/echo");
    let run = async |words: &[&str], binary| run(&command(words), binary, &[], Path::new("/")).await;
    let output = run(&[BINARY, "--of={binary}", "$HOME"], Some(binary)).await.unwrap();
    assert_eq!(output.stdout, "--of=/bin/echo $HOME\n");
    assert!(matches!(run(&["/bin/echo", BINARY], None).await, Err(HookError::NoBinary(_))));
}

#[tokio::test(flavor = "current_thread")]
async fn what_cannot_be_trusted_is_not_run() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("hook");
    let mark = directory.path().join("ran");
    // By another process: a child of another test may have what is open for writing here until its exec, and it cannot be executed then.
    let script = r#"printf '#!/bin/sh\ntouch %s\n' "$2" > "$1""#;
    let mut write = std::process::Command::new("/bin/sh");
    assert!(write.args(["-c", script, "sh"]).args([&program, &mark]).status().unwrap().success());
    let mode = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    let attempt = async |program: &str| {
        let command = Command { argv: vec![program.to_owned()], limit_ms: 10_000 };
        run(&command, None, &[], Path::new("/")).await
    };
    let path = program.to_str().unwrap();
    assert!(matches!(attempt("hook").await, Err(HookError::NotAbsolute(_))));
    assert!(matches!(attempt("").await, Err(HookError::NotAbsolute(_))));
    assert!(matches!(attempt("/nonexistent/hook").await, Err(HookError::Spawn { .. })));
    mode(&program, 0o644);
    assert!(matches!(attempt(path).await, Err(HookError::Spawn { .. })));
    mode(&program, 0o777);
    let error = attempt(path).await.unwrap_err();
    assert!(error.to_string().contains("is world-writable"), "{error}");
    assert!(error.hint().contains("chmod o-w"), "{}", error.hint());
    mode(&program, 0o755);
    mode(directory.path(), 0o777);
    assert!(matches!(attempt(path).await, Err(HookError::Unsafe { .. })));
    assert!(!mark.exists());
    mode(directory.path(), 0o755);
    attempt(path).await.unwrap();
    assert!(mark.exists());
}

#[tokio::test(flavor = "current_thread")]
async fn a_working_directory_that_is_missing_is_an_error() {
    let error = run(&shell("true", 1_000), None, &[], Path::new("/nonexistent")).await.unwrap_err();
    assert!(matches!(error, HookError::Spawn { .. }), "{error}");
}
