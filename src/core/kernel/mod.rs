//! The trait `Firewall`: what the core asks of the kernel.
//!
//! Knows nothing of FTP's lines. When a call returns, the change is in effect; only then is an announcement
//! released.

mod marks;
mod simulated;
mod witness;

use std::net::IpAddr;

pub use marks::{ControlBits, Mark, SessionProgress, Synced};
pub use simulated::{Admitted, Simulated};
pub use witness::{Service, Testimony};

use crate::core::expectation::{Expectation, Mapping, PortRangePinhole};
use crate::core::net::{Connection, Direction, Endpoint, Flow, Seq};
use crate::core::seqadj::{Adjustment, Adjustments, NotAdjusted};

/// The request failed; the firewall has reported the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the firewall did not open the pinhole")]
pub struct NotOpened;

/// The lookup of a connection failed; the firewall has reported the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the firewall could not look the connection up")]
pub struct LookupFailed;

/// The state of a control connection, as the firewall has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Its addresses.
    pub connection: Connection,
    /// An ID that differs from those of other connections with these addresses, where it is known.
    pub id: Option<u32>,
    /// Whether it is in the handshake: the server has answered the client's SYN, and no packet has come since then.
    pub is_opening: bool,
    /// The progress that [`Firewall::record`] stored last, in this run or an earlier one.
    pub progress: SessionProgress,
    /// Which of its ends are in sync: as [`Tracker::is_synced`](crate::core::tracker::Tracker::is_synced) returned
    /// for the last packet of each, if no packet has passed unread since then.
    pub synced: Synced,
    /// The seqadj offsets of its two directions, whichever run set them.
    pub adjustments: Adjustments,
}

/// A firewall that holds expectations.
pub trait Firewall {
    /// The control connection to which packets with these addresses belong; `None` if they belong to none.
    ///
    /// The firewall decides which end is the client: with NAT, a port number does not tell.
    fn control_connection(&mut self, flow: &Flow) -> Result<Option<Control>, LookupFailed>;

    /// Opens a pinhole for an expectation of this control connection. An open one with the same addresses is
    /// replaced, and its lifetime starts again.
    fn open(&mut self, expectation: &Expectation, of: &Connection) -> Result<(), NotOpened>;

    /// Closes the pinhole. It is no error if it was used or has expired.
    fn close(&mut self, expectation: &Expectation);

    /// Whether a SYN has come for this open pinhole, and was admitted: the pinhole admits no further one. If conntrack
    /// then reports no connection, the host has dropped the SYN after that.
    ///
    /// To be asked some time before the pinhole expires; a pinhole that is gone does not tell.
    fn syn_came(&mut self, expectation: &Expectation) -> bool;

    /// The NAT of a connection from `from` to `to`, if a pinhole admits it, whichever run or program opened that.
    /// `None` if no pinhole admits it.
    ///
    /// To be asked before an announcement gets another port: two pinholes with the same addresses are one, and the
    /// second would replace the first.
    fn mapping_of(&mut self, from: IpAddr, to: Endpoint) -> Option<Mapping>;

    /// Sets the seqadj offsets of one direction. When this returns, the kernel has them, as reading them back has
    /// shown.
    ///
    /// `held` are the places of segments whose bytes need these offsets. For a while, a retransmission that begins at
    /// one of them does not bypass the queue, not even after this run has ended: the next run has that time to start.
    fn adjust(
        &mut self,
        connection: &Connection,
        direction: Direction,
        adjustment: &Adjustment,
        held: &[Seq],
    ) -> Result<(), NotAdjusted>;

    /// Opens a port range, until it is closed.
    fn open_port_range(&mut self, port_range: &PortRangePinhole) -> Result<(), NotOpened>;

    /// Starts the [lifetime](PortRangePinhole::LIFETIME) of an open port range again, in a firewall in which port
    /// ranges expire.
    fn renew_port_range(&mut self, port_range: &PortRangePinhole);

    /// Closes a port range.
    fn close_port_range(&mut self, port_range: &PortRangePinhole);

    /// Opens a pinhole for a connection whose SYN waits for its verdict: the SYN passes the rules again and finds it.
    fn open_for_syn(&mut self, expectation: &Expectation) -> Result<(), NotOpened>;

    /// Whether `syn`, a SYN between the hosts of this control connection, goes to a listening socket of the FTP service on
    /// this host, or comes from a socket of it.
    fn testimony(&mut self, syn: &Flow, of: &Connection, service: &Service) -> Testimony;

    /// Stores the progress of this control connection, so that it outlives the daemon. The firewall need not queue
    /// packets of an unreadable connection.
    fn record(&mut self, connection: &Connection, progress: SessionProgress);
}
