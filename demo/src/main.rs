//! `cargo demo`: upgrades a real S3 server repeatedly while clients write and read.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use handoff_demo::binaries::{build, package};
use handoff_demo::report::Report;
use handoff_demo::rig::Rig;
use handoff_demo::{Error, run};
use tokio::signal::unix::{SignalKind, signal};

/// Upgrades a real S3 server repeatedly, including two bad releases, while S3 clients write, read and check every
/// byte. Shows what the clients noticed; the exit code is 0 only if they noticed nothing.
#[derive(Debug, Parser)]
#[command(name = "demo", version)]
struct Args {
    /// How long the clients run, in seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(2..=3600))]
    seconds: u64,
    /// Number of upgrades, including the two bad ones.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(3..=200))]
    upgrades: u16,
    /// Number of S3 clients.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=200))]
    clients: u16,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match demo(&args) {
        Ok(report) => {
            match args.json {
                true => println!("{}", serde_json::to_string(&report).expect("a report is JSON")),
                false => println!("{report}"),
            }
            if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn demo(args: &Args) -> Result<Report, Error> {
    eprintln!("building the supervisor and the S3 server");
    let binaries = build()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut interrupted = runtime.block_on(async { Interrupted::new() })?;

    let mut rig = Rig::new()?;
    let releases = package(&binaries.server, rig.path(), args.upgrades.into())?;
    rig.start(&binaries, &releases[0].path)?;
    eprintln!("{} clients, {} upgrades in {} s", args.clients, args.upgrades, args.seconds);
    let length = Duration::from_secs(args.seconds);
    let result = runtime.block_on(async {
        tokio::select! {
            result = run::run(&rig, &releases, args.clients.into(), length) => {
                result.map_err(|error| rig.with_daemon_log(&error))
            }
            () = interrupted.wait() => Err("interrupted".into()),
        }
    });
    let stopped = rig.stop();
    // Not by drop, which could wait for a pending request to the supervisor.
    runtime.shutdown_background();
    let report = result?;
    stopped?;
    Ok(report)
}

/// The signals that end the demo early.
struct Interrupted {
    signals: [tokio::signal::unix::Signal; 3],
}

impl Interrupted {
    fn new() -> Result<Self, Error> {
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Self { signals: [interrupt?, terminate?, hangup?] })
    }

    async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
