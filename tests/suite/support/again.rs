//! A test in a process of its own.

use std::ffi::OsStr;
use std::process::Command;

/// This test program once more, as a process that runs `test` alone. `variable` tells the test that it is there: without it, it is one
/// of many in its process.
pub fn again<T: Fn()>(test: T, variable: &str, value: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments_for(test)).env(variable, value);
    command
}

/// The arguments with which this test program runs `test` alone.
pub fn arguments_for<T: Fn()>(_test: T) -> [&'static str; 3] {
    // Not written down by hand: of a name that no test has, nothing would run, and nothing fail.
    let (_program, name) = std::any::type_name::<T>().split_once("::").unwrap();
    ["--exact", name, "--nocapture"]
}
