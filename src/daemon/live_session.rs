//! What the log and the status say of a session that has not ended.

use std::fmt;

use super::status::{SessionStatus, TransferStatus};
use crate::core::net::{Connection, Endpoint, Flow};
use crate::core::time::Timestamp;
use crate::core::tracker::{SessionEvent, SessionNumber};

/// A session that has not ended.
#[derive(Debug)]
pub(super) struct LiveSession {
    pub(super) client: Endpoint,
    pub(super) server: Endpoint,
    pub(super) user: Option<Box<str>>,
    /// The name of the policy's rule for it.
    pub(super) rule: Option<Box<str>>,
    since: Timestamp,
    is_encrypted: bool,
    /// The client's latest command, with the path if it is one of a transfer.
    command: Command,
    /// Its latest data connection, which may have ended.
    data: Option<(Timestamp, Flow)>,
}

#[derive(Debug)]
enum Command {
    None,
    Named(&'static str),
    /// With its path, safe to print.
    Transfer(Box<str>),
}

/// The commands with a data connection.
const TRANSFERS: [&str; 7] = ["RETR", "STOR", "STOU", "APPE", "LIST", "NLST", "MLSD"];

impl LiveSession {
    pub(super) fn of(at: Timestamp, connection: &Connection, rule: Option<&str>) -> Self {
        let (client, server) = (connection.client(), connection.server());
        let rule = rule.map(Box::from);
        Self { client, server, user: None, rule, since: at, is_encrypted: false, command: Command::None, data: None }
    }

    /// Notes what the status shows of an event.
    pub(super) fn note(&mut self, at: Timestamp, event: &SessionEvent<'_>) {
        match *event {
            SessionEvent::Command { command, .. } if TRANSFERS.contains(&command) => {
                self.command = Command::Transfer(event.to_string().into());
            }
            SessionEvent::Command { command, .. } => self.command = Command::Named(command),
            SessionEvent::LoggedIn { user } => self.user = user.map(Box::from),
            SessionEvent::Used { flow, .. } => self.data = Some((at, flow)),
            SessionEvent::Encrypted { .. } => self.is_encrypted = true,
            _ => {}
        }
    }

    /// The data connection, while conntrack has it: `bytes` looks it up.
    pub(super) fn status(
        &self,
        number: SessionNumber,
        now: Timestamp,
        bytes: impl FnOnce(&Flow) -> Option<Option<u64>>,
    ) -> SessionStatus {
        let transfer = self.data.and_then(|(since, flow)| {
            let bytes = bytes(&flow)?;
            let (from, to) = (flow.source.to_string(), flow.destination.to_string());
            Some(TransferStatus { from, to, bytes, seconds: now.since(since).as_secs_f64() })
        });
        SessionStatus {
            session: number.get(),
            client: self.client.to_string(),
            server: self.server.to_string(),
            user: self.user.as_deref().map(str::to_owned),
            rule: self.rule.as_deref().map(str::to_owned),
            age: now.since(self.since).as_secs_f64(),
            encrypted: self.is_encrypted,
            command: match &self.command {
                Command::None => None,
                Command::Named(name) => Some((*name).to_owned()),
                Command::Transfer(text) => Some(text.to_string()),
            },
            transfer,
        }
    }
}

/// The end of a line: `session 1 (10.0.0.1:4000 -> 10.0.0.2:21, user "anna", rule "partners")`.
pub(super) struct Named<'a> {
    pub(super) number: SessionNumber,
    pub(super) session: Option<&'a LiveSession>,
    pub(super) has_rules: bool,
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, session, has_rules } = *self;
        if number == SessionNumber::EARLIER {
            return f.write_str("adopted");
        }
        write!(f, "session {number}")?;
        let Some(LiveSession { client, server, user, rule, .. }) = session else { return Ok(()) };
        write!(f, " ({client} -> {server}")?;
        // Quoted: the client chose the name.
        user.as_ref().map_or(Ok(()), |user| write!(f, ", user {user:?}"))?;
        match rule {
            Some(rule) => write!(f, ", rule {rule:?})"),
            None if has_rules => f.write_str(", no rule)"),
            None => f.write_str(")"),
        }
    }
}
