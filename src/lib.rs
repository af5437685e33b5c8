//! Placeholder.

#[cfg(feature = "supervisor")]
pub mod config;
