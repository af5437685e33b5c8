//! The operations of a service: which clients wait for them, how far they are, and what the history says of them.

mod order;
mod recording;
mod timeline;

pub(in crate::supervisor) use order::{Limits, Order};
pub(in crate::supervisor) use recording::{Asked, LOST_BEFORE, Recorder, merged};
pub(in crate::supervisor) use timeline::{Operation, Timeline, progress};

use crate::control::{Error, api};

/// The operations of a service: those that are under way, and how the last one ended.
#[derive(Debug)]
pub(in crate::supervisor) struct Operations {
    under_way: Vec<Operation>,
    /// The one that the machine is being asked for.
    incoming: Option<Operation>,
    /// Whether that was refused.
    was_refused: bool,
    timeline: Timeline,
    /// The phase that was shown last, and its share.
    shown: (&'static str, u8),
    /// Whether the upgrade under way was begun by an earlier daemon, and is only to be committed.
    completes: bool,
    last: Option<api::Outcome>,
    recorder: Recorder,
}

/// What was told before a request.
#[derive(Debug)]
pub(in crate::supervisor) struct Before {
    timeline: Timeline,
    shown: (&'static str, u8),
    completes: bool,
}

impl Operations {
    pub(in crate::supervisor) fn new(recorder: Recorder) -> Self {
        Self {
            under_way: Vec::new(),
            incoming: None,
            was_refused: false,
            timeline: Timeline::begin(),
            shown: ("", 0),
            completes: false,
            last: None,
            recorder,
        }
    }

    /// The machine is about to be asked. Its clock starts anew.
    pub(in crate::supervisor) fn request_begins(&mut self, operation: Operation) -> Before {
        self.incoming = Some(operation);
        self.was_refused = false;
        Before {
            timeline: std::mem::replace(&mut self.timeline, Timeline::begin()),
            shown: std::mem::take(&mut self.shown),
            completes: std::mem::take(&mut self.completes),
        }
    }

    /// The machine was asked. `false` if it has refused: then what is under way goes on, and so does what is shown of it.
    pub(in crate::supervisor) fn request_ended(&mut self, before: Before) -> bool {
        self.under_way.extend(self.incoming.take());
        if self.was_refused {
            let Before { timeline, shown, completes } = before;
            (self.timeline, self.shown, self.completes) = (timeline, shown, completes);
        }
        !self.was_refused
    }

    /// A client calls off what is under way. That is no operation of its own, so its clock goes on.
    pub(in crate::supervisor) fn call_off_begins(&mut self, operation: Operation) {
        self.incoming = Some(operation);
    }

    /// The machine was asked that.
    pub(in crate::supervisor) fn call_off_ended(&mut self) {
        self.under_way.extend(self.incoming.take());
    }

    /// The machine refuses what it is asked for. Gives who has asked.
    pub(in crate::supervisor) fn refuse(&mut self) -> Option<Operation> {
        self.was_refused = true;
        self.incoming.take()
    }

    /// An earlier daemon has left this one without an end: it goes on as if a client waited for it.
    pub(in crate::supervisor) fn resume(&mut self, operation: Operation) {
        self.under_way.push(operation);
    }

    /// It goes on under this daemon. `completes`: there is nothing left but to commit it.
    pub(in crate::supervisor) fn recovered(&mut self, completes: bool) {
        self.completes = completes;
    }

    /// Whether an earlier daemon has begun what has ended now.
    pub(in crate::supervisor) fn take_completes(&mut self) -> bool {
        std::mem::take(&mut self.completes)
    }

    /// A process is about to be started. Without a client its phases are not shown, and in a crash loop they would pile up.
    pub(in crate::supervisor) fn start_begins(&mut self) {
        if self.all().next().is_none() {
            self.timeline = Timeline::begin();
        }
    }

    /// Shows this phase, unless it is shown already. Gives when it began, by the clock of what is under way.
    pub(in crate::supervisor) fn show(&mut self, phase: &'static str, share: u8) -> Option<u64> {
        if self.shown == (phase, share) {
            return None;
        }
        self.shown = (phase, share);
        Some(self.timeline.enter(phase))
    }

    /// Those who wait, also for what the machine is being asked for.
    pub(in crate::supervisor) fn all(&self) -> impl Iterator<Item = &Operation> {
        self.under_way.iter().chain(&self.incoming)
    }

    /// What the history tells of them.
    pub(in crate::supervisor) fn asked(&self) -> impl Iterator<Item = &Asked> {
        self.all().filter_map(|operation| operation.asked.as_ref())
    }

    pub(in crate::supervisor) fn asked_mut(&mut self) -> impl Iterator<Item = &mut Asked> {
        let all = self.under_way.iter_mut().chain(&mut self.incoming);
        all.filter_map(|operation| operation.asked.as_mut())
    }

    /// All that were under way have ended.
    pub(in crate::supervisor) fn answer_all(&mut self, answer: &Result<api::Outcome, Error>) {
        for operation in self.under_way.drain(..).chain(self.incoming.take()) {
            let mut answer = answer.clone();
            if let (Ok(outcome), Some(asked)) = (&mut answer, &operation.asked) {
                (outcome.took_us, outcome.phases) = asked.times(&self.timeline);
            }
            // The client may have hung up.
            let _ = operation.reply.send(answer);
        }
    }

    /// How long what is under way took so far, and its phases: since the first client asked for it, or since it began without one.
    pub(in crate::supervisor) fn times(&self) -> (u64, Vec<api::PhaseTime>) {
        let times = self.asked().next().map(|asked| asked.times(&self.timeline));
        times.unwrap_or_else(|| (self.timeline.took_us(), self.timeline.phases()))
    }

    /// How the last one ended.
    pub(in crate::supervisor) fn last(&self) -> Option<&api::Outcome> {
        self.last.as_ref()
    }

    pub(in crate::supervisor) fn ended(&mut self, outcome: api::Outcome) {
        self.last = Some(outcome);
    }

    /// The clock of what is under way.
    pub(in crate::supervisor) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    pub(in crate::supervisor) fn timeline_mut(&mut self) -> &mut Timeline {
        &mut self.timeline
    }

    /// The history.
    pub(in crate::supervisor) fn recorder(&self) -> &Recorder {
        &self.recorder
    }
}
