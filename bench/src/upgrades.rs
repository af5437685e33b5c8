//! Series of upgrades, in alternation, so that other load on the machine affects all rigs alike.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::Error;
use crate::probe::Prober;
use crate::rig::{Rig, Upgrade};
use crate::spread::Spread;

/// Number of upgrades of one rig per turn.
const TURN: usize = 10;

/// The plan of a series.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Number of upgrades of each rig.
    pub count: usize,
    /// Whether a client sends requests in the meantime.
    pub probe: bool,
    /// Whether the binary is new to the supervisor.
    pub unseen: bool,
}

/// The results of a series of upgrades of one rig.
#[derive(Debug, Serialize)]
pub struct Series {
    /// The name of the rig.
    pub name: &'static str,
    /// Time from the request to the durable commit, by the supervisor's clock.
    pub own: Spread,
    /// Time from the request to the response, as seen by its client.
    pub client: Spread,
    /// Time from the old process's last accept to the new one's first.
    pub gap: Spread,
    /// Time without accepts, if the supervisor reports it.
    pub told_gap: Option<Spread>,
    /// The longest wait of a request in each upgrade, if a client sent requests.
    pub stall: Option<Spread>,
    /// All requests of that client.
    pub requests: Option<Spread>,
    /// The median duration of each phase in microseconds, in order, if the supervisor reports it.
    pub phases: Vec<(String, u64)>,
}

#[derive(Debug, Default)]
struct Samples {
    upgrades: Vec<Upgrade>,
    stalls: Vec<u64>,
    requests: Vec<u64>,
}

/// Runs the upgrades. Every second round reverses the order of the rigs.
pub fn measure(
    rigs: &mut [Box<dyn Rig>],
    plan: Plan,
    interrupted: &AtomicBool,
) -> Result<Vec<Series>, Error> {
    let mut samples: Vec<Samples> = rigs.iter().map(|_| Samples::default()).collect();
    for (round, first) in (0..plan.count).step_by(TURN).enumerate() {
        let turn = TURN.min(plan.count - first);
        let mut order: Vec<usize> = (0..rigs.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            take_turn(rigs[index].as_mut(), plan, turn, &mut samples[index], interrupted)
                .map_err(|error| format!("{}: {error}", rigs[index].name()))?;
        }
    }
    Ok(rigs.iter().zip(samples).map(|(rig, samples)| samples.series(rig.name(), plan.probe)).collect())
}

fn take_turn(
    rig: &mut dyn Rig,
    plan: Plan,
    turn: usize,
    samples: &mut Samples,
    interrupted: &AtomicBool,
) -> Result<(), Error> {
    let prober = plan.probe.then(|| Prober::start(rig.address(), Duration::ZERO));
    // The first upgrade of a turn finds the machine in the state that the other rig has left.
    rig.upgrade()?;
    for _ in 0..turn {
        if interrupted.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        if plan.unseen {
            rig.touch()?;
        }
        if let Some(prober) = &prober {
            prober.forget();
        }
        samples.upgrades.push(rig.upgrade()?);
        if let Some(prober) = &prober {
            samples.stalls.push(prober.longest_us()?);
        }
    }
    if let Some(prober) = prober {
        samples.requests.extend(prober.stop()?);
    }
    Ok(())
}

impl Samples {
    fn series(self, name: &'static str, probed: bool) -> Series {
        let spread = |value: fn(&Upgrade) -> u64| Spread::of(self.upgrades.iter().map(value));
        let told: Vec<u64> = self.upgrades.iter().filter_map(|upgrade| upgrade.told_gap_us).collect();
        Series {
            name,
            own: spread(|upgrade| upgrade.own_us),
            client: spread(|upgrade| upgrade.client_us),
            gap: spread(|upgrade| upgrade.gap.us),
            told_gap: (!told.is_empty()).then(|| Spread::of(told)),
            stall: probed.then(|| Spread::of(self.stalls.iter().copied())),
            requests: probed.then(|| Spread::of(self.requests.iter().copied())),
            phases: phases(&self.upgrades),
        }
    }
}

fn phases(upgrades: &[Upgrade]) -> Vec<(String, u64)> {
    let mut lengths: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (phase, us) in upgrades.iter().flat_map(|upgrade| &upgrade.phases) {
        lengths.entry(phase).or_default().push(*us);
    }
    let order = upgrades.first().map(|upgrade| upgrade.phases.as_slice()).unwrap_or_default();
    let middle = |phase: &str| Spread::of(lengths.get(phase).into_iter().flatten().copied()).p50_us;
    order.iter().map(|(phase, _)| (phase.clone(), middle(phase))).collect()
}
