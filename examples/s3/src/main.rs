//! `s3-server`: the command line, and the life of the server from start to end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};
use handoff_example_s3::server::{Config, S3Server};
use handoff_example_s3::stamp::Stamp;
use handoff_example_s3::{log, rehearsal};
use handoff_service::http;
use handoff_service::tokio::{self as service, BoxError, Drain, Seal, Server};

/// An upgradable S3 server on a directory.
#[derive(Debug, Parser)]
#[command(name = "s3-server")]
struct Args {
    /// Address to listen on without a supervisor.
    #[arg(long, default_value = "127.0.0.1:9000", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Access key for signed requests.
    #[arg(long, value_name = "KEY")]
    access_key: String,
    /// Secret of the access key.
    #[arg(long, value_name = "SECRET")]
    secret_key: String,
    /// Directory with the buckets; created if it does not exist.
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
    log!("s3-server: {error}");
    ExitCode::FAILURE
}

async fn run(args: Args, release: Stamp) -> Result<(), BoxError> {
    // Slow steps without data come first: the predecessor still serves.
    std::fs::create_dir_all(&args.data_dir)
        .map_err(|error| format!("cannot make {}: {error}", args.data_dir.display()))?;
    let mut starting = service::start().await?.version(&release.version);
    let listener = starting.tcp_listener("s3", &args.listen.to_string())?;
    let address = listener.local_addr()?;

    // From here on only this process may write to the data directory.
    let begun = starting.begin(Some(&args.data_dir)).await?;
    let config = Config { data_dir: args.data_dir, access_key: args.access_key, secret_key: args.secret_key };
    let mut server = match S3Server::open(config, listener) {
        Ok(server) => server,
        Err(error) => return Err(begun.unhealthy(&error.to_string()).await.into()),
    };
    if let Err(error) = rehearsal::before_ready(release.fault).await {
        return Err(begun.unhealthy(&error.to_string()).await.into());
    }
    server.serve()?;
    let serving = begun.ready().await?;
    log!("s3-server {} serves on {address}", release.version);
    rehearsal::after_ready(release.fault);

    serving.run_until(Upgradable(server), http::terminated()).await?;
    log!("s3-server {} has handed over", release.version);
    Ok(())
}

/// Connects the handoff callbacks with the server.
struct Upgradable(S3Server);

impl Server for Upgradable {
    async fn drain(&mut self, drain: Drain) -> Result<(), BoxError> {
        self.0.drain(drain.cancelled()).await;
        Ok(())
    }

    async fn seal(&mut self, seal: Seal) -> Result<(), BoxError> {
        self.0.seal(seal.may_cut()).await
    }

    async fn resume(&mut self) -> Result<(), BoxError> {
        Ok(self.0.serve()?)
    }
}
