//! The port ranges of encrypted sessions, where the policy says `tls: range`, and the hosts whose SYNs are asked about,
//! where it says `tls: service`.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::client::ClientKey;
use super::context::SessionContext;
use super::encrypted_dialogue::EncryptedDialogue;
use super::{Environment, Observer, SessionEvent, Tracker};
use crate::core::expectation::{OnSyn, PortRangePinhole, Refusal};
use crate::core::kernel::Firewall;
use crate::core::net::{Connection, Flow};
use crate::core::policy::Tls;
use crate::core::time::Timestamp;

/// How often an open range is renewed: twice in its lifetime, so that it survives one failure.
const RENEWAL: Duration = Duration::from_secs(PortRangePinhole::LIFETIME.as_secs() / 2);

/// The range of one session.
#[derive(Debug)]
enum Range {
    /// It opens when the dialogue is long enough for a login.
    Planned(PortRangePinhole, EncryptedDialogue),
    Open(PortRangePinhole),
}

/// The owner of an open range.
#[derive(Debug)]
enum Owner {
    Session(u32),
    /// A session of an earlier run.
    Earlier,
}

/// The ranges of all sessions.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    by_session: HashMap<u32, Range, RandomState>,
    /// The sessions that have a range open between two hosts.
    by_hosts: HashMap<(IpAddr, IpAddr), Vec<u32>, RandomState>,
    by_client: HashMap<ClientKey, usize, RandomState>,
    /// The open ranges in the order in which they have to be renewed.
    renewals: VecDeque<(Timestamp, Owner, PortRangePinhole)>,
    open: usize,
}

impl Ranges {
    /// How many are open.
    pub(super) const fn len(&self) -> usize {
        self.open
    }

    pub(super) fn count_of_client(&self, client: ClientKey) -> usize {
        self.by_client.get(&client).copied().unwrap_or(0)
    }

    pub(super) fn is_open(&self, session: u32) -> bool {
        matches!(self.by_session.get(&session), Some(Range::Open(_)))
    }

    /// Whether the range of that session waits for more of the dialogue.
    pub(super) fn is_planned(&self, session: u32) -> bool {
        matches!(self.by_session.get(&session), Some(Range::Planned(..)))
    }

    fn plan(&mut self, session: u32, port_range: PortRangePinhole, dialogue: EncryptedDialogue) {
        self.by_session.insert(session, Range::Planned(port_range, dialogue));
    }

    fn note_open(&mut self, session: u32, port_range: PortRangePinhole, now: Timestamp) {
        self.by_session.insert(session, Range::Open(port_range));
        self.by_hosts.entry((port_range.from, port_range.to)).or_default().push(session);
        *self.by_client.entry(ClientKey::of(port_range.from)).or_default() += 1;
        self.renewals.push_back((now + RENEWAL, Owner::Session(session), port_range));
        self.open += 1;
    }

    /// A range of an earlier run was adopted, and opened again.
    pub(super) fn note_adopted(&mut self, port_range: PortRangePinhole, now: Timestamp) {
        self.renewals.push_back((now + RENEWAL, Owner::Earlier, port_range));
    }

    /// Forgets the range of a session. Returns it if it was open and has to be closed.
    pub(super) fn remove(&mut self, session: u32) -> Option<PortRangePinhole> {
        let Range::Open(port_range) = self.by_session.remove(&session)? else { return None };
        self.open -= 1;
        let hosts = (port_range.from, port_range.to);
        if let Some(sessions) = self.by_hosts.get_mut(&hosts) {
            sessions.retain(|&other| other != session);
            if sessions.is_empty() {
                self.by_hosts.remove(&hosts);
            }
        }
        let client = ClientKey::of(port_range.from);
        if let Some(count) = self.by_client.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.by_client.remove(&client);
            }
        }
        Some(port_range)
    }

    /// The session through whose range a connection with these addresses comes.
    pub(super) fn session_of(&self, flow: &Flow) -> Option<u32> {
        let sessions = self.by_hosts.get(&(flow.source.address, flow.destination.address))?;
        sessions.iter().copied().find(|session| match self.by_session.get(session) {
            Some(Range::Open(port_range)) => port_range.admits(flow),
            _ => false,
        })
    }

    /// The sessions for which a SYN with these addresses is asked about.
    pub(super) fn asked_between(&self, flow: &Flow) -> impl Iterator<Item = u32> {
        let (source, destination) = (flow.source.address, flow.destination.address);
        let either = [(source, destination), (destination, source)];
        let other = (source != destination).then_some(either[1]);
        let sessions = [Some(either[0]), other].into_iter().flatten().filter_map(|hosts| self.by_hosts.get(&hosts));
        sessions.flatten().copied().filter(|session| match self.by_session.get(session) {
            Some(Range::Open(port_range)) => port_range.asks(flow),
            _ => false,
        })
    }

    /// When the next range has to be renewed.
    pub(super) fn next_renewal(&self) -> Option<Timestamp> {
        self.renewals.front().map(|(at, ..)| *at)
    }
}

impl Tracker {
    /// Renews the ranges that are due. So a range stays open as long as its session, however silent; and if the daemon
    /// is killed and not started again, it expires.
    pub(super) fn renew_ranges<F: Firewall, O: Observer>(&mut self, env: &mut Environment<'_, F, O>) {
        while let Some((at, owner, port_range)) = self.ranges.renewals.pop_front() {
            if at > env.now {
                self.ranges.renewals.push_front((at, owner, port_range));
                return;
            }
            let is_open = match owner {
                Owner::Session(session) => match self.ranges.by_session.get(&session) {
                    Some(Range::Open(open)) => *open == port_range,
                    _ => false,
                },
                Owner::Earlier => self.orphaned.holds(&port_range),
            };
            if is_open {
                env.firewall.renew_port_range(&port_range);
                self.ranges.renewals.push_back((env.now + RENEWAL, owner, port_range));
            }
        }
    }
}

impl<F: Firewall, O: Observer> SessionContext<'_, '_, F, O> {
    /// The session is encrypted from here on.
    pub(super) fn encrypted(&mut self, is_requested: bool, is_implicit: bool) {
        let Connection { original, .. } = *self.connection;
        let on_syn = match self.terms.tls {
            Tls::Pass | Tls::Deny => None,
            Tls::Range(ports) => Some(OnSyn::Admit(ports)),
            // The addresses of a listener are those after NAT, those of a SYN before it.
            Tls::Service(_) => (!self.connection.is_translated()).then_some(OnSyn::Ask),
        };
        let may_open = is_requested && !self.has_ended && !self.is_forged && !self.is_in_zone();
        let port_range = on_syn.filter(|_| may_open).map(|on_syn| PortRangePinhole {
            from: original.source.address,
            to: original.destination.address,
            on_syn,
        });
        if let Some(port_range) = port_range {
            let dialogue = if is_implicit {
                EncryptedDialogue::implicit(self.segment)
            } else {
                EncryptedDialogue::behind(self.segment)
            };
            self.ranges.plan(self.slot, port_range, dialogue);
        }
        self.report(&SessionEvent::Encrypted { port_range, is_implicit });
    }

    /// Handles a segment after the 234: opens the range if the dialogue is long enough for a login.
    pub(super) fn encrypted_segment(&mut self) {
        let Some(Range::Planned(port_range, dialogue)) = self.ranges.by_session.get_mut(&self.slot) else { return };
        let port_range = *port_range;
        if !dialogue.segment(self.segment, self.direction) {
            return;
        }
        match self.open_range(&port_range) {
            Ok(()) => {
                self.ranges.note_open(self.slot, port_range, self.env.now);
                self.report(&SessionEvent::RangeOpened(port_range));
            }
            Err(why) => {
                self.ranges.remove(self.slot);
                self.report(&SessionEvent::RangeRefused { port_range, why, terms: self.terms });
            }
        }
    }

    /// A range counts as one pinhole, of its client and of all.
    fn open_range(&mut self, port_range: &PortRangePinhole) -> Result<(), Refusal> {
        let limits = &self.env.policy.limits;
        let client = ClientKey::of(port_range.from);
        let of_client = self.expectations.count_of_client(client) + self.ranges.count_of_client(client);
        let in_all = self.expectations.len() + self.ranges.len();
        if of_client >= limits.pinholes_per_client.get() as usize || in_all >= limits.pinholes.get() as usize {
            return Err(Refusal::TooMany);
        }
        self.env.firewall.open_port_range(port_range).map_err(|_| Refusal::NotOpened)
    }
}
