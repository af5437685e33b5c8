//! Walks over **all** reachable states of the three machines together, in both modes, from each kind of request: all
//! orders of deliveries, all deadlines, the death or freeze of each process at any point, closed channels, failing
//! code of the service, a failing disk. Checks `invariants` in each state.

mod apply;
mod daemon;
mod defects;
mod invariants;
mod journal;
mod process;
mod restart;
mod service;
mod show;
mod steps;
mod walk;
mod world;

use std::time::Instant;

use handoff_protocol::deadline::Stragglers;
use handoff_protocol::message::Mode;

use self::apply::apply;
use self::defects::Defect;
use self::steps::{Move, Step, UserRequest};
use self::walk::{WalkResult, context, settle, walk};
use self::world::{Budget, Model, Trial, World};

/// No failures at all.
const LUCK: Budget =
    Budget { deaths: 0, faults: 0, slow: 0, asks: 0, chatter: 0, states: 0, thaws: 0, returns: 0 };

/// The world in which `ask` was just requested from a service that is stopped (for a start) or serves.
fn asked(model: &Model, ask: UserRequest) -> World {
    let sound = Model { defect: None, ..model.clone() };
    let mut world = World::stopped(&sound);
    if ask != UserRequest::Start {
        world = settle(&sound, after(&sound, world, UserRequest::Start));
    }
    world = after(model, world, ask);
    world.budget = model.budget;
    world
}

fn after(model: &Model, mut world: World, ask: UserRequest) -> World {
    apply(&mut world, &mut context(model, Move { step: Step::Ask(ask), ends_after: None }, false));
    world
}

fn explore(name: &str, model: &Model, ask: UserRequest) -> WalkResult {
    let began = Instant::now();
    let seen = walk(model, &asked(model, ask));
    println!(
        "{name}, {:?}, {ask:?}, probes {}, trial {:?}: {} states, {} transitions, {} at rest, {:.1} s",
        model.mode,
        model.probes,
        model.trial,
        seen.states,
        seen.transitions,
        seen.at_rest,
        began.elapsed().as_secs_f32()
    );
    seen
}

/// The requests, and whether a new process is probed.
const ASKED: [(UserRequest, bool); 5] = [
    (UserRequest::Start, false),
    (UserRequest::Start, true),
    (UserRequest::Stop, false),
    (UserRequest::Upgrade, false),
    (UserRequest::Upgrade, true),
];

/// The walks that only run as a sample, unless all are requested. Each has more than 100,000 states.
const LARGE: [&str; 11] = [
    "two_slow_and_cut",
    "a_freeze_that_ends_and_a_fault",
    "two_freezes_that_end",
    "another_supervisor_and_requests",
    "a_state_a_slow_party_and_a_request",
    "requests_between",
    "a_freeze_that_ends_and_another_supervisor",
    "a_state_and_another_supervisor",
    "states_a_death_and_a_fault",
    "another_supervisor_and_two_faults",
    "supervisors_come_and_go",
];

/// The walks with more than a million states, and the mode of their sample.
const HUGE: [(&str, Mode); 4] = [
    ("a_death_two_faults_and_a_slow_party", Mode::Exclusive),
    ("another_supervisor_a_death_and_a_fault", Mode::Overlap),
    ("another_supervisor_a_freeze_and_a_slow_party", Mode::Exclusive),
    ("something_of_each", Mode::Overlap),
];

/// With this variable in the environment, all walks are complete.
const ALL: &str = "TEST_ALL";

fn is_sample() -> bool {
    std::env::var_os(ALL).is_none()
}

fn holds(name: &str, stragglers: Stragglers, budget: Budget) {
    let huge = HUGE.iter().find(|(huge, _)| is_sample() && *huge == name).map(|(_, mode)| *mode);
    let is_large = huge.is_some() || is_sample() && LARGE.contains(&name);
    let asked = if is_large { &ASKED[3..4] } else { &ASKED[..] };
    for mode in
        [Mode::Exclusive, Mode::Overlap].into_iter().filter(|mode| huge.is_none_or(|huge| huge == *mode))
    {
        for (ask, probes) in asked.iter().copied() {
            let trial = Trial::None;
            let model = Model {
                mode,
                stragglers,
                probes,
                trial,
                liveness: false,
                rests: false,
                budget,
                defect: None,
            };
            hold(name, &model, ask);
        }
    }
}

/// Only the states after an upgrade differ with a canary or a probation. The first three rows cover everything.
const TRIALS: [(Mode, Trial, bool); 6] = [
    (Mode::Exclusive, Trial::Probation, true),
    (Mode::Overlap, Trial::Canary, true),
    (Mode::Overlap, Trial::CanaryAndProbation, true),
    (Mode::Exclusive, Trial::Probation, false),
    (Mode::Overlap, Trial::Probation, true),
    (Mode::Overlap, Trial::Canary, false),
];

/// A service that does not start again for ever.
fn holds_with_rest(name: &str, stragglers: Stragglers, budget: Budget) {
    for mode in [Mode::Exclusive, Mode::Overlap] {
        for (ask, trial) in [
            (UserRequest::Start, Trial::None),
            (UserRequest::Stop, Trial::None),
            (UserRequest::Upgrade, Trial::None),
            (UserRequest::Upgrade, Trial::Probation),
        ] {
            let probes = false;
            let model =
                Model { mode, stragglers, probes, trial, liveness: false, rests: true, budget, defect: None };
            hold(name, &model, ask);
        }
    }
}

fn holds_on_trial(name: &str, stragglers: Stragglers, budget: Budget) {
    hold_trials(name, &TRIALS, stragglers, budget);
}

fn holds_on_some_trials(name: &str, stragglers: Stragglers, budget: Budget) {
    hold_trials(name, &TRIALS[..3], stragglers, budget);
}

/// A serving process is watched, whichever it is and whatever its trial was.
fn holds_watched(name: &str, stragglers: Stragglers, budget: Budget) {
    let trials = [
        (Mode::Exclusive, Trial::None, UserRequest::Start),
        (Mode::Exclusive, Trial::None, UserRequest::Upgrade),
        (Mode::Overlap, Trial::None, UserRequest::Upgrade),
        (Mode::Exclusive, Trial::Probation, UserRequest::Upgrade),
        (Mode::Overlap, Trial::CanaryAndProbation, UserRequest::Upgrade),
    ];
    // One in each mode, the first without a trial.
    let [skipped, step] = if is_sample() { [1, 3] } else { [0, 1] };
    for (mode, trial, ask) in trials.into_iter().skip(skipped).step_by(step) {
        let probes = trial != Trial::None;
        hold(
            name,
            &Model { mode, stragglers, probes, trial, liveness: true, rests: false, budget, defect: None },
            ask,
        );
    }
}

fn hold_trials(name: &str, trials: &[(Mode, Trial, bool)], stragglers: Stragglers, budget: Budget) {
    let step = if is_sample() { 2 } else { 1 };
    for (mode, trial, probes) in trials.iter().copied().step_by(step) {
        let model =
            Model { mode, stragglers, probes, trial, liveness: false, rests: false, budget, defect: None };
        hold(name, &model, UserRequest::Upgrade);
    }
}

fn hold(name: &str, model: &Model, ask: UserRequest) {
    if let Some(found) = explore(name, model, ask).counterexample {
        let Model { mode, probes, trial, .. } = model;
        panic!(
            "{name}, {mode:?}, {ask:?}, probes {probes}, trial {trial:?}: {} steps\n{}",
            found.steps, found.trace
        );
    }
}

macro_rules! walks {
    ($walk:ident; $($name:ident: $stragglers:ident, $budget:expr;)*) => {$(
        #[test]
        fn $name() {
            $walk(stringify!($name), Stragglers::$stragglers, $budget);
        }
    )*};
}

/// A defect must be found, by the promise that it breaks.
macro_rules! found {
    ($trial:ident; $($name:ident: $defect:ident, $mode:ident, $ask:ident, $budget:expr, $invariant:literal;)*) => {$(
        #[test]
        fn $name() {
            let defect = Some(Defect::$defect);
            let (mode, stragglers) = (Mode::$mode, Stragglers::Abort);
            let trial = Trial::$trial;
            let probes = match Defect::$defect {
                Defect::ForgetProbe | Defect::TrustLateProbe => true,
                Defect::TrustLeft => trial == Trial::None,
                _ => false,
            };
            let liveness = defect == Some(Defect::ForgetFrozen);
            let model = Model { mode, stragglers, probes, trial, liveness, rests: false, budget: $budget, defect };
            let found = explore(stringify!($name), &model, UserRequest::$ask).counterexample;
            let found = found.unwrap_or_else(|| panic!("{:?} is not found", defect));
            println!("found after {} steps, {}", found.steps, found.trace);
            assert_eq!(found.invariant, $invariant);
        }
    )*};
}

const DEATH: Budget = Budget { deaths: 1, ..LUCK };
const RETURN: Budget = Budget { returns: 1, ..DEATH };
const TWO_DEATHS: Budget = Budget { deaths: 2, ..RETURN };

found! {
    None;
    release_before_sealed: ReleaseBeforeSealed, Exclusive, Upgrade, LUCK,
        "the lock is released only after a seal that succeeded";
    release_after_sealed: ReleaseAfterSealed, Exclusive, Upgrade, LUCK,
        "Sealed is said only after the lock was released";
    kill_the_successor_with_the_incumbent: KillSuccessorWithIncumbent, Exclusive, Upgrade, DEATH,
        "a healthy process is never killed to make room for a dead one";
    give_up_the_lock: GiveUpLock, Exclusive, Upgrade, DEATH,
        "a healthy incumbent is not killed";
    commit_before_durable: CommitBeforeDurable, Exclusive, Upgrade, LUCK,
        "a commit is reported only after it is durable";
    wait_for_the_disk: WaitForDisk, Exclusive, Upgrade, Budget { faults: 1, ..LUCK },
        "every request is reported";
    begin_early: BeginEarly, Exclusive, Upgrade, LUCK,
        "a successor begins only when the incumbent is sealed or gone";
    forget_the_probe: ForgetProbe, Exclusive, Upgrade, LUCK,
        "with a probe, a commit is recorded only after the probe has passed";
    forget_the_probe_and_steer: ForgetProbe, Overlap, Upgrade, LUCK,
        "with a probe, connections are steered away from an incumbent only after the probe has passed";
    trust_a_late_probe: TrustLateProbe, Exclusive, Upgrade, Budget { asks: 2, ..LUCK },
        "with a probe, a commit is recorded only after the probe has passed";
    trust_who_was_left: TrustLeft, Exclusive, Upgrade, RETURN,
        "with a probe, a commit is recorded only after the probe has passed";
    trust_who_was_left_and_steer: TrustLeft, Overlap, Upgrade, RETURN,
        "with a probe, connections are steered away from an incumbent only after the probe has passed";
    keep_states_back: KeepStates, Exclusive, Upgrade, Budget { states: 1, ..LUCK },
        "what was handed over before the seal is there before the successor begins";
    resume_without_lock: ResumeWithoutLock, Exclusive, Upgrade, DEATH,
        "who has the data open holds the lock: never two writers";
    ignore_the_closed_channel: IgnoreClosed, Exclusive, Upgrade, DEATH,
        "a closed channel is acted upon at once, not by the lease";
    ignore_the_lease: IgnoreLease, Exclusive, Upgrade, DEATH,
        "without a supervisor one process serves by itself";
    leave_after_begin: LeaveAfterBegin, Exclusive, Start, DEATH,
        "a closed channel is acted upon at once, not by the lease";
    no_reap: NoReap, Exclusive, Upgrade, DEATH,
        "a successor that has received Begin is gone before the incumbent is asked to resume";
    trust_resume: TrustResume, Exclusive, Upgrade, DEATH,
        "no process breaks the protocol";
    break_the_lock: BreakLock, Exclusive, Upgrade, TWO_DEATHS,
        "who has the data open holds the lock: never two writers";
    adopt_unasked: AdoptUnasked, Exclusive, Upgrade, RETURN,
        "an end is reported as good only when a process serves";
    kill_unasked: KillUnasked, Exclusive, Upgrade, RETURN,
        "a process that leaves in order, or has its data open, is killed only when the time after its stop signal is over";
    keep_the_old_handoff: KeepOldHandoff, Exclusive, Stop, RETURN,
        "no process breaks the protocol";
    adopt_before_closed: AdoptBeforeClosed, Exclusive, Upgrade, RETURN,
        "a healthy process is never killed to make room for a dead one";
    commit_self_made: CommitUnpromoted, Exclusive, Upgrade, RETURN,
        "who takes itself for the incumbent is not told that it is committed";
    forget_the_revert: ForgetRevert, Exclusive, Upgrade, TWO_DEATHS,
        "who serves is the current generation";
    start_before_gone: StartBeforeGone, Exclusive, Upgrade, TWO_DEATHS,
        "no process is started before a killed one is gone";
    forget_who_leaves: ForgetLeaving, Exclusive, Upgrade, TWO_DEATHS,
        "another supervisor knows every process";
    clock_first: ClockFirst, Exclusive, Upgrade, Budget { thaws: 1, ..DEATH },
        "a healthy process is never killed to make room for a dead one";
    kill_who_works: KillUnwarned, Exclusive, Upgrade, Budget { asks: 1, ..LUCK },
        "a process that leaves in order, or has its data open, is killed only when the time after its stop signal is over";
    forget_who_is_frozen: ForgetFrozen, Exclusive, Start, DEATH,
        "exactly one process serves";
}

found! {
    CanaryAndProbation;
    drop_the_standby: DropStandby, Exclusive, Upgrade, LUCK,
        "who stands by is kept until the probation is over";
    keep_the_share: KeepShare, Overlap, Upgrade, Budget { faults: 1, ..LUCK },
        "no share of connections goes to a process that does not serve";
    forget_the_verdict: ForgetVerdict, Exclusive, Upgrade, Budget { faults: 1, ..LUCK },
        "who is found not to be well does not serve on";
    forget_the_verdict_of_a_canary: ForgetVerdict, Overlap, Upgrade, Budget { faults: 1, ..LUCK },
        "who is found not to be well does not serve on";
}

found! {
    Canary;
    trust_who_was_left_with_a_share: TrustLeft, Overlap, Upgrade, RETURN,
        "with a canary, a commit is recorded only after its last step";
}

found! {
    Probation;
    trust_who_was_left_on_probation: TrustLeft, Exclusive, Upgrade, RETURN,
        "with a probation a replaced process stands by";
    trust_who_was_left_on_probation_and_steer: TrustLeft, Overlap, Upgrade, RETURN,
        "with a probation a replaced process stands by";
}

walks! {
    holds;
    nothing_goes_wrong: Abort, LUCK;
    one_death: Abort, Budget { deaths: 1, chatter: 1, ..LUCK };
    two_deaths: Abort, Budget { deaths: 2, ..LUCK };
    three_deaths: Abort, Budget { deaths: 3, ..LUCK };
    two_faults: Abort, Budget { faults: 2, ..LUCK };
    a_death_two_faults_and_a_slow_party: Abort, Budget { deaths: 1, faults: 2, slow: 1, ..LUCK };
    two_slow: Abort, Budget { slow: 2, ..LUCK };
    two_slow_and_cut: Cut, Budget { slow: 2, faults: 1, ..LUCK };
    requests_between: Abort, Budget { asks: 2, deaths: 1, chatter: 1, ..LUCK };
    a_death_and_a_fault: Abort, Budget { deaths: 1, faults: 1, ..LUCK };
    a_death_and_a_slow_party: Abort, Budget { deaths: 1, slow: 1, ..LUCK };
    another_supervisor: Abort, Budget { deaths: 1, returns: 1, ..LUCK };
    another_supervisor_and_a_death: Abort, Budget { deaths: 2, returns: 1, ..LUCK };
    supervisors_come_and_go: Abort, Budget { deaths: 3, returns: 2, ..LUCK };
    another_supervisor_and_a_fault: Abort, Budget { deaths: 1, faults: 1, returns: 1, ..LUCK };
    another_supervisor_and_two_faults: Abort, Budget { deaths: 1, faults: 2, returns: 1, ..LUCK };
    another_supervisor_and_a_slow_party: Abort, Budget { deaths: 1, slow: 1, returns: 1, ..LUCK };
    another_supervisor_and_requests: Abort, Budget { deaths: 1, asks: 2, returns: 1, ..LUCK };
    another_supervisor_a_death_and_a_fault: Abort, Budget { deaths: 2, faults: 1, returns: 1, ..LUCK };
    another_supervisor_a_freeze_and_a_slow_party: Abort,
        Budget { deaths: 2, slow: 1, thaws: 1, returns: 1, ..LUCK };
    two_freezes_that_end: Abort, Budget { deaths: 2, thaws: 2, ..LUCK };
    a_freeze_that_ends_and_a_fault: Abort, Budget { deaths: 1, thaws: 1, faults: 1, ..LUCK };
    a_freeze_that_ends_and_another_supervisor: Abort, Budget { deaths: 2, thaws: 1, returns: 1, ..LUCK };
    states: Abort, Budget { states: 3, ..LUCK };
    a_state_and_two_faults: Abort, Budget { states: 1, faults: 2, ..LUCK };
    states_a_death_and_a_fault: Abort, Budget { states: 2, deaths: 1, faults: 1, ..LUCK };
    a_state_a_slow_party_and_a_request: Cut, Budget { states: 1, slow: 2, asks: 1, ..LUCK };
    a_state_and_another_supervisor: Abort, Budget { states: 1, deaths: 2, returns: 1, ..LUCK };
    freezes_that_end: Abort, Budget { deaths: 1, thaws: 1, ..LUCK };
    something_of_each: Cut, Budget { deaths: 1, faults: 1, slow: 1, asks: 1, ..LUCK };
}

walks! {
    holds_on_trial;
    on_trial_nothing_goes_wrong: Abort, LUCK;
    on_trial_a_death: Abort, Budget { deaths: 1, chatter: 1, ..LUCK };
    on_trial_two_deaths: Abort, Budget { deaths: 2, ..LUCK };
    on_trial_three_deaths: Abort, Budget { deaths: 3, ..LUCK };
    on_trial_two_faults_and_a_slow_party: Abort, Budget { faults: 2, slow: 1, ..LUCK };
    on_trial_a_death_and_two_faults: Abort, Budget { deaths: 1, faults: 2, ..LUCK };
    on_trial_requests: Abort, Budget { asks: 2, deaths: 1, ..LUCK };
    on_trial_a_request_and_a_fault: Cut, Budget { asks: 1, faults: 1, slow: 1, ..LUCK };
    on_trial_another_supervisor: Abort, Budget { deaths: 2, returns: 1, ..LUCK };
    on_trial_another_supervisor_and_requests: Abort, Budget { deaths: 1, asks: 1, returns: 1, ..LUCK };
    on_trial_two_freezes_that_end: Abort, Budget { deaths: 2, thaws: 2, ..LUCK };
    on_trial_a_freeze_and_a_fault: Abort, Budget { deaths: 1, thaws: 1, faults: 1, ..LUCK };
}

walks! {
    holds_on_some_trials;
    on_trial_supervisors_come_and_go: Abort, Budget { deaths: 3, returns: 2, ..LUCK };
    on_trial_another_supervisor_and_two_faults: Abort, Budget { deaths: 1, faults: 2, returns: 1, ..LUCK };
    on_trial_states: Abort, Budget { states: 2, deaths: 1, faults: 1, ..LUCK };
    on_trial_a_death_a_fault_and_a_slow_party: Abort, Budget { deaths: 1, faults: 1, slow: 1, ..LUCK };
}

walks! {
    holds_watched;
    watched_nothing_goes_wrong: Abort, LUCK;
    watched_two_deaths: Abort, Budget { deaths: 2, chatter: 1, ..LUCK };
    watched_three_deaths: Abort, Budget { deaths: 3, ..LUCK };
    watched_a_death_and_two_faults: Abort, Budget { deaths: 1, faults: 2, ..LUCK };
    watched_a_fault_and_requests: Abort, Budget { faults: 1, asks: 2, ..LUCK };
    watched_a_fault_and_a_slow_party: Cut, Budget { faults: 1, slow: 2, ..LUCK };
    watched_two_freezes_that_end: Abort, Budget { deaths: 2, thaws: 2, ..LUCK };
    watched_another_supervisor: Abort, Budget { deaths: 2, returns: 1, ..LUCK };
}

walks! {
    holds_with_rest;
    with_rest_nothing_goes_wrong: Abort, LUCK;
    with_rest_two_deaths: Abort, Budget { deaths: 2, ..LUCK };
    with_rest_a_death_and_two_faults: Abort, Budget { deaths: 1, faults: 2, ..LUCK };
    with_rest_requests: Abort, Budget { deaths: 1, asks: 2, ..LUCK };
    with_rest_another_supervisor: Abort, Budget { deaths: 2, returns: 1, ..LUCK };
}
