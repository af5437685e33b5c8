//! The command `handoff`.

fn main() -> std::process::ExitCode {
    handoff::main()
}
