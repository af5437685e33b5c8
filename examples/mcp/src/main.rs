//! `mcp-server`: the command line, and the life of the server from start to end.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};
use handoff_example_mcp::server::McpServer;
use handoff_example_mcp::stamp::Stamp;
use handoff_example_mcp::{log, rehearsal};
use handoff_service::http::terminated;
use handoff_service::tokio::{self as service, BoxError};

/// An upgradable MCP server with a few tools.
#[derive(Debug, Parser)]
#[command(name = "mcp-server")]
struct Args {
    /// Address to listen on without a supervisor.
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "ADDRESS")]
    listen: SocketAddr,
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
    log!("mcp-server: {error}");
    ExitCode::FAILURE
}

async fn run(args: Args, release: Stamp) -> Result<(), BoxError> {
    let mut starting = service::start().await?.version(&release.version);
    let listener = starting.tcp_listener("mcp", &args.listen.to_string())?;
    // There is no data that needs a single writer.
    let begun = starting.begin(None).await?;
    let mut server = McpServer::new(&release.version, listener)?;
    if let Err(error) = rehearsal::before_ready(release.fault).await {
        return Err(begun.unhealthy(&error.to_string()).await.into());
    }
    server.serve()?;
    let serving = begun.ready().await?;
    log!("mcp-server {} serves on {}", release.version, server.local_addr());
    rehearsal::after_ready(release.fault);

    serving.run_until(server, terminated()).await?;
    log!("mcp-server {} has handed over", release.version);
    Ok(())
}
