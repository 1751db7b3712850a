//! One control connection: both directions and their dialogue.
//!
//! Segments in, events out. Knows nothing of policy, the kernel, or other sessions.

mod announcement;
mod dialogue;
mod pending;
mod reader;
pub mod reassembly;

pub use announcement::{Announcement, AnnouncementState, Written};
pub use dialogue::{Dialogue, Event};
pub use pending::CommandNumber;
pub use reader::{SegmentReader, SessionOutput};

use crate::core::ftp::unfinished::{address_in_command, address_in_reply};
use crate::core::ftp::{Line, LineEnding, LineReader};
use crate::core::kernel::{SessionProgress, Synced};
use crate::core::net::{Direction, Flags, Segment, Seq};
use crate::core::policy::Limits;
use crate::core::session::reassembly::{Acceptance, Start, Stream, Trust};

/// One direction: its stream, and the lines in it.
#[derive(Debug)]
struct HalfStream {
    stream: Stream,
    lines: LineReader,
    /// This end sent an announcement that was refused, or a text that would be an announcement if the text before it
    /// were missing. A retransmission that the next run gets could begin there.
    ///
    /// Bytes that passed unread do not count: otherwise one kill would cost an announcement after each further one.
    never_in_sync: bool,
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
pub enum TcpClose {
    /// FIN: the other end has acknowledged it, or has sent a FIN, too.
    Fin,
    /// RST.
    Rst,
}

impl Session {
    /// A session that is read from its start.
    pub fn from_start() -> Self {
        let synced = Synced { client: true, server: true };
        Self::new(Dialogue::from_start(), synced, Start::Known)
    }

    /// A picked-up session with this progress.
    ///
    /// An end that an earlier run left in sync counts as in sync, although the receiver may have acknowledged only a
    /// part of its last line, and get the rest of that line again: see [`Self::is_synced`].
    pub fn picked_up(progress: SessionProgress, synced: Synced) -> Self {
        Self::new(Dialogue::picked_up(progress, synced), synced, Start::Unknown)
    }

    fn new(dialogue: Dialogue, synced: Synced, start: Start) -> Self {
        let half = |ending, synced| HalfStream {
            stream: Stream::default(),
            lines: if synced { LineReader::new(ending) } else { LineReader::in_the_middle(ending) },
            never_in_sync: false,
        };
        let client = half(LineEnding::Lf, synced.client);
        Self { client, server: half(LineEnding::CrLf, synced.server), dialogue, start }
    }

    /// Whether all that this end sent has been read, and its next byte begins a line; the server's, a reply.
    ///
    /// The next run relies on this for the first bytes that it gets, and these may be a retransmission: the receiver's
    /// acknowledgements determine where it begins, and an acknowledgement that was read here need not arrive. So an end
    /// is in sync only if no part of what it has sent could be read as an announcement that was refused or that is
    /// none.
    pub fn is_synced(&self, end: Direction) -> bool {
        let HalfStream { stream, lines, never_in_sync } = self.half(end);
        let is_in_reply = end == Direction::FromServer && self.dialogue.is_inside_reply();
        lines.is_at_start() && !stream.has_buffered() && !is_in_reply && !never_in_sync
    }

    /// This end has sent an announcement that was refused.
    pub fn note_refusal(&mut self, end: Direction) {
        self.half_mut(end).never_in_sync = true;
    }

    /// The dialogue.
    pub fn dialogue(&self) -> &Dialogue {
        &self.dialogue
    }

    /// The size of its buffers, with their overhead.
    pub fn buffered_bytes(&self) -> usize {
        let of = |half: &HalfStream| half.stream.buffered_bytes() + half.lines.buffered_bytes();
        of(&self.client) + of(&self.server)
    }

    /// Whether earlier bytes are missing that may still come.
    pub fn is_ahead(&self, segment: &Segment<'_>, direction: Direction) -> bool {
        !segment.payload.is_empty() && self.half(direction).stream.misses_before(segment.seq)
    }

    /// Whether the sender of this segment acknowledges bytes of the other end that were not read here.
    pub fn acknowledges_unread(&self, segment: &Segment<'_>, direction: Direction) -> bool {
        let read_to = self.half(direction.opposite()).stream.next();
        segment.flags.has(Flags::ACK) && read_to.is_some_and(|next| segment.ack.is_after(next))
    }

    /// Whether the client acknowledges bytes outside of what the server has sent since the session began.
    pub fn acknowledges_unsent(&self, segment: &Segment<'_>) -> bool {
        let sent = self.server.stream.start().zip(self.server.stream.next());
        sent.is_some_and(|(start, next)| segment.ack.is_before(start) || segment.ack.is_after(next))
    }

    /// The missing bytes before this segment will not come.
    pub fn give_up_before(&mut self, segment: &Segment<'_>, direction: Direction) {
        let HalfStream { stream, lines, .. } = self.half_mut(direction);
        stream.give_up_before(segment.seq);
        lines.gap();
        match direction {
            Direction::FromClient => self.dialogue.client_gap(),
            Direction::FromServer => self.dialogue.server_gap(),
        }
    }

    /// The unfinished line of that end.
    pub fn unfinished(&self, direction: Direction) -> Option<Line<'_>> {
        self.half(direction).lines.unfinished().filter(|_| !self.dialogue.is_encrypted())
    }

    /// Where an address begins, or will begin, in the unfinished line of that end; and the byte before it.
    pub fn unfinished_address(&self, direction: Direction) -> Option<(Seq, u8)> {
        let Line { text, start, .. } = self.unfinished(direction).filter(|line| line.whole && line.is_unambiguous)?;
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

    /// Whether a SYN of the server with this sequence number began another connection than this one.
    pub fn is_another_start(&self, seq: Seq) -> bool {
        self.server.stream.start() != Some(seq + 1)
    }

    /// Decides which part of a segment may pass, so that the receiver reads the same bytes as this session.
    ///
    /// `holds_back`: the policy denies commands or encryption, and they must not reach the server whatever the client
    /// or another sender does.
    pub fn check_segment(
        &self,
        segment: &Segment<'_>,
        direction: Direction,
        holds_back: bool,
        limits: &Limits,
    ) -> Acceptance {
        let trust = if holds_back && direction == Direction::FromClient {
            Trust::OnlyReadFrom(self.start)
        } else {
            Trust::Acknowledgements
        };
        self.half(direction).stream.check_segment(segment, direction, trust, limits.reorder_bytes.get() as usize)
    }

    /// Handles a segment as it passes. [`SegmentReader::advance`] reads it to its end.
    pub fn segment<'a>(
        &'a mut self,
        segment: &Segment<'a>,
        direction: Direction,
        limits: &Limits,
    ) -> SegmentReader<'a> {
        if direction == Direction::FromClient && self.client.lines.is_behind_urgent() {
            self.settle_urgent_end();
        }
        let Self { client, server, dialogue, .. } = self;
        let ends = match direction {
            Direction::FromClient => (client, server),
            Direction::FromServer => (server, client),
        };
        SegmentReader::new(ends, dialogue, segment, direction, limits)
    }

    /// Settles whether a client's line ends where a byte of its CRLF was urgent. If the server has answered every
    /// command, it has found that line end: a server without that byte would still wait for the rest of the line.
    ///
    /// Where the urgent pointer means the byte after that (`tcp_stdurg`), the server reads the next line without its
    /// first letter. That turns no announcing command into another one, and the server refuses it.
    fn settle_urgent_end(&mut self) {
        if self.dialogue.has_answered_all() {
            self.client.lines.confirm_urgent_end();
            self.client.stream.confirm_urgent_end();
        }
    }
}

/// Whether one end's FIN is acknowledged, or both ends have sent FIN. If both ends close at once, only bare ACKs
/// follow, which may pass unseen.
fn has_ended(one: &Stream, other: &Stream) -> bool {
    one.has_ended() || other.has_ended() || (one.is_at_fin() && other.is_at_fin())
}
