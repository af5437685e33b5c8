//! The command `handoff`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First, so that this small process never touches what the command line needs.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == handoff::keeper::VERB) {
        return handoff::keeper::main();
    }
    handoff::cli::main()
}
