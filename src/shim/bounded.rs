//! Looks at other processes, within a time limit.
//!
//! What the kernel reports of a process in `/proc` may need its memory, or the end of its exec(2). If that waits for a file
//! system that does not answer, a look waits too, and cannot be given up. So another thread looks, and a process that does
//! not answer is left out. None is looked at while a thread still waits for it, and the number of such threads is limited.

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A look takes microseconds. On a busy machine the thread may have to wait for its turn.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Maximum number of threads that wait for a process.
const STUCK_MAX: usize = 16;

/// The processes for which a thread waits.
static STUCK: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// What `inspect` finds at each process, as far as they answer. An error if too many do not.
pub(super) fn inspect_all<T: Send + 'static>(
    pids: Vec<u32>,
    inspect: impl Fn(u32) -> T + Send + Sync + 'static,
) -> io::Result<Vec<(u32, T)>> {
    look_within(ANSWERS_WITHIN, pids, inspect)
}

fn look_within<T: Send + 'static>(
    limit: Duration,
    pids: Vec<u32>,
    inspect: impl Fn(u32) -> T + Send + Sync + 'static,
) -> io::Result<Vec<(u32, T)>> {
    let (inspect, mut found) = (Arc::new(inspect), Vec::new());
    let mut left: Vec<u32> = pids.into_iter().filter(|pid| !stuck().contains(pid)).collect();
    while !left.is_empty() {
        if stuck().len() >= STUCK_MAX {
            return Err(io::Error::other(format!("{STUCK_MAX} processes do not answer")));
        }
        let (asked, looking, (answer, answers)) = (left.clone(), Arc::clone(&inspect), channel());
        let looker = move || look_all(&asked, &*looking, &answer);
        // Without a thread there is no limit, and the processes are still looked at.
        if std::thread::Builder::new().name("handoff-look".to_owned()).spawn(looker).is_err() {
            found.extend(left.iter().map(|pid| (*pid, inspect(*pid))));
            return Ok(found);
        }
        let answered = collect(&answers, limit, &left, &mut found);
        if let Some(pid) = left.get(answered) {
            tracing::warn!(pid, "this process does not answer: it is left out");
        }
        left.drain(..left.len().min(answered + 1));
    }
    Ok(found)
}

fn look_all<T>(pids: &[u32], inspect: &impl Fn(u32) -> T, answer: &Sender<T>) {
    for pid in pids {
        let sent = answer.send(inspect(*pid));
        // After the answer: who takes it to be stuck looks for the answer once more.
        stuck().remove(pid);
        if sent.is_err() {
            return;
        }
    }
}

/// Takes the answers in their order, until one does not come in time: that process is put down as stuck. Returns how many
/// came.
fn collect<T>(answers: &Receiver<T>, limit: Duration, pids: &[u32], found: &mut Vec<(u32, T)>) -> usize {
    for (count, pid) in pids.iter().enumerate() {
        let answer = answers.recv_timeout(limit).or_else(|error| {
            if error == RecvTimeoutError::Disconnected {
                return Err(());
            }
            // Before the last look: a later answer takes it away again.
            stuck().insert(*pid);
            let answer = answers.try_recv().map_err(drop)?;
            stuck().remove(pid);
            Ok(answer)
        });
        match answer {
            Ok(answer) => found.push((*pid, answer)),
            Err(()) => return count,
        }
    }
    pids.len()
}

fn stuck() -> MutexGuard<'static, BTreeSet<u32>> {
    STUCK.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Instant;

    /// It is the first one, so that the others come after it.
    #[test]
    fn a_process_that_does_not_answer_is_left_out_and_not_asked_again_until_it_does() {
        static ANSWERS: AtomicBool = AtomicBool::new(false);
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        const SILENT: u32 = u32::MAX - 1;
        let inspect = |pid: u32| {
            if pid == SILENT {
                ASKED.fetch_add(1, Ordering::SeqCst);
                while !ANSWERS.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            pid / 2
        };
        let search = || look_within(Duration::from_millis(300), vec![SILENT, 4, 6], inspect).unwrap();
        for _ in 0..3 {
            assert_eq!(search(), [(4, 2), (6, 3)]);
            assert_eq!(ASKED.load(Ordering::SeqCst), 1);
        }
        ANSWERS.store(true, Ordering::SeqCst);
        let until = Instant::now() + Duration::from_secs(30);
        while search() != [(SILENT, SILENT / 2), (4, 2), (6, 3)] {
            assert!(Instant::now() < until, "it answers");
        }
    }
}
