//! The end-to-end tests: the real daemon, real processes, real sockets. All tests are in one program, which is linked
//! once, and they wait in parallel. `cargo test --test suite upgrade::` runs the tests of one file or folder.
//!
//! Tests of properties that a process has only once, such as its descriptors or its user, run in a separate process:
//! see [`support::again`].

mod support;

mod adapters;
mod adoption;
mod adoption_library;
mod answers;
mod autostart;
mod canary;
mod cancel;
mod census;
mod cli;
mod clients;
mod config;
mod corpus;
mod daemon;
mod death;
mod dependencies;
mod docs;
mod doctor;
mod endurance;
mod environment;
mod events;
mod files;
mod groups;
mod history;
mod hooks;
mod house_rules;
mod inject;
mod install;
mod journal;
mod keeper;
mod keys;
mod library;
mod liveness;
mod logs;
mod moments;
mod netns;
mod oneshot;
mod overlap;
mod probation;
mod reload;
mod restarts;
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
mod without_daemon;
