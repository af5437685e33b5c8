//! What a process has besides its program, arguments and environment: its user, its limits, its capabilities.
//!
//! A process gives these to itself before it executes its program. Most of them need privileges, so the user comes last
//! but for what takes privileges away.

use std::ffi::c_ulong;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_keepcaps, set_no_new_privs};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::fstat;
use nix::unistd::{Gid, Uid, fchown, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

use super::errno::{ByNumber, Errno};
use super::path::set_umask;

/// The attributes of a process that is about to execute its program. What is not set stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// User, group and supplementary groups.
    pub ids: Option<Ids>,
    /// The permission bits that new files do not get.
    pub umask: Option<u32>,
    /// Limits of resources.
    pub limits: Vec<ResourceLimit>,
    /// The nice value, from -20 to 19.
    pub nice: Option<i32>,
    /// Whether no program that it executes gains privileges.
    pub no_new_privs: bool,
    /// The capabilities that it keeps without being root, bit by bit.
    pub ambient: u64,
    /// The capabilities that it and its descendants can ever have, bit by bit.
    pub bounding: Option<u64>,
    /// Whether it has a `/tmp` and a `/var/tmp` of its own, in memory.
    pub private_tmp: bool,
}

/// Who a process is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

/// A limit of getrlimit(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    /// One of [`limit_names`].
    pub name: String,
    /// The soft limit; [`super::limits::UNLIMITED`] for none.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

const LIMITS: [(&str, Resource); 15] = [
    ("as", Resource::RLIMIT_AS),
    ("core", Resource::RLIMIT_CORE),
    ("cpu", Resource::RLIMIT_CPU),
    ("data", Resource::RLIMIT_DATA),
    ("fsize", Resource::RLIMIT_FSIZE),
    ("locks", Resource::RLIMIT_LOCKS),
    ("memlock", Resource::RLIMIT_MEMLOCK),
    ("msgqueue", Resource::RLIMIT_MSGQUEUE),
    ("nice", Resource::RLIMIT_NICE),
    ("nofile", Resource::RLIMIT_NOFILE),
    ("nproc", Resource::RLIMIT_NPROC),
    ("rtprio", Resource::RLIMIT_RTPRIO),
    ("rttime", Resource::RLIMIT_RTTIME),
    ("sigpending", Resource::RLIMIT_SIGPENDING),
    ("stack", Resource::RLIMIT_STACK),
];

/// The capabilities of capabilities(7), by number.
pub const CAPABILITIES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// The names of limits, sorted.
pub fn limit_names() -> impl Iterator<Item = &'static str> {
    LIMITS.iter().map(|(name, _)| *name)
}

/// The current soft and hard limit of this process with this name.
pub fn limit_named(name: &str) -> Option<(u64, u64)> {
    getrlimit(resource(name)?).ok()
}

fn resource(name: &str) -> Option<Resource> {
    LIMITS.iter().find(|(known, _)| *known == name).map(|(_, resource)| *resource)
}

impl Attributes {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Gives the attributes to this process, which must have one thread and be about to execute a program. The error
    /// names what failed.
    pub fn apply(&self) -> io::Result<()> {
        if self.private_tmp {
            mount_tmp().map_err(failed("give it a /tmp of its own"))?;
        }
        if let Some(nice) = self.nice {
            set_nice(nice).map_err(failed(&format!("set its nice value to {nice}")))?;
        }
        if let Some(umask) = self.umask {
            set_umask(umask);
        }
        if let Some(bounding) = self.bounding {
            set_bounding(bounding).map_err(failed("restrict its capabilities"))?;
        }
        for ResourceLimit { name, soft, hard } in &self.limits {
            let resource = resource(name).ok_or(Errno::EINVAL);
            let set = resource.and_then(|resource| setrlimit(resource, *soft, *hard).by_number());
            set.map_err(failed(&format!("set its limit {name:?}")))?;
        }
        if let Some(ids) = &self.ids {
            self.take(ids)?;
        }
        if self.ambient != 0 {
            set_ambient(self.ambient).map_err(failed("give it its ambient capabilities"))?;
        }
        if self.no_new_privs {
            set_no_new_privs().by_number().map_err(failed("set no_new_privs"))?;
        }
        Ok(())
    }

    fn take(&self, ids: &Ids) -> io::Result<()> {
        // Programs that open /dev/stderr need it. Where it is no pipe of this process, it stays as it is.
        for stream in [io::stdout().as_fd(), io::stderr().as_fd()] {
            if fstat(stream).is_ok_and(|found| found.st_mode & libc::S_IFMT == libc::S_IFIFO) {
                let _ = fchown(stream, Some(Uid::from_raw(ids.user)), None);
            }
        }
        let groups: Vec<Gid> = ids.groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups).by_number().map_err(failed("set its supplementary groups"))?;
        let group = Gid::from_raw(ids.group);
        setresgid(group, group, group)
            .by_number()
            .map_err(failed(&format!("give it the group {}", ids.group)))?;
        // Otherwise the change of the user would take them away.
        set_keepcaps(self.ambient != 0).by_number().map_err(failed("keep its capabilities"))?;
        let user = Uid::from_raw(ids.user);
        setresuid(user, user, user).by_number().map_err(failed(&format!("give it the user {}", ids.user)))
    }
}

fn failed(what: &str) -> impl FnOnce(Errno) -> io::Error {
    move |error| {
        let cause = io::Error::from(error);
        io::Error::new(cause.kind(), format!("cannot {what}: {cause}"))
    }
}

/// Makes `/tmp` and `/var/tmp` empty for this process and its descendants. Nothing of it reaches other processes.
fn mount_tmp() -> Result<(), Errno> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).by_number()?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE).by_number()?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    for place in ["/tmp", "/var/tmp"].into_iter().filter(|place| Path::new(place).is_dir()) {
        mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some("mode=1777")).by_number()?;
    }
    Ok(())
}

fn set_nice(nice: i32) -> Result<(), Errno> {
    // SAFETY: the call takes integers and no memory of this process. 0 is this process.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

/// The nice value of this process.
pub fn own_nice() -> i32 {
    // SAFETY: the call takes integers and no memory of this process. An error is -1, and this call has none.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Removes each capability that is not in `kept`, up to the last that the kernel knows.
fn set_bounding(kept: u64) -> Result<(), Errno> {
    for number in 0..u64::BITS {
        // SAFETY: both requests take integers and no memory of this process.
        let has = unsafe { libc::prctl(libc::PR_CAPBSET_READ, c_ulong::from(number), 0, 0, 0) };
        match has {
            // The kernel knows no more.
            -1 => break,
            1 if kept & 1 << number == 0 => {
                // SAFETY: as above.
                let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, c_ulong::from(number), 0, 0, 0) };
                Errno::result(dropped)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Leaves this process these capabilities, and its program too.
fn set_ambient(capabilities: u64) -> Result<(), Errno> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // _LINUX_CAPABILITY_VERSION_3 of linux/capability.h: two words for each set.
    let header = Header { version: 0x2008_0522, pid: 0 };
    let word = |bits: u64| Sets { effective: bits as u32, permitted: bits as u32, inheritable: bits as u32 };
    let sets = [word(capabilities & u64::from(u32::MAX)), word(capabilities >> u32::BITS)];
    // SAFETY: the kernel reads the header and, for this version, two structures. Both live until the call returns.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) })?;
    let change = |request: c_ulong, number: u32| {
        let number = c_ulong::from(number);
        // SAFETY: the request takes integers and no memory of this process.
        Errno::result(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, request, number, 0, 0) }).map(drop)
    };
    change(libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong, 0)?;
    let wanted = (0..u64::BITS).filter(|number| capabilities & 1 << number != 0);
    wanted.into_iter().try_for_each(|number| change(libc::PR_CAP_AMBIENT_RAISE as c_ulong, number))
}

/// The effective capabilities of the calling thread, bit by bit.
pub fn effective_capabilities() -> u64 {
    capability_set("CapEff:")
}

/// The capabilities that the calling thread and its descendants can have, bit by bit.
pub fn bounding_capabilities() -> u64 {
    capability_set("CapBnd:")
}

fn capability_set(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let found = status.lines().find_map(|line| line.strip_prefix(field));
    found.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_known() {
        let names: Vec<&str> = limit_names().collect();
        assert!(names.is_sorted());
        assert!(limit_named("nofile").is_some_and(|(soft, hard)| soft <= hard && soft > 0));
        assert_eq!(limit_named("files"), None);
        assert_eq!(
            (CAPABILITIES[10], CAPABILITIES[21], CAPABILITIES[40]),
            ("net_bind_service", "sys_admin", "checkpoint_restore")
        );
        assert!(Attributes::default().is_empty());
    }
}
