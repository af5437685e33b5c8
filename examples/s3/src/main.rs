//! `s3-server`: the command line and the life of the server.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};
use handoff_example_s3::BoxError;
use handoff_example_s3::server::{Config, S3Server};
use handoff_example_s3::stamp::Stamp;
use tokio::signal::unix::{SignalKind, signal};

/// An S3 server over a directory, whose binary can be replaced while it serves.
#[derive(Debug, Parser)]
#[command(name = "s3-server")]
struct Args {
    /// Address to listen on when nobody hands a listener over.
    #[arg(long, default_value = "127.0.0.1:9000", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Access key that requests must be signed with.
    #[arg(long, value_name = "KEY")]
    access_key: String,
    /// Secret that belongs to the access key.
    #[arg(long, value_name = "SECRET")]
    secret_key: String,
    /// Directory that holds the buckets; made if it does not exist.
    data_dir: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let release = match Stamp::current() {
        Ok(release) => release,
        Err(error) => return failed(&error.into()),
    };
    let matches = Args::command().version(release.version.clone()).get_matches();
    let args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match run(args, release).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &BoxError) -> ExitCode {
    eprintln!("s3-server: {error}");
    ExitCode::FAILURE
}

async fn run(args: Args, release: Stamp) -> Result<(), BoxError> {
    std::fs::create_dir_all(&args.data_dir)
        .map_err(|error| format!("cannot make {}: {error}", args.data_dir.display()))?;
    let listener = TcpListener::bind(args.listen)
        .map_err(|error| format!("cannot listen on {}: {error}", args.listen))?;
    let config = Config { data_dir: args.data_dir, access_key: args.access_key, secret_key: args.secret_key };
    let mut server = S3Server::open(config, listener)?;
    eprintln!("s3-server {} serves on {}", release.version, server.local_addr()?);

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    server.drain(tokio::time::sleep(Duration::from_secs(10))).await;
    server.seal(true).await
}
