//! What the tests run.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The directory in which cargo has built the services of the end-to-end tests, with the points of this build.
///
/// They belong to other packages, so `cargo test --package handoff-crash-tests` does not build them, and they are built here. All
/// packages: then their features are those of `cargo test --workspace`, and nothing is compiled a second time.
pub fn services() -> &'static Path {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--workspace", "--bins", "--examples"]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the services cannot be built");
    });
    Path::new(env!("CARGO_BIN_EXE_crash-tests")).parent().unwrap()
}
