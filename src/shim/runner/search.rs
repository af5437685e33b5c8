//! Searches for the moment to end the program. `quiescence.rs` decides the next step after each survey.

use std::fs;
use std::io;
use std::time::Instant;

use super::{Runner, TICK};
use crate::config::DrainCondition;
use crate::control::api::Connections;
use crate::shim::LEFT;
use crate::shim::quiescence::{
    HeldBack, Quiescence, QuiescenceLimits, RunningStep, StoppedStep, SurveySummary, is_still,
};
use crate::slots::census::{Census, Survey};
use crate::slots::peers::has_connected;

impl Runner {
    /// Returns when the program must end, which happens in any case: see `quiescence.rs`. The program stays stopped if
    /// no request was in progress at that moment. `stays`: waiting connections are for the next program as well, so
    /// this one need not accept them.
    pub(super) fn await_the_moment(&mut self, limits: QuiescenceLimits, stays: bool) {
        let drain = self.config.program.drain;
        let mut moment = Quiescence { drain, limits, held_back: HeldBack::Nothing, failed_stops: 0 };
        let (began, mut settled) = (Instant::now(), None);
        loop {
            // Before the survey, which then includes the last accepted connections.
            let is_settled = stays || self.is_settled();
            let survey = match self.census.survey(|| self.program.tree()) {
                Ok(survey) => survey,
                Err(error) => return log_line!("ending the program although {error}"),
            };
            let summary = self.summary(survey, is_settled);
            if summary.settled {
                settled.get_or_insert_with(Instant::now);
            }
            match moment.running(settled.unwrap_or(began).elapsed(), summary) {
                RunningStep::Wait => {}
                RunningStep::StopProgram => {
                    if self.stop_and_survey(&mut moment, settled.unwrap_or(began)) {
                        return;
                    }
                }
                RunningStep::End => {
                    let left = self.report_left(survey);
                    if left > 0 && self.finishes() {
                        log_line!(
                            "after {:?} requests were still in progress on {left} connections; the program may cut them",
                            began.elapsed()
                        );
                    }
                    return;
                }
            }
            std::thread::sleep(TICK);
        }
    }

    /// Whether requests are waited for.
    fn finishes(&self) -> bool {
        matches!(self.config.program.drain, DrainCondition::Requests | DrainCondition::Connections)
    }

    /// Records the connections for the daemon, which reports them at the end of the upgrade. Returns the number of
    /// connections with a possible request in progress. If requests are not waited for, a pausing response counts as
    /// complete.
    fn report_left(&self, survey: Survey) -> u64 {
        let unanswered = match self.finishes() {
            true => survey.work + survey.paused,
            // The kernel was not asked about the others.
            false if self.census.may_ask() => survey.work - survey.uncertain,
            false => survey.work,
        };
        let unanswered = (unanswered + survey.streams) as u64;
        // What is held back from a blocking read was dropped, and is not in the program's queue.
        let unread = (survey.waiting + survey.dropped) as u64;
        let left = Connections { open: survey.open as u64, unread, unanswered };
        let path = self.config.own_path.with_extension(LEFT);
        let written =
            serde_json::to_vec(&left).map_err(io::Error::other).and_then(|text| fs::write(&path, text));
        if let Err(error) = written {
            log_line!("cannot write {}: {error}", path.display());
        }
        unanswered
    }

    /// Stops the program and surveys it. Returns whether this is the moment; then the program stays stopped.
    fn stop_and_survey(&mut self, moment: &mut Quiescence, since: Instant) -> bool {
        let found = match self.program.hold() {
            true => self.census.survey_of_stopped(|| self.program.tree()),
            false => Err(io::Error::other("it cannot be stopped")),
        };
        let next = match found {
            Ok(survey) => {
                let next = moment.held(since.elapsed(), self.summary(survey, true));
                if next == StoppedStep::End {
                    self.report_left(survey);
                }
                next
            }
            Err(_) => moment.not_held(),
        };
        if let StoppedStep::HoldBack { all } = next {
            moment.held_back = match self.census.hold_back(all) {
                Ok(true) => HeldBack::All,
                Ok(false) => HeldBack::Some,
                Err(_) => HeldBack::Refused,
            };
        }
        if next != StoppedStep::End {
            self.program.let_go();
        }
        next == StoppedStep::End
    }

    /// Whether the program has datagram sockets connected to clients, if connections are waited for.
    fn is_connected(&self) -> bool {
        let is_waited_for = self.config.program.drain == DrainCondition::Connections;
        is_waited_for && has_connected(&self.listeners.addresses, || self.program.tree()).unwrap_or(false)
    }

    /// Whether no client is in transit to the program.
    fn is_settled(&self) -> bool {
        // On an error the time limit decides.
        let nobody_waits = self.listeners.left_waiting().is_ok_and(|waiting| waiting == 0);
        nobody_waits && self.listeners.has_settled(|| self.program.is_busy())
    }

    fn summary(&mut self, survey: Survey, settled: bool) -> SurveySummary {
        // During an accept, one survey may find a connection neither in the queue nor in a process.
        let has_any = |census: &mut Census| !census.is_empty(|| self.program.tree()).unwrap_or(true);
        let is_hidden = settled && self.finishes() && survey.open == 0 && has_any(&mut self.census);
        SurveySummary {
            settled,
            open: survey.open > 0 || is_hidden || self.is_connected(),
            work: survey.work > 0,
            uncertain: survey.work == survey.uncertain && self.census.may_ask(),
            waiting: survey.waiting > 0,
            stuck: survey.stuck > 0,
            still: is_still(survey.still),
            paused: survey.paused > 0,
        }
    }
}
