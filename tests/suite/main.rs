//! The end-to-end tests: the real daemon, real processes, real sockets. All are in one program, which is linked once, and whose
//! tests wait side by side. `cargo test --test suite upgrade::` runs those of one file or folder.
//!
//! What a process has only once, such as its descriptors and its user, is looked at in a process of its own: see [`support::again`].

mod support;

mod adapters;
mod adoption;
mod adoption_library;
mod answers;
mod canary;
mod cancel;
mod census;
mod cli;
mod clients;
mod config;
mod corpus;
mod daemon;
mod death;
mod docs;
mod doctor;
mod endurance;
mod files;
mod history;
mod hooks;
mod house_rules;
mod inject;
mod install;
mod journal;
mod keeper;
mod library;
mod liveness;
mod moments;
mod netns;
mod overlap;
mod probation;
mod rollback;
mod slots;
mod state;
mod storage;
mod systemd;
mod time;
mod udp;
mod upgrade;
mod upgrade_all;
mod watch;
