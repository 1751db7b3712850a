//! Acts on the events of a session: opens and closes pinholes, refuses announcements, reports events.

use std::net::SocketAddr;

use super::expectations::{Expectations, PinholeEntry};
use super::memory_budget::MemoryBudget;
use super::port_search::PortSearch;
use super::ranges::Ranges;
use super::{Environment, Observer, SessionEvent, SessionNumber};
use crate::core::expectation::{Closed, Expectation, Refusal};
use crate::core::ftp::Line;
use crate::core::kernel::{Control, Firewall};
use crate::core::net::{Connection, Direction, Port, Segment};
use crate::core::policy::Terms;
use crate::core::seqadj::Rewriters;
use crate::core::session::reassembly::StreamAnomaly;
use crate::core::session::{Announcement, Dialogue, Event, SessionOutput};
use crate::core::tracker::admission;

/// A session while its events are handled, with the state that this needs.
pub(super) struct SessionContext<'a, 'w, F, O> {
    pub(super) slot: u32,
    pub(super) number: SessionNumber,
    pub(super) connection: &'a Connection,
    pub(super) terms: &'a Terms,
    /// The session has ended: announcements are refused.
    pub(super) has_ended: bool,
    /// One end seems to have sent packets with the other's address.
    pub(super) is_forged: bool,
    /// The session may be a data connection of its client.
    pub(super) may_be_data: bool,
    /// Conntrack had no entry of the connection in the default zone when the session began.
    pub(super) had_no_entry: bool,
    /// The session was read from its start, by this run or, as the connection's mark says, by an earlier one.
    pub(super) has_known_start: bool,
    /// The segment holds an announcement that was refused.
    pub(super) has_refused: bool,
    /// The segment contains bytes that must not reach the receiver, and could not be replaced.
    pub(super) must_drop: bool,
    /// The search for outside ports, with the lookups that are left for the segment's announcements.
    pub(super) search: PortSearch,
    pub(super) expectations: &'a mut Expectations,
    pub(super) ranges: &'a mut Ranges,
    /// Present if there is less memory for the session than the policy allows.
    pub(super) narrowed_memory: Option<&'a mut MemoryBudget>,
    /// The segment that is handled.
    pub(super) segment: &'a Segment<'a>,
    pub(super) direction: Direction,
    pub(super) rewriters: Option<&'a mut Rewriters>,
    pub(super) env: &'a mut Environment<'w, F, O>,
}

impl<F: Firewall, O: Observer> SessionContext<'_, '_, F, O> {
    pub(super) fn report(&mut self, event: &SessionEvent<'_>) {
        self.env.report(self.number, event);
    }

    /// Acts on what was read in the segment.
    pub(super) fn act(&mut self, output: SessionOutput<'_>) {
        match output {
            SessionOutput::Bytes(direction, place, bytes) => {
                self.env.observer.read(self.number, direction, place, bytes);
            }
            SessionOutput::Line(event, line, dialogue) => self.line(event, &line, dialogue),
            SessionOutput::NotFtp(record) => {
                // A handshake may come in pieces, or behind another record.
                if let Some(at) = record {
                    self.tls_offered(at);
                }
                self.report(&SessionEvent::NotFtp);
            }
            SessionOutput::TlsOffered(at) => self.tls_offered(at),
            SessionOutput::ImplicitTls => self.encrypted(true, true),
            SessionOutput::Anomaly(anomaly) => {
                if let Some(memory) = &mut self.narrowed_memory
                    && anomaly == StreamAnomaly::TooManyOutOfOrder
                {
                    memory.count_refusal();
                }
                self.report(&SessionEvent::Anomaly(anomaly));
            }
        }
    }

    fn line(&mut self, event: Event<'_>, line: &Line<'_>, dialogue: &Dialogue) {
        let is_announcement = matches!(event, Event::Announced(_));
        match event {
            // What the first bytes show is no event of a line.
            Event::Nothing | Event::TlsOffered => {}
            Event::Command(command, argument) => self.report(&SessionEvent::Command { command, argument }),
            Event::Announced(announcement) => self.announced(&announcement),
            Event::AnnouncementRefused(command) => {
                if let Some(PinholeEntry { expectation, .. }) = self.expectations.remove_of_command(self.slot, command)
                {
                    self.env.firewall.close(&expectation);
                    self.report(&SessionEvent::Closed { expectation, why: Closed::RefusedByServer });
                }
            }
            Event::LoggedIn => self.report(&SessionEvent::LoggedIn { user: dialogue.user() }),
            Event::Encrypted => self.encrypted(dialogue.is_encryption_requested(), false),
            Event::NotFtp => self.report(&SessionEvent::NotFtp),
        }
        if self.direction == Direction::FromClient
            && let Some(command) = self.hold_back_denied(line)
            && !is_announcement
        {
            self.report(&SessionEvent::Denied { command: &command });
        }
    }

    fn announced(&mut self, announcement: &Announcement<'_>) {
        let mode = announcement.mode;
        match self.expect(announcement) {
            Ok(expectation) => {
                let is_repaired = self.is_repaired(announcement);
                let named = announcement
                    .named
                    .filter(|named| admission::address_to_announce(named, &expectation, is_repaired).is_some());
                let rewritten_from = named.map(|named| {
                    let address = named.address.unwrap_or(self.connection.server().address);
                    SocketAddr::new(address, named.port)
                });
                self.report(&SessionEvent::Opened { mode, expectation, rewritten_from, is_repaired });
            }
            Err(why) => {
                let to = admission::announced_address(announcement, self.connection);
                self.has_refused = true;
                let Self { connection, terms, .. } = *self;
                self.report(&SessionEvent::Refused { mode, to, why, connection, terms });
            }
        }
    }

    /// Whether the connection is in another conntrack zone than the default one. Its addresses may belong to other hosts
    /// in the default zone, and a pinhole names no zone.
    pub(super) fn is_in_zone(&mut self) -> bool {
        // The first packet of a connection that is picked up has no entry yet.
        self.had_no_entry
            && !matches!(
                self.env.firewall.control_connection(&self.connection.original),
                Ok(Some(Control { id: Some(_), .. }))
            )
    }

    fn expect(&mut self, announcement: &Announcement<'_>) -> Result<Expectation, Refusal> {
        if self.has_ended {
            return Err(Refusal::SessionOver);
        }
        if self.is_forged {
            return Err(Refusal::Forged);
        }
        if self.may_be_data && announcement.mode.is_active() {
            return Err(Refusal::DataConnection);
        }
        let decide = |announcement: &_| {
            admission::decide(announcement, self.connection, self.terms, self.env.now).and_then(|decided| {
                if self.is_service(decided.to.port) { Err(Refusal::KnownService) } else { Ok(decided) }
            })
        };
        let expectation = match decide(announcement) {
            // An earlier run rewrote this line, so it had read the whole line and the command before it.
            Err(Refusal::NotAskedFor | Refusal::Ambiguous) if self.was_replaced_before(announcement) => {
                let mut known = announcement.clone();
                known.state.asked_for = true;
                known.state.is_unambiguous = true;
                decide(&known)
            }
            decided => decided,
        }?;
        if self.is_in_zone() {
            return Err(Refusal::Zone);
        }
        if self.connection.is_translated() {
            return self.expect_translated(announcement, expectation);
        }
        if self.is_repaired(announcement) {
            return self.expect_repaired(announcement, expectation);
        }
        self.admit(announcement, &expectation)?;
        Ok(expectation)
    }

    /// Whether a port must not be announced because of what listens there: a known service, or an FTP server. What goes to
    /// a control port is read as a dialogue.
    pub(super) fn is_service(&self, port: Port) -> bool {
        let is_control = self.env.policy.control_ports.contains(port) && !self.terms.data_ports.names(port);
        is_control || self.terms.is_known_service(port)
    }

    /// Whether the server announced a wrong address, and the policy has it repaired.
    pub(super) fn is_repaired(&self, announcement: &Announcement<'_>) -> bool {
        admission::is_repaired(announcement, self.connection, self.terms)
    }
}
