//! The tracker with the kernel's firewall: handles packets, conntrack events, timers and reloads.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::POLICY_FILE;
use super::clock::{self, Clock};
use super::event_log::{EventLog, RateLimiter};
use super::status::{Counters, DaemonCounters, Explanation, Gauges, PinholeStatus, Service, Status};
use crate::core::count::Count;
use crate::core::ftp::Mode;
use crate::core::hold::{NotKept, PendingPacket, PendingPackets};
use crate::core::net::{Flow, NotSegment, Origin, Segment, Seq};
use crate::core::policy::{Policy, WhenDown};
use crate::core::seqadj::Verdict;
use crate::core::tracker::{
    ClientKey, Environment, OnGap, RestoreSummary, SessionNumber, SynVerdict, Tracker, TrackerVerdict,
};
use crate::netfilter::backend::{KernelFirewall, SetupError};
use crate::netfilter::netlink::{ConnectionChange, ConnectionWatch, ConntrackEntry, Error, TableChange, WatchEvent};
use crate::netfilter::queue::QueuedPacket;
use crate::netfilter::table::Queueing;

/// How many conntrack events are handled before a packet; that many take half a millisecond. The rest is handled before
/// the next packet, or by the thread that watches connections.
const MAX_EVENTS_BEFORE_PACKET: usize = 256;

/// How many conntrack events are handled at a time while no packet waits.
const MAX_EVENTS: usize = 8192;

/// The verdict on a queued packet.
#[derive(Debug)]
pub(super) struct Decision {
    pub(super) verdict: Verdict,
    /// The packet's new mark. None leaves the mark as it is.
    pub(super) mark: Option<u32>,
    /// The packet is accepted, and passes the rules of its hook again: a pinhole is open for it now.
    pub(super) is_repeated: bool,
}

impl Decision {
    const fn of(verdict: Verdict) -> Self {
        Self { verdict, mark: None, is_repeated: false }
    }
}

#[derive(Debug)]
pub struct Engine {
    service: Service,
    policy: Policy,
    /// `capture: watchdog` of the policy in milliseconds, for threads that must not wait for the engine's lock.
    hang_limit: Arc<AtomicU32>,
    tracker: Tracker,
    firewall: KernelFirewall,
    connections: ConnectionWatch,
    pending: PendingPackets<QueuedPacket>,
    log: EventLog,
    clock: Clock,
    queue_errors: RateLimiter,
    kernel_errors: RateLimiter,
    lost_events: RateLimiter,
    /// The error that ended the reports of conntrack events.
    watch_error: Option<Error>,
    /// The table was removed on purpose: the watcher must not restore it.
    has_stopped: bool,
}

impl Engine {
    /// Installs the table and adopts the pinholes of an earlier run.
    pub(super) fn start(policy: Policy, service: Service, connections: ConnectionWatch) -> Result<Self, SetupError> {
        narrow_events(&connections, &policy)?;
        let firewall = KernelFirewall::install(&policy)?;
        let mut engine = Self {
            service,
            hang_limit: Arc::new(AtomicU32::new(hang_limit(&policy))),
            policy,
            tracker: Tracker::default(),
            firewall,
            connections,
            pending: PendingPackets::default(),
            log: EventLog::default(),
            clock: Clock::start(),
            queue_errors: RateLimiter::default(),
            kernel_errors: RateLimiter::default(),
            lost_events: RateLimiter::default(),
            watch_error: None,
            has_stopped: false,
        };
        engine.log.has_rules = !engine.policy.rules.is_empty();
        engine.adopt()?;
        Ok(engine)
    }

    /// Adopts the pinholes and port ranges that an earlier run left in the kernel.
    fn adopt(&mut self) -> Result<(), SetupError> {
        let existing = self.firewall.existing_state(self.clock.now())?;
        let (tracker, mut env) = self.tracker();
        let adoption = tracker.adopt(existing, &mut env);
        if !adoption.is_nothing() {
            self.log.counters.daemon.adopted += adoption.pinholes as u64;
            let RestoreSummary { pinholes, port_ranges, closed } = adoption;
            let (pinholes, ranges) = (Count(pinholes, "pinhole"), Count(port_ranges, "port range"));
            info!("adopted {pinholes} and {ranges} of an earlier run; closed {closed}: the session had ended");
        }
        Ok(())
    }

    /// The netlink port ID that opens and closes pinholes.
    pub(super) fn port_id(&self) -> Result<u32, Error> {
        self.firewall.port_id()
    }

    /// How long a thread that reads a queue may make no progress, in milliseconds. A reload changes it.
    pub(super) fn hang_limit(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.hang_limit)
    }

    /// Whether control connections have a userspace helper, so that verdicts have to avoid it.
    pub(super) fn has_helper(&self) -> bool {
        self.firewall.profile().has_helper
    }

    /// Whether data connections are `related`, because conntrack expects them.
    pub(super) fn is_related(&self) -> bool {
        self.firewall.profile().is_related
    }

    /// The settings in use, as log lines.
    pub(super) fn startup_lines(&self) -> Vec<String> {
        let ports: Vec<_> = self.policy.control_ports.as_slice().iter().map(ToString::to_string).collect();
        let queueing = self.firewall.queueing();
        let when_down = match self.policy.capture.when_down {
            WhenDown::Open => "fail-open for control connections while the daemon is down",
            WhenDown::Closed => "fail-closed for control connections while the daemon is down",
        };
        let admit: Vec<_> = self.policy.admit.iter().map(ToString::to_string).collect();
        let profile = self.firewall.profile();
        let own_rule = self.firewall.own_rule();
        let by_rule = match admit.as_slice() {
            [] if profile.is_related => format!("`ct state related`, or your own rule: {own_rule}"),
            [] => format!("your own rule: {own_rule}"),
            chains => format!("a rule at the top of {}", chains.join(", ")),
        };
        let policy = match &self.service.policy_file {
            Some(file) => format!("policy {file}"),
            None => format!("the embedded policy, as there is no {POLICY_FILE}"),
        };
        vec![
            policy,
            format!("control ports {}; {when_down}", ports.join(", ")),
            format!("mechanism {}, {}", profile.mechanism, self.firewall.mechanism_reason()),
            format!("installed table inet pinhole; packets are queued by {queueing}"),
            format!("announced data connections carry the mark {} and are let in by {by_rule}", self.policy.mark),
            self.firewall.limit_of_saved_rulesets().to_owned(),
        ]
    }

    /// Decides about a queued packet. When this returns, the pinholes that the packet announces are open.
    ///
    /// A packet with the verdict `Later` has to be kept before the next packet is handled: otherwise the missing segment
    /// could pass in between.
    pub(super) fn packet(&mut self, packet: &QueuedPacket, segment: &Result<Segment<'_>, NotSegment>) -> Decision {
        self.log.counters.events.packets += 1;
        self.decide(packet, segment, OnGap::Wait)
    }

    /// Keeps a packet until the missing earlier segment has come. If too many packets are kept, returns the packet with a
    /// verdict.
    pub(super) fn keep(&mut self, packet: QueuedPacket, place: (Flow, Seq)) -> Option<(QueuedPacket, Decision)> {
        let (flow, _) = place;
        // Without a session, the packet counts to its sender.
        let client = self.tracker.client_of(&flow).unwrap_or_else(|| ClientKey::of(flow.source.address));
        let (packet, why) = self.pending.keep(PendingPacket::new(packet, place, client, self.clock.now())).err()?;
        if why == NotKept::Full {
            self.log.counters.daemon.not_kept += 1;
        }
        Some(self.decide_again(packet, OnGap::Continue))
    }

    /// Whether packets are kept.
    pub(super) const fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The next kept packet that does not have to wait any longer, because it was kept for too long, or because it is of
    /// this flow and its missing segment has come.
    pub(super) fn next_released(&mut self, flow: Option<Flow>) -> Option<(QueuedPacket, Decision)> {
        if let Some(packet) = self.pending.take_expired(self.clock.now()) {
            return Some(self.decide_again(packet, OnGap::Continue));
        }
        let flow = flow?;
        let mut from = 0;
        while let Some((place, mut pending)) = self.pending.take_of_flow(&flow, from) {
            let (packet, decision) = self.decide_again(pending.packet, OnGap::Wait);
            if decision.verdict != Verdict::Wait {
                return Some((packet, decision));
            }
            pending.packet = packet;
            self.pending.put_back(place, pending);
            from = place + 1;
        }
        None
    }

    fn decide_again(&mut self, packet: QueuedPacket, on_gap: OnGap) -> (QueuedPacket, Decision) {
        let decision = self.decide(&packet, &Segment::parse_verified(packet.packet()), on_gap);
        (packet, decision)
    }

    fn decide(&mut self, packet: &QueuedPacket, segment: &Result<Segment<'_>, NotSegment>, on_gap: OnGap) -> Decision {
        // The kernel reports a data connection before client and server can continue the dialogue. So a used pinhole
        // does not count towards a limit any more, and is not mistaken for the pinhole that this packet announces.
        if !before_packet(|| self.read_conntrack_event()) {
            self.tracker.note_missing_events(self.clock.now());
        }
        let mut decision = Decision::of(Verdict::Accept);
        if segment.is_err() && self.policy.holds_back() {
            // The receiver may be able to read it, and may find a denied command in it.
            decision.verdict = Verdict::Drop;
        }
        match segment {
            Ok(segment) => decision = self.segment(packet, segment, on_gap),
            Err(NotSegment::BadChecksum) => {
                self.log.counters.events.damaged += 1;
                decision.verdict = Verdict::Drop;
            }
            Err(NotSegment::Fragment) => self.log.counters.events.fragments += 1,
            Err(NotSegment::NotIp | NotSegment::NotTcp | NotSegment::BadTcp) => self.log.counters.events.damaged += 1,
        }
        if self.firewall.lacks_pinholes() {
            self.restore();
        }
        self.log_kernel_errors();
        decision
    }

    fn segment(&mut self, packet: &QueuedPacket, segment: &Segment<'_>, on_gap: OnGap) -> Decision {
        let bits = self.policy.mark.control_bits();
        let origin = Origin {
            interface: packet.interface(),
            port: packet.bridge_port(),
            is_doubtful: bits.is_doubtful(packet.mark()),
        };
        let segment = Segment { origin: Some(origin), ..*segment };
        let (tracker, mut env) = self.tracker();
        if tracker.next_deadline().is_some_and(|due| due <= env.now) {
            tracker.advance(&mut env);
        }
        if segment.flags.is_first_syn() {
            let syn = tracker.syn(&segment.flow, &mut env);
            if syn != SynVerdict::NotAsked {
                return Decision { is_repeated: syn == SynVerdict::Repeat, ..Decision::of(Verdict::Accept) };
            }
        }
        let TrackerVerdict::Session(verdict) = tracker.handle_on_gap(&segment, on_gap, &mut env) else {
            return Decision::of(Verdict::Accept);
        };
        // Only a packet with payload reaches the chain that clears the mark again. Routing may depend on the mark of a
        // packet that this host sends. If another program has set that mark, it stays, and the sync bits are not set.
        let may_mark = !segment.payload.is_empty() && (!packet.is_outgoing() || packet.mark() == 0);
        let is_synced = if may_mark { tracker.is_synced(&segment.flow) } else { None };
        let mark = is_synced.map(|synced| bits.of_packet(packet.mark(), synced));
        Decision { verdict, mark, is_repeated: false }
    }

    /// Expires pinholes and sessions, and reports suppressed log lines. Called at least every few seconds.
    pub(super) fn expire(&mut self) {
        // A data connection that was just reported has used its pinhole.
        if !self.read_conntrack_events(MAX_EVENTS) {
            self.tracker.note_missing_events(self.clock.now());
        }
        let (tracker, mut env) = self.tracker();
        tracker.advance(&mut env);
        self.log.report_suppressed(self.clock.now());
        self.log_kernel_errors();
    }

    /// Handles conntrack events while no packet comes, and removes used pinholes from the kernel.
    pub(super) fn handle_conntrack_events(&mut self) {
        self.read_conntrack_events(MAX_EVENTS);
        self.firewall.sweep();
        self.log_kernel_errors();
    }

    /// The error that ended the reports of conntrack events. Without events, the daemon does not notice used pinholes.
    pub(super) fn take_watch_error(&mut self) -> Option<Error> {
        self.watch_error.take()
    }

    /// Handles the conntrack events that have arrived, `max` at most, because new events may keep arriving. Returns whether
    /// none is left.
    fn read_conntrack_events(&mut self, max: usize) -> bool {
        repeat(max, || self.read_conntrack_event())
    }

    /// Handles the next conntrack event. Returns false if there is none.
    fn read_conntrack_event(&mut self) -> bool {
        match self.connections.next(Duration::ZERO) {
            Ok(WatchEvent::Change(ConnectionChange::Began(entry))) => self.connection_began(&entry),
            Ok(WatchEvent::Change(ConnectionChange::Ended(entry))) => self.connection_ended(&entry),
            Ok(WatchEvent::Overrun) => {
                self.tracker.note_missing_events(self.clock.now());
                if let Some(times) = self.lost_events.admit(self.clock.now()) {
                    warn!(
                        "lost conntrack events ({times} times since the last such line): the counter `used` may be too low"
                    );
                }
            }
            Ok(WatchEvent::Timeout) => return false,
            // The thread that watches connections ends the program; the next run opens a new socket.
            Err(error) => {
                self.watch_error = Some(error);
                return false;
            }
        }
        true
    }

    /// A new connection is a data connection if it has Pinhole's mark or was expected. (An expected connection has no
    /// mark if another program has just flushed the rule that sets it.)
    fn connection_began(&mut self, entry: &ConntrackEntry) {
        let is_marked = entry.mark & self.policy.mark.bits() == self.policy.mark.bits();
        if !is_marked && !entry.is_expected() {
            return;
        }
        let flow = entry.connection.original;
        // The event precedes the packet that announces the next data connection to the same port. So the connection has
        // used the earlier pinhole.
        self.firewall.used(&flow);
        let (tracker, mut env) = self.tracker();
        let session = tracker.admitted(&flow, &mut env);
        // An unmarked connection that no pinhole here expected belongs to another helper.
        if session.is_none() && is_marked {
            self.log.counters.events.used += 1;
            debug!("used {flow}; adopted");
        }
    }

    fn connection_ended(&mut self, entry: &ConntrackEntry) {
        let flow = entry.connection.original;
        let (tracker, mut env) = self.tracker();
        tracker.forgotten(&flow, &mut env);
    }

    pub(super) fn ruleset_changed(&mut self, change: &TableChange) {
        if self.firewall.concerns(change) {
            self.restore();
        }
    }

    /// Restores the parts of the table, the pinholes and the accept rules that another program has removed.
    pub(super) fn restore(&mut self) {
        if self.has_stopped {
            return;
        }
        // Used pinholes must not be restored.
        self.read_conntrack_events(MAX_EVENTS);
        let now = self.clock.now();
        let pinholes = self.tracker.pinholes().map(|(.., expectation)| expectation);
        let restored = self.firewall.restore(now, pinholes);
        if let Some(reason) = restored.as_ref().ok().and_then(|restored| restored.prepared_for) {
            let limit = self.firewall.limit_of_saved_rulesets();
            info!("another table has a {reason} now, so new control connections are prepared for it; {limit}");
        }
        match restored {
            Ok(restored) if restored.is_nothing() => {}
            Ok(restored) => {
                self.log.counters.daemon.restored += 1;
                if restored.table {
                    self.firewall.forget_synced(self.tracker.live().map(|(_, connection, _)| connection));
                }
                if restored.was_gone {
                    self.firewall.set_tcp_be_liberal(self.tracker.live().map(|(_, connection, _)| connection));
                }
                info!(
                    "restored {}{} and {} after another program changed the ruleset",
                    if restored.table { "the table inet pinhole, " } else { "" },
                    Count(restored.elements, "pinhole"),
                    Count(restored.admitted.len(), "accept rule"),
                );
                for chain in restored.without_chain {
                    warn!(
                        "chain {chain}, which the policy names in `admit`, is gone: nothing accepts data connections there"
                    );
                }
            }
            Err(error) => error!("the ruleset was changed by another program, and restoring it failed: {error}"),
        }
    }

    /// Replaces the policy. After an error the old policy stays in force.
    pub(super) fn reload(&mut self, policy: Policy) -> Result<(), SetupError> {
        self.firewall.reload(&policy)?;
        self.hang_limit.store(hang_limit(&policy), Ordering::Relaxed);
        self.policy = policy;
        self.log.has_rules = !self.policy.rules.is_empty();
        self.service.policy_loaded = clock::time_of_day();
        let (tracker, mut env) = self.tracker();
        tracker.follow(&mut env);
        narrow_events(&self.connections, &self.policy)?;
        Ok(())
    }

    /// Removes the table, the accept rules and the helper.
    pub(super) fn stop(&mut self) -> Result<(), SetupError> {
        self.has_stopped = true;
        if let Some(what_stays) = self.firewall.remove()? {
            info!("{what_stays}");
        }
        Ok(())
    }

    /// Counts and logs an error of reading a packet from the queue or of sending its verdict.
    pub(super) fn report_queue_error(&mut self, error: &io::Error) {
        self.log.counters.daemon.queue_errors += 1;
        if let Some(times) = self.queue_errors.admit(self.clock.now()) {
            warn!(
                "packet queue: {error} ({times} times since the last such line); announcements in lost packets open nothing"
            );
        }
    }

    pub(super) fn status(&mut self) -> Status {
        self.handle_conntrack_events();
        let now = self.clock.now();
        let listed = match self.firewall.pinholes() {
            Ok(pinholes) => Some(pinholes),
            Err(error) => {
                warn!("cannot list the kernel's pinholes: {error}");
                None
            }
        };
        let arrivals = listed.as_deref().map(|listed| self.firewall.arrivals(listed));
        let pinholes = self.tracker.pinholes().map(|(session, mode, expectation)| PinholeStatus {
            session: (session != SessionNumber::EARLIER).then_some(session.get()),
            announced_by: mode.map(Mode::announced_by),
            rule: self.log.rule_of(session).map(str::to_owned),
            from: expectation.from.to_string(),
            to: expectation.to.to_string(),
            delivered_to: expectation.mapping.to.map(|to| to.to_string()),
            leaves_from: expectation.mapping.from.map(|from| from.to_string()),
            age: now.since(expectation.since).as_secs_f64(),
            expires_in: expectation.expires().since(now).as_secs_f64(),
            syn_came: arrivals.as_ref().map(|arrivals| arrivals.syn_came(expectation)),
        });
        let pinholes: Vec<PinholeStatus> = pinholes.collect();
        let Self { firewall, log, .. } = self;
        let session_list = log.sessions(now, |data| firewall.bytes_of(data));
        let kernel_pinholes = listed.map(|listed| listed.len() as u64);
        let Counters { events, daemon } = self.log.counters.clone();
        let daemon = DaemonCounters { buffer_overflows: self.tracker.buffer_refusals(), ..daemon };
        Status {
            service: self.service.clone(),
            mechanism: self.firewall.profile().mechanism.to_string(),
            mechanism_reason: self.firewall.mechanism_reason().to_owned(),
            queued_by: match self.firewall.queueing() {
                Queueing::Statement => "nft_queue",
                Queueing::CompatTarget => "nft_compat",
            },
            gauges: Gauges {
                sessions: self.tracker.live().count() as u64,
                open_pinholes: pinholes.len() as u64,
                kernel_pinholes,
                buffered_bytes: self.tracker.buffered_bytes() as u64,
            },
            session_list,
            pinholes,
            counters: Counters { events, daemon },
        }
    }

    /// The recent sessions between two hosts.
    pub(super) fn explain(&mut self, client: IpAddr, server: IpAddr) -> Explanation {
        self.handle_conntrack_events();
        Explanation {
            policy_file: self.service.policy_file.clone(),
            is_related: self.is_related(),
            sessions: self.log.history.between(client, server, self.clock.now()),
        }
    }

    /// The tracker, and the arguments of its calls.
    fn tracker(&mut self) -> (&mut Tracker, Environment<'_, KernelFirewall, EventLog>) {
        let Self { policy, tracker, firewall, log, clock, .. } = self;
        (tracker, Environment { now: clock.now(), policy, firewall, observer: log })
    }

    /// Counts the requests that the kernel refused. Logs the latest error, at most once a second.
    fn log_kernel_errors(&mut self) {
        let refused = self.firewall.take_refused();
        let Some(latest) = refused.latest else { return };
        self.log.counters.daemon.kernel_errors += refused.count;
        match self.kernel_errors.admit(self.clock.now()) {
            Some(times) => warn!("the kernel: {latest} ({times} times since the last such line)"),
            None => debug!("the kernel: {latest}"),
        }
    }
}

fn hang_limit(policy: &Policy) -> u32 {
    u32::try_from(policy.capture.watchdog.as_millis()).unwrap_or(u32::MAX)
}

/// Limits the conntrack events to new data connections and ended control connections.
fn narrow_events(connections: &ConnectionWatch, policy: &Policy) -> Result<(), Error> {
    connections.narrow(policy.mark.bits(), policy.control_ports.as_slice())
}

/// Handles the conntrack events that have arrived before a packet, some of them if there are many. Returns whether none is
/// left.
fn before_packet(handle_event: impl FnMut() -> bool) -> bool {
    repeat(MAX_EVENTS_BEFORE_PACKET, handle_event)
}

/// Calls `act` until it returns false, `max` times at most. Returns whether it returned false.
fn repeat(max: usize, mut act: impl FnMut() -> bool) -> bool {
    !(0..max).all(|_| act())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conntrack_event_batch_is_bounded() {
        for (events, handled) in [(0, 1), (3, 4), (usize::MAX, 256)] {
            let mut calls = 0;
            before_packet(|| {
                calls += 1;
                calls <= events
            });
            assert_eq!(calls, handled, "of {events} events before a packet");
        }
        let mut calls = 0;
        repeat(MAX_EVENTS, || {
            calls += 1;
            true
        });
        assert_eq!(calls, 8192, "while no packet waits");
    }
}
