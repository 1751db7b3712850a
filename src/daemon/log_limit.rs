//! Limits the log lines that one client may cause, per kind of line.
//!
//! Each client has its own share, so that a flood from one address does not hide the lines about another one. All
//! clients together have a share, too, because a flood may come from many addresses.

use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::core::time::Timestamp;
use crate::core::tracker::ClientKey;

/// The time for which lines are counted together.
const WINDOW: Duration = Duration::from_secs(1);

/// How many clients are told apart. Beyond them, new ones share one share.
const MOST_CLIENTS: usize = 1024;

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum LineKind {
    NotFtp,
    Refused,
    Denied,
    Encrypted,
    Opened,
    Used,
    Expired,
    Closed,
}

impl LineKind {
    const ALL: [Self; 8] = [
        Self::NotFtp,
        Self::Refused,
        Self::Denied,
        Self::Encrypted,
        Self::Opened,
        Self::Used,
        Self::Expired,
        Self::Closed,
    ];

    /// How many such lines one client may cause a second, and all together.
    const fn most(self) -> (u32, u32) {
        match self {
            Self::NotFtp | Self::Refused | Self::Denied | Self::Encrypted => (1, 50),
            Self::Opened | Self::Used | Self::Expired | Self::Closed => (200, 2000),
        }
    }

    /// What such a line says, for people.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::NotFtp => "does not talk FTP",
            Self::Refused => "refused",
            Self::Denied => "the policy denies",
            Self::Encrypted => "is encrypted",
            Self::Opened => "opened",
            Self::Used => "used",
            Self::Expired => "expired",
            Self::Closed => "closed",
        }
    }
}

/// Lines of one second.
#[derive(Debug, Default)]
struct Window {
    since: Timestamp,
    said: u32,
    /// Left out since the last line that was said.
    omitted: u64,
}

impl Window {
    fn begin(&mut self, now: Timestamp) {
        if now.since(self.since) >= WINDOW {
            self.since = now;
            self.said = 0;
        }
    }
}

/// Lines that were left out and not told of yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Omitted {
    /// How many.
    pub(super) lines: u64,
    /// Of how many clients; those beyond the ones that are told apart count as one.
    pub(super) clients: u64,
}

/// Decides which lines are said.
#[derive(Debug, Default)]
pub(super) struct LogLimit {
    clients: HashMap<(LineKind, Option<ClientKey>), Window, RandomState>,
    all: [Window; LineKind::ALL.len()],
    swept: Timestamp,
}

impl LogLimit {
    /// Whether a line may be said that this client has caused; then, how many such lines of its were left out before.
    pub(super) fn admit(&mut self, kind: LineKind, client: Option<ClientKey>, now: Timestamp) -> Option<u64> {
        let is_known = self.clients.contains_key(&(kind, client));
        let client = client.filter(|_| is_known || self.clients.len() < MOST_CLIENTS * LineKind::ALL.len());
        let own = self.clients.entry((kind, client)).or_default();
        let all = &mut self.all[kind as usize];
        own.begin(now);
        all.begin(now);
        let (most_own, most) = kind.most();
        if own.said >= most_own || all.said >= most {
            own.omitted += 1;
            return None;
        }
        own.said += 1;
        all.said += 1;
        Some(std::mem::take(&mut own.omitted))
    }

    /// What was left out and is not followed by a line that would say so; and forgets clients that are quiet. Worth asking
    /// once a second.
    pub(super) fn sweep(&mut self, now: Timestamp) -> Vec<(LineKind, Omitted)> {
        if now.since(self.swept) < WINDOW {
            return Vec::new();
        }
        self.swept = now;
        let mut omitted = [Omitted::default(); LineKind::ALL.len()];
        self.clients.retain(|(kind, _), window| {
            if now.since(window.since) < WINDOW {
                return true;
            }
            let of_kind = &mut omitted[*kind as usize];
            of_kind.lines += window.omitted;
            of_kind.clients += u64::from(window.omitted > 0);
            false
        });
        LineKind::ALL.into_iter().zip(omitted).filter(|(_, omitted)| omitted.lines > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u32) -> Option<ClientKey> {
        Some(ClientKey::of(std::net::Ipv4Addr::from(number).into()))
    }

    const START: Timestamp = Timestamp::from_secs(5);

    #[test]
    fn flood_from_one_client_hides_no_other_clients_line() {
        let mut limit = LogLimit::default();
        let said = (0..20_000).filter(|_| limit.admit(LineKind::NotFtp, client(1), START).is_some()).count();
        assert_eq!(said, 1);
        assert_eq!(limit.admit(LineKind::NotFtp, client(2), START), Some(0));
        assert_eq!(limit.admit(LineKind::Refused, client(1), START), Some(0), "a line of another kind");
        assert_eq!(limit.admit(LineKind::NotFtp, client(1), START + WINDOW), Some(19_999));
    }

    #[test]
    fn flood_from_many_clients_is_bounded_and_so_is_its_memory() {
        let mut limit = LogLimit::default();
        let said = (0..100_000).filter(|&n| limit.admit(LineKind::NotFtp, client(n), START).is_some()).count();
        assert_eq!(said, 50);
        assert!(limit.clients.len() <= MOST_CLIENTS * LineKind::ALL.len() + LineKind::ALL.len());
        let omitted = limit.sweep(START + WINDOW);
        assert_eq!(omitted.len(), 1);
        assert_eq!((omitted[0].0, omitted[0].1.lines), (LineKind::NotFtp, 99_950));
        assert!(limit.clients.is_empty());
    }

    #[test]
    fn omitted_lines_are_told_of_once_without_a_line_behind_them() {
        let mut limit = LogLimit::default();
        for _ in 0..10 {
            limit.admit(LineKind::Refused, client(1), START);
        }
        assert_eq!(limit.sweep(START + WINDOW / 2), []);
        assert_eq!(limit.sweep(START + WINDOW * 2), [(LineKind::Refused, Omitted { lines: 9, clients: 1 })]);
        assert_eq!(limit.sweep(START + WINDOW * 4), []);
    }

    #[test]
    fn a_busy_servers_transfers_are_said() {
        let mut limit = LogLimit::default();
        let said = (0..500).filter(|_| limit.admit(LineKind::Opened, client(1), START).is_some()).count();
        assert_eq!(said, 200);
    }
}
