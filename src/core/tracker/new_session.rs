//! Begins sessions: from the start of a control connection, or picked up in the middle.

use super::memory_budget::Buffered;
use super::origins::Origins;
use super::quotas::first_rank;
use super::table::{ListPosition, Tracked};
use super::{ClientKey, Environment, Observer, OnGap, SessionEvent, SessionNumber, Tracker, TrackerVerdict};
use crate::core::kernel::{Control, Firewall, LookupFailed, SessionProgress};
use crate::core::net::{Direction, Flags, Port, Segment};
use crate::core::policy::{Pickup, Policy};
use crate::core::seqadj::{Adjustments, Rewriters, Verdict};
use crate::core::session::Session;

impl Tracker {
    /// Begins a session with a segment that belongs to no known session, if it belongs to a control connection.
    pub(super) fn begin<F: Firewall, O: Observer>(
        &mut self,
        segment: &Segment<'_>,
        env: &mut Environment<'_, F, O>,
    ) -> Result<Option<(u32, Direction)>, LookupFailed> {
        // A bare ACK or RST begins no session. Neither does a SYN, which costs its sender nothing: the server's
        // SYN-ACK does.
        let is_opened = segment.flags.has(Flags::SYN) && segment.flags.has(Flags::ACK);
        // An urgent pointer may mean a byte that comes later, and then the server leaves it out of a command.
        let has_content = !segment.payload.is_empty() || (segment.flags.has(Flags::URG) && env.policy.holds_back());
        if segment.flags.has(Flags::RST) || (!is_opened && !has_content) {
            return Ok(None);
        }
        let Some(Control { connection, id, is_opening, progress, synced, adjustments }) =
            env.firewall.control_connection(&segment.flow)?
        else {
            return Ok(None);
        };
        let from_start = segment.flags.has(Flags::SYN) && is_opening;
        if !from_start && (progress == SessionProgress::Unreadable || !has_content) {
            return Ok(None);
        }
        let Some(direction) = connection.direction_of(&segment.flow) else { return Ok(None) };
        let session = if from_start {
            Session::from_start()
        } else {
            let known = match env.policy.pickup {
                Pickup::Marked => progress,
                Pickup::Never => SessionProgress::Unknown,
                Pickup::Trust => SessionProgress::LoggedIn,
            };
            Session::picked_up(known, synced)
        };
        let recorded = if from_start { SessionProgress::Unknown } else { progress };
        let rank = first_rank(&session, segment, direction);
        self.make_room(ClientKey::of(connection.client().address), rank, env);
        self.sessions_begun += 1;
        let number = SessionNumber(self.sessions_begun);
        let rule = env.policy.match_rule(connection.client().address, connection.server().address);
        let (client, server) = (connection.client().address, connection.reply.source.address);
        // Within one host each session is between the same two addresses, and an opened port gives nobody more than he has.
        let may_be_data = connection.client().port == Port::FTP_DATA
            || (client != server && self.sessions.is_any_between(server, client));
        let may_change = connection.is_translated() || env.policy.terms(rule).may_change_lines();
        let is_changed = adjustments != Adjustments::default();
        let rewriters = (may_change || is_changed).then(|| Box::new(Rewriters::with_adjustments(&adjustments)));
        let slot = self.sessions.insert(Tracked {
            connection,
            id,
            number,
            rule,
            ended: None,
            last_packet: env.now,
            position: ListPosition::new(rank, env.now),
            buffered: Buffered::empty(!rank.is_established()),
            session,
            origins: Origins::default(),
            may_be_data,
            recorded,
            rewriters,
        });
        let rule = env.policy.rule_name(rule);
        env.report(number, &SessionEvent::Began { connection: &connection, picked_up: !from_start, rule });
        Ok(Some((slot, direction)))
    }
}

/// The verdict on a packet whose connection could not be looked up in the kernel. The packet waits first, as if an
/// earlier segment were missing; a retransmission causes another lookup. In the end it passes unread, and nothing opens
/// for its session; but if the policy denies something, it is dropped, because it may contain a denied command.
pub(super) fn unknown_connection(on_gap: OnGap, policy: &Policy) -> TrackerVerdict {
    match on_gap {
        OnGap::Wait => TrackerVerdict::Session(Verdict::Wait),
        OnGap::Continue if policy.holds_back() => TrackerVerdict::Session(Verdict::Drop),
        OnGap::Continue => TrackerVerdict::Untracked,
    }
}

#[cfg(test)]
#[path = "new_session_tests.rs"]
mod tests;
