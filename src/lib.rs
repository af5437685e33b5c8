//! Placeholder.

#[cfg(feature = "supervisor")]
pub mod config;
#[cfg(feature = "supervisor")]
pub mod control;
