//! Bounds the memory for the buffers of all sessions: bytes out of order, and unfinished lines.

use std::num::NonZeroU32;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::client::ClientKey;
use crate::core::policy::Limits;

/// One client may use 1/16 of the memory, or `reorder_bytes` if that is more.
const CLIENT_DIVISOR: usize = 16;

/// All sessions before a login together may use 1/4 of the memory.
const BEFORE_LOGIN_DIVISOR: usize = 4;

/// How many bytes of a line are kept even when no memory is left. No announcement is longer.
const MIN_LINE_BYTES: u32 = 128;

/// The overhead of a buffer beside its bytes.
const OVERHEAD: usize = 1024;

/// The memory of the buffers of all sessions, against `limits: buffered_bytes`.
#[derive(Debug, Default)]
pub(super) struct MemoryBudget {
    used: usize,
    used_before_login: usize,
    /// Contains only clients with bytes in their sessions' buffers.
    by_client: HashMap<ClientKey, usize, RandomState>,
    refusals: u64,
}

/// The memory of one session's buffers, as last counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffered {
    bytes: u32,
    is_before_login: bool,
}

impl Buffered {
    pub(super) const fn empty(is_before_login: bool) -> Self {
        Self { bytes: 0, is_before_login }
    }
}

impl MemoryBudget {
    /// The bytes in the buffers of all sessions.
    pub(super) const fn used(&self) -> usize {
        self.used
    }

    /// How often a session needed more memory than was available for it.
    pub(super) const fn refusals(&self) -> u64 {
        self.refusals
    }

    /// How many more bytes a session of this client may buffer. If little is left, no other session's buffers are
    /// emptied; the session that needs memory does not get it.
    fn left(&self, client: ClientKey, is_before_login: bool, limits: &Limits) -> usize {
        let all = limits.buffered_bytes.get() as usize;
        let of_client = (all / CLIENT_DIVISOR).max(limits.reorder_bytes.get() as usize);
        let left = all.saturating_sub(self.used);
        let left_of_client = of_client.saturating_sub(self.by_client.get(&client).copied().unwrap_or(0));
        let left_before_login = (all / BEFORE_LOGIN_DIVISOR).saturating_sub(self.used_before_login);
        let left = left.min(left_of_client);
        if is_before_login { left.min(left_before_login) } else { left }
    }

    /// The limits under which a session of this client may handle a segment of this many bytes, if it may need more
    /// memory than is left; `None` if the policy's own limits apply.
    pub(super) fn narrowed(
        &self,
        limits: &Limits,
        client: ClientKey,
        session: Buffered,
        bytes: usize,
    ) -> Option<Limits> {
        // A buffer grows by doubling.
        let most = 2 * bytes + OVERHEAD;
        if bytes == 0 || self.left(client, session.is_before_login, limits) >= most {
            return None;
        }
        let reorder_bytes = NonZeroU32::MIN;
        let line_bytes = limits.line_bytes.min(NonZeroU32::new(MIN_LINE_BYTES).unwrap_or(NonZeroU32::MIN));
        Some(Limits { reorder_bytes, line_bytes, ..*limits })
    }

    /// A session has dropped bytes because no memory was available.
    pub(super) const fn count_refusal(&mut self) {
        self.refusals += 1;
    }

    /// Updates the count of a session's buffers.
    pub(super) fn count(&mut self, client: ClientKey, session: &mut Buffered, bytes: usize, is_before_login: bool) {
        let now = Buffered { bytes: u32::try_from(bytes).unwrap_or(u32::MAX), is_before_login };
        let before = std::mem::replace(session, now);
        if before.bytes == 0 && now.bytes == 0 {
            return;
        }
        let change = |sum: usize| (sum + now.bytes as usize).saturating_sub(before.bytes as usize);
        self.used = change(self.used);
        if before.is_before_login {
            self.used_before_login = self.used_before_login.saturating_sub(before.bytes as usize);
        }
        if now.is_before_login {
            self.used_before_login += now.bytes as usize;
        }
        let of_client = self.by_client.entry(client).or_default();
        *of_client = change(*of_client);
        if *of_client == 0 {
            self.by_client.remove(&client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: fn() -> Limits = || Limits {
        buffered_bytes: NonZeroU32::new(64_000).expect("not zero"),
        reorder_bytes: NonZeroU32::new(4000).expect("not zero"),
        ..Limits::default()
    };

    fn client(number: u32) -> ClientKey {
        ClientKey::of(std::net::Ipv4Addr::from(number).into())
    }

    /// Whether a session of that client may buffer 100 bytes more.
    fn has_room(budget: &MemoryBudget, of: u32, is_before_login: bool) -> bool {
        budget.narrowed(&LIMITS(), client(of), Buffered::empty(is_before_login), 100).is_none()
    }

    #[test]
    fn one_client_gets_a_sixteenth() {
        let mut budget = MemoryBudget::default();
        let (mut one, mut other) = (Buffered::empty(false), Buffered::empty(false));
        budget.count(client(1), &mut one, 2000, false);
        assert!(has_room(&budget, 1, false));
        budget.count(client(1), &mut other, 1000, false);
        assert!(!has_room(&budget, 1, false) && has_room(&budget, 2, false));
        budget.count(client(1), &mut one, 0, false);
        assert!(has_room(&budget, 1, false));
        budget.count(client(1), &mut other, 0, false);
        assert!(budget.by_client.is_empty() && budget.used() == 0);
    }

    #[test]
    fn sessions_before_login_get_a_quarter_of_all() {
        let mut budget = MemoryBudget::default();
        let mut sessions = [Buffered::empty(true); 4];
        for (number, session) in (1..).zip(&mut sessions) {
            budget.count(client(number), session, 4000, true);
        }
        assert!(!has_room(&budget, 9, true) && has_room(&budget, 9, false));
        // After a login it does not count there.
        budget.count(client(1), &mut sessions[0], 4000, false);
        assert!(has_room(&budget, 9, true));
        assert_eq!((budget.used(), budget.used_before_login), (16_000, 12_000));
    }

    #[test]
    fn line_as_long_as_an_announcement_is_always_read() {
        let mut budget = MemoryBudget::default();
        budget.count(client(1), &mut Buffered::empty(false), 64_000, false);
        let narrowed = budget.narrowed(&LIMITS(), client(2), Buffered::empty(false), 1).expect("no room");
        assert_eq!((narrowed.line_bytes.get(), narrowed.reorder_bytes.get()), (128, 1));
    }
}
