//! The harness as its users call it: one run of each kind, and the service of another author.

mod built;
mod own_service;
mod quick;
