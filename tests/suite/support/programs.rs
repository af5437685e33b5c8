//! Executable programs for tests.
//!
//! Another process writes them. A file that is open for writing cannot be executed, and a child of another test holds
//! every open descriptor of this process until it executes its own program.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Makes a newly written file executable.
pub fn executable(path: &Path) {
    let script = r#"cp -- "$1" "$1.copy" && chmod 755 "$1.copy" && mv -- "$1.copy" "$1""#;
    shell(script, &[path.as_os_str()], b"");
}

/// Writes an executable file with this content.
pub fn write_program(path: &Path, image: &[u8]) {
    shell(r#"cat > "$1" && chmod 755 "$1""#, &[path.as_os_str()], image);
}

/// Copies a program, with its mode.
pub fn copy_program(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    shell(r#"cp --preserve=mode -- "$1" "$2""#, &[from.as_ref().as_os_str(), to.as_ref().as_os_str()], b"");
}

fn shell(script: &str, args: &[&OsStr], input: &[u8]) {
    let mut command = Command::new("/bin/sh");
    command.args(["-e", "-c", script, "sh"]).args(args).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let written = child.stdin.take().unwrap().write_all(input);
    assert!(child.wait().unwrap().success(), "{script} {args:?}");
    written.unwrap();
}

/// An example of this package without debug information, which is the largest part. Each release is a copy.
pub fn image_of(name: &str) -> Arc<Vec<u8>> {
    static IMAGES: Mutex<BTreeMap<String, Arc<Vec<u8>>>> = Mutex::new(BTreeMap::new());
    let mut images = IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let image = images.entry(name.to_owned()).or_insert_with(|| {
        let (program, dir) = (example(name), tempfile::tempdir().unwrap());
        let stripped = dir.path().join(name);
        // `strip` comes with the linker. Without it, the whole file is copied.
        let is_done = Command::new("strip").arg("-o").arg(&stripped).arg(&program).status();
        let image = if is_done.is_ok_and(|status| status.success()) { stripped } else { program };
        Arc::new(std::fs::read(image).unwrap())
    });
    image.clone()
}

/// An example of this package. `cargo test` builds it; `cargo test --test suite` alone does not, so this function
/// builds it.
fn example(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--examples"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        // A build with crash points includes all packages and their features. Other features would need another build.
        if cfg!(feature = "crash-points") {
            build.arg("--workspace");
        }
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the test services cannot be built");
    });
    Path::new(env!("CARGO_BIN_EXE_handoff")).with_file_name("examples").join(name)
}
