//! What admits data connections: one small trait, and its makers.
//!
//! Knows nothing of FTP's lines. What is asked of it is done when it returns: an announcement goes on only then.

pub mod sets;
mod simulated;

pub use simulated::{Admitted, Simulated};

use crate::expectation::{Corridor, Expectation};
use crate::packet::{Connection, Flow};

/// The firewall could not do what was asked; it has said why to whoever watches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the firewall did not open the pinhole")]
pub struct NotOpened;

/// What a firewall knows of a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Its addresses.
    pub connection: Connection,
    /// Whether [`Firewall::stop_reading`] was said of it. That outlives whoever said it: a connection that turned out
    /// not to be FTP must not look like a session in the middle after it was forgotten here.
    pub is_unread: bool,
    /// Whether [`Firewall::settled`] was said of it. That, too, outlives whoever said it.
    pub is_settled: bool,
}

/// A firewall that holds expectations.
pub trait Firewall {
    /// The control connection to which packets with these addresses belong; none if they belong to no such.
    ///
    /// Which end is the client is the firewall's to know: with NAT, a port number does not tell.
    fn control_connection(&mut self, flow: &Flow) -> Option<Control>;

    /// Admits an expectation. One with the same addresses that stands already is admitted anew, from its own moment.
    fn open(&mut self, expectation: &Expectation) -> Result<(), NotOpened>;

    /// Does not admit it any more. That it was used or has expired in the meantime is fine.
    fn close(&mut self, expectation: &Expectation);

    /// Admits a corridor until it is closed.
    fn open_corridor(&mut self, corridor: &Corridor) -> Result<(), NotOpened>;

    /// Does not admit a corridor any more.
    fn close_corridor(&mut self, corridor: &Corridor);

    /// The start of this control connection has been read: both ends talk FTP, and whoever has to be is logged in. From
    /// now on only announcements, and what changes how they stand, need be brought. Said where the policy asks for no
    /// more than that.
    fn settled(&mut self, connection: &Connection);

    /// Nothing in this control connection can be read any more; its packets need not be brought.
    fn stop_reading(&mut self, connection: &Connection);
}
