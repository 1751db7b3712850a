//! What the administrator allows: the YAML, and the answer to "which terms hold between these two hosts?".
//!
//! Knows nothing of packets. `file` turns text into a [`Policy`] or explains every mistake in it.
