//! Waits for long requests while the program still accepts. `drain.rs` decides when the wait is over in exclusive mode.

use std::fs;
use std::time::Duration;

use super::Runner;
use crate::config::DrainCondition;
use crate::service::BoxError;
use crate::shim::DRAINS;
use crate::shim::drain::{LONG, description, is_over};
use crate::slots::census::{Census, Survey};

/// How long a drain surveys the connections if the kernel does not report which are idle, while waiting costs nothing.
const FAMILIAR_AFTER: Duration = Duration::from_millis(400);

/// Maximum number of failed attempts to stop the program.
const STOP_ATTEMPTS_MAX: u8 = 3;

impl Runner {
    /// In overlap mode: whether a long request is in progress, or this is still unknown.
    pub(super) fn has_long_request(&mut self, waited: Duration) -> Result<bool, BoxError> {
        let is_long = |age_ms: Option<u64>| duration(age_ms).is_some_and(|age| age >= LONG);
        let survey = self.census.survey(|| self.program.tree())?;
        let survey = if is_long(survey.longest_sure_ms) { survey } else { self.ask(survey) };
        Ok(self.is_unknown(survey, waited) || is_long(survey.longest_ms))
    }

    /// In exclusive mode: whether the wait for long requests is over. Reports what it is for.
    pub(super) fn has_waited_enough(&mut self, waited: Duration) -> Result<bool, BoxError> {
        // With `long-requests` the program finishes the others itself.
        let finishes = self.config.program.drain == DrainCondition::LongRequests;
        let is_over = |census: &Census, age_ms: Option<u64>| {
            is_over(waited, duration(age_ms), || finishes || census.may_hold_back())
        };
        let survey = self.census.survey(|| self.program.tree())?;
        let survey = if is_over(&self.census, survey.longest_sure_ms) { self.ask(survey) } else { survey };
        let is_over = !self.is_unknown(survey, waited) && is_over(&self.census, survey.longest_ms);
        if !is_over {
            self.note_waits();
        }
        Ok(is_over)
    }

    /// Where the timestamps leave open whether a request is answered, asks the kernel: that takes a stop of the program.
    /// The answer counts until data moves again.
    fn ask(&mut self, survey: Survey) -> Survey {
        if survey.uncertain == 0 || !self.census.may_ask() || self.failed_stops >= STOP_ATTEMPTS_MAX {
            return survey;
        }
        let asked = match self.program.hold() {
            true => self.census.survey_of_stopped(|| self.program.tree()).ok(),
            false => None,
        };
        self.program.let_go();
        self.failed_stops += u8::from(asked.is_none());
        asked.unwrap_or(survey)
    }

    fn is_unknown(&self, survey: Survey, waited: Duration) -> bool {
        survey.uncertain > 0 && !self.census.may_ask() && waited < FAMILIAR_AFTER
    }

    /// For the daemon, which tells it if the upgrade fails for it.
    fn note_waits(&self) {
        let path = self.config.own_path.with_extension(DRAINS);
        let Some(text) = description(&self.census.long_requests(LONG)) else { return };
        // It may be read at any time.
        let beside = path.with_extension(format!("{DRAINS}-new"));
        let noted = fs::write(&beside, text).and_then(|()| fs::rename(&beside, &path));
        if let Err(error) = noted {
            log_line!("cannot report this to the daemon: {}: {error}", path.display());
        }
    }

    /// A drain begins.
    pub(super) fn forget_waits(&self) {
        let _ = fs::remove_file(self.config.own_path.with_extension(DRAINS));
    }

    /// The drain is ended from outside: its time is over, or the upgrade is called off.
    pub(super) fn report_end(&self) {
        if let Some(text) = description(&self.census.long_requests(LONG)) {
            log_line!("the wait for long requests has ended without success: {text}");
        }
    }
}

fn duration(age_ms: Option<u64>) -> Option<Duration> {
    age_ms.map(Duration::from_millis)
}
