//! A test in a separate process.

use std::ffi::OsStr;
use std::process::Command;

/// A command that runs only `test` in another process of this test program. `variable` tells the test that it is in
/// that process.
pub fn again<T: Fn()>(test: T, variable: &str, value: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments_for(test)).env(variable, value);
    command
}

/// The arguments with which this test program runs `test` alone.
pub fn arguments_for<T: Fn()>(_test: T) -> [&'static str; 3] {
    // Derived from the type: a wrong name would run no test and not fail.
    let (_program, name) = std::any::type_name::<T>().split_once("::").unwrap();
    ["--exact", name, "--nocapture"]
}
