//! An event as a line of text, for the log and for the report of a replay.

use std::fmt;

use super::SessionEvent;
use super::refusal_text::Explanation;
use crate::core::expectation::{OnSyn, PortRangePinhole};
use crate::core::ftp::printable::Printable;
use crate::core::session::reassembly::StreamAnomaly;

/// What follows the wrong address of a server.
const REPAIRED: &str =
    ": the server announces an address to which its client did not connect (correct its `pasv_address` or the like)";

/// How many bytes of an argument are printed.
const MAX_ARGUMENT: usize = 80;

/// Begins with what happened: `opened`, `used`, `refused` and so on. A command's argument is part of it.
impl fmt::Display for SessionEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Began { connection, picked_up, rule } => {
                let how = if picked_up { "picked up in the middle" } else { "began" };
                write!(f, "session {how}: {} -> {}", connection.client(), connection.server())?;
                rule.map_or(Ok(()), |rule| write!(f, ", rule \"{rule}\""))
            }
            Self::RuleFound { rule: Some(rule) } => write!(f, "rule \"{rule}\" of the reloaded policy applies"),
            Self::RuleFound { rule: None } => f.write_str("no rule of the reloaded policy applies"),
            Self::Command { command, argument: None } => write!(f, "{command} ..."),
            Self::Command { command, argument: Some(b"") } => f.write_str(command),
            Self::Command { command, argument: Some(argument) } => write!(f, "{command} {}", Escaped(argument)),
            Self::Denied { command } => write!(f, "denied {command}: the policy does not allow it"),
            Self::LoggedIn { user: Some(user) } => write!(f, "logged in as {user}"),
            Self::LoggedIn { user: None } => f.write_str("logged in"),
            Self::Opened { mode, expectation, rewritten_from, is_repaired } => {
                let (lifetime, by) = (expectation.lifetime, mode.announced_by());
                write!(f, "opened {expectation} for {lifetime:?}, announced by {by}")?;
                rewritten_from.map_or(Ok(()), |from| write!(f, ", rewritten from {from}"))?;
                f.write_str(if is_repaired { REPAIRED } else { "" })
            }
            Self::OpenedForSyn(expectation) => {
                write!(f, "opened {expectation}: the FTP service has the socket of this connection")
            }
            Self::SynRefused { flow, why, terms } => {
                write!(f, "refused {flow}: {why}, {}", Explanation { why, mode: None, terms })
            }
            Self::Refused { mode, to, why, terms, connection: _ } => {
                write!(f, "refused {}", mode.announced_by())?;
                to.map_or(Ok(()), |to| write!(f, " {to}"))?;
                write!(f, ": {why}, {}", Explanation { why, mode: Some(mode), terms })
            }
            Self::Used { mode: Some(mode), flow } => write!(f, "used {flow}, announced by {}", mode.announced_by()),
            Self::Used { mode: None, flow } => write!(f, "used {flow}"),
            Self::Expired(expectation) => write!(f, "expired {expectation}: no data connection came"),
            Self::Dropped(expectation) => write!(
                f,
                "dropped {expectation}: its SYN came and was admitted, but your ruleset or routing dropped it (see \
                 `pinhole explain`)"
            ),
            Self::Closed { expectation, why } => write!(f, "closed {expectation}: {}", why.explanation()),
            Self::Encrypted { port_range, is_implicit } => {
                f.write_str(if is_implicit { "encrypted (implicit TLS): " } else { "encrypted: " })?;
                match port_range {
                    None => f.write_str(
                        "its announcements cannot be read, so Pinhole admits none of its transfers (give the server a fixed \
                         passive range, and name the same ports in `tls: range`; on the server's own host use `tls: service`)",
                    ),
                    Some(PortRangePinhole { from, to, on_syn: OnSyn::Ask }) => write!(
                        f,
                        "once the dialogue is as long as a login, data connections between {from} and {to} open if the FTP \
                         service has their socket"
                    ),
                    Some(port_range) => write!(f, "{port_range} opens once the dialogue is as long as a login"),
                }
            }
            Self::RangeOpened(PortRangePinhole { from, to, on_syn: OnSyn::Ask }) => write!(
                f,
                "asks from now on which service has the socket of each new connection between {from} and {to}, while the \
                 encrypted session lasts"
            ),
            Self::RangeOpened(port_range) => write!(f, "opened {port_range} while the encrypted session lasts"),
            Self::RangeRefused { port_range, why, terms } => {
                write!(f, "refused {port_range}: {why}, {}", Explanation { why, mode: None, terms })
            }
            Self::NotFtp => f.write_str("not FTP: no announcement opens a pinhole"),
            Self::Ended(how) => write!(f, "session ended: {}", how.name()),
            Self::Anomaly(anomaly) => write!(f, "anomaly: {}", explanation(anomaly)),
        }
    }
}

const fn explanation(anomaly: StreamAnomaly) -> &'static str {
    match anomaly {
        StreamAnomaly::ChangedRetransmission => "a retransmission with other bytes; the first copy counts",
        StreamAnomaly::TooFar => "a segment far from the current position; ignored",
        StreamAnomaly::TooManyOutOfOrder => "too many bytes out of order",
        StreamAnomaly::Lost => "the receiver acknowledged bytes that were not seen",
        StreamAnomaly::Unacceptable => "a segment that its receiver does not accept; ignored",
        StreamAnomaly::StaleTimestamp => "a segment with an old timestamp (PAWS); ignored",
        StreamAnomaly::ContradictsFin => "a segment that contradicts its sender's FIN; ignored",
        StreamAnomaly::WrongInterface => "a segment that came from its receiver's side; ignored",
        StreamAnomaly::Unverifiable => "a retransmission of bytes that are no longer kept to compare; ignored",
    }
}

/// Bytes from the network, up to a length.
struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = *self;
        let (shown, dots) = bytes
            .split_at_checked(MAX_ARGUMENT)
            .map_or((bytes, ""), |(shown, rest)| (shown, if rest.is_empty() { "" } else { "..." }));
        write!(f, "{}{dots}", Printable(shown))
    }
}
