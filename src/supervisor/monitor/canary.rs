//! The canary: the successor gets a share of the new connections, and the daemon counts how many.

use std::time::Duration;

use handoff_protocol::ids::HandoffId;
use handoff_protocol::supervisor::Phase;
use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::config::{ListenAddress, format_duration_ms};
use crate::slots::connection_counter::ConnectionCounter;
use crate::supervisor::input::{Input, Inputs};
use crate::supervisor::lane::Lane;
use crate::supervisor::service::Service;
use crate::sys::process::tree_of;

/// How often the connections are counted.
const COUNT_INTERVAL: Duration = Duration::from_millis(200);

/// A handoff, and the number of its share.
pub(in crate::supervisor) type ShareStep = (HandoffId, u8);

/// The measurement of the current step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::supervisor) struct ShareMeasurement {
    /// The new connections of the incumbent and of the successor.
    counts: [u64; 2],
}

impl Service {
    /// Gives the successor a share of the new connections, and starts to count them.
    pub(in crate::supervisor) fn steer_share(&mut self, permille: u16) {
        self.report_share();
        let slot = self.processes.successor().map(|process| process.slot);
        let (Some(listening), Some(slot)) = (&mut self.listening, slot) else { return };
        if let Err(error) = listening.steer_share(slot, permille) {
            tracing::error!(%error, "a share of new connections could not be steered");
            self.problems.slots_unusable(&error);
        }
        tracing::info!(permille, "a share of the new connections goes to the new process");
        self.monitor.measured = Some(ShareMeasurement::default());
        let step = (self.machine.handoff(), self.machine.shares());
        spawn_local(count(self.inputs.clone(), self.lanes.counts.clone(), self.shared_addresses(), step));
    }

    /// Reports how many connections the successor got in the current step, if there is one: it is over.
    pub(in crate::supervisor) fn report_share(&mut self) {
        let Some(measured) = self.monitor.measured.take() else { return };
        let text = measured.to_string();
        tracing::info!("{text}");
        self.report_progress("canary", self.operations.timeline().age_us(), Some(text));
    }

    /// Describes the current phase for users.
    pub(in crate::supervisor) fn phase_detail(&self) -> Option<String> {
        let trial = &self.config.trial;
        if self.machine.is_on_probation() {
            let time = format_duration_ms(trial.probation_ms);
            return Some(format!("the version before stands by for {time}"));
        }
        let step = trial.canary.get(usize::from(self.machine.shares()).checked_sub(1)?)?;
        let (share, time) = (percent(u64::from(step.permille), 1_000), format_duration_ms(step.time_ms));
        (self.machine.phase() == Phase::Canary).then(|| format!("{share} of the new connections for {time}"))
    }

    /// The same, with the measurement so far.
    pub(in crate::supervisor) fn phase_status(&self) -> Option<String> {
        let detail = self.phase_detail()?;
        Some(self.monitor.measured.map_or(detail.clone(), |measured| format!("{detail}: {measured}")))
    }

    fn shared_addresses(&self) -> Vec<ListenAddress> {
        let addresses = self.config.listeners.iter().map(|listener| listener.address.clone());
        addresses.filter(|address| !matches!(address, ListenAddress::Unix(_))).collect()
    }

    fn is_in_step(&self, (handoff, shares): ShareStep) -> bool {
        let machine = &self.machine;
        machine.phase() == Phase::Canary && (machine.handoff(), machine.shares()) == (handoff, shares)
    }

    /// The pids of the incumbent and of the successor, as long as the step lasts.
    pub(in crate::supervisor) fn sharing_pids(&self, step: ShareStep) -> Option<[Option<u32>; 2]> {
        let pids = [self.processes.incumbent(), self.processes.successor()]
            .map(|process| process.map(|process| process.pid()));
        self.is_in_step(step).then_some(pids)
    }

    /// Records how many connections each of them got.
    pub(in crate::supervisor) fn note_measured(&mut self, step: ShareStep, measured: ShareMeasurement) {
        if self.is_in_step(step) {
            self.monitor.measured = Some(measured);
        }
    }
}

/// Counts until the step is over. If the connections cannot be counted, nothing is reported: the step does not depend
/// on it.
async fn count(inputs: Inputs, lane: Lane, addresses: Vec<ListenAddress>, step: ShareStep) {
    let Ok(Ok(mut counter)) = lane.run(move || ConnectionCounter::begin(&addresses)).await else { return };
    loop {
        sleep(COUNT_INTERVAL).await;
        let Some(roots) = inputs.ask(|reply| Input::SharingPids(step, reply)).await.flatten() else { return };
        let counted = lane.run(move || {
            let trees = roots.map(|root| root.map(tree_of).unwrap_or_default());
            let counts = counter.poll([&trees[0], &trees[1]]);
            (counter, counts)
        });
        let Ok((same, Ok(counts))) = counted.await else { return };
        counter = same;
        inputs.send(Input::Measured(step, ShareMeasurement { counts }));
    }
}

impl std::fmt::Display for ShareMeasurement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [old, new] = self.counts;
        match old + new {
            0 => f.write_str("no new connection was seen"),
            all => write!(
                f,
                "{new} of {all} new connections seen went to the new version ({})",
                percent(new, all)
            ),
        }
    }
}

/// With one decimal, unless that is 0.
fn percent(part: u64, whole: u64) -> String {
    let permille = (part * 1_000 + whole / 2) / whole.max(1);
    match permille % 10 {
        0 => format!("{}%", permille / 10),
        tenths => format!("{}.{tenths}%", permille / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_told_in_percent() {
        assert_eq!(ShareMeasurement::default().to_string(), "no new connection was seen");
        let text = ShareMeasurement { counts: [950, 50] }.to_string();
        assert_eq!(text, "50 of 1000 new connections seen went to the new version (5%)");
        assert_eq!(percent(1, 3), "33.3%");
        assert_eq!(percent(1_000, 1_000), "100%");
    }
}
