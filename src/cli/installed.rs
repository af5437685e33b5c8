//! `handoff installed`.

use std::path::PathBuf;

use handoff_protocol::ids::ServiceName;
use serde_json::json;

use super::claims::{Claimed, absolute};
use super::exit::{Exit, Failure};
use super::output::Output;
use super::{Json, operation};
use crate::config::Dirs;
use crate::control::Client;
use crate::control::api::{Install, Request, Response};

const EXAMPLES: &str = "\
Examples:
  handoff installed s3 /opt/s3/s3                       after a program was put there
  handoff installed s3 s3.tar.gz --member s3            a program in an archive
  handoff installed s3 s3.zip --sha256sums SHA256SUMS   verified before anything of it runs
  handoff installed s3 ./s3 --version 1.2.3 --no-wait   go on as soon as the daemon is at work

Call it as often as you like, from as many tools as you like: one upgrade at a time, and none if the same
content runs already. Exit codes: 0 it runs, 4 it was rolled back, 6 it was refused before it ran. With
--no-wait only the request counts; `handoff history` tells how it ended.";

/// Upgrade to what was just put at a path, unless it runs already
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The service
    service: ServiceName,
    /// A program, an archive (.tar.gz, .tar.xz, .zip), or a directory
    path: PathBuf,
    /// Its version; it is not asked for it then
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// Wait until the upgrade has ended (the default)
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Do not wait for the upgrade
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    claims: Claimed,
    #[command(flatten)]
    pub(super) json: Json,
}

pub(super) fn run(arguments: &Arguments, dirs: &Dirs, out: &mut Output) -> Result<Exit, Failure> {
    let request = Request::Install(Install {
        service: arguments.service.clone(),
        path: absolute(&arguments.path)?,
        claims: arguments.claims.to_claims()?,
        version: arguments.version.clone(),
    });
    if arguments.wait || !arguments.no_wait {
        return operation::run(&request, dirs, out);
    }
    let service = &arguments.service;
    match Client::connect(&dirs.control_socket())?.begin(&request)? {
        Some(Response::Outcome(outcome)) => operation::tell(&outcome, out),
        _ if out.is_json() => out.object(&json!({ "accepted": { "service": service } })),
        _ => out.line(format!("{service}: the daemon is at work; see: handoff history {service}")),
    }
    Ok(Exit::Done)
}
