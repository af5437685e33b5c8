//! A supervisor based on the crate beyond-handoff, embedded as in its README: it holds the listener, starts the first
//! process, and upgrades on a line `upgrade PATH` over its trigger socket, which it answers with `committed
//! MICROSECONDS` or `failed REASON`. When its client disconnects, it ends the service and itself.
//!
//! Arguments: trigger socket, address, journal, control socket, binary, and those of the service.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use handoff_bench::Error;
use peer::pass_listener_fds_on_spawn;
use peer::supervisor::{SpawnSpec, Supervisor};

fn main() -> Result<(), Error> {
    let mut args = std::env::args_os().skip(1);
    let mut next = |what: &str| args.next().ok_or(format!("no {what} is named"));
    let trigger = UnixListener::bind(next("trigger socket")?)?;
    let address = next("address")?.into_string().map_err(|_| "the address is not text")?;
    let (journal, control, binary) = (next("journal")?, next("control socket")?, next("binary")?);
    let service_args: Vec<OsString> = args.collect();

    let listener = TcpListener::bind(address)?;
    let supervisor = Supervisor::new(Path::new(&control))?
        .with_listener("main", listener.as_raw_fd())
        .with_journal(PathBuf::from(journal));
    supervisor.resume_from_journal()?;
    let mut command = Command::new(&binary);
    command.args(&service_args);
    pass_listener_fds_on_spawn(&mut command, &[("main".to_owned(), listener.as_raw_fd())], None);
    let mut child = command.spawn()?;

    let ended = serve(&trigger, &supervisor, &service_args, &mut child);
    child.kill()?;
    child.wait()?;
    ended
}

fn serve(
    trigger: &UnixListener,
    supervisor: &Supervisor,
    service_args: &[OsString],
    child: &mut Child,
) -> Result<(), Error> {
    let (client, _) = trigger.accept()?;
    let args = service_args.iter().map(|arg| arg.clone().into_string());
    let args: Vec<String> = args.collect::<Result<_, _>>().map_err(|_| "an argument is not text")?;
    for line in BufReader::new(&client).lines() {
        let line = line?;
        let binary = line.strip_prefix("upgrade ").ok_or("the line is not a request")?;
        let began = Instant::now();
        let outcome = supervisor.perform_handoff(SpawnSpec { args: args.clone(), ..SpawnSpec::new(binary) });
        let took_us = began.elapsed().as_micros();
        match outcome {
            Ok(outcome) => match outcome.child {
                Some(new) if outcome.committed => {
                    writeln!(&client, "committed {took_us}")?;
                    // The old process exits by itself, and must be reaped.
                    std::mem::replace(child, new).wait()?;
                }
                _ => writeln!(&client, "failed {}", outcome.abort_reason.unwrap_or_default())?,
            },
            Err(error) => writeln!(&client, "failed {error}")?,
        }
    }
    Ok(())
}
