//! The trait `Firewall`: what the core asks of the kernel.
//!
//! Knows nothing of FTP's lines. When a call returns, the change is in effect; only then is an announcement
//! released.

mod marks;
mod simulated;

use std::net::IpAddr;

pub use marks::{ControlBits, Mark, Progress, Synced};
pub use simulated::{Admitted, Simulated};

use crate::core::expectation::{Expectation, Mapping, PortRangePinhole};
use crate::core::net::{Connection, Direction, Endpoint, Flow, Seq};
use crate::core::seqadj::{Adjustment, Adjustments, NotAdjusted};

/// The firewall could not do what was asked; it has said why to whoever watches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the firewall did not open the pinhole")]
pub struct NotOpened;

/// The firewall could not look a connection up; it has said why to whoever watches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the firewall could not look the connection up")]
pub struct LookupFailed;

/// What a firewall knows of a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Its addresses.
    pub connection: Connection,
    /// A number that no other connection with these addresses has, where that is known.
    pub id: Option<u32>,
    /// Whether it is just being opened: the server has answered the client's SYN, and nothing has come since then.
    pub is_opening: bool,
    /// How far it has come, as [`Firewall::record`] was told last, by this run or an earlier one.
    pub progress: Progress,
    /// Which of its ends are in sync, as [`Tracker::is_synced`](crate::core::tracker::Tracker::is_synced) said of the last
    /// packet of each, and nothing passed unread since then.
    pub synced: Synced,
    /// How its sequence numbers are corrected, whoever asked for that.
    pub adjustments: Adjustments,
}

/// A firewall that holds expectations.
pub trait Firewall {
    /// The control connection to which packets with these addresses belong; none if they belong to no such.
    ///
    /// Which end is the client is the firewall's to know: with NAT, a port number does not tell.
    fn control_connection(&mut self, flow: &Flow) -> Result<Option<Control>, LookupFailed>;

    /// Admits an expectation that was announced in this control connection. One with the same addresses that stands
    /// already is admitted anew, from its own moment.
    fn open(&mut self, expectation: &Expectation, of: &Connection) -> Result<(), NotOpened>;

    /// Does not admit it any more. That it was used or has expired in the meantime is fine.
    fn close(&mut self, expectation: &Expectation);

    /// What NAT will make of a connection from `from` to `to`, if one is admitted: whoever opened that pinhole, a program
    /// that ran earlier included. None if none is admitted.
    ///
    /// That is the question to ask before an announcement gets another port: two pinholes with the same addresses are
    /// one, and the second would take the place of the first.
    fn mapping_of(&mut self, from: IpAddr, to: Endpoint) -> Option<Mapping>;

    /// Has the sequence numbers of one direction corrected from now on. When this returns it is so, and has been seen to
    /// be so.
    ///
    /// A segment of that direction that begins at one of the places `held` carries what the correction is for. It does
    /// not go on unread any more if it is sent again, also when this program is gone; for a while, in which another one
    /// should come.
    fn adjust(
        &mut self,
        connection: &Connection,
        direction: Direction,
        adjustment: &Adjustment,
        held: &[Seq],
    ) -> Result<(), NotAdjusted>;

    /// Admits a port_range until it is closed.
    fn open_port_range(&mut self, port_range: &PortRangePinhole) -> Result<(), NotOpened>;

    /// Has a port_range that is open last for its whole [lifetime](PortRangePinhole::LIFETIME) from now on, where one ends by itself.
    fn renew_port_range(&mut self, port_range: &PortRangePinhole);

    /// Does not admit a port_range any more.
    fn close_port_range(&mut self, port_range: &PortRangePinhole);

    /// Keeps how far this control connection has come, so that it is not lost with whoever says it. Packets of one in
    /// which nothing can be read any more need not be brought.
    fn record(&mut self, connection: &Connection, progress: Progress);
}
