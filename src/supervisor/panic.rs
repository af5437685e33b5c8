//! A panic in the daemon ends the process.
//!
//! A daemon that is lost is replaced, and the next one takes over what runs. Half a daemon is worse: a lost task lets
//! an upgrade wait without end. So no thread and no task of the daemon survives a panic. This rule is only for the
//! daemon: in a service, the library catches the panics of the server's code.

use std::fmt::Write;
use std::panic::PanicHookInfo;
use std::time::Duration;

use crate::sys::descriptor::write;
use crate::sys::poll::{PollFlags, poll_one};

/// What a pipe that is ready takes without blocking (pipe(7)).
const MESSAGE_MAX_BYTES: usize = 4096;
/// The last message must not keep the process alive for longer.
const LISTENED_WITHIN: Duration = Duration::from_millis(100);

/// From now on a panic of any thread ends this process with SIGABRT, and a line in the log names the place.
pub(super) fn ends_the_process() {
    std::panic::set_hook(Box::new(|info| {
        print_error(&description(info));
        std::process::abort();
    }));
}

fn description(info: &PanicHookInfo<'_>) -> String {
    let what = info.payload_as_str().unwrap_or("something that is no text");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let mut words = String::new();
    let _ = writeln!(
        words,
        "handoff: the daemon has a fault and ends: panic at {place} (thread {thread}): {what}; the services run on, and the next \
         daemon takes them over"
    );
    words.truncate(words.floor_char_boundary(MESSAGE_MAX_BYTES));
    words
}

/// Does not use the log: any part of it may have panicked, or may be locked by this thread.
fn print_error(words: &str) {
    let ready = poll_one(std::io::stderr(), PollFlags::POLLOUT, Some(LISTENED_WITHIN));
    if ready.is_ok_and(|found| !found.is_empty()) {
        let _ = write(std::io::stderr(), words.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const VARIABLE: &str = "HANDOFF_TEST_PANICS_IN";
    const NAME: &str = "a_panic_of_any_task_or_thread_ends_the_process_and_names_the_place";

    /// Starts this test again, in a process of its own.
    #[test]
    fn a_panic_of_any_task_or_thread_ends_the_process_and_names_the_place() {
        match std::env::var(VARIABLE).as_deref() {
            Ok("thread") => {
                super::ends_the_process();
                drop(std::thread::spawn(|| panic!("one of a thread")).join());
            }
            Ok(_) => {
                super::ends_the_process();
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let tasks = tokio::task::LocalSet::new();
                let task = async { panic!("one of a task") };
                drop(tasks.block_on(&runtime, async { tokio::task::spawn_local(task).await }));
            }
            Err(_) => ["thread", "task"].iter().for_each(|place| is_ended_by_one_of_a(place)),
        }
    }

    fn is_ended_by_one_of_a(place: &str) {
        let mut again = Command::new(std::env::current_exe().unwrap());
        let output = again.args([NAME, "--nocapture"]).env(VARIABLE, place).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(6), "{said}");
        assert!(said.contains("src/supervisor/panic.rs:"), "{said}");
        assert!(said.contains(&format!("one of a {place}")), "{said}");
    }
}
