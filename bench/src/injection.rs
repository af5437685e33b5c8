//! The costs of the adapter `inject` for a program: its first bind, its other system calls, its throughput; and the
//! shim's costs at an upgrade: the surveys of connections, and the switch. Each alternates with the same program
//! alone.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use handoff::slots::Group;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Error;
use crate::control::Outcome;
use crate::daemon::{Daemon, Home};
use crate::programs::Programs;
use crate::rig::{free_address, wait_for};
use crate::spread::Spread;

const SERVICE: &str = "plain";
/// The system calls that the program measures.
const CALLS: [&str; 3] = ["getppid", "epoll_wait, nothing to tell", "recv, nothing to read"];
/// Number of clients for the throughput.
const BUSY: usize = 8;
/// The initial part of a drain: a connection counts as busy for a second after its last answer.
const BEGIN: Duration = Duration::from_millis(1500);
/// Interval of a drain's surveys.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The size of each measurement.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Starts of the program, for its first bind.
    pub binds: usize,
    /// Rounds of system calls and of throughput.
    pub rounds: usize,
    /// Duration of a throughput round, and of an observed drain.
    pub time: Duration,
    /// Idle connections in the drain.
    pub connections: usize,
    /// Number of switches.
    pub switches: usize,
}

/// The results.
#[derive(Debug, Serialize)]
pub struct Injection {
    /// The first bind in nanoseconds: under injection, alone.
    pub bind_ns: [Spread; 2],
    /// The median of each system call in nanoseconds: its name, under injection, alone.
    pub calls_ns: Vec<(&'static str, u64, u64)>,
    /// Requests per second, as minimum, median and maximum of all rounds: under injection, alone.
    pub requests_per_s: [[u64; 3]; 2],
    /// The costs of the shim's surveys in a drain.
    pub looks: Vec<Looks>,
    /// Number of connections in the drain.
    pub connections: usize,
    /// The system call that steers new connections elsewhere, in nanoseconds.
    pub switch_ns: Spread,
}

/// The surveys of one drain.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Looks {
    /// What the drain waits for: the setting `drain`.
    pub waits_for: &'static str,
    /// Processor time of its first 1.5 s in microseconds: the first survey, which finds all connections, and 29 more.
    pub begin_us: u64,
    /// Processor time of a later survey, in microseconds.
    pub look_us: u64,
}

/// Measures. Blocks for the time in `size`, plus some seconds.
pub fn measure(
    programs: &Programs,
    place: &Path,
    size: Size,
    interrupted: &AtomicBool,
) -> Result<Injection, Error> {
    let go_on = |what: &str| match interrupted.load(Ordering::Relaxed) {
        true => Err(Error::from("interrupted")),
        false => {
            eprintln!("{what}");
            Ok(())
        }
    };
    go_on(&format!("{} first binds, under injection and alone", size.binds))?;
    let mut injected = Injected::new(programs, place, "connections")?;
    let mut alone = Alone::new(programs, place)?;
    let mut binds = [Vec::new(), Vec::new()];
    for _ in 0..size.binds {
        binds[0].push(injected.first_bind_ns()?);
        binds[1].push(alone.first_bind_ns()?);
    }
    drop((injected, alone));
    go_on(&format!("{} rounds of system calls and requests", size.rounds))?;
    let (calls, requests) = on_one_processor(|| rounds(programs, place, size))?;
    let call = |at: usize, which: usize| middle(calls[at].iter().map(|figures: &[u64; 3]| figures[which]));
    let mut looks = Vec::new();
    for waits_for in ["connections", "requests"] {
        go_on(&format!("a drain of {} connections that waits for {waits_for}", size.connections))?;
        looks.push(Injected::new(programs, place, waits_for)?.looks(waits_for, size)?);
    }
    let requests_per_s = requests.map(|mut rounds: Vec<u64>| {
        rounds.sort_unstable();
        let end = |value: Option<&u64>| value.copied().unwrap_or_default();
        [end(rounds.first()), end(rounds.get(rounds.len() / 2)), end(rounds.last())]
    });
    let calls_ns =
        CALLS.iter().enumerate().map(|(which, name)| (*name, call(0, which), call(1, which))).collect();
    Ok(Injection {
        bind_ns: binds.map(Spread::of),
        calls_ns,
        requests_per_s,
        looks,
        connections: size.connections,
        switch_ns: switch_ns(size.switches)?,
    })
}

type Rounds = ([Vec<[u64; 3]>; 2], [Vec<u64>; 2]);

/// The durations of system calls, and the throughput: under injection, alone.
fn rounds(programs: &Programs, place: &Path, size: Size) -> Result<Rounds, Error> {
    let mut injected = Injected::new(programs, place, "connections")?;
    let mut alone = Alone::new(programs, place)?;
    let addresses = [injected.address, alone.address];
    let (mut calls, mut requests) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..size.rounds {
        injected.start()?;
        alone.start()?;
        // The order alternates.
        for at in [round % 2, 1 - round % 2] {
            calls[at].push(calls_ns(addresses[at])?);
            requests[at].push(requests_per_s(addresses[at], size.time)?);
        }
        injected.end()?;
        alone.end();
    }
    Ok((calls, requests))
}

/// Pins this thread and its children to one processor. With several, sharing one between client and server changes
/// the result by a factor of four, which would hide everything else.
fn on_one_processor<T>(run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    /// The calling thread.
    const OWN: Pid = Pid::from_raw(0);
    let all = sched_getaffinity(OWN)?;
    let mut one = CpuSet::new();
    one.set((0..CpuSet::count()).find(|at| all.is_set(*at) == Ok(true)).ok_or("there is no processor")?)?;
    sched_setaffinity(OWN, &one)?;
    let done = run();
    sched_setaffinity(OWN, &all)?;
    done
}

/// The program as a service of a daemon.
struct Injected {
    // Before the home, which kills remaining processes.
    daemon: Daemon,
    home: Home,
    address: SocketAddr,
    binds: PathBuf,
}

/// The daemon's status of the service; only the needed fields.
#[derive(Deserialize)]
struct Status {
    pid: Option<u32>,
}

impl Injected {
    fn new(programs: &Programs, place: &Path, waits_for: &str) -> Result<Self, Error> {
        let home = Home::new(place, "injected-")?;
        let (address, binds) = (free_address()?, home.path("binds"));
        let text = format!(
            "binary = {:?}\nargs = [\"{address}\", {binds:?}]\nautostart = false\nadapter = \"inject\"\nmode = \"overlap\"\n\
             drain = \"{waits_for}\"\ndrain_grace = \"60s\"\n[listen]\nmain = \"{address}\"\n",
            programs.plain
        );
        std::fs::write(home.path("config/services").join(SERVICE).with_extension("toml"), text)?;
        let daemon = home.start_daemon(&programs.handoff, &[])?;
        Ok(Self { daemon, home, address, binds })
    }

    fn start(&mut self) -> Result<(), Error> {
        let _: Outcome = self.daemon.client.call("start", json!({"service": SERVICE}))?;
        Ok(())
    }

    fn first_bind_ns(&mut self) -> Result<u64, Error> {
        self.start()?;
        let took = last_line(&self.binds)?;
        self.end()?;
        Ok(took)
    }

    fn end(&mut self) -> Result<(), Error> {
        let _: serde_json::Value = self.daemon.client.call("stop", json!({"service": SERVICE}))?;
        Ok(())
    }

    fn pid(&self) -> Result<u32, Error> {
        let status: Status = self.home.client()?.call("status", json!({"service": SERVICE}))?;
        status.pid.ok_or_else(|| "the service does not run".into())
    }

    /// The costs of the shim's surveys of a draining program, with idle connections that stay open until the end of
    /// the measurement.
    fn looks(&mut self, waits_for: &'static str, size: Size) -> Result<Looks, Error> {
        self.start()?;
        let clients: Vec<TcpStream> =
            (0..size.connections).map(|_| client(self.address)).collect::<Result<_, _>>()?;
        // An incomplete line is a request in progress, which keeps any drain going.
        if let Some(mut busy) = clients.first() {
            busy.write_all(b"x")?;
        }
        let (shim, home, daemon) = (self.pid()?, &self.home, &mut self.daemon);
        std::thread::scope(|scope| {
            let upgrade = scope.spawn(move || {
                let answer: Result<Outcome, Error> =
                    daemon.client.call("upgrade", json!({"service": SERVICE}));
                answer
            });
            let now = |home: &Home| -> Result<Option<u32>, Error> {
                let status: Status = home.client()?.call("status", json!({"service": SERVICE}))?;
                Ok(status.pid)
            };
            wait_for("the next process to serve", || Ok(now(home)?.filter(|pid| *pid != shim)))?;
            let before = processor_ns(shim)?;
            std::thread::sleep(BEGIN);
            let (between, began) = (processor_ns(shim)?, Instant::now());
            std::thread::sleep(size.time);
            let (after, watched) = (processor_ns(shim)?, began.elapsed());
            drop(clients);
            let outcome = upgrade.join().map_err(|_| "the upgrade panicked")??;
            match outcome.outcome.as_str() {
                "committed" => {
                    let looks = (watched.as_nanos() / LOOK_EVERY.as_nanos()).max(1) as u64;
                    let (begin_us, look_us) = ((between - before) / 1000, (after - between) / 1000 / looks);
                    Ok(Looks { waits_for, begin_us, look_us })
                }
                _ => Err(format!("an upgrade was not committed: {:?}", outcome.reason).into()),
            }
        })
    }
}

/// The same program without a daemon.
struct Alone {
    program: PathBuf,
    address: SocketAddr,
    binds: PathBuf,
    running: Option<Child>,
}

impl Alone {
    fn new(programs: &Programs, place: &Path) -> Result<Self, Error> {
        let binds = place.join("binds-alone");
        Ok(Self { program: programs.plain.clone(), address: free_address()?, binds, running: None })
    }

    fn start(&mut self) -> Result<(), Error> {
        // In its own session like a service: the kernel divides processor time between sessions.
        let mut command = Command::new("setsid");
        command.arg(&self.program).arg(self.address.to_string()).arg(&self.binds).stdin(Stdio::null());
        let before = lines(&self.binds);
        self.running = Some(command.spawn()?);
        wait_for("the program to bind", || Ok((lines(&self.binds) > before).then_some(())))
    }

    fn end(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.kill();
            let _ = running.wait();
        }
    }

    fn first_bind_ns(&mut self) -> Result<u64, Error> {
        self.start()?;
        self.end();
        last_line(&self.binds)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.end();
    }
}

fn lines(file: &Path) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

fn last_line(file: &Path) -> Result<u64, Error> {
    let text = std::fs::read_to_string(file)?;
    Ok(text.lines().last().ok_or("the program has not reported its bind")?.parse()?)
}

/// An accepted connection that has received one answer.
fn client(address: SocketAddr) -> Result<TcpStream, Error> {
    let connection = TcpStream::connect(address)?;
    connection.set_nodelay(true)?;
    ask(&mut BufReader::new(&connection), "x")?;
    Ok(connection)
}

fn ask(connection: &mut BufReader<&TcpStream>, line: &str) -> Result<String, Error> {
    (&mut &**connection.get_ref()).write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    match connection.read_line(&mut answer)? {
        0 => Err("the program closed the connection".into()),
        _ => Ok(answer),
    }
}

fn calls_ns(address: SocketAddr) -> Result<[u64; 3], Error> {
    let connection = client(address)?;
    let answer = ask(&mut BufReader::new(&connection), "calls")?;
    let figures = answer.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    figures.try_into().map_err(|_| "the program reports other calls".into())
}

/// Clients that send requests one after the other, each over its own connection.
fn requests_per_s(address: SocketAddr, time: Duration) -> Result<u64, Error> {
    let count_of = || -> Result<u64, Error> {
        let connection = client(address)?;
        let (mut connection, began, mut count) = (BufReader::new(&connection), Instant::now(), 0);
        while began.elapsed() < time {
            ask(&mut connection, "x")?;
            count += 1;
        }
        Ok(count)
    };
    let sum: u64 = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..BUSY).map(|_| scope.spawn(count_of)).collect();
        clients
            .into_iter()
            .map(|client| client.join().map_err(|_| "a client panicked")?)
            .sum::<Result<u64, Error>>()
    })?;
    Ok(sum * 1000 / (time.as_millis() as u64).max(1))
}

/// Processor time of all threads of a process, from the kernel's counters.
fn processor_ns(pid: u32) -> Result<u64, Error> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += text.split(' ').next().ok_or("schedstat is empty")?.parse::<u64>()?;
    }
    Ok(sum)
}

fn switch_ns(count: usize) -> Result<Spread, Error> {
    let mut group = Group::open(&free_address()?.to_string().parse()?)?;
    let slots = [group.steered(), group.add_slot()?];
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let began = Instant::now();
        group.steer_to(slots[(number + 1) % 2])?;
        times.push(began.elapsed().as_nanos().try_into()?);
    }
    group.close();
    Ok(Spread::of(times))
}

fn middle(values: impl IntoIterator<Item = u64>) -> u64 {
    Spread::of(values).p50_us
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header([
            "under injection",
            "p50",
            "p99",
            "alone, p50",
            "p99",
        ]);
        let us = |ns: u64| format!("{:.1} µs", ns as f64 / 1e3);
        let [with, without] = self.bind_ns;
        let bind = [us(with.p50_us), us(with.p99_us), us(without.p50_us), us(without.p99_us)];
        table.add_row(["first bind".to_owned()].into_iter().chain(bind));
        for (name, with, without) in &self.calls_ns {
            table.add_row([(*name).to_owned(), format!("{with} ns"), String::new(), format!("{without} ns")]);
        }
        let [with, without] =
            self.requests_per_s.map(|[fewest, middle, most]| format!("{middle} ({fewest} to {most})"));
        table.add_row(["requests per second".to_owned(), with, String::new(), without]);
        for Looks { waits_for, begin_us, look_us } in &self.looks {
            let what = format!("a drain of {} connections, drain = {waits_for:?}", self.connections);
            table.add_row([format!("{what}: a look"), format!("{look_us} µs of the processor")]);
            table.add_row([format!("{what}: its first 1.5 s"), format!("{begin_us} µs of the processor")]);
        }
        table.add_row([
            "a switch of new connections".to_owned(),
            us(self.switch_ns.p50_us),
            us(self.switch_ns.p99_us),
        ]);
        write!(f, "{table}")
    }
}
