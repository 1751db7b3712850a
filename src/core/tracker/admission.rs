//! Decides about one announcement: an expectation, or the reason why it is refused.
//!
//! It combines the announcement and the state of its dialogue, the addresses of both ends, and the policy's terms.
//! The tracker checks the limits on the number of expectations.

use std::net::{IpAddr, SocketAddr};

use crate::core::expectation::{Expectation, Mapping, Refusal};
use crate::core::ftp::Mode;
use crate::core::ftp::notation::Announced;
use crate::core::net::{Connection, Endpoint, Port};
use crate::core::policy::{Login, PassiveAddress, Terms, ThirdParty};
use crate::core::session::Announcement;
use crate::core::time::Timestamp;

/// Decides about an announcement.
pub(super) fn decide(
    announcement: &Announcement,
    connection: &Connection,
    terms: &Terms,
    now: Timestamp,
) -> Result<Expectation, Refusal> {
    let Announcement { mode, state, .. } = *announcement;
    if !state.is_ftp {
        return Err(Refusal::NotFtp);
    }
    if !state.has_known_start {
        return Err(Refusal::PickedUp);
    }
    if terms.denies_all() || terms.denies(mode.command()) {
        return Err(Refusal::ByRule);
    }
    if !terms.modes.contains(mode) {
        return Err(Refusal::ModeDenied);
    }
    if state.extended_only && mode != Mode::Epsv {
        return Err(Refusal::AfterEpsvAll);
    }
    if terms.login == Login::Required && !state.logged_in {
        return Err(Refusal::NotLoggedIn);
    }
    if !state.is_unambiguous {
        return Err(Refusal::Ambiguous);
    }
    let named = announcement.named.ok_or(Refusal::BadSyntax)?;
    let address = address(mode, &named, connection);
    if address.is_ipv4() != connection.client().address.is_ipv4() {
        return Err(Refusal::WrongFamily);
    }
    let port = Port::new(named.port).ok_or(Refusal::PortZero)?;
    let ends = Ends::of(mode, connection);
    let is_own = ends.has_listener(address) || is_repaired(announcement, connection, terms);
    let is_allowed_elsewhere = terms.third_party == ThirdParty::Allow && is_host(address);
    if !is_own && !is_allowed_elsewhere {
        return Err(Refusal::ThirdParty);
    }
    if let Some(why) = refused_port(port, terms) {
        return Err(why);
    }
    // Checked last, because the other reasons are more specific: the command of this reply may have been lost.
    if !state.asked_for {
        return Err(Refusal::NotAskedFor);
    }
    let to = Endpoint::new(if is_own { ends.translated_listener } else { address }, port);
    let mapping = Mapping {
        to: (is_own && ends.listener != ends.translated_listener).then_some(Endpoint::new(ends.listener, port)),
        from: (ends.translated_connector != ends.connector).then_some(ends.translated_connector),
    };
    Ok(Expectation { from: ends.connector, to, since: now, lifetime: terms.timeout, mapping })
}

/// Why no data connection may go to this port, if none may.
pub(super) fn refused_port(port: Port, terms: &Terms) -> Option<Refusal> {
    if !terms.data_ports.contains(port) {
        return Some(if port.is_low() { Refusal::LowPort } else { Refusal::PortNotAllowed });
    }
    terms.is_known_service(port).then_some(Refusal::KnownService)
}

/// Whether this is a server's reply with a wrong address, which the policy has repaired. What opens then is the announced
/// port at the address to which the client connected.
pub(super) fn is_repaired(announcement: &Announcement<'_>, connection: &Connection, terms: &Terms) -> bool {
    let Announcement { mode, named, .. } = announcement;
    let is_wrong = |address| !Ends::of(*mode, connection).has_listener(address);
    terms.passive_address == PassiveAddress::Repair
        && !mode.is_active()
        && named.and_then(|named| named.address).is_some_and(is_wrong)
}

/// The address that has to be announced instead, so that the other end connects to the expectation; `None` if the
/// announced address is right. `is_repaired`: see [`is_repaired`].
pub(super) fn address_to_announce(
    named: &Announced,
    expectation: &Expectation,
    is_repaired: bool,
) -> Option<Announced> {
    let Endpoint { address, port } = expectation.to;
    // For the unspecified address most clients take the address that they know.
    let is_right = named.address.is_none_or(|named| named == address || (named.is_unspecified() && !is_repaired));
    if is_right && named.port == port.number() {
        return None;
    }
    Some(Announced { address: named.address.map(|_| address), port: port.number() })
}

/// The two ends of a data connection, each with its two addresses: with NAT they differ.
struct Ends {
    /// The end that listens.
    listener: IpAddr,
    /// Its address, as the other end knows it.
    translated_listener: IpAddr,
    /// The end that connects.
    connector: IpAddr,
    /// Its address, as the listener knows it.
    translated_connector: IpAddr,
}

impl Ends {
    fn of(mode: Mode, connection: &Connection) -> Self {
        let Connection { original, reply } = connection;
        let client = (original.source.address, reply.destination.address);
        let server = (reply.source.address, original.destination.address);
        let ((listener, translated_listener), (connector, translated_connector)) =
            if mode.is_active() { (client, server) } else { (server, client) };
        Self { listener, translated_listener, connector, translated_connector }
    }

    /// Whether this is one of the two addresses of the end that listens.
    fn has_listener(&self, address: IpAddr) -> bool {
        address == self.listener || address == self.translated_listener
    }
}

/// The announced address and port, for messages.
pub(super) fn announced_address(announcement: &Announcement, connection: &Connection) -> Option<SocketAddr> {
    let named = announcement.named?;
    Some(SocketAddr::new(address(announcement.mode, &named, connection), named.port))
}

/// The announced address. If a server announces none, or the unspecified address, it is the address to which the client
/// connected.
fn address(mode: Mode, named: &Announced, connection: &Connection) -> IpAddr {
    match named.address {
        Some(address) if mode.is_active() || !address.is_unspecified() => address,
        _ => connection.server().address,
    }
}

/// Whether it can be a host's address. Even `third_party: allow` allows no other addresses.
fn is_host(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_broadcast)
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
