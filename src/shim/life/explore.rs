//! Explores all states that a program of up to three processes can reach with the real machine. Each process may fork,
//! name another as the main process, exit with success or failure, or ignore a signal; an outsider may send anything at
//! any time; the program may be asked to end, or be dismissed. Checks the machine's promises in each state. Known
//! mistakes, planted one at a time, must be found.

use std::collections::{HashMap, VecDeque};

use super::*;

/// Processes 0 to 2 are of the program, and 0 is the first; this one is an outsider.
const OUTSIDER: u32 = 9;
const PROCESSES: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    BelieveOutsiders,
    DoNotWaitForTheServer,
    MissTheEndOfTheMain,
    KillAtOnce,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Process {
    runs: bool,
    /// It was never started.
    unborn: bool,
    asked: u8,
    killed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    life: Lifecycle,
    processes: [Process; PROCESSES],
    /// Ends that the shim has not processed yet, in order.
    unheard: Vec<(u32, Option<Exit>)>,
    /// Whether the shim knows that nothing is left.
    empty_heard: bool,
    stopped: bool,
    unwanted: bool,
    time_over: bool,
    failed: bool,
    names: u8,
}

impl World {
    fn start() -> Self {
        let unborn = Process { runs: false, unborn: true, asked: 0, killed: false };
        let mut processes = [unborn; PROCESSES];
        processes[0] = Process { runs: true, unborn: false, ..unborn };
        let mut life = Lifecycle::default();
        assert_eq!(life.step(LifeEvent::Started(0)), [LifeAction::Watch(0)]);
        Self {
            life,
            processes,
            unheard: Vec::new(),
            empty_heard: false,
            stopped: false,
            unwanted: false,
            time_over: false,
            failed: false,
            names: 0,
        }
    }

    fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (0..PROCESSES).filter(|at| self.processes[*at].runs)
    }

    /// Passes an event to the machine, and performs its actions. The error is the broken promise.
    fn feed(&mut self, event: LifeEvent, defect: Defect) -> Result<(), &'static str> {
        let before = self.life.main();
        for action in self.life.step(event) {
            match action {
                LifeAction::Watch(pid) if pid == OUTSIDER => return Err("only a process of the tree counts"),
                LifeAction::Watch(_) | LifeAction::Refuse(_) => {}
                // The effects choose the process: here the main process, or else the first that runs.
                LifeAction::AskServer => {
                    let server = before.and_then(|main| usize::try_from(main).ok());
                    let server = server.filter(|at| *at < PROCESSES && self.processes[*at].runs);
                    if let Some(at) = server.or_else(|| self.running().next()) {
                        self.processes[at].asked += 1;
                    }
                }
                LifeAction::AskRest => {
                    for process in self.processes.iter_mut().filter(|process| process.runs) {
                        if process.asked == 0 || defect == Defect::DoNotWaitForTheServer {
                            process.asked += 1;
                        }
                    }
                }
                LifeAction::Kill => {
                    if !(self.time_over || self.unwanted) {
                        return Err("nothing is killed before its time is over");
                    }
                    self.processes.iter_mut().filter(|process| process.runs).for_each(|it| it.killed = true);
                }
                LifeAction::Fail => {
                    if self.stopped || self.unwanted {
                        return Err("an end that is wanted is no failure");
                    }
                    self.failed = true;
                }
            }
        }
        match self.processes.iter().any(|process| process.asked > 1) {
            true => Err("each process is asked once"),
            false => Ok(()),
        }
    }

    fn ends(&mut self, at: usize, exit: Option<Exit>, defect: Defect) {
        self.processes[at].runs = false;
        let is_adopted = matches!(self.life.state(), LifeState::Adopted { main, .. } if main as usize == at);
        if !(is_adopted && defect == Defect::MissTheEndOfTheMain) {
            self.unheard.push((at as u32, exit));
        }
    }

    /// All possible next events, by name.
    fn next(&self, defect: Defect) -> Vec<(String, Result<World, &'static str>)> {
        let mut all = Vec::new();
        let mut add = |name: String, change: &dyn Fn(&mut World) -> Result<(), &'static str>| {
            let mut world = self.clone();
            let result = change(&mut world).and_then(|()| world.check());
            all.push((name, result.map(|()| world)));
        };
        if let Some((pid, exit)) = self.unheard.first().copied() {
            add(format!("hears of the end of {pid}"), &|world| {
                world.unheard.remove(0);
                world.feed(LifeEvent::Exited(pid, exit), defect)
            });
        }
        let is_empty = self.running().next().is_none() && self.unheard.is_empty();
        if is_empty && !self.empty_heard {
            add("hears that nothing is left".into(), &|world| {
                world.empty_heard = true;
                world.feed(LifeEvent::Empty, defect)
            });
        }
        for at in self.running() {
            self.what_it_does(at, defect, &mut add);
        }
        for (what, asked) in [(LifeEvent::Stop, self.stopped), (LifeEvent::Kill, self.unwanted)] {
            if !asked {
                add(format!("{what:?}"), &|world| {
                    world.stopped |= what == LifeEvent::Stop;
                    world.unwanted |= what == LifeEvent::Kill;
                    world.feed(what, defect)?;
                    if what == LifeEvent::Stop && defect == Defect::KillAtOnce {
                        return world.feed(LifeEvent::Late, defect);
                    }
                    Ok(())
                });
            }
        }
        if matches!(self.life.state(), LifeState::Leaving { .. }) {
            let is_server_gone = self.running().all(|at| self.processes[at].asked == 0);
            if is_server_gone || defect == Defect::DoNotWaitForTheServer {
                add("lingers".into(), &|world| world.feed(LifeEvent::Lingers, defect));
            }
            if !self.time_over {
                add("late".into(), &|world| {
                    world.time_over = true;
                    world.feed(LifeEvent::Late, defect)
                });
            }
        }
        if matches!(self.life.state(), LifeState::Daemonised { serves: true }) {
            add("no process serves".into(), &|world| world.feed(LifeEvent::Unserved(None), defect));
        }
        if self.life.is_whole() && !self.life.serves() {
            add("serves".into(), &|world| world.feed(LifeEvent::Serves, defect));
        }
        all
    }

    fn what_it_does(
        &self,
        at: usize,
        defect: Defect,
        add: &mut impl FnMut(String, &dyn Fn(&mut World) -> Result<(), &'static str>),
    ) {
        let (good, bad) = (Exit { code: Some(0), signal: None }, Exit { code: None, signal: Some(9) });
        for exit in [Some(good), Some(bad)] {
            // Its parent may be another process of the program: then its exit status is unknown.
            let exit = if at == 0 { exit } else { exit.filter(|exit| *exit == bad) };
            add(format!("{at} ends, {exit:?}"), &|world| {
                world.ends(at, exit, defect);
                Ok(())
            });
        }
        if let Some(child) = (0..PROCESSES).find(|at| self.processes[*at].unborn)
            && !self.processes[at].killed
        {
            add(format!("{at} forks {child}"), &|world| {
                world.processes[child] = Process { runs: true, unborn: false, asked: 0, killed: false };
                Ok(())
            });
        }
        if self.names >= 1 {
            return;
        }
        for sender_is_ours in [true, false] {
            for pid in [0, 1, 2, OUTSIDER] {
                let lives = self.processes.get(pid as usize).is_some_and(|process| process.runs);
                if !lives && pid != OUTSIDER {
                    continue;
                }
                add(format!("MAINPID={pid}, ours {sender_is_ours}"), &|world| {
                    world.names += 1;
                    let believes = defect == Defect::BelieveOutsiders;
                    let (is_ours, sender_is_ours) = (lives || believes, sender_is_ours || believes);
                    world.feed(LifeEvent::MainPid { pid, is_ours, sender_is_ours }, defect)
                });
            }
        }
    }

    /// The promises for each state.
    fn check(&self) -> Result<(), &'static str> {
        let settled = self.unheard.is_empty();
        if let (true, LifeState::Adopted { main, .. }) = (settled, self.life.state())
            && !self.processes.get(main as usize).is_some_and(|process| process.runs)
        {
            return Err("a program whose main process has ended does not serve");
        }
        if settled && self.empty_heard && self.life.lives() {
            return Err("an end is known");
        }
        if self.life.state() == LifeState::Ended && self.running().next().is_some() {
            return Err("what runs has not ended");
        }
        // The next pass over the tree kills a process that was born after the end was reported.
        self.check_end()
    }

    /// After the request and the end of its time, everything that runs is killed, and then the end is known.
    fn check_end(&self) -> Result<(), &'static str> {
        let mut world = World { stopped: true, time_over: true, ..self.clone() };
        world.feed(LifeEvent::Stop, Defect::None)?;
        world.feed(LifeEvent::Late, Defect::None)?;
        let all_killed = world.running().all(|at| world.processes[at].killed);
        world.feed(LifeEvent::Empty, Defect::None)?;
        match all_killed && !world.life.lives() {
            true => Ok(()),
            false => Err("a program that is asked to end ends, or is killed"),
        }
    }
}

type From = HashMap<World, Option<(World, String)>>;

/// The path to a state, and the event that followed.
fn way(from: &From, mut at: World, last: String) -> Vec<String> {
    let mut way = vec![last];
    while let Some(Some((before, name))) = from.get(&at) {
        way.push(name.clone());
        at = before.clone();
    }
    way.reverse();
    way
}

/// Visits every reachable state. Returns their number, or the path to the first broken promise.
fn walk(defect: Defect) -> Result<usize, (Vec<String>, &'static str)> {
    let mut from: From = HashMap::from([(World::start(), None)]);
    let mut todo = VecDeque::from([World::start()]);
    while let Some(world) = todo.pop_front() {
        for (name, result) in world.next(defect) {
            match result {
                Err(broken) => return Err((way(&from, world, name), broken)),
                Ok(next) if !from.contains_key(&next) => {
                    from.insert(next.clone(), Some((world.clone(), name)));
                    todo.push_back(next);
                }
                Ok(_) => {}
            }
        }
    }
    Ok(from.len())
}

#[test]
fn no_state_of_a_program_breaks_a_promise() {
    match walk(Defect::None) {
        Ok(states) => assert!(states > 1_000, "{states}"),
        Err((way, broken)) => panic!("{broken}:\n{}", way.join("\n")),
    }
}

#[test]
fn known_mistakes_are_found() {
    for (defect, promise) in [
        (Defect::BelieveOutsiders, "only a process of the tree counts"),
        (Defect::DoNotWaitForTheServer, "each process is asked once"),
        (Defect::MissTheEndOfTheMain, "a program whose main process has ended does not serve"),
        (Defect::KillAtOnce, "nothing is killed before its time is over"),
    ] {
        assert_eq!(walk(defect).map_err(|(_, broken)| broken), Err(promise), "{defect:?}");
    }
}
