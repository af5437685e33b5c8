//! What a daemon may give to a program: a table of attributes and the capabilities that they take.

use crate::sys::attributes::{
    Attributes, CAPABILITIES, bounding_capabilities, effective_capabilities, limit_named, own_nice,
};
use crate::sys::user::effective_user;

/// What this process has.
#[derive(Clone, Debug)]
pub(super) struct Powers {
    effective: u64,
    bounding: u64,
    user: u32,
    nice: i32,
    /// The hard limit of a name.
    hard_limit: fn(&str) -> u64,
}

/// What is missing for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lack {
    pub(super) key: &'static str,
    pub(super) cause: String,
    capability: &'static str,
}

impl Lack {
    /// What to do about it.
    pub(super) fn hint(&self) -> String {
        format!(
            "run the daemon as root with this capability (CAP_{}), or remove the key",
            self.capability.to_uppercase()
        )
    }
}

impl Powers {
    pub(super) fn of_this_process() -> Self {
        Self {
            effective: effective_capabilities(),
            bounding: bounding_capabilities(),
            user: effective_user(),
            nice: own_nice(),
            hard_limit: |name| limit_named(name).map_or(u64::MAX, |(_, hard)| hard),
        }
    }

    fn has(&self, capability: &str) -> bool {
        number_of(capability).is_some_and(|number| self.effective & 1 << number != 0)
    }
}

fn number_of(capability: &str) -> Option<usize> {
    CAPABILITIES.iter().position(|known| *known == capability)
}

/// What this process cannot give. `reads_memory`: it must read the memory of the program.
pub(super) fn lacking(attributes: &Attributes, powers: &Powers, reads_memory: bool) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let mut needs = |key, capability, cause: String| {
        if !powers.has(capability) {
            lacks.push(Lack { key, cause, capability });
        }
    };
    if let Some(ids) = &attributes.ids {
        if ids.user != powers.user {
            needs(
                "user",
                "setuid",
                format!("the daemon (user {}) cannot become user {}", powers.user, ids.user),
            );
            if reads_memory {
                let cause = "the adapter \"inject\" has to read the memory of a program of another user";
                needs("user", "sys_ptrace", cause.to_owned());
            }
        }
        let (key, cause) = match ids.user == powers.user {
            true => ("group", "the daemon cannot change its groups"),
            false => ("user", "the daemon cannot change its groups"),
        };
        needs(key, "setgid", cause.to_owned());
    }
    for limit in &attributes.limits {
        let hard = (powers.hard_limit)(&limit.name);
        if limit.hard > hard {
            let cause =
                format!("the daemon cannot raise the hard limit {:?} above its own ({hard})", limit.name);
            needs("limits", "sys_resource", cause);
        }
    }
    if let Some(nice) = attributes.nice.filter(|nice| *nice < powers.nice) {
        needs(
            "nice",
            "sys_nice",
            format!("the daemon ({}) cannot lower the nice value to {nice}", powers.nice),
        );
    }
    if attributes.bounding.is_some_and(|bounding| powers.bounding & !bounding != 0) {
        needs("capabilities", "setpcap", "the daemon cannot restrict the bounding set".to_owned());
    }
    for (number, name) in CAPABILITIES.iter().enumerate() {
        if attributes.ambient & 1 << number != 0 {
            needs("capabilities", *name, format!("the daemon has no capability {name:?} to give"));
        }
    }
    if attributes.private_tmp {
        needs("private_tmp", "sys_admin", "the daemon cannot mount file systems".to_owned());
    }
    lacks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::attributes::{Ids, ResourceLimit};

    fn powers(names: &[&str]) -> Powers {
        let effective = names.iter().map(|name| 1 << number_of(name).unwrap()).sum();
        Powers { effective, bounding: u64::MAX, user: 7, nice: 0, hard_limit: |_| 1024 }
    }

    fn ids(user: u32) -> Attributes {
        Attributes { ids: Some(Ids { user, group: 8, groups: Vec::new() }), ..Attributes::default() }
    }

    #[test]
    fn each_attribute_takes_its_capability() {
        let limit = |hard| ResourceLimit { name: "nofile".to_owned(), soft: 1, hard };
        let with = |change: fn(&mut Attributes)| {
            let mut attributes = Attributes::default();
            change(&mut attributes);
            attributes
        };
        let limited = |hard| Attributes { limits: vec![limit(hard)], ..Attributes::default() };
        for (attributes, reads_memory, needed) in [
            (Attributes::default(), true, &[][..]),
            (ids(7), true, &["setgid"]),
            (ids(9), false, &["setuid", "setgid"]),
            (ids(9), true, &["setuid", "sys_ptrace", "setgid"]),
            (limited(1024), false, &[]),
            (limited(1025), false, &["sys_resource"]),
            (with(|it| it.nice = Some(1)), false, &[]),
            (with(|it| it.nice = Some(-1)), false, &["sys_nice"]),
            (with(|it| it.bounding = Some(1)), false, &["setpcap"]),
            (with(|it| it.ambient = 1 << 10), false, &["net_bind_service"]),
            (with(|it| it.private_tmp = true), false, &["sys_admin"]),
            (with(|it| it.umask = Some(0)), false, &[]),
            (with(|it| it.no_new_privs = true), false, &[]),
        ] {
            let lacks = lacking(&attributes, &powers(&[]), reads_memory);
            let found: Vec<&str> = lacks.iter().map(|lack| lack.capability).collect();
            assert_eq!(found, needed, "{attributes:?}");
            assert_eq!(lacking(&attributes, &powers(needed), reads_memory), [], "{attributes:?}");
        }
    }
}
