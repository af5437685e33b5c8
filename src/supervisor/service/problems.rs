//! What the user should know about a service: each thing that goes wrong has a method here, and so has each way in
//! which it is over. No other place writes or clears any of it.

use std::path::Path;

use super::process_failures::{ProcessFailures, ServiceActivity};
use crate::config::ListenAddress;
use crate::control::Error;
use crate::control::api::Killed;
use crate::hooks::HookError;
use crate::journal::JournalError;
use crate::slots::SlotError;

/// What is wrong with a service, and what went wrong with its processes.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Problems {
    /// The last finding. Sentences.
    last: Option<String>,
    /// A finding that remains a problem even if the operation in progress ends well.
    meanwhile: Option<String>,
    /// What is wrong with the service file now.
    file: Option<String>,
    /// Why the last start was refused.
    refused_start: Option<RefusedStart>,
    /// What went wrong with the processes.
    process_failures: ProcessFailures,
    /// The process that keeps a beginning one from its data; a clause.
    lock: Option<String>,
    /// Processes that were killed because they did not end in time, and that were not reported yet.
    killed: Vec<Killed>,
}

/// A start that was refused before a process existed. It is the reason why the service does not run, until the next
/// start or another service file.
#[derive(Debug)]
struct RefusedStart {
    /// Sentences.
    text: String,
    /// The text of the service file.
    file: String,
}

/// What was reported before a request. It is restored if the request is refused.
#[derive(Debug)]
pub(in crate::supervisor) struct EarlierProblems {
    last: Option<String>,
    killed: Vec<Killed>,
}

impl Problems {
    /// `problem` is what is wrong with the state of the service, if anything. `began_again`: its journal was lost, which
    /// remains to be told when the service has started.
    pub(in crate::supervisor) fn at_opening(problem: Option<String>, began_again: Option<String>) -> Self {
        Self { last: problem.or_else(|| began_again.clone()), meanwhile: began_again, ..Self::default() }
    }

    /// The last finding, if it still counts.
    pub(in crate::supervisor) fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }

    /// Whether a service at rest is down because something is wrong.
    pub(in crate::supervisor) fn keeps_it_down(&self) -> bool {
        self.last.is_some() || self.file.is_some() || self.refused_start.is_some()
    }

    /// What the user should know. Sentences.
    pub(in crate::supervisor) fn text(&self, activity: ServiceActivity) -> Option<String> {
        let refused = self.refused_start.as_ref().map(|refused| refused.text.clone());
        let text = [self.file.clone(), self.last.clone(), refused, self.process_failures.text(activity)];
        let text: Vec<String> = text.into_iter().flatten().collect();
        (!text.is_empty()).then(|| text.join(" "))
    }

    /// Begins a request. Findings about an earlier attempt must not be taken for the end of the next one, unless the
    /// problem `lasts`.
    pub(in crate::supervisor) fn request_begins(&mut self, lasts: bool) -> EarlierProblems {
        EarlierProblems { killed: std::mem::take(&mut self.killed), last: self.last.take_if(|_| !lasts) }
    }

    /// Restores what was reported: the operation in progress continues.
    pub(in crate::supervisor) fn request_refused(&mut self, earlier: EarlierProblems) {
        self.killed = earlier.killed;
        self.last = self.last.take().or(earlier.last);
    }

    /// Ends an operation that went well. What was found meanwhile is still reported.
    pub(in crate::supervisor) fn ended_well(&mut self) {
        self.last = self.meanwhile.take();
        self.process_failures = ProcessFailures::default();
    }

    /// The service is not started again. Sentences.
    pub(in crate::supervisor) fn not_started_again(&mut self, text: String) {
        self.last = Some(text);
    }

    /// A person has stopped the service that was not started again.
    pub(in crate::supervisor) fn stopped(&mut self) {
        self.exited();
    }

    /// Its program has done what it should.
    pub(in crate::supervisor) fn exited(&mut self) {
        self.last = None;
        self.process_failures = ProcessFailures::default();
    }

    /// The new version serves, but the disk does not have the commit.
    pub(in crate::supervisor) fn committed_without_disk(&mut self, message: &str) {
        self.last = Some(message.to_owned());
    }
}

/// The journal.
impl Problems {
    /// A fact is not recorded, or not durable; or the cause of that could not be mended.
    pub(in crate::supervisor) fn not_recorded(&mut self, error: &JournalError) {
        self.last = Some(error.to_string());
    }

    /// The journal is not in its place and cannot be written again, or the disk refuses the one that was.
    pub(in crate::supervisor) fn journal_not_in_place(&mut self, error: &JournalError) {
        self.last = Some(format!("{error}."));
    }

    /// The journal was removed and is written again, perhaps in the middle of an operation.
    pub(in crate::supervisor) fn journal_written_again(&mut self, found: &str, is_under_way: bool) {
        self.last = Some(format!("{found}."));
        if is_under_way {
            self.meanwhile.clone_from(&self.last);
        }
    }

    /// The journal was damaged, and was set aside or could not be. Sentences.
    pub(in crate::supervisor) fn journal_set_aside(&mut self, text: String) {
        self.last = Some(text);
    }

    /// The journal could not be made shorter. If it takes no records, that is worse, and is reported instead.
    pub(in crate::supervisor) fn journal_stays_long(&mut self, latched: Option<&str>) {
        self.last = latched.map(str::to_owned).or(self.last.take());
    }

    /// The journal takes records again.
    pub(in crate::supervisor) fn journal_repaired(&mut self) {
        self.last = None;
    }

    /// Mending the journal at rest has failed: the earlier problem, `before`, says more.
    pub(in crate::supervisor) fn journal_still_refused(&mut self, before: Option<String>) {
        self.last = before;
    }
}

/// The listeners.
impl Problems {
    /// New connections cannot be steered, a slot cannot be retired, or what the keeper holds cannot be used.
    pub(in crate::supervisor) fn slots_unusable(&mut self, error: &SlotError) {
        self.last = Some(error.to_string());
    }

    /// The program has ended a listener that cannot be replaced.
    pub(in crate::supervisor) fn listener_not_renewed(&mut self, error: &SlotError) {
        self.last = Some(format!("{error}."));
    }

    /// The listeners of a process that was taken over are unknown.
    pub(in crate::supervisor) fn listeners_unknown(&mut self, error: &SlotError) {
        self.last = Some(format!("The listeners of the process are not known: {error}."));
    }

    /// The path of a unix socket cannot be restored.
    pub(in crate::supervisor) fn path_lost(&mut self, address: &ListenAddress, error: &str) {
        self.last = Some(format!("The path of {address} is gone and cannot be put back: {error}."));
    }
}

/// Versions.
impl Problems {
    /// A message about a watched path.
    pub(in crate::supervisor) fn at_watched_path(&mut self, path: &Path, what: &str) {
        self.last = Some(format!("What is at {}: {what}.", path.display()));
    }

    /// What was staged is not started, or not brought in.
    pub(in crate::supervisor) fn staged_refused(&mut self, error: &Error) {
        self.last = Some(error.to_string());
    }

    /// The running version was removed from the store. It may be back.
    pub(in crate::supervisor) fn version_taken_away(&mut self, text: &str) {
        self.last = Some(text.to_owned());
    }

    /// The command that follows an upgrade has failed.
    pub(in crate::supervisor) fn hook_failed(&mut self, error: &HookError) {
        self.last = Some(format!("The upgrade has ended, but its hook failed: {error}; {}.", error.hint()));
    }

    /// A start waits for its next attempt. Returns whether this was not reported before.
    pub(in crate::supervisor) fn start_waits(&mut self, text: String) -> bool {
        let is_new = self.last.as_ref() != Some(&text);
        self.last = Some(text);
        is_new
    }

    /// A start was refused before a process existed. `file` is the text of the service file.
    pub(in crate::supervisor) fn start_refused(&mut self, error: &Error, file: &str) {
        let text = format!("The last start was refused: {error}");
        self.refused_start = Some(RefusedStart { text, file: file.to_owned() });
    }

    /// The next start is tried, or a process serves.
    pub(in crate::supervisor) fn start_refused_no_longer(&mut self) {
        self.refused_start = None;
    }

    /// The service file was read; `None` if it is wrong. Another file may have removed the obstacle.
    pub(in crate::supervisor) fn file_was_read(&mut self, read: Option<&str>) {
        self.refused_start.take_if(|refused| read.is_none_or(|text| text != refused.file));
    }

    /// The start waits for other services. Sentences.
    pub(in crate::supervisor) fn waits_for_others(&mut self, text: String) {
        self.last = Some(text);
    }

    /// The start waits no longer: it is made, or called off.
    pub(in crate::supervisor) fn start_waits_no_longer(&mut self) {
        self.last = None;
    }

    /// Sets what is wrong with the service file now, if anything.
    pub(in crate::supervisor) fn file_is(&mut self, mistake: Option<String>) {
        self.file = mistake;
    }
}

/// The processes.
impl Problems {
    /// A process that was to run has ended. `how` is a sentence without its full stop.
    pub(in crate::supervisor) fn died(&mut self, how: String) {
        self.process_failures.died(how);
    }

    /// The serving process cannot be reached any more. `why` is a sentence without its full stop.
    pub(in crate::supervisor) fn mute(&mut self, why: String) {
        self.process_failures.mute(why);
    }

    /// A handoff has failed. `why` is a clause.
    pub(in crate::supervisor) fn failed(&mut self, why: String) {
        self.process_failures.failed(why);
    }

    /// A process serves.
    pub(in crate::supervisor) fn serves(&mut self) {
        self.process_failures.serves();
    }

    /// Why the last handoff failed, until a process serves.
    pub(in crate::supervisor) fn failure(&self) -> Option<&str> {
        self.process_failures.failure()
    }

    /// A process did not end in time.
    pub(in crate::supervisor) fn was_killed(&mut self, killed: Killed) {
        self.killed.push(killed);
    }

    /// The processes killed in the operation in progress, or in the last one.
    pub(in crate::supervisor) fn killed(&self) -> Vec<Killed> {
        self.killed.clone()
    }

    /// A process is about to take the lock of its data.
    pub(in crate::supervisor) fn lock_is_asked_for(&mut self) {
        self.lock = None;
    }

    /// Another process keeps it from the lock. `by` is a clause. Returns whether this was not known before.
    pub(in crate::supervisor) fn lock_is_held(&mut self, by: String) -> bool {
        let is_new = self.lock.as_ref() != Some(&by);
        self.lock = Some(by);
        is_new
    }

    /// The process that keeps it from the lock.
    pub(in crate::supervisor) fn lock(&self) -> Option<&str> {
        self.lock.as_deref()
    }

    /// Adds what kept the process from its data to the reason for the end of an attempt. That is reported once.
    pub(in crate::supervisor) fn with_lock(&mut self, reason: String) -> String {
        match self.lock.take() {
            Some(trouble) => format!("{reason}; {trouble}"),
            None => reason,
        }
    }
}
