//! Handles a segment of a known session, up to the verdict.

use super::context::SessionContext;
use super::port_search::PortSearch;
use super::ranges::Ranges;
use super::table::Tracked;
use super::{ClientKey, EndReason, Environment, Observer, OnGap, SessionEvent, Tracker};
use crate::core::kernel::{Firewall, SessionProgress};
use crate::core::net::{Direction, Flags, Segment};
use crate::core::policy::Terms;
use crate::core::seqadj::{Replacement, Verdict};
use crate::core::session::TcpClose;
use crate::core::session::reassembly::{Acceptance, StreamAnomaly};

impl Tracker {
    /// Decides which bytes of a segment may pass, reads them, and acts on each line.
    pub(super) fn segment<F: Firewall, O: Observer>(
        &mut self,
        slot: u32,
        segment: &Segment<'_>,
        direction: Direction,
        on_gap: OnGap,
        env: &mut Environment<'_, F, O>,
    ) -> Verdict {
        self.sessions.touch(slot, env.now);
        let Self { sessions, expectations, ranges, memory, .. } = self;
        let Some(tracked) = sessions.get_mut(slot) else { return Verdict::Accept };
        let policy = env.policy;
        let terms = policy.terms(tracked.rule);
        tracked.find_syn_proxy(segment, direction, env);
        let client = ClientKey::of(tracked.connection.client().address);
        let narrowed = memory.narrowed(&policy.limits, client, tracked.buffered, segment.payload.len());
        let limits = narrowed.as_ref().unwrap_or(&policy.limits);

        let corrected = match tracked.session.check_segment(segment, direction, terms.holds_back(), limits) {
            Acceptance::AsSent => None,
            Acceptance::Corrected(payload) => {
                env.report(tracked.number, &SessionEvent::Anomaly(StreamAnomaly::ChangedRetransmission));
                Some(payload)
            }
            Acceptance::Refused(anomaly) => {
                if narrowed.is_some() && anomaly == StreamAnomaly::TooManyOutOfOrder {
                    memory.count_refusal();
                }
                env.report(tracked.number, &SessionEvent::Anomaly(anomaly));
                return Verdict::Drop;
            }
        };
        let mut segment = Segment { payload: corrected.as_deref().unwrap_or(segment.payload), ..*segment };
        if let Some(verdict) = tracked.verdict_on_gap(&segment, direction, terms, on_gap) {
            return verdict;
        }
        tracked.track_rewritten(&mut segment, direction);

        let mut context = SessionContext {
            slot,
            number: tracked.number,
            connection: &tracked.connection,
            terms,
            has_ended: tracked.ended.is_some(),
            is_forged: tracked.origins.are_doubtful(),
            may_be_data: tracked.may_be_data,
            has_known_start: tracked.session.dialogue().has_known_start(),
            had_no_entry: tracked.id.is_none(),
            has_refused: false,
            must_drop: false,
            search: PortSearch::new(),
            expectations,
            ranges,
            narrowed_memory: narrowed.is_some().then_some(memory),
            segment: &segment,
            direction,
            rewriters: tracked.rewriters.as_deref_mut(),
            env,
        };
        context.encrypted_segment();
        let mut reader = tracked.session.segment(&segment, direction, limits);
        while let Some(output) = reader.advance() {
            context.act(output);
        }
        let tcp_close = reader.tcp_close();
        let verdict = context.verdict(&tracked.session);
        if context.has_refused {
            tracked.session.note_refusal(direction);
        }

        tracked.record_progress(slot, terms, ranges, env);
        self.classify(slot, (direction, segment.payload.len()), env.now);
        match tcp_close {
            None => {}
            Some(TcpClose::Fin) => self.end_and_linger(slot, EndReason::Finished, env),
            Some(TcpClose::Rst) => self.end_and_linger(slot, EndReason::Reset, env),
        }

        if verdict != Verdict::Accept {
            return verdict;
        }
        // A server may leave an urgent byte out of its stream. A replaced packet has no urgent pointer.
        let is_urgent = direction == Direction::FromClient && segment.flags.has(Flags::URG) && terms.holds_back();
        let seq = segment.seq;
        match corrected {
            Some(payload) => Verdict::Replace(Replacement { seq, payload }),
            None if is_urgent => Verdict::Replace(Replacement { seq, payload: segment.payload.to_vec() }),
            None => Verdict::Accept,
        }
    }
}

impl Tracked {
    /// The verdict on a segment that must not be read before a missing earlier one: bytes that have to be rewritten, or
    /// a command that the policy denies, could pass.
    fn verdict_on_gap(
        &mut self,
        segment: &Segment<'_>,
        direction: Direction,
        terms: &Terms,
        on_gap: OnGap,
    ) -> Option<Verdict> {
        let rewriters = self.rewriters.as_deref()?;
        if !self.session.is_ahead(segment, direction) {
            return None;
        }
        if on_gap == OnGap::Wait {
            return Some(Verdict::Wait);
        }
        if direction == Direction::FromServer || !terms.holds_back() {
            return None;
        }
        // A denied command must not pass unread. But the bytes of a gap that passed unread will not be retransmitted.
        let ack = rewriters.get(direction.opposite()).adjustment().acknowledgement(segment.ack);
        if !self.session.acknowledges_unread(&Segment { ack, ..*segment }, direction) {
            return Some(Verdict::Drop);
        }
        self.session.give_up_before(segment, direction);
        None
    }

    /// Updates the rewriters for a segment that will be read, and translates its acknowledgement from the receiver's to
    /// the sender's sequence numbers.
    fn track_rewritten(&mut self, segment: &mut Segment<'_>, direction: Direction) {
        let Some(rewriters) = self.rewriters.as_deref_mut() else { return };
        if !segment.payload.is_empty() {
            rewriters.get_mut(direction).continue_from(segment.seq);
        }
        if segment.flags.has(Flags::ACK) {
            segment.ack = rewriters.get_mut(direction.opposite()).acknowledged(segment.ack);
        }
    }

    /// Has the kernel record the progress of the dialogue, if it has changed.
    fn record_progress<F: Firewall, O>(
        &mut self,
        slot: u32,
        terms: &Terms,
        ranges: &Ranges,
        env: &mut Environment<'_, F, O>,
    ) {
        let dialogue = self.session.dialogue();
        // Packets of an unreadable session are not queued any more. But a planned port range needs the encrypted
        // dialogue; and where the policy denies something, a dialogue that is not FTP is read, because its server may
        // take it for FTP.
        let may_pass_unread = if dialogue.is_encrypted() { !ranges.is_planned(slot) } else { !terms.holds_back() };
        let progress = match dialogue.progress() {
            SessionProgress::Unreadable if !may_pass_unread => SessionProgress::Unknown,
            progress => progress,
        };
        if progress != self.recorded {
            self.recorded = progress;
            env.firewall.record(&self.connection, progress);
        }
    }
}
