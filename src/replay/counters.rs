//! The counters of a replay.

use serde::Serialize;

use crate::core::metrics::{EventCounters, metrics};

metrics! {
    Counter
    /// What only a replay counts.
    pub struct ReplayCounters {
        /// connections between the two hosts of a session that a firewall with Pinhole would block
        pub blocked: u64,
        /// TCP packets that the capture holds only in part
        pub truncated: u64,
    }
}

/// The numbers of the summary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    #[serde(flatten)]
    pub events: EventCounters,
    #[serde(flatten)]
    pub replay: ReplayCounters,
}
