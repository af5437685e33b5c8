//! The command `handoff`.

use std::process::ExitCode;

fn main() -> ExitCode {
    handoff::cli::main()
}
