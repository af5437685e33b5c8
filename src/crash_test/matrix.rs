//! The list of runs: the points of a run without faults, times victims and faults.

use std::fmt;
use std::str::FromStr;

use super::Selection;
use super::director::ReachedPoint;
use super::fault::{AT_REST, Fault, Injection, ProcessRole};
use super::random::Random;
use super::scenario::Scenario;

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Job {
    /// The operation in progress.
    pub scenario: Scenario,
    /// The faults in addition to that of the scenario, one after the other.
    pub chain: Vec<Injection>,
}

impl Job {
    /// A run without further faults.
    pub(super) fn clean(scenario: Scenario) -> Self {
        Self { scenario, chain: Vec::new() }
    }

    /// All faults, in order.
    pub(super) fn steps(&self) -> impl Iterator<Item = Injection> {
        self.scenario.given().into_iter().chain(self.chain.clone())
    }

    fn with(&self, point: &str, victim: ProcessRole, fault: Fault) -> Self {
        let mut chain = self.chain.clone();
        chain.push(Injection { point: point.to_owned(), victim, fault });
        Self { scenario: self.scenario, chain }
    }

    /// All possible faults at the points that were seen after the faults of this run.
    pub(super) fn extended_by(&self, reached: &[ReachedPoint]) -> Vec<Job> {
        if self.scenario == Scenario::Serve {
            let at_rest = ReachedPoint {
                point: AT_REST.to_owned(),
                present: vec![ProcessRole::Supervisor, ProcessRole::Keeper, ProcessRole::Incumbent],
                faults: 0,
            };
            return self.all_at(&at_rest);
        }
        let before = self.steps().count();
        let after: Vec<&ReachedPoint> = reached.iter().filter(|reached| reached.faults >= before).collect();
        after.into_iter().flat_map(|reached| self.all_at(reached)).collect()
    }

    fn all_at(&self, reached: &ReachedPoint) -> Vec<Job> {
        let own = ProcessRole::at(&reached.point);
        let mut jobs = Vec::new();
        for victim in &reached.present {
            for fault in Fault::ALL {
                let possible = match fault {
                    Fault::Panic => own == Some(*victim) && reached.point.contains("/code."),
                    fault => own == Some(*victim) || !fault.is_own(),
                };
                if possible {
                    jobs.push(self.with(&reached.point, *victim, fault));
                }
            }
        }
        jobs
    }

    /// The same run, with the supervisor killed in each phase that was seen.
    pub(super) fn killed_in_each_phase(&self, reached: &[ReachedPoint]) -> Vec<Job> {
        let mut phases: Vec<&str> = Vec::new();
        let mut jobs = Vec::new();
        for point in reached.iter().map(|reached| reached.point.as_str()) {
            if let Some(("supervisor", rest)) = point.split_once('/')
                && let Some((phase, what)) = rest.split_once('/')
                && what.starts_with("after.")
                && !phases.contains(&phase)
            {
                phases.push(phase);
                jobs.push(self.with(point, ProcessRole::Supervisor, Fault::Kill));
            }
        }
        jobs
    }

    fn last(&self) -> Option<&Injection> {
        self.chain.last()
    }
}

/// Selects the runs.
pub(super) fn choose(jobs: Vec<Job>, selection: &Selection) -> Vec<Job> {
    let wanted = |job: &Job| {
        job.last().is_none_or(|last| {
            (selection.victims.is_empty() || selection.victims.contains(&last.victim))
                && (selection.faults.is_empty() || selection.faults.contains(&last.fault))
        })
    };
    let mut jobs: Vec<Job> = jobs.into_iter().filter(wanted).collect();
    if selection.quick {
        jobs = thin_out(jobs, selection.seed);
    }
    if let Some(count) = selection.random {
        let mut random = Random::new(selection.seed);
        while jobs.len() > count {
            jobs.swap_remove(random.below(jobs.len()));
        }
    }
    jobs
}

/// One run for each victim in each scenario. In the scenarios with the most activity, one for each fault too.
fn thin_out(jobs: Vec<Job>, seed: u64) -> Vec<Job> {
    let kind = |job: &Job| {
        let in_full = matches!(job.scenario, Scenario::Serve | Scenario::Upgrade | Scenario::Recovery);
        (job.scenario, job.last().map(|last| (last.victim, in_full.then_some(last.fault))))
    };
    let mut kinds: Vec<_> = jobs.iter().map(kind).collect();
    kinds.sort();
    kinds.dedup();
    let mut random = Random::new(seed);
    kinds
        .into_iter()
        .map(|wanted| {
            let of_kind: Vec<&Job> = jobs.iter().filter(|job| kind(job) == wanted).collect();
            of_kind[random.below(of_kind.len())].clone()
        })
        .collect()
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.scenario.fmt(f)?;
        self.chain.iter().try_for_each(|injection| write!(f, ":{injection}"))
    }
}

impl FromStr for Job {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let scenario = parts.next().unwrap_or_default().parse()?;
        let mut chain = Vec::new();
        while let Some(point) = parts.next() {
            let (Some(victim), Some(fault)) = (parts.next(), parts.next()) else {
                return Err(format!("{text:?} ends in the middle: write SCENARIO:POINT:VICTIM:FAULT"));
            };
            let at = point.trim_end_matches('*');
            if point != AT_REST && ProcessRole::at(at).is_none() {
                return Err(format!("{point:?} is not a point"));
            }
            chain.push(Injection { point: point.to_owned(), victim: victim.parse()?, fault: fault.parse()? });
        }
        Ok(Self { scenario, chain })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(point: &str, present: &[ProcessRole]) -> ReachedPoint {
        ReachedPoint { point: point.to_owned(), present: present.to_vec(), faults: 0 }
    }

    #[test]
    fn a_run_reads_back_from_what_a_failure_prints() {
        for text in [
            "upgrade",
            "upgrade:supervisor/sealing/before.ToIncumbent.Seal:incumbent:kill",
            "recovery:journal/synced:supervisor:exit:library/incumbent/code.seal.ends:incumbent:panic",
            "serve:at-rest:keeper:stop",
        ] {
            assert_eq!(text.parse::<Job>().unwrap().to_string(), text);
        }
        for text in ["", "later", "upgrade:nowhere:keeper:kill", "upgrade:keeper/start:keeper"] {
            assert!(text.parse::<Job>().is_err(), "{text}");
        }
    }

    #[test]
    fn others_are_hit_at_points_of_the_supervisor_and_code_alone_panics() {
        let job = Job::clean(Scenario::Upgrade);
        let all = |point, present: &[ProcessRole]| {
            let jobs = job.extended_by(&[reached(point, present)]);
            jobs.iter().map(|job| job.last().unwrap().to_string()).collect::<Vec<_>>()
        };
        let both = [ProcessRole::Supervisor, ProcessRole::Incumbent];
        let expected =
            ["supervisor:kill", "supervisor:stop", "supervisor:exit", "incumbent:kill", "incumbent:stop"];
        assert_eq!(all("supervisor/x", &both), expected.map(|end| format!("supervisor/x:{end}")));
        let code = "library/incumbent/code.seal.begins";
        let expected = ["kill", "stop", "exit", "panic"].map(|fault| format!("{code}:incumbent:{fault}"));
        assert_eq!(all(code, &[ProcessRole::Incumbent]), expected);
    }

    #[test]
    fn only_what_comes_after_the_faults_is_hit() {
        let given = Job::clean(Scenario::SealFails);
        let before = reached("supervisor/x", &[ProcessRole::Supervisor]);
        let after = ReachedPoint { faults: 1, ..reached("supervisor/y", &[ProcessRole::Supervisor]) };
        let jobs = given.extended_by(&[before, after]);
        assert!(!jobs.is_empty());
        assert!(jobs.iter().all(|job| job.last().unwrap().point == "supervisor/y"));
    }

    #[test]
    fn a_phase_has_one_kill() {
        let points =
            ["supervisor/a/event.X", "supervisor/a/after.X", "supervisor/a/after.Y", "supervisor/b/after.Z"];
        let reached: Vec<ReachedPoint> = points.iter().map(|point| reached(point, &[])).collect();
        let jobs = Job::clean(Scenario::Upgrade).killed_in_each_phase(&reached);
        let found: Vec<String> = jobs.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            ["upgrade:supervisor/a/after.X:supervisor:kill", "upgrade:supervisor/b/after.Z:supervisor:kill"]
        );
    }
}
