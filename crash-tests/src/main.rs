//! `cargo crash-tests`: the crash tests of this project, with a real S3 server and with the service of the tests.
//!
//! One program is everything that a run needs besides the services: the harness, the daemon and the keeper (which so have the
//! points of this build), and the loads.

mod gap;
mod lines;
mod s3;
mod services;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use handoff::crash_test::{Error, Selection, Subject, execute, soak};
use services::Services;

/// Kill and stop every process of an upgrade at every point, with real services under load.
#[derive(Debug, Parser)]
#[command(name = "crash-tests", version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
struct Args {
    /// Which service
    #[arg(long, value_enum, default_value_t = ServiceKind::All)]
    service: ServiceKind,
    /// The directory in which cargo has built all services; they are built otherwise
    #[arg(long, value_name = "DIR", hide = true)]
    built: Option<PathBuf>,
    #[command(flatten)]
    selection: Selection,
    #[command(subcommand)]
    load: Option<LoadKind>,
}

const EXAMPLES: &str = "\
Examples:
  cargo crash-tests                              everything, in an hour or two
  cargo crash-tests --quick                      a run of each kind, in minutes
  cargo crash-tests --service s3 --scenario upgrade --victim incumbent
  cargo crash-tests --random 100 --seed 7
  cargo crash-tests --service lines --soak 20m   random operations and faults with one daemon
  cargo crash-tests --service s3 --only upgrade:journal/synced:supervisor:kill";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ServiceKind {
    /// The S3 server of the examples; exclusive mode.
    S3,
    /// The service of the end-to-end tests; exclusive mode.
    Lines,
    /// The same in overlap mode.
    Overlap,
    /// An unmodified program, whose socket is swapped when it binds; exclusive mode.
    Inject,
    /// The same in overlap mode.
    InjectOverlap,
    /// A program that takes its listener as under socket activation; exclusive mode.
    ListenFds,
    /// All of them.
    All,
}

#[derive(Debug, Subcommand)]
enum LoadKind {
    /// The load of the S3 server
    #[command(hide = true)]
    LoadS3,
    /// The load of the service of the tests
    #[command(hide = true)]
    LoadLines {
        /// Where the service writes its lines.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    // The harness starts this program as a daemon, and the daemon starts it as a keeper or shim. The last is for tests.
    let verbs =
        [handoff::keeper::VERB, handoff::shim::VERB, handoff::shim::exec::VERB, "daemon", "crash-test"];
    if std::env::args_os().nth(1).is_some_and(|verb| verbs.iter().any(|own| verb == *own)) {
        return handoff::main();
    }
    let args = Args::parse();
    let ended = match &args.load {
        Some(LoadKind::LoadS3) => s3::load(),
        Some(LoadKind::LoadLines { file }) => lines::load(file),
        None => run(&args),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("crash-tests: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether everything held.
fn run(args: &Args) -> Result<bool, Error> {
    let services = match &args.built {
        Some(built) => Services::of(built)?,
        None => {
            eprintln!("building the services");
            Services::build()?
        }
    };
    let mut good = true;
    for which in ServiceKind::value_variants() {
        if *which != ServiceKind::All && [*which, ServiceKind::All].contains(&args.service) {
            good &= run_one(*which, &services, &args.selection)?;
        }
    }
    Ok(good)
}

fn run_one(which: ServiceKind, services: &Services, selection: &Selection) -> Result<bool, Error> {
    let name = which.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let program = services.program.clone();
    let (prepared, load) = match which {
        ServiceKind::S3 => (services.s3()?, vec![OsString::from("load-s3")]),
        ServiceKind::Lines => (services.lines(&name, "exclusive")?, lines_load()),
        ServiceKind::Overlap | ServiceKind::All => (services.lines(&name, "overlap")?, lines_load()),
        ServiceKind::Inject => (services.plain(&name, "inject", "exclusive")?, lines_load()),
        ServiceKind::InjectOverlap => (services.plain(&name, "inject", "overlap")?, lines_load()),
        ServiceKind::ListenFds => (services.plain(&name, "listen-fds", "exclusive")?, lines_load()),
    };
    let subject = Subject {
        load: std::iter::once(program.clone().into()).chain(load).collect(),
        program,
        service_file: prepared.service_file,
        next: Some(prepared.next),
        bad: Some(prepared.bad),
    };
    eprintln!("== {name}");
    if let Some(length_ms) = selection.soak {
        let report = soak(&subject, selection, Duration::from_millis(length_ms))?;
        match selection.json {
            true => println!("{}", serde_json::to_string(&report)?),
            false => println!("\n{name}\n\n{report}\n"),
        }
        return Ok(report.is_good());
    }
    let report = execute(&subject, selection)?;
    match selection.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => println!("\n{name}\n\n{report}\n"),
    }
    Ok(report.is_good())
}

fn lines_load() -> Vec<OsString> {
    vec!["load-lines".into(), "{dir}/data/lines".into()]
}
