//! SYNs between the hosts of an encrypted session, where the policy says `tls: service`: its announcements cannot be read,
//! so the kernel is asked whether a socket of the FTP service listens at the destination of the SYN.

use std::time::Duration;

use super::admission::refused_port;
use super::adopt::NO_SESSION;
use super::client::ClientKey;
use super::expectations::PinholeEntry;
use super::quotas::PinholeQuota;
use super::{Environment, Observer, SessionEvent, SessionNumber, Tracker};
use crate::core::expectation::{Expectation, Mapping, Refusal};
use crate::core::ftp::Mode;
use crate::core::kernel::{Firewall, Testimony};
use crate::core::net::{Connection, Flow};
use crate::core::policy::{Terms, Tls};

/// How long the pinhole for a SYN is open. The SYN passes it at once; the rest is for a SYN that the host then drops,
/// of which conntrack reports nothing.
const LIFETIME: Duration = Duration::from_secs(10);

/// How many sessions between two hosts may be asked about one SYN.
const MAX_CANDIDATES: usize = 8;

/// What happens to a SYN that waits for its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SynVerdict {
    /// It passes the rules again: a pinhole is open for it now.
    Repeat,
    /// It continues to the host's own filter.
    Accept,
    /// It goes to a control port, or no session is encrypted between these hosts.
    NotAsked,
}

/// A session that may have announced the data connection.
struct Candidate<'p> {
    connection: Connection,
    terms: &'p Terms,
    number: SessionNumber,
    owner: u32,
}

impl Tracker {
    /// Decides about a SYN that no pinhole admits.
    pub fn syn<F: Firewall, O: Observer>(&mut self, flow: &Flow, env: &mut Environment<'_, F, O>) -> SynVerdict {
        let policy = env.policy;
        if policy.control_ports.contains(flow.destination.port) {
            return SynVerdict::NotAsked;
        }
        let of_sessions = self.ranges.asked_between(flow).filter_map(|slot| {
            let tracked = self.sessions.get(slot)?;
            let (connection, terms) = (tracked.connection, policy.terms(tracked.rule));
            Some(Candidate { connection, terms, number: tracked.number, owner: slot })
        });
        let adopted = self.orphaned.asked_between(flow).map(|&connection| {
            let Connection { original, .. } = connection;
            let rule = policy.match_rule(original.source.address, original.destination.address);
            Candidate { connection, terms: policy.terms(rule), number: SessionNumber::EARLIER, owner: NO_SESSION }
        });
        let candidates: Vec<_> = of_sessions.chain(adopted).take(MAX_CANDIDATES).collect();
        let mut refused = None;
        for candidate in candidates {
            match self.open_for_syn(flow, &candidate, env) {
                Ok(expectation) => {
                    env.report(candidate.number, &SessionEvent::OpenedForSyn(expectation));
                    return SynVerdict::Repeat;
                }
                Err(why) => refused = Some((candidate, why)),
            }
        }
        let Some((Candidate { terms, number, .. }, why)) = refused else { return SynVerdict::NotAsked };
        if may_be_data(why) {
            env.report(number, &SessionEvent::SynRefused { flow: *flow, why, terms });
        }
        SynVerdict::Accept
    }

    fn open_for_syn<F: Firewall, O: Observer>(
        &mut self,
        flow: &Flow,
        candidate: &Candidate<'_>,
        env: &mut Environment<'_, F, O>,
    ) -> Result<Expectation, Refusal> {
        let Candidate { connection, terms, number, owner } = *candidate;
        // A reload may have changed the terms.
        let Tls::Service(service) = &terms.tls else { return Err(Refusal::ByRule) };
        if terms.denies_all() {
            return Err(Refusal::ByRule);
        }
        let is_passive = flow.destination.address == connection.server().address;
        let modes = if is_passive { [Mode::Pasv, Mode::Epsv] } else { [Mode::Port, Mode::Eprt] };
        if !modes.into_iter().any(|mode| terms.modes.contains(mode) && !terms.denies(mode.command())) {
            return Err(Refusal::ModeDenied);
        }
        refused_port(flow.destination.port, terms).map_or(Ok(()), Err)?;
        let (from, to, since) = (flow.source.address, flow.destination, env.now);
        let expectation = Expectation { from, to, since, lifetime: LIFETIME, mapping: Mapping::NONE };
        let client = ClientKey::of(connection.client().address);
        let quota = PinholeQuota { terms, limits: &env.policy.limits };
        if !quota.has_room(&expectation, owner, client, (&self.expectations, &self.ranges)) {
            return Err(Refusal::TooMany);
        }
        match env.firewall.testimony(flow, &connection, service) {
            Testimony::Vouches => {}
            Testimony::NotListening => return Err(Refusal::NotListening),
            Testimony::OtherService => return Err(Refusal::OtherService),
            Testimony::NoControlSocket => return Err(Refusal::NotOnThisHost),
            Testimony::SharedCgroup => return Err(Refusal::SharedCgroup),
            Testimony::Unknown => return Err(Refusal::NotOpened),
        }
        env.firewall.open_for_syn(&expectation).map_err(|_| Refusal::NotOpened)?;
        let client = Some(client);
        self.expectations.insert(PinholeEntry {
            expectation,
            mode: None,
            owner,
            session: number,
            client,
            command: None,
        });
        Ok(expectation)
    }
}

/// Whether a refused SYN may be that of a data connection. The same two hosts may use other services, too.
const fn may_be_data(why: Refusal) -> bool {
    use Refusal::{ByRule, KnownService, LowPort, ModeDenied, PortNotAllowed};
    !matches!(why, ByRule | ModeDenied | PortNotAllowed | LowPort | KnownService)
}
