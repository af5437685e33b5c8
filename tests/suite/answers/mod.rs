//! The errors of `handoff`: the cause, the place, and a step that works.

mod busy;
mod environment;
mod files;
mod interrupt;
mod list;
mod refused;
mod times;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;

use crate::support::Rig;

/// The result of a command.
#[derive(Debug)]
struct CommandOutput {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl CommandOutput {
    fn of(Output { status, stdout, stderr }: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
    }
}

fn say(rig: &Rig, args: &[&str]) -> CommandOutput {
    CommandOutput::of(rig.run(args))
}

/// Writes the file of a service that is started in place.
fn write(rig: &Rig, name: &str, binary: &Path, address: &str, more: &str) {
    let data = rig.path("data");
    let text = format!(
        "binary = {binary:?}\nargs = [{data:?}]\nautostart = false\nstore = false\n{more}\n[listen]\nmain = \"{address}\"\n"
    );
    std::fs::write(rig.path(&format!("config/services/{name}.toml")), text).unwrap();
}

fn at_all(address: SocketAddr) -> String {
    format!("0.0.0.0:{}", address.port())
}
