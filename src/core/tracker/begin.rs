//! Begins a session, from a packet of a connection that the firewall knows.

use super::memory::Buffered;
use super::origins::Origins;
use super::quotas::first_rank;
use super::table::{Placed, Tracked};
use super::{ClientKey, Handled, Observer, OnGap, SessionEvent, SessionNumber, Tracker, World};
use crate::core::kernel::{Control, Firewall, LookupFailed, Progress};
use crate::core::net::{Direction, Flags, Segment};
use crate::core::policy::{Pickup, Policy};
use crate::core::seqadj::{Rewriters, Verdict};
use crate::core::session::Session;

impl Tracker {
    /// Begins a session with a segment of no known session, if it belongs to a control connection.
    pub(super) fn begin<F: Firewall, O: Observer>(
        &mut self,
        segment: &Segment<'_>,
        world: &mut World<'_, F, O>,
    ) -> Result<Option<(u32, Direction)>, LookupFailed> {
        // A bare ACK or RST begins no session. Neither does a SYN, which costs its sender nothing: the server's
        // SYN-ACK does.
        let is_opened = segment.flags.has(Flags::SYN) && segment.flags.has(Flags::ACK);
        // An urgent pointer may mean a byte that comes later, and then the server leaves it out of a command.
        let has_content = !segment.payload.is_empty() || (segment.flags.has(Flags::URG) && world.policy.holds_back());
        if segment.flags.has(Flags::RST) || (!is_opened && !has_content) {
            return Ok(None);
        }
        let Some(Control { connection, id, is_opening, progress, synced, adjustments }) =
            world.firewall.control_connection(&segment.flow)?
        else {
            return Ok(None);
        };
        let from_the_start = segment.flags.has(Flags::SYN) && is_opening;
        if !from_the_start && (progress == Progress::Unreadable || !has_content) {
            return Ok(None);
        }
        let Some(direction) = connection.direction_of(&segment.flow) else { return Ok(None) };
        let session = if from_the_start {
            Session::from_the_start()
        } else {
            let known = match world.policy.pickup {
                Pickup::Marked => progress,
                Pickup::Never => Progress::Unknown,
                Pickup::Trust => Progress::LoggedIn,
            };
            Session::from_the_middle(known, synced)
        };
        let recorded = if from_the_start { Progress::Unknown } else { progress };
        let rank = first_rank(&session, segment, direction);
        self.make_room(ClientKey::of(connection.client().address), rank, world);
        self.sessions_begun += 1;
        let number = SessionNumber(self.sessions_begun);
        let rule = world.policy.match_rule(connection.client().address, connection.server().address);
        let may_change = connection.is_translated() || world.policy.terms(rule).holds_back();
        let rewriters = may_change.then(|| Box::new(Rewriters::found(&adjustments)));
        let slot = self.sessions.insert(Tracked {
            connection,
            id,
            number,
            rule,
            ended: None,
            last_packet: world.now,
            place: Placed::new(rank, world.now),
            buffered: Buffered::nothing(!rank.is_established()),
            session,
            origins: Origins::default(),
            recorded,
            rewriters,
        });
        world.report(number, &SessionEvent::Began { connection: &connection, picked_up: !from_the_start });
        Ok(Some((slot, direction)))
    }
}

/// The verdict on a packet whose connection is unknown because the kernel did not answer. First the packet is kept,
/// like one behind a missing segment; when it is retransmitted, the kernel is asked again. At last it passes unread
/// and nothing opens for its session; but it is dropped if it may carry a command that the policy denies.
pub(super) fn unknown_connection(on_gap: OnGap, policy: &Policy) -> Handled {
    match on_gap {
        OnGap::Wait => Handled::Session(Verdict::Later),
        OnGap::Continue if policy.holds_back() => Handled::Session(Verdict::Drop),
        OnGap::Continue => Handled::NotOurs,
    }
}
