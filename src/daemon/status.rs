//! The status that `pinhole status` shows.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What was counted since the start.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counters {
    /// Packets taken out of the queue.
    pub packets: u64,
    /// Sessions that began or were picked up.
    pub sessions: u64,
    /// Pinholes opened.
    pub opened: u64,
    /// Pinholes adopted from an earlier run.
    pub adopted: u64,
    /// Pinholes used.
    pub used: u64,
    /// Pinholes that nobody used in time.
    pub expired: u64,
    /// Pinholes closed before they were used.
    pub closed: u64,
    /// Announcements refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Sessions that were forgotten to make room, by reason.
    pub evicted: BTreeMap<&'static str, u64>,
    /// Sessions that became encrypted.
    pub encrypted: u64,
    /// Port ranges opened for encrypted sessions.
    pub ranges: u64,
    /// Connections to a control port that do not talk FTP.
    pub not_ftp: u64,
    /// Fragments, passed unread.
    pub fragments: u64,
    /// Packets with headers that make no sense, passed unread.
    pub damaged: u64,
    /// Copies that differ, segments out of reach, losses.
    pub anomalies: u64,
    /// Packets that were not kept until the missing segment in front of them came, because too many were kept already.
    pub not_kept: u64,
    /// How often the ruleset was restored.
    pub restored: u64,
    /// Errors of the queue.
    pub queue_troubles: u64,
    /// Things that the kernel refused.
    pub kernel_troubles: u64,
}

/// A pinhole that stands.
#[derive(Clone, Debug, Serialize)]
pub struct PinholeStatus {
    /// The session that announced it; none if that was before this program began.
    pub session: Option<u64>,
    /// How, where that is known.
    pub announced_by: Option<&'static str>,
    /// Who may connect.
    pub from: String,
    /// Where to.
    pub to: String,
    /// Where it is delivered instead, behind NAT.
    pub delivered_to: Option<String>,
    /// The address that it leaves with instead, behind NAT.
    pub leaves_from: Option<String>,
    /// Seconds since it was opened.
    pub age: f64,
    /// Seconds until it expires.
    pub remaining: f64,
}

/// The buffers of all sessions.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Buffers {
    /// What they hold now: bytes out of order, and lines without their end.
    pub bytes: usize,
    /// How often a session gave up bytes, because the buffers of all, or those of its client, were full.
    pub refusals: u64,
}

/// How things stand.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Sessions that live.
    pub sessions: usize,
    /// Pinholes that stand, as far as this program knows.
    pub pinholes: Vec<PinholeStatus>,
    /// Pinholes in the kernel; used ones are told of late.
    pub in_kernel: Option<usize>,
    /// The mechanism.
    pub mechanism: String,
    /// Why that one.
    pub because: String,
    /// What hands packets to this program.
    pub queueing: &'static str,
    /// The buffers of all sessions.
    pub buffers: Buffers,
    /// What was counted.
    pub counters: Counters,
}

/// What a client of the control socket may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// How do things stand?
    Status,
    /// As JSON.
    Json,
    /// Read the policy anew.
    Reload,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sessions, pinholes, in_kernel, mechanism, because, queueing, buffers, counters } = self;
        writeln!(f, "{sessions} sessions, {} pinholes; mechanism {mechanism}, queued by {queueing}", pinholes.len())?;
        writeln!(f, "mechanism {mechanism}, {because}")?;
        if let Some(in_kernel) = in_kernel
            && *in_kernel != pinholes.len()
        {
            writeln!(f, "in the kernel stand {in_kernel} pinholes: of used ones this program is told a little later")?;
        }
        for PinholeStatus { session, announced_by, from, to, delivered_to, leaves_from, age, remaining } in pinholes {
            write!(f, "  {from} -> {to}  ")?;
            if let Some(to) = delivered_to {
                write!(f, "delivered to {to}  ")?;
            }
            if let Some(from) = leaves_from {
                write!(f, "leaves from {from}  ")?;
            }
            match (announced_by, session) {
                (Some(by), Some(session)) => write!(f, "{by}, session {session}")?,
                _ => f.write_str("announced before the start")?,
            }
            writeln!(f, ", {age:.1} s old, {remaining:.1} s left")?;
        }
        let Counters { packets, sessions, opened, adopted, used, expired, closed, refused, encrypted, .. } = counters;
        writeln!(f, "since the start: {packets} packets, {sessions} sessions, {encrypted} of them encrypted")?;
        write!(f, "  pinholes: {opened} opened, {used} used, {expired} expired, {closed} closed, {adopted} adopted")?;
        for (reason, count) in refused {
            write!(f, "\n  refused, {reason}: {count}")?;
        }
        for (reason, count) in &counters.evicted {
            write!(f, "\n  sessions {reason}: {count}")?;
        }
        if buffers.refusals > 0 {
            let Buffers { bytes, refusals } = buffers;
            write!(f, "\n  buffers: {bytes} bytes; {refusals} times a session gave up bytes because they were full")?;
        }
        if counters.not_kept > 0 {
            write!(f, "\n  not kept until a missing segment came: {} packets", counters.not_kept)?;
        }
        let Counters { not_ftp, fragments, damaged, anomalies, restored, queue_troubles, kernel_troubles, .. } =
            counters;
        writeln!(
            f,
            "\n  not FTP: {not_ftp}, fragments: {fragments}, damaged: {damaged}, anomalies: {anomalies}, \
             ruleset restored: {restored}, trouble with the queue: {queue_troubles}, with the kernel: {kernel_troubles}"
        )
    }
}
