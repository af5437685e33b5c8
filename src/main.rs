//! The command `handoff`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First, so that these small processes never load what the command line needs.
    match std::env::args_os().nth(1) {
        Some(verb) if verb == handoff::keeper::VERB => handoff::keeper::main(),
        Some(verb) if verb == handoff::shim::VERB => handoff::shim::main(),
        Some(verb) if verb == handoff::shim::exec::VERB => handoff::shim::exec::main(),
        Some(verb) if verb == handoff::shim::trial::VERB => handoff::shim::trial::main(),
        _ => handoff::cli::main(),
    }
}
