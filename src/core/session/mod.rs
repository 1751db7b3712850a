//! One control connection: both directions and their dialogue.
//!
//! Segments in, events out. Knows nothing of policy, the kernel, or other sessions.

mod announcement;
mod dialogue;
mod pending;
pub mod reassembly;

pub use announcement::{Announcement, AnnouncementState, Written};
pub use dialogue::{Dialogue, Event};
pub use pending::CommandNumber;

use crate::core::ftp::embedded::{command_in, reply_in};
use crate::core::ftp::unfinished::{address_in_command, address_in_reply};
use crate::core::ftp::{Ending as LineEnding, Line, LineReader};
use crate::core::kernel::{Progress, Synced};
use crate::core::net::{Direction, Flags, Segment, Seq};
use crate::core::policy::Limits;
use crate::core::session::reassembly::{Acceptance, Delivery, Start, Stream, StreamAnomaly, Trust};

/// One direction: its stream, and the lines in it.
#[derive(Debug)]
struct HalfStream {
    stream: Stream,
    lines: LineReader,
    /// Something that this end sent was read as an announcement and refused, or would be read as an announcement if the
    /// text in front of it were missing. A retransmission to the next run could begin there.
    ///
    /// What passed unread does not count: otherwise one kill would cost an announcement after each further one.
    may_mislead_next_run: bool,
}

/// Both directions of a control connection, and their dialogue.
#[derive(Debug)]
pub struct Session {
    client: HalfStream,
    server: HalfStream,
    dialogue: Dialogue,
    start: Start,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// FIN: the other end has acknowledged it, or has sent a FIN, too.
    Finished,
    /// RST.
    Reset,
}

impl Session {
    /// A session that is read from its start.
    pub fn from_the_start() -> Self {
        let synced = Synced { client: true, server: true };
        Self::new(Dialogue::from_the_start(), synced, Start::Known)
    }

    /// A picked-up session, of which this much is known.
    ///
    /// An end that an earlier run left in sync is believed to be so, although the receiver may have acknowledged only a part
    /// of its last line, and get the rest of that line again: see [`Self::is_synced`].
    pub fn from_the_middle(progress: Progress, synced: Synced) -> Self {
        Self::new(Dialogue::from_the_middle(progress, synced), synced, Start::Unknown)
    }

    fn new(dialogue: Dialogue, synced: Synced, start: Start) -> Self {
        let half = |ending, synced| HalfStream {
            stream: Stream::default(),
            lines: if synced { LineReader::new(ending) } else { LineReader::in_the_middle(ending) },
            may_mislead_next_run: false,
        };
        let client = half(LineEnding::Lf, synced.client);
        Self { client, server: half(LineEnding::CrLf, synced.server), dialogue, start }
    }

    /// Whether all that this end sent has been read, and its next byte begins a line; the server's, a reply.
    ///
    /// The next run believes this of the first bytes that it gets, and these may be a retransmission: the receiver decides
    /// by its acknowledgements where that begins, and an acknowledgement that is seen here need not arrive. So an end is in
    /// sync only if no part of what it has ever sent could be read as an announcement that was refused, or is none.
    pub fn is_synced(&self, end: Direction) -> bool {
        let HalfStream { stream, lines, may_mislead_next_run } = self.half(end);
        let is_in_reply = end == Direction::FromServer && self.dialogue.is_inside_reply();
        lines.is_at_start() && !stream.is_waiting() && !is_in_reply && !may_mislead_next_run
    }

    /// This end has sent an announcement that was refused.
    pub fn refuse(&mut self, end: Direction) {
        self.half_mut(end).may_mislead_next_run = true;
    }

    /// The dialogue.
    pub fn dialogue(&self) -> &Dialogue {
        &self.dialogue
    }

    /// The memory of its buffers, with their overhead.
    pub fn buffered_bytes(&self) -> usize {
        let of = |half: &HalfStream| half.stream.buffered_bytes() + half.lines.buffered_bytes();
        of(&self.client) + of(&self.server)
    }

    /// Whether bytes in front of this segment are missing that may still come.
    pub fn is_ahead(&self, segment: &Segment<'_>, direction: Direction) -> bool {
        !segment.payload.is_empty() && self.half(direction).stream.misses_before(segment.seq)
    }

    /// Whether the sender of this segment acknowledges bytes of the other end that were not read here.
    pub fn acknowledges_unread(&self, segment: &Segment<'_>, direction: Direction) -> bool {
        let read_to = self.half(direction.opposite()).stream.next();
        segment.flags.has(Flags::ACK) && read_to.is_some_and(|next| segment.ack.is_after(next))
    }

    /// The missing bytes in front of this segment will not come.
    pub fn give_up_before(&mut self, segment: &Segment<'_>, direction: Direction) {
        let HalfStream { stream, lines, .. } = self.half_mut(direction);
        stream.give_up_before(segment.seq);
        lines.gap();
        match direction {
            Direction::FromClient => self.dialogue.client_was_lost(),
            Direction::FromServer => self.dialogue.server_was_lost(),
        }
    }

    /// The unfinished line of that end.
    pub fn unfinished(&self, direction: Direction) -> Option<Line<'_>> {
        self.half(direction).lines.unfinished().filter(|_| !self.dialogue.is_encrypted())
    }

    /// Where an address begins, or will begin, in the unfinished line of that end; and the byte in front of that
    /// place.
    pub fn unfinished_address(&self, direction: Direction) -> Option<(Seq, u8)> {
        let Line { text, start, .. } = self.unfinished(direction).filter(|line| line.whole && line.plain)?;
        let offset = match direction {
            Direction::FromClient => address_in_command(text),
            Direction::FromServer => address_in_reply(text),
        }?;
        Some((start + offset, *text.get(offset.checked_sub(1)?)?))
    }

    fn half(&self, direction: Direction) -> &HalfStream {
        match direction {
            Direction::FromClient => &self.client,
            Direction::FromServer => &self.server,
        }
    }

    fn half_mut(&mut self, direction: Direction) -> &mut HalfStream {
        match direction {
            Direction::FromClient => &mut self.client,
            Direction::FromServer => &mut self.server,
        }
    }

    /// Whether a SYN of the server's with this sequence number is not the one that began this connection.
    pub fn is_another_start(&self, seq: Seq) -> bool {
        self.server.stream.start() != Some(seq + 1)
    }

    /// The part of a segment that may be passed on, so that the receiver reads the same bytes as this session.
    ///
    /// `holds_back`: the policy denies commands or encryption, and they must not reach the server whatever the client
    /// or another sender does.
    pub fn judge(&self, segment: &Segment<'_>, direction: Direction, holds_back: bool, limits: &Limits) -> Acceptance {
        let trust = if holds_back && direction == Direction::FromClient {
            Trust::OnlyReadFrom(self.start)
        } else {
            Trust::Acknowledgements
        };
        self.half(direction).stream.judge(segment, direction, trust, limits.reorder_bytes.get() as usize)
    }

    /// Handles a segment as it is passed on, and emits an event for each line that it completes, in order.
    ///
    /// Returns how the connection ended, if this segment ends it.
    pub fn segment(
        &mut self,
        segment: &Segment<'_>,
        direction: Direction,
        limits: &Limits,
        mut tell: impl FnMut(SessionOutput<'_>),
    ) -> Option<Ending> {
        if direction == Direction::FromClient && self.client.lines.is_behind_urgent() {
            self.settle_urgent_end();
        }
        let Self { client, server, dialogue, .. } = self;
        let (speaker, listener) = match direction {
            Direction::FromClient => (client, server),
            Direction::FromServer => (server, client),
        };
        if segment.flags.has(Flags::RST) {
            return speaker.stream.believes_reset_at(segment.seq).then_some(Ending::Reset);
        }
        // The other end ignores a segment that acknowledges more than it has sent; or those bytes passed unread.
        let read_to = listener.stream.next();
        if segment.flags.has(Flags::ACK) && read_to.is_some_and(|next| segment.ack.is_after(next)) {
            speaker.stream.doubt_before(segment.seq + segment.payload.len());
        }
        let kept = limits.reorder_bytes.get() as usize;
        let line_limit = limits.line_bytes.get() as usize;
        let had_ended = has_ended(&speaker.stream, &listener.stream);
        if segment.flags.has(Flags::ACK) {
            if segment.flags.has(Flags::SYN) {
                listener.stream.begin_at(segment.ack);
            }
            let HalfStream { stream, lines, may_mislead_next_run } = listener;
            let doubt = Doubt { urgent_end: stream.urgent_end(), doubted_to: stream.doubted_to() };
            let deliver = |delivery: Delivery<'_>| {
                let reader = Reader { lines, may_mislead_next_run };
                read(direction.opposite(), delivery, doubt, reader, dialogue, line_limit, &mut tell);
            };
            if let Some(anomaly) = stream.acknowledged(segment.ack, kept, deliver) {
                tell(SessionOutput::Anomaly(anomaly));
            }
        }
        let HalfStream { stream, lines, may_mislead_next_run } = &mut *speaker;
        // Doubtful and urgent bytes have to be known before the first line is delivered.
        let doubt = Doubt { urgent_end: stream.urgent_end_with(segment), doubted_to: stream.doubted_to() };
        let deliver = |delivery: Delivery<'_>| {
            let reader = Reader { lines, may_mislead_next_run };
            read(direction, delivery, doubt, reader, dialogue, line_limit, &mut tell);
        };
        if let Some(anomaly) = stream.segment(segment, kept, deliver) {
            tell(SessionOutput::Anomaly(anomaly));
        }
        (!had_ended && has_ended(&speaker.stream, &listener.stream)).then_some(Ending::Finished)
    }

    /// Settles whether a client's line ends where a byte of its CRLF was urgent. If the server has answered every
    /// command, it has found that line end: a server without that byte would still wait for the rest of the line.
    ///
    /// Where the urgent pointer means the byte after that (`tcp_stdurg`), the server reads the next line without its
    /// first letter. That turns no announcing command into another one, and the server refuses it.
    fn settle_urgent_end(&mut self) {
        if self.dialogue.has_answered_all() {
            self.client.lines.believe_urgent_end();
            self.client.stream.believe_urgent_end();
        }
    }
}

/// Whether one end's FIN is acknowledged, or both ends have sent FIN. If both ends close at once, only bare ACKs
/// follow, which may pass unseen.
fn has_ended(one: &Stream, other: &Stream) -> bool {
    one.has_ended() || other.has_ended() || (one.is_at_fin() && other.is_at_fin())
}

/// Which bytes the receiver may not read as they are.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    /// The last byte in front of this may be missing.
    urgent_end: Option<Seq>,
    /// All in front of this may be.
    doubted_to: Option<Seq>,
}

/// An event that a [`Session`] emits while it handles a segment.
#[derive(Debug)]
pub enum SessionOutput<'a> {
    /// Bytes were read, the first of them with this sequence number.
    Read(Direction, Seq, &'a [u8]),
    /// The event of a line, and the line.
    Event(Event<'a>, &'a Dialogue, &'a Line<'a>),
    /// The client sends bytes that no client of FTP would send.
    NotFtp,
    /// An anomaly of the segments.
    Anomaly(StreamAnomaly),
}

/// What a direction is read into.
struct Reader<'a> {
    lines: &'a mut LineReader,
    may_mislead_next_run: &'a mut bool,
}

/// Handles the bytes that one direction delivers.
fn read(
    direction: Direction,
    delivery: Delivery<'_>,
    doubt: Doubt,
    Reader { lines, may_mislead_next_run }: Reader<'_>,
    dialogue: &mut Dialogue,
    limit: usize,
    tell: &mut impl FnMut(SessionOutput<'_>),
) {
    let (at, bytes) = match delivery {
        Delivery::Bytes(at, bytes) => (at, bytes),
        Delivery::Gap => {
            lines.gap();
            match direction {
                Direction::FromClient => dialogue.client_was_lost(),
                Direction::FromServer => dialogue.server_was_lost(),
            }
            return;
        }
    };
    tell(SessionOutput::Read(direction, at, bytes));
    if dialogue.is_encrypted() {
        return;
    }
    if direction == Direction::FromClient && dialogue.client_speaks() == Event::NotFtp {
        tell(SessionOutput::NotFtp);
    }
    lines.feed_urgent(at, bytes, doubt.urgent_end, limit, |mut line| {
        line.plain &= doubt.doubted_to.is_none_or(|to| !to.is_after(line.start));
        let event = match direction {
            _ if !line.begins => dialogue.may_announce(&line, direction),
            Direction::FromClient => dialogue.client_says(&line),
            Direction::FromServer => dialogue.server_says(&line),
        };
        let behind_announcement = usize::from(matches!(event, Event::Announced(_)));
        let rest = line.text.get(behind_announcement..).unwrap_or_default();
        *may_mislead_next_run = *may_mislead_next_run
            || line.text.len() >= limit
            || match direction {
                Direction::FromClient => command_in(rest),
                Direction::FromServer => reply_in(rest),
            };
        tell(SessionOutput::Event(event, dialogue, &line));
        !dialogue.is_encrypted()
    });
}
