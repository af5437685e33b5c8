//! `cargo upgrade-bench`: measures upgrades, and compares them with the crate beyond-handoff.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use handoff::sys::files::raise_files_limit;
use handoff_bench::machine::Machine;
use handoff_bench::ours::Ours;
use handoff_bench::peer::Peer;
use handoff_bench::place::Place;
use handoff_bench::programs::{Programs, build};
use handoff_bench::report::Report;
use handoff_bench::rig::{Options, Rig};
use handoff_bench::upgrades::{Plan, Series};
use handoff_bench::{
    Error, burst, deaths, floor, idle, injection, install, probation, syncs, takeover, upgrades,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Measures the duration of an upgrade, the time without accepts, the effects on clients, and the costs of an idle
/// supervisor, in alternation with the crate beyond-handoff. Also measures how long a new daemon takes to adopt many
/// services, how long clients wait after a death, and the costs of the adapter `inject`. Durations do not affect the
/// exit code: it is 1 only if an upgrade was not committed, a request failed, or a takeover changed a process.
#[derive(Debug, Parser)]
#[command(name = "upgrade-bench", version)]
struct Args {
    /// Number of upgrades of each kind.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    upgrades: u16,
    /// Run a short version of everything, to check that it works.
    #[arg(long)]
    quick: bool,
    /// Measure takeovers only.
    #[arg(long)]
    takeovers: bool,
    /// Measure deaths and freezes only.
    #[arg(long, conflicts_with = "takeovers")]
    deaths: bool,
    /// Measure installations of new binaries only.
    #[arg(long, conflicts_with_all = ["takeovers", "deaths"])]
    install: bool,
    /// Measure new versions that die on probation only.
    #[arg(long, conflicts_with_all = ["takeovers", "deaths", "install"])]
    probation: bool,
    /// Measure only what the adapter `inject` costs a program.
    #[arg(long, conflicts_with_all = ["takeovers", "deaths", "install", "probation"])]
    injection: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
    /// Directory for all files; it must not be in memory. Default: the build directory.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// The size of each measurement.
struct Size {
    upgrades: usize,
    more_upgrades: usize,
    traced_upgrades: usize,
    seal: Duration,
    bursts: &'static [usize],
    idle: Duration,
    /// Number of services per takeover, and of takeovers.
    takeovers: [usize; 2],
    /// Number of deaths of each kind, and of freezes.
    deaths: [usize; 2],
    /// Number of installed binaries.
    installs: usize,
    injection: injection::Size,
    floor: usize,
}

impl Args {
    fn size(&self) -> Size {
        let upgrades: usize = self.upgrades.into();
        match self.quick {
            true => Size {
                upgrades: upgrades.min(5),
                more_upgrades: 3,
                traced_upgrades: 2,
                seal: Duration::from_millis(100),
                bursts: &[100],
                idle: Duration::from_millis(500),
                takeovers: [10, 2],
                deaths: [2, 1],
                installs: 2,
                injection: injection::Size {
                    binds: 3,
                    rounds: 2,
                    time: Duration::from_millis(200),
                    connections: 100,
                    switches: 100,
                },
                floor: 10,
            },
            false => Size {
                upgrades,
                more_upgrades: upgrades.div_ceil(2),
                traced_upgrades: 20,
                seal: Duration::from_millis(1500),
                bursts: &[200, 3000],
                idle: Duration::from_secs(10),
                takeovers: [100, 10],
                deaths: [100, 5],
                installs: 20,
                injection: injection::Size {
                    binds: 200,
                    rounds: 10,
                    time: Duration::from_secs(2),
                    connections: 5000,
                    switches: 10_000,
                },
                floor: 500,
            },
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match bench(&args) {
        Ok(report) => {
            match args.json {
                true => println!("{}", serde_json::to_string(&report).expect("a report is JSON")),
                false => println!("{report}"),
            }
            if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("upgrade-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<Report, Error> {
    eprintln!("building");
    let programs = build()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // A second signal ends the process at once.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&interrupted))?;
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    raise_file_limit()?;
    let directory = match &args.dir {
        Some(directory) => directory,
        None => programs.handoff.ancestors().nth(2).ok_or("the program lies in no directory")?,
    };
    let place = Place::in_directory(directory)?;
    let run = Run { programs: &programs, place: place.path(), size: args.size(), interrupted: &interrupted };
    let mut report = run.begin(Machine::look(&place.filesystem))?;
    // One measurement, or all.
    let one = args.takeovers || args.deaths || args.install || args.probation || args.injection;
    if !one {
        run.measure_upgrades(&mut report)?;
    }
    if !one || args.takeovers {
        run.measure_takeovers(&mut report)?;
    }
    if !one || args.deaths {
        run.measure_deaths(&mut report)?;
    }
    if !one || args.install {
        run.go_on("installations")?;
        report.installs = install::measure(run.programs, run.place, run.size.installs, run.interrupted)?;
    }
    if !one || args.probation {
        run.measure_probation(&mut report)?;
    }
    if !one || args.injection {
        let size = run.size.injection;
        report.injection = Some(injection::measure(&programs, run.place, size, &interrupted)?);
    }
    report.machine.look_again();
    Ok(report)
}

struct Run<'a> {
    programs: &'a Programs,
    place: &'a Path,
    size: Size,
    interrupted: &'a AtomicBool,
}

impl Run<'_> {
    fn begin(&self, machine: Machine) -> Result<Report, Error> {
        Ok(Report {
            machine,
            floor: floor::measure(self.programs, self.place, self.size.floor)?,
            quiet: Vec::new(),
            unseen: Vec::new(),
            busy: Vec::new(),
            syncs: None,
            bursts: Vec::new(),
            idle: Vec::new(),
            takeovers: Vec::new(),
            deaths: Vec::new(),
            installs: Vec::new(),
            probation: Vec::new(),
            injection: None,
        })
    }

    fn measure_upgrades(&self, report: &mut Report) -> Result<(), Error> {
        let size = &self.size;
        let mut rigs = self.rigs(Duration::ZERO)?;
        let plan = |count, probe, unseen| Plan { count, probe, unseen };
        report.quiet = self.upgrades(&mut rigs, "upgrades", plan(size.upgrades, false, false))?;
        report.unseen =
            self.upgrades(&mut rigs, "upgrades to a new file", plan(size.more_upgrades, false, true))?;
        report.busy =
            self.upgrades(&mut rigs, "upgrades under requests", plan(size.more_upgrades, true, false))?;
        for rig in &rigs {
            self.go_on(&format!("{}: idle", rig.name()))?;
            report.idle.extend(idle::measure(rig.name(), rig.supervisor(), size.idle, self.place)?);
        }
        drop(rigs);

        let mut rigs = self.rigs(size.seal)?;
        for count in size.bursts {
            for rig in &mut rigs {
                self.go_on(&format!("{}: {count} clients while no process accepts", rig.name()))?;
                report.bursts.push(burst::measure(rig.as_mut(), *count)?);
            }
        }
        drop(rigs);

        if syncs::is_possible() {
            self.go_on("disk barriers")?;
            let count = size.traced_upgrades;
            let ours =
                syncs::measure(self.place, count, |options| Ours::start(self.programs, self.place, options))?;
            let peer =
                syncs::measure(self.place, count, |options| Peer::start(self.programs, self.place, options))?;
            report.syncs = Some(vec![ours, peer]);
        }
        Ok(())
    }

    fn measure_takeovers(&self, report: &mut Report) -> Result<(), Error> {
        let [services, rounds] = self.size.takeovers;
        self.go_on(&format!("{rounds} takeovers of each kind, of {services} services"))?;
        report.takeovers =
            takeover::measure(self.programs, self.place, self.size.takeovers, self.interrupted)?;
        Ok(())
    }

    fn measure_deaths(&self, report: &mut Report) -> Result<(), Error> {
        let [rounds, freezes] = self.size.deaths;
        self.go_on(&format!("{rounds} deaths of each kind, {freezes} freezes"))?;
        report.deaths = deaths::measure(self.programs, self.place, self.size.deaths, self.interrupted)?;
        Ok(())
    }

    fn measure_probation(&self, report: &mut Report) -> Result<(), Error> {
        let [rounds, _] = self.size.deaths;
        self.go_on(&format!("{rounds} deaths on probation in each mode"))?;
        report.probation = probation::measure(self.programs, self.place, rounds, self.interrupted)?;
        Ok(())
    }

    fn rigs(&self, seal: Duration) -> Result<Vec<Box<dyn Rig>>, Error> {
        let options = Options { seal, wrapper: Vec::new() };
        let ours = Ours::start(self.programs, self.place, &options)?;
        let peer = Peer::start(self.programs, self.place, &options)?;
        Ok(vec![Box::new(ours), Box::new(peer)])
    }

    fn upgrades(&self, rigs: &mut [Box<dyn Rig>], what: &str, plan: Plan) -> Result<Vec<Series>, Error> {
        self.go_on(&format!("{} {what} of each", plan.count))?;
        upgrades::measure(rigs, plan, self.interrupted)
    }

    /// Announces the next measurement; an error if the run was interrupted.
    fn go_on(&self, what: &str) -> Result<(), Error> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        eprintln!("{what}");
        Ok(())
    }
}

/// Thousands of clients need thousands of sockets.
fn raise_file_limit() -> Result<(), Error> {
    Ok(raise_files_limit().map(drop)?)
}
