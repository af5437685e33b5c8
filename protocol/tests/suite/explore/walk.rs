//! The walk: breadth-first over all reachable states, each visited once. So the first broken promise that it finds
//! also has the fewest steps.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use super::apply::apply;
use super::invariants;
use super::steps::{Context, Cost, Move, Quiescence, Step, pay, steps};
use super::world::{Model, SupervisorStatus, World};

/// The results of a walk.
pub struct WalkResult {
    pub states: usize,
    pub transitions: usize,
    /// States in which only failures can happen.
    pub at_rest: usize,
    pub counterexample: Option<Counterexample>,
}

pub struct Counterexample {
    pub invariant: &'static str,
    pub steps: usize,
    pub trace: String,
}

struct Walk<'a> {
    model: &'a Model,
    start: &'a World,
    /// Each state, by its fingerprint of 128 bits. A collision between two of a million states is not expected in the
    /// age of the universe, so the states need not be kept.
    known: HashMap<u128, u32, BuildHasherDefault<Ready>>,
    /// The origin of each state: the state before it, and the move.
    origins: Vec<(u32, Move)>,
    todo: VecDeque<(u32, World)>,
    /// Transitions without failures.
    progress: Vec<(u32, u32)>,
    rest: Vec<u32>,
    transitions: usize,
}

const START: Move = Move { step: Step::SupervisorGoes(SupervisorStatus::Runs), ends_after: None };

/// Walks over all states that can follow from `start`.
pub fn walk(model: &Model, start: &World) -> WalkResult {
    let mut walk = Walk {
        model,
        start,
        known: HashMap::default(),
        origins: Vec::new(),
        todo: VecDeque::new(),
        progress: Vec::new(),
        rest: Vec::new(),
        transitions: 0,
    };
    walk.visit(start.clone(), 0, START);
    let mut counterexample = None;
    while let Some((id, world)) = walk.todo.pop_front() {
        if let Err((invariant, last)) = walk.expand(id, &world) {
            counterexample = Some(walk.explain(invariant, id, last));
            break;
        }
    }
    if counterexample.is_none()
        && let Some(id) = walk.never_rests()
    {
        counterexample = Some(walk.explain("from every state a state of rest can be reached", id, None));
    }
    WalkResult {
        states: walk.origins.len(),
        transitions: walk.transitions,
        at_rest: walk.rest.len(),
        counterexample,
    }
}

/// Performs the steps that happen without failures, always the first possible one, until none is left.
pub fn settle(model: &Model, mut world: World) -> World {
    loop {
        let all = steps(&world, model);
        let still = all.iter().all(|(_, cost)| *cost != Cost::Free);
        let next = all.iter().find(|(_, cost)| *cost == Cost::Free || still && *cost == Cost::Time);
        let Some((step, _)) = next else { return world };
        let mut cx = context(model, Move { step: *step, ends_after: None }, still);
        apply(&mut world, &mut cx);
        assert_eq!(cx.broken, None, "on the way without bad luck");
    }
}

pub fn context(model: &Model, moved: Move, quiet: bool) -> Context<'_> {
    let Move { step, ends_after } = moved;
    Context { model, step, quiet, rash: false, ends_after, done: 0, asking: false, broken: None, trace: None }
}

type Violation = (&'static str, Option<Move>);

impl Walk<'_> {
    fn visit(&mut self, world: World, from: u32, moved: Move) -> u32 {
        let mut hasher = Fingerprint::default();
        world.hash(&mut hasher);
        let next = self.origins.len() as u32;
        let id = *self.known.entry(hasher.both()).or_insert(next);
        if id == next {
            self.origins.push((from, moved));
            self.todo.push_back((id, world));
        }
        id
    }

    fn expand(&mut self, id: u32, world: &World) -> Result<(), Violation> {
        let all = steps(world, self.model);
        let still = all.iter().all(|(_, cost)| *cost != Cost::Free);
        let rests = still && all.iter().all(|(_, cost)| *cost != Cost::Time);
        if still {
            invariants::before_leases(world, self.model).map_err(|broken| (broken, None))?;
        }
        if rests {
            invariants::at_rest(world, self.model).map_err(|broken| (broken, None))?;
        }
        if rests && all.iter().all(|(_, cost)| *cost != Cost::Return) {
            self.rest.push(id);
        }
        let quiescence = Quiescence { still, rests };
        for (step, cost) in all {
            let actions = self.take(id, world, Move { step, ends_after: None }, cost, quiescence)?;
            if world.budget.deaths == 0 {
                continue;
            }
            for after in 1..actions {
                for status in [SupervisorStatus::Dead, SupervisorStatus::Frozen] {
                    let moved = Move { step, ends_after: Some((after, status)) };
                    self.take(id, world, moved, cost, quiescence)?;
                }
            }
        }
        Ok(())
    }

    /// Takes one step, if the budget allows it. Returns the number of its supervisor actions.
    fn take(
        &mut self,
        id: u32,
        world: &World,
        moved: Move,
        cost: Cost,
        quiescence: Quiescence,
    ) -> Result<u8, Violation> {
        let mut next = world.clone();
        if !pay(&mut next, cost, quiescence) {
            return Ok(0);
        }
        next.budget.deaths -= u8::from(moved.ends_after.is_some());
        let quiet = quiescence.still && cost == Cost::Time;
        let expected = cost == Cost::Free || quiet || quiescence.rests && cost == Cost::Return;
        let mut cx = context(self.model, moved, quiet);
        apply(&mut next, &mut cx);
        self.transitions += 1;
        let actions = cx.done;
        cx.check(invariants::always(&next, self.model));
        if let Some(invariant) = cx.broken {
            return Err((invariant, Some(moved)));
        }
        let next = self.visit(next, id, moved);
        if moved.ends_after.is_none() && expected {
            self.progress.push((id, next));
        }
        Ok(actions)
    }

    /// A state from which no state of rest can be reached without failures.
    fn never_rests(&self) -> Option<u32> {
        let mut edges = self.progress.clone();
        edges.sort_unstable_by_key(|(_, to)| *to);
        let mut rests = vec![false; self.origins.len()];
        let mut todo = self.rest.clone();
        while let Some(id) = todo.pop() {
            if !std::mem::replace(&mut rests[id as usize], true) {
                let first = edges.partition_point(|(_, to)| *to < id);
                todo.extend(edges[first..].iter().take_while(|(_, to)| *to == id).map(|(from, _)| from));
            }
        }
        rests.iter().position(|rests| !rests).map(|id| id as u32)
    }

    fn explain(&self, invariant: &'static str, mut id: u32, last: Option<Move>) -> Counterexample {
        let mut moves: Vec<Move> = last.into_iter().collect();
        while id != 0 {
            let (from, moved) = self.origins[id as usize];
            moves.push(moved);
            id = from;
        }
        moves.reverse();
        let mut trace = format!("broken: {invariant}\n");
        let mut world = self.start.clone();
        for (number, moved) in moves.iter().enumerate() {
            let all = steps(&world, self.model);
            let quiet =
                all.contains(&(moved.step, Cost::Time)) && all.iter().all(|(_, cost)| *cost != Cost::Free);
            let mut cx = context(self.model, *moved, quiet);
            cx.trace = Some(Vec::new());
            apply(&mut world, &mut cx);
            let _ = writeln!(trace, "{:>3}. {moved}", number + 1);
            for line in cx.trace.unwrap_or_default() {
                let _ = writeln!(trace, "       {line}");
            }
        }
        let _ = write!(trace, "{}", super::show::ShownWorld(&world));
        Counterexample { invariant, steps: moves.len(), trace }
    }
}

/// Two independent 64-bit hashes of the same input. Fast, but not secure.
struct Fingerprint(u64, u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344)
    }
}

impl Fingerprint {
    fn both(&self) -> u128 {
        u128::from(self.0) << 64 | u128::from(self.1)
    }
}

fn fold(state: u64, value: u64, factor: u64) -> u64 {
    let product = u128::from(state ^ value) * u128::from(factor);
    (product as u64 ^ (product >> 64) as u64).rotate_left(23)
}

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = fold(self.0, value, 0x9e37_79b9_7f4a_7c15);
        self.1 = fold(self.1, value, 0xd6e8_feb8_6659_fd93).wrapping_add(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A fingerprint is already a hash.
#[derive(Default)]
struct Ready(u64);

impl Hasher for Ready {
    fn write(&mut self, bytes: &[u8]) {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[..8]);
        self.0 = u64::from_le_bytes(word);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
