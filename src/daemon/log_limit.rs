//! Limits the rate of log lines, for each kind of line.
//!
//! Each client has its own limit, so that a flood from one address does not suppress the lines about other clients. There
//! is a limit for all clients together, too, because a flood may come from many addresses.

use std::net::IpAddr;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::core::count::Count;
use crate::core::time::Timestamp;
use crate::core::tracker::ClientKey;

const WINDOW: Duration = Duration::from_secs(1);

/// How many clients have a limit of their own. All further clients share one limit.
const MAX_CLIENTS: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum LineKind {
    NotFtp,
    Refused,
    /// A SYN that may belong to another program.
    RefusedSyn,
    Denied,
    Encrypted,
    Opened,
    Used,
    Expired,
    Dropped,
    Closed,
}

impl LineKind {
    const ALL: [Self; 10] = [
        Self::NotFtp,
        Self::Refused,
        Self::RefusedSyn,
        Self::Denied,
        Self::Encrypted,
        Self::Opened,
        Self::Used,
        Self::Expired,
        Self::Dropped,
        Self::Closed,
    ];

    /// Lines per second: of one client, of all clients together.
    const fn limits(self) -> (u32, u32) {
        match self {
            Self::NotFtp | Self::Refused | Self::RefusedSyn | Self::Denied | Self::Encrypted => (1, 50),
            Self::Opened | Self::Used | Self::Expired | Self::Dropped | Self::Closed => (200, 2000),
        }
    }

    /// The word with which the log line begins.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::NotFtp => "not FTP",
            Self::Refused | Self::RefusedSyn => "refused",
            Self::Denied => "denied",
            Self::Encrypted => "encrypted",
            Self::Opened => "opened",
            Self::Used => "used",
            Self::Expired => "expired",
            Self::Dropped => "dropped",
            Self::Closed => "closed",
        }
    }
}

#[derive(Debug, Default)]
struct Window {
    since: Timestamp,
    written: u32,
    /// Lines that were suppressed since the last written line.
    suppressed: u64,
    /// An address of the client.
    client: Option<IpAddr>,
}

impl Window {
    fn begin(&mut self, now: Timestamp) {
        if now.since(self.since) >= WINDOW {
            self.since = now;
            self.written = 0;
        }
    }
}

/// Suppressed lines of one kind that were not reported yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Suppressed {
    pub(super) lines: u64,
    /// Clients without a limit of their own count as one client.
    pub(super) clients: u64,
    /// An address of one of these clients; `None` if it has no limit of its own.
    pub(super) client: Option<IpAddr>,
}

impl Suppressed {
    /// ``suppressed 9 lines `refused` from 10.0.0.1``, or `from 3 clients`.
    pub(super) fn of_kind(&self, kind: LineKind) -> String {
        let Self { lines, clients, client } = *self;
        let from = match client {
            Some(client) if clients == 1 => client.to_string(),
            _ => Count(clients, "client").to_string(),
        };
        format!("suppressed {} `{}` from {from}", Count(lines, "line"), kind.name())
    }
}

#[derive(Debug, Default)]
pub(super) struct LogLimit {
    clients: HashMap<(LineKind, Option<ClientKey>), Window, RandomState>,
    all: [Window; LineKind::ALL.len()],
    swept: Timestamp,
}

impl LogLimit {
    /// Whether a line about this client may be written. If so, returns the number of lines that were suppressed before it.
    pub(super) fn admit(&mut self, kind: LineKind, address: Option<IpAddr>, now: Timestamp) -> Option<u64> {
        let client = address.map(ClientKey::of);
        let is_known = self.clients.contains_key(&(kind, client));
        let client = client.filter(|_| is_known || self.clients.len() < MAX_CLIENTS * LineKind::ALL.len());
        let own = self.clients.entry((kind, client)).or_default();
        own.client = address.filter(|_| client.is_some());
        let all = &mut self.all[kind as usize];
        own.begin(now);
        all.begin(now);
        let (per_client, in_total) = kind.limits();
        if own.written >= per_client || all.written >= in_total {
            own.suppressed += 1;
            return None;
        }
        own.written += 1;
        all.written += 1;
        Some(std::mem::take(&mut own.suppressed))
    }

    /// Forgets inactive clients and returns their unreported lines. Does nothing if it was called less than a second ago.
    pub(super) fn sweep(&mut self, now: Timestamp) -> Vec<(LineKind, Suppressed)> {
        if now.since(self.swept) < WINDOW {
            return Vec::new();
        }
        self.swept = now;
        let mut suppressed = [Suppressed::default(); LineKind::ALL.len()];
        self.clients.retain(|(kind, _), window| {
            if now.since(window.since) < WINDOW {
                return true;
            }
            let of_kind = &mut suppressed[*kind as usize];
            of_kind.lines += window.suppressed;
            if window.suppressed > 0 {
                of_kind.clients += 1;
                of_kind.client = window.client;
            }
            false
        });
        LineKind::ALL.into_iter().zip(suppressed).filter(|(_, suppressed)| suppressed.lines > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u32) -> Option<IpAddr> {
        Some(std::net::Ipv4Addr::from(number).into())
    }

    const START: Timestamp = Timestamp::from_secs(5);

    #[test]
    fn flood_from_one_client_hides_no_other_clients_line() {
        let mut limit = LogLimit::default();
        let written = (0..20_000).filter(|_| limit.admit(LineKind::NotFtp, client(1), START).is_some()).count();
        assert_eq!(written, 1);
        assert_eq!(limit.admit(LineKind::NotFtp, client(2), START), Some(0));
        assert_eq!(limit.admit(LineKind::Refused, client(1), START), Some(0), "a line of another kind");
        assert_eq!(limit.admit(LineKind::NotFtp, client(1), START + WINDOW), Some(19_999));
    }

    #[test]
    fn flood_from_many_clients_is_bounded_and_so_is_its_memory() {
        let mut limit = LogLimit::default();
        let written = (0..100_000).filter(|&n| limit.admit(LineKind::NotFtp, client(n), START).is_some()).count();
        assert_eq!(written, 50);
        assert!(limit.clients.len() <= MAX_CLIENTS * LineKind::ALL.len() + LineKind::ALL.len());
        let suppressed = limit.sweep(START + WINDOW);
        assert_eq!(suppressed.len(), 1);
        assert_eq!((suppressed[0].0, suppressed[0].1.lines), (LineKind::NotFtp, 99_950));
        assert!(limit.clients.is_empty());
    }

    #[test]
    fn suppressed_lines_are_reported_once_if_no_line_follows() {
        let mut limit = LogLimit::default();
        for _ in 0..10 {
            limit.admit(LineKind::Refused, client(1), START);
        }
        assert_eq!(limit.sweep(START + WINDOW / 2), []);
        let reported = Suppressed { lines: 9, clients: 1, client: client(1) };
        assert_eq!(limit.sweep(START + WINDOW * 2), [(LineKind::Refused, reported)]);
        let text = |suppressed: Suppressed| suppressed.of_kind(LineKind::Refused);
        assert_eq!(text(reported), "suppressed 9 lines `refused` from 0.0.0.1");
        assert_eq!(text(Suppressed { clients: 2, ..reported }), "suppressed 9 lines `refused` from 2 clients");
        assert_eq!(text(Suppressed { client: None, ..reported }), "suppressed 9 lines `refused` from 1 client");
        assert_eq!(limit.sweep(START + WINDOW * 4), []);
    }

    #[test]
    fn lines_about_a_busy_servers_transfers_are_written() {
        let mut limit = LogLimit::default();
        let written = (0..500).filter(|_| limit.admit(LineKind::Opened, client(1), START).is_some()).count();
        assert_eq!(written, 200);
    }
}
