//! Another version of a service: brought in, verified, tried, kept for the next start, and given to the machine.

mod binary;
mod first;
mod hooks;
mod install;
mod origin;
mod path_watch;
mod phases;
mod preparation;
mod staging;
mod versions;

pub(in crate::supervisor) use binary::{Hashes, hex};
pub(crate) use first::check_claims;
pub(in crate::supervisor) use first::{Brought, bring_first, check_running, find, origin_of};
pub(in crate::supervisor) use hooks::Drains;
pub(crate) use install::import_of;
pub(in crate::supervisor) use install::{Pipeline, Wanted};
pub(in crate::supervisor) use origin::{Origin, read_origins};
pub(in crate::supervisor) use path_watch::{Arrival, PathNews, PathWatch, bring_in_all};
pub(in crate::supervisor) use preparation::Preparation;
pub(in crate::supervisor) use staging::{bring_in_staged, check_staged, recall_staged};
pub(in crate::supervisor) use versions::{statuses, unfinished};
