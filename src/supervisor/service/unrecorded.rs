//! Processes that run although no journal says so: the disk took no records when they were started, or the journal
//! was damaged or removed since. Only the keeper knows of them.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use handoff_protocol::ids::{Generation, HandoffId};
use handoff_protocol::record::{Binary, Fact, Process as Identity};

use super::Service;
use crate::journal::{JournalError, set_aside};
use crate::shim::shim_config;
use crate::supervisor::process::identity;
use crate::supervisor::rollout::Hashes;
use crate::supervisor::state::open_journal;
use crate::sys::exit::{ProcessStatus, life, pid_of};

/// If a program cannot be read within this time, its hash stays unknown.
const HASHED_WITHIN: Duration = Duration::from_secs(5);

/// The suffix that the kernel adds to the path of a removed file (proc_pid_exe(5)).
const DELETED: &str = " (deleted)";

impl Service {
    /// Records processes that run and are not recorded, so that they are asked like any other: one of them may be the
    /// one that serves. The last of several counts as an attempt; their answers decide. Returns `false` if there is
    /// none.
    pub(in crate::supervisor) fn recall_unrecorded(&mut self) -> bool {
        let mut found = self.unrecorded();
        if found.is_empty() {
            return false;
        }
        // A journal that could not be read may be intact, and is opened again as it is.
        if self.journal.is_damaged() {
            self.set_journal_aside();
            // The new journal has what the damaged one says up to its damage.
            found = self.unrecorded();
        }
        let last = found.len().saturating_sub(1);
        for (index, (handoff, process, binary)) in found.into_iter().enumerate() {
            tracing::warn!(pid = process.pid, "a process is found that was not recorded");
            let generation = self.last_generation().next();
            self.note(Fact::Intent { handoff, generation, binary });
            self.note(Fact::Spawned { handoff, process });
            if index < last {
                self.note(Fact::Committed { handoff });
            }
        }
        if !self.journal.standing().wanted {
            self.note(Fact::Wanted { up: true });
        }
        true
    }

    /// Oldest first.
    fn unrecorded(&self) -> Vec<(HandoffId, Identity, Binary)> {
        let standing = self.journal.standing();
        let generations = [&standing.current, &standing.previous, &standing.leaving].into_iter().flatten();
        let attempt = standing.attempt.iter().filter(|attempt| self.lives(attempt.process.as_ref()));
        let known: Vec<HandoffId> = generations
            .map(|generation| generation.handoff)
            .chain(attempt.map(|attempt| attempt.handoff))
            .collect();
        let kept = self.shared.keeper.processes(&self.name).unwrap_or_default();
        let unknown = kept.into_iter().filter(|(handoff, _)| !known.contains(handoff));
        let examined = unknown.filter_map(|(handoff, pidfd)| {
            let (process, binary) = self.examine(&pidfd)?;
            Some((handoff, process, binary))
        });
        let mut found: Vec<_> = examined.collect();
        // Start times count from the boot, on a clock that cannot be set.
        found.sort_by_key(|(_, process, _)| process.start_ticks);
        found
    }

    /// Sets a damaged journal aside. What runs is known, so the daemon can go on without it.
    fn set_journal_aside(&mut self) {
        let damage = self.journal.damage().unwrap_or_default().to_owned();
        let begun = self.wait_for_journal(|dirs, name, lane| {
            let path = dirs.journal(&name);
            let failed = |source| JournalError::Storage { path: path.clone(), what: "move it away", source };
            let aside = set_aside(&path).map_err(failed)?;
            let fresh = open_journal(&dirs, &name, &lane);
            if fresh.is_err() {
                restore_name(aside.as_deref(), &path);
            }
            Ok((aside, fresh?))
        });
        let begun = begun.and_then(|begun| begun).and_then(|(aside, fresh)| {
            if let Err(error) = self.journal.begin_anew(fresh) {
                let _ = self.wait_for_journal(move |dirs, name, _| {
                    restore_name(aside.as_deref(), &dirs.journal(&name))
                });
                return Err(error);
            }
            Ok(aside)
        });
        const BEGUN: &str = "began a new one with what runs. You need not do anything; check the disk.";
        let text = match begun {
            Ok(Some(aside)) => {
                format!("{damage}. The daemon has moved that journal to {} and {BEGUN}", aside.display())
            }
            Ok(None) => format!("{damage}. That journal is gone by now, and the daemon {BEGUN}"),
            Err(error) => format!(
                "{damage}. The daemon could not move that journal away and begin a new one: {error}. The service runs on, and no \
                 upgrade of it is committed. Move the journal away yourself, or restore it; the next upgrade then works."
            ),
        };
        tracing::error!("{text}");
        self.problems.journal_set_aside(text);
    }

    /// The last generation, as far as the journal and the store have it.
    fn last_generation(&self) -> Generation {
        let ran =
            self.versions.store().versions().first().and_then(|version| version.usage.last_generation());
        self.journal.last_generation().max(Generation(ran.unwrap_or(0)))
    }

    /// The identity and the binary of a process. `None` if it has ended.
    fn examine(&self, pidfd: &OwnedFd) -> Option<(Identity, Binary)> {
        let pid = pid_of(pidfd.as_fd())?;
        let process = identity(pid);
        let program = self.program_of(pid)?;
        let binary = self.stored_binary(&program).or_else(|| {
            let (program, what) = (program.clone(), program.display().to_string());
            let hashed =
                self.lanes.programs.wait(HASHED_WITHIN, &what, move || Hashes::identify_blocking(&program));
            hashed.ok()?.ok()
        });
        let path = program.to_string_lossy().into_owned();
        // If it runs now, it had the pid all the time.
        let runs = matches!(life(pidfd), Ok(ProcessStatus::Runs));
        runs.then(|| (process, binary.unwrap_or(Binary { path, sha256: [0; 32] })))
    }

    /// The file that a process of this service was started from. A shim has it in its configuration. For a script, the
    /// interpreter is executed, and the script is among its first arguments.
    fn program_of(&self, pid: u32) -> Option<PathBuf> {
        if self.config.adapter.is_foreign() {
            return plan_of(pid).map(|config| config.binary);
        }
        let executed = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        let executed = match executed.to_str().and_then(|path| path.strip_suffix(DELETED)) {
            Some(path) => PathBuf::from(path),
            None => executed,
        };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let mut arguments = line.split('\0').skip(1).take(2).map(PathBuf::from);
        let is_ours =
            |path: &PathBuf| self.versions.store().version_at(path).is_some() || *path == self.config.binary;
        Some(if is_ours(&executed) { executed } else { arguments.find(is_ours).unwrap_or(executed) })
    }
}

fn plan_of(pid: u32) -> Option<shim_config::ShimConfig> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let prefix = format!("{}=", shim_config::VARIABLE);
    let text =
        environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(prefix.as_bytes()))?;
    serde_json::from_slice(text).ok()
}

/// A damaged journal that cannot be replaced keeps its name.
fn restore_name(aside: Option<&Path>, path: &Path) {
    let _ = aside.map(|aside| fs::rename(aside, path));
}
