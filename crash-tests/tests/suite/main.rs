//! The program as its users call it: one run of each kind, and a service of somebody else.

mod built;
mod own_service;
mod quick;
