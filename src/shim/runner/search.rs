//! Looks for the moment at which the program is told to end. What comes after a look is the decision of `moment.rs`.

use std::fs;
use std::io;
use std::time::Instant;

use super::{Runner, TICK};
use crate::config::DrainFor;
use crate::control::api::Connections;
use crate::shim::LEFT;
use crate::shim::moment::{Held, HeldBack, Limits, Moment, Seen, Step, is_still};
use crate::slots::census::{Census, Survey};
use crate::slots::peers::has_connected;

impl Runner {
    /// Returns when the program is to be told to end, which goes on in any case: see `moment.rs`. It is held if there was a
    /// moment in which nothing was under way. `stays`: what waits for the program waits for the next one as well, and is not waited for.
    pub(super) fn await_the_moment(&mut self, limits: Limits, stays: bool) {
        let drain = self.plan.program.drain;
        let mut moment = Moment { drain, limits, held_back: HeldBack::Nothing, vain: 0 };
        let (began, mut settled) = (Instant::now(), None);
        loop {
            // Before the look, which then finds what was accepted last.
            let is_settled = stays || self.is_settled();
            let survey = match self.census.survey(|| self.program.tree()) {
                Ok(survey) => survey,
                Err(error) => return say!("the program is told to end although {error}"),
            };
            let seen = self.seen(survey, is_settled);
            if seen.settled {
                settled.get_or_insert_with(Instant::now);
            }
            match moment.running(settled.unwrap_or(began).elapsed(), seen) {
                Step::Wait => {}
                Step::Hold => {
                    if self.hold_and_look(&mut moment, settled.unwrap_or(began)) {
                        return;
                    }
                }
                Step::End => {
                    let left = self.tell_of_left(survey);
                    if left > 0 && self.finishes() {
                        say!(
                            "after {:?} requests were still under way on {left} connections; the program may cut them",
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
        matches!(self.plan.program.drain, DrainFor::Requests | DrainFor::Connections)
    }

    /// For the daemon, which tells it at the end of the upgrade. Gives on how many connections a request may be under way. Where they are
    /// not waited for, an answer that pauses is not told from one that is over.
    fn tell_of_left(&self, survey: Survey) -> u64 {
        let pauses = if self.finishes() { survey.paused + survey.streams } else { 0 };
        let unanswered = (survey.work + pauses) as u64;
        let left = Connections { open: survey.open as u64, unread: survey.waiting as u64, unanswered };
        let path = self.plan.own_path.with_extension(LEFT);
        let written =
            serde_json::to_vec(&left).map_err(io::Error::other).and_then(|text| fs::write(&path, text));
        if let Err(error) = written {
            say!("cannot write {}: {error}", path.display());
        }
        unanswered
    }

    /// Whether this is the moment. Then the program stays held.
    fn hold_and_look(&mut self, moment: &mut Moment, since: Instant) -> bool {
        self.census.pause_clock();
        let found = match self.program.hold() {
            true => self.census.survey_of_stopped(|| self.program.tree()),
            false => Err(io::Error::other("it cannot be stopped")),
        };
        let next = match found {
            Ok(survey) => {
                let next = moment.held(since.elapsed(), self.seen(survey, true));
                if next == Held::End {
                    self.tell_of_left(survey);
                }
                next
            }
            Err(_) => moment.not_held(),
        };
        if let Held::HoldBack { all } = next {
            moment.held_back = match self.census.hold_back(all) {
                Ok(true) => HeldBack::All,
                Ok(false) => HeldBack::Some,
                Err(_) => HeldBack::Refused,
            };
        }
        if next != Held::End {
            self.program.let_go();
            self.census.resume_clock();
        }
        next == Held::End
    }

    /// Whether the program has connected sockets to clients of its datagrams, where they are waited for.
    fn is_connected(&self) -> bool {
        let is_waited_for = self.plan.program.drain == DrainFor::Connections;
        is_waited_for && has_connected(&self.listeners.addresses, || self.program.tree()).unwrap_or(false)
    }

    /// Whether nobody is on the way to the program any more.
    fn is_settled(&self) -> bool {
        // What cannot be asked is left to the limit.
        let nobody_waits = self.listeners.left_waiting().is_ok_and(|waiting| waiting == 0);
        nobody_waits && self.listeners.has_settled(|| self.program.is_busy())
    }

    fn seen(&mut self, survey: Survey, settled: bool) -> Seen {
        // While a connection is accepted, one look may find it neither in the queue nor at a process.
        let has_any = |census: &mut Census| !census.is_empty(|| self.program.tree()).unwrap_or(true);
        let is_hidden = settled && self.finishes() && survey.open == 0 && has_any(&mut self.census);
        Seen {
            settled,
            open: survey.open > 0 || is_hidden || self.is_connected(),
            work: survey.work > 0,
            unsure: survey.work == survey.unsure && self.census.may_ask(),
            waiting: survey.waiting > 0,
            stuck: survey.stuck > 0,
            still: is_still(survey.still),
            paused: survey.paused > 0,
        }
    }
}
