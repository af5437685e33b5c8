//! The machine of a measurement.

use serde::Serialize;

/// A description of the machine.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Kernel and release.
    pub kernel: String,
    /// The processor's name; empty if unknown.
    pub processor: String,
    /// Number of processors available to this process.
    pub processors: usize,
    /// Type of the file system with all files.
    pub filesystem: String,
    /// One-minute load average before the run.
    pub load_before: String,
    /// One-minute load average after the run.
    pub load_after: String,
}

impl Machine {
    /// Describes this machine, before the run.
    pub fn look(filesystem: &str) -> Self {
        let text = |name: &str| {
            let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
            text.trim_end().to_owned()
        };
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            kernel: format!("{} {}", text("ostype"), text("osrelease")),
            processor: processor.map(|(_, name)| name.to_owned()).unwrap_or_default(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            filesystem: filesystem.to_owned(),
            load_before: load(),
            load_after: String::new(),
        }
    }

    /// Adds the load average after the run.
    pub fn look_again(&mut self) {
        self.load_after = load();
    }
}

fn load() -> String {
    let averages = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    averages.split(' ').next().unwrap_or_default().to_owned()
}
