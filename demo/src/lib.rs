//! What `cargo demo` is made of: S3 clients that check every byte, and the counts of what they noticed.

pub mod load;
