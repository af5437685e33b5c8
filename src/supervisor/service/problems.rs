//! What a person should know of a service: each thing that goes wrong has a name here, and each way in which it is over.
//! No other place writes or clears any of it.

use std::path::Path;

use super::trouble::{Doing, Trouble};
use crate::config::ListenAddress;
use crate::control::Error;
use crate::control::api::Killed;
use crate::hooks::HookError;
use crate::journal::JournalError;
use crate::slots::SlotError;

/// What is wrong with a service, and what went wrong with its processes.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Problems {
    /// What was found last. Sentences.
    last: Option<String>,
    /// What was found meanwhile, and is a problem also when the operation under way has ended well.
    meanwhile: Option<String>,
    /// What is wrong with its file by now.
    file: Option<String>,
    /// Why the last start was refused.
    refused_start: Option<RefusedStart>,
    /// What went wrong with its processes.
    processes: Trouble,
    /// Who keeps the process that begins from its data; a clause.
    lock: Option<String>,
    /// What was killed since it had not ended in its time, and is not told yet.
    killed: Vec<Killed>,
}

/// A start that was refused before there was a process: why the service does not run, until the next start or another service file.
#[derive(Debug)]
struct RefusedStart {
    /// Sentences.
    told: String,
    /// What the service file said.
    file: String,
}

/// What was told before a request, which goes on being told if the request is refused.
#[derive(Debug)]
pub(in crate::supervisor) struct Earlier {
    last: Option<String>,
    killed: Vec<Killed>,
}

impl Problems {
    /// With what is wrong with the state of the service, if anything is.
    pub(in crate::supervisor) fn at_opening(problem: Option<String>) -> Self {
        Self { last: problem, ..Self::default() }
    }

    /// What was found last, if it still counts.
    pub(in crate::supervisor) fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }

    /// Whether a service that rests does so because something is wrong.
    pub(in crate::supervisor) fn keeps_it_down(&self) -> bool {
        self.last.is_some() || self.file.is_some() || self.refused_start.is_some()
    }

    /// What a person should know. Sentences.
    pub(in crate::supervisor) fn told(&self, doing: Doing) -> Option<String> {
        let refused = self.refused_start.as_ref().map(|refused| refused.told.clone());
        let told = [self.file.clone(), self.last.clone(), refused, self.processes.told(doing)];
        let told: Vec<String> = told.into_iter().flatten().collect();
        (!told.is_empty()).then(|| told.join(" "))
    }

    /// A new request begins. What is known of an earlier attempt is not to be taken for the end of the next one, unless
    /// it `lasts`.
    pub(in crate::supervisor) fn request_begins(&mut self, lasts: bool) -> Earlier {
        Earlier { killed: std::mem::take(&mut self.killed), last: self.last.take_if(|_| !lasts) }
    }

    /// What is under way goes on, and so does what is shown of it.
    pub(in crate::supervisor) fn request_refused(&mut self, earlier: Earlier) {
        self.killed = earlier.killed;
        self.last = self.last.take().or(earlier.last);
    }

    /// An operation has ended well. What was found meanwhile is still to be told.
    pub(in crate::supervisor) fn ended_well(&mut self) {
        self.last = self.meanwhile.take();
        self.processes = Trouble::default();
    }

    /// The new version serves, and the disk does not know.
    pub(in crate::supervisor) fn committed_without_disk(&mut self, message: &str) {
        self.last = Some(message.to_owned());
    }
}

/// The journal.
impl Problems {
    /// A fact is not recorded, or not durable; or what keeps the journal from that is not mended.
    pub(in crate::supervisor) fn not_recorded(&mut self, error: &JournalError) {
        self.last = Some(error.to_string());
    }

    /// It is not in its place, and cannot be written again; or the disk refuses the one that was.
    pub(in crate::supervisor) fn journal_not_in_place(&mut self, error: &JournalError) {
        self.last = Some(format!("{error}."));
    }

    /// It was taken away and is written again, in the middle of an operation or not.
    pub(in crate::supervisor) fn journal_written_again(&mut self, found: &str, is_under_way: bool) {
        self.last = Some(format!("{found}."));
        if is_under_way {
            self.meanwhile.clone_from(&self.last);
        }
    }

    /// It was damaged, and was set aside; or could not be. Sentences.
    pub(in crate::supervisor) fn journal_set_aside(&mut self, told: String) {
        self.last = Some(told);
    }

    /// It could not be made shorter. That it takes no records is worse.
    pub(in crate::supervisor) fn journal_stays_long(&mut self, latched: Option<&str>) {
        self.last = latched.map(str::to_owned).or(self.last.take());
    }

    /// It takes records again.
    pub(in crate::supervisor) fn journal_mended(&mut self) {
        self.last = None;
    }

    /// To mend it was tried at rest, in vain: what was told `before` says more.
    pub(in crate::supervisor) fn journal_still_refused(&mut self, before: Option<String>) {
        self.last = before;
    }
}

/// The listeners.
impl Problems {
    /// New connections cannot be steered, or a slot not be retired; or what the keeper holds cannot be used.
    pub(in crate::supervisor) fn slots_unusable(&mut self, error: &SlotError) {
        self.last = Some(error.to_string());
    }

    /// The program has ended a listener, which cannot be replaced.
    pub(in crate::supervisor) fn listener_not_renewed(&mut self, error: &SlotError) {
        self.last = Some(format!("{error}."));
    }

    /// The listeners of a process that was taken over are not known.
    pub(in crate::supervisor) fn listeners_unknown(&mut self, error: &SlotError) {
        self.last = Some(format!("The listeners of the process are not known: {error}."));
    }

    /// The path of a unix socket is gone for good.
    pub(in crate::supervisor) fn path_lost(&mut self, address: &ListenAddress, error: &str) {
        self.last = Some(format!("The path of {address} is gone and cannot be put back: {error}."));
    }
}

/// Versions.
impl Problems {
    /// Something about a watched path.
    pub(in crate::supervisor) fn at_watched_path(&mut self, path: &Path, what: &str) {
        self.last = Some(format!("What is at {}: {what}.", path.display()));
    }

    /// What was staged is not started, or not brought in.
    pub(in crate::supervisor) fn staged_refused(&mut self, error: &Error) {
        self.last = Some(error.to_string());
    }

    /// The version that runs was taken away. It may be back.
    pub(in crate::supervisor) fn version_taken_away(&mut self, told: &str) {
        self.last = Some(told.to_owned());
    }

    /// An upgrade has ended, but not the command that follows it.
    pub(in crate::supervisor) fn hook_failed(&mut self, error: &HookError) {
        self.last = Some(format!("The upgrade has ended, but its hook failed: {error}; {}.", error.hint()));
    }

    /// A start is tried again and again. Whether that was not told before.
    pub(in crate::supervisor) fn start_waits(&mut self, told: String) -> bool {
        let is_new = self.last.as_ref() != Some(&told);
        self.last = Some(told);
        is_new
    }

    /// A start was refused before there was a process; `file` is what the service file said.
    pub(in crate::supervisor) fn start_refused(&mut self, error: &Error, file: &str) {
        let told = format!("The last start was refused: {error}");
        self.refused_start = Some(RefusedStart { told, file: file.to_owned() });
    }

    /// The next one is tried, or a process serves.
    pub(in crate::supervisor) fn start_refused_no_longer(&mut self) {
        self.refused_start = None;
    }

    /// The service file was read; nothing if what it says is wrong. Another one may have mended what was in the way.
    pub(in crate::supervisor) fn file_was_read(&mut self, read: Option<&str>) {
        self.refused_start.take_if(|refused| read.is_none_or(|text| text != refused.file));
    }

    /// It waits no longer: it is made, or called off.
    pub(in crate::supervisor) fn start_waits_no_longer(&mut self) {
        self.last = None;
    }

    /// What is wrong with the service file by now, if anything is.
    pub(in crate::supervisor) fn file_is(&mut self, mistake: Option<String>) {
        self.file = mistake;
    }
}

/// The processes.
impl Problems {
    /// A process that was to run has ended: a sentence without its end.
    pub(in crate::supervisor) fn died(&mut self, how: String) {
        self.processes.died(how);
    }

    /// The process that serves can be told nothing any more: a sentence without its end.
    pub(in crate::supervisor) fn mute(&mut self, why: String) {
        self.processes.mute(why);
    }

    /// A handoff has failed: a clause.
    pub(in crate::supervisor) fn failed(&mut self, why: String) {
        self.processes.failed(why);
    }

    /// A process serves.
    pub(in crate::supervisor) fn serves(&mut self) {
        self.processes.serves();
    }

    /// Why the last handoff failed, until a process serves.
    pub(in crate::supervisor) fn failure(&self) -> Option<&str> {
        self.processes.failure()
    }

    /// A process had not ended in its time.
    pub(in crate::supervisor) fn was_killed(&mut self, killed: Killed) {
        self.killed.push(killed);
    }

    /// What was killed in the operation under way, or the last one.
    pub(in crate::supervisor) fn killed(&self) -> Vec<Killed> {
        self.killed.clone()
    }

    /// A process is about to take the lock of its data.
    pub(in crate::supervisor) fn lock_is_asked_for(&mut self) {
        self.lock = None;
    }

    /// Another process keeps it from that: a clause. Whether that was not known before.
    pub(in crate::supervisor) fn lock_is_held(&mut self, by: String) -> bool {
        let is_new = self.lock.as_ref() != Some(&by);
        self.lock = Some(by);
        is_new
    }

    /// Who keeps it from that.
    pub(in crate::supervisor) fn lock(&self) -> Option<&str> {
        self.lock.as_deref()
    }

    /// A reason for the end of an attempt, with what kept the process from its data. That is said once.
    pub(in crate::supervisor) fn with_lock(&mut self, reason: String) -> String {
        match self.lock.take() {
            Some(trouble) => format!("{reason}; {trouble}"),
            None => reason,
        }
    }
}
