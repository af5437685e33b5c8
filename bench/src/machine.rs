//! What the figures were measured on.

use serde::Serialize;

/// A description of the machine.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Kernel and its release.
    pub kernel: String,
    /// The processor's name, or nothing if it has none.
    pub processor: String,
    /// How many processors this process may use.
    pub processors: usize,
    /// Type of the file system that everything lies on.
    pub filesystem: String,
    /// Load of the last minute, before the run.
    pub load_before: String,
    /// Load of the last minute, after the run.
    pub load_after: String,
}

impl Machine {
    /// Looks at this machine, before the run.
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

    /// Looks once more, after the run.
    pub fn look_again(&mut self) {
        self.load_after = load();
    }
}

fn load() -> String {
    let averages = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    averages.split(' ').next().unwrap_or_default().to_owned()
}
