//! A full disk that affects handoff's own files is reported as such, and not as an error of the program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use handoff::control::api::{Request, State};
use handoff::sys::process::Signal;
use handoff::sys::user::effective_user;

use crate::support::at_end::SetOnDrop;
use crate::support::{Rig, SmallDisk, ask, free_address, service, signal, wait_for};

/// The maximum number of files on the disk.
const FILES: usize = 60;

/// Mounts a small disk, which runs out of files or of bytes.
fn mount(path: &Path) -> SmallDisk {
    let mut mount = Command::new("mount");
    let options = format!("nr_inodes={FILES},size=256k,mode=700");
    assert!(mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).status().unwrap().success());
    SmallDisk(path.to_owned())
}

/// A service with the runtime or state directory on such a disk.
fn serve_on(directory: &str) -> (Rig, SmallDisk, std::net::SocketAddr) {
    let mut rig = Rig::new();
    rig.stop_daemon();
    let disk = mount(&rig.path(directory));
    rig.start_daemon();
    let address = free_address();
    let text = format!(
        "binary = {:?}\nargs = [\"-\", \"{address}\"]\nautostart = false\nstore = false\nadapter = \"inject\"\n\
         mode = \"exclusive\"\n[listen]\nmain = \"{address}\"\n",
        rig.release_of("plain", "0", "")
    );
    fs::write(rig.path("config/services/s.toml"), text).unwrap();
    rig.call(Request::Start(service("s"))).unwrap();
    (rig, disk, address)
}

/// Creates files until the disk is full. Returns their directory.
fn fill(path: &Path) -> PathBuf {
    let fill = path.join("fill");
    fs::create_dir(&fill).unwrap();
    let full = (0..FILES).find_map(|number| fs::File::create(fill.join(number.to_string())).err());
    assert!(full.unwrap().to_string().contains("No space left"));
    fill
}

fn pid(address: std::net::SocketAddr) -> u32 {
    ask(address, "pid").unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_shim_that_finds_no_room_for_its_files_says_which_and_is_tried_again() {
    if effective_user() != 0 {
        eprintln!("not run: it needs root");
        return;
    }
    for (directory, file) in [("run", ".tree"), ("state", "program.lock")] {
        let (mut rig, disk, address) = serve_on(directory);
        let first = pid(address);
        if directory == "state" {
            fs::remove_file(rig.path("state/services/s/program.lock")).unwrap();
        }
        let full = fill(&disk.0);
        let stop = AtomicBool::new(false);
        let status = std::thread::scope(|scope| {
            let _at_end = SetOnDrop(&stop);
            // Files of an ended shim leave room for the next one, so the thread fills it again.
            scope.spawn(|| {
                for number in FILES.. {
                    let is_full = fs::File::create(full.join(number.to_string())).is_err();
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if is_full {
                        std::thread::yield_now();
                    }
                }
            });
            wait_for("the cause", || {
                let status = rig.status("s");
                if status.state == State::Serving {
                    status.pid.into_iter().for_each(|pid| signal(pid, Signal::SIGKILL));
                }
                let told = |problem: &String| problem.contains("handoff's own file");
                Some(status).filter(|status| status.problem.as_ref().is_some_and(told))
            })
        });
        let problem = status.problem.unwrap();
        let at = format!("the file system tmpfs (tmpfs) at {}", disk.0.display());
        for part in [file, "No space left on device", &at, "make room there", "it is tried again"] {
            assert!(problem.contains(part), "{directory}: {part:?} is not in {problem:?}");
        }
        assert!(!problem.contains("healthy"), "it does not blame the program: {problem}");
        fs::remove_dir_all(full).unwrap();
        wait_for("it to serve", || (rig.status("s").state == State::Serving).then_some(()));
        assert_ne!(pid(address), first);
        rig.stop_daemon();
    }
}
