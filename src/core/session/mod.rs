//! One control connection and what its two ends have said.
//!
//! Segments in, meanings out. Knows nothing of policy, the kernel, or other sessions.

mod announcement;
mod dialogue;
mod pending;
pub mod reassembly;

pub use announcement::{Announcement, AnnouncementState, Written};
pub use dialogue::{Dialogue, Event};
pub use pending::CommandNumber;

use crate::core::ftp::unfinished::{address_in_command, address_in_reply};
use crate::core::ftp::{Ending as LineEnding, Line, LineReader};
use crate::core::kernel::{Progress, Synced};
use crate::core::net::{Direction, Flags, Segment, Seq};
use crate::core::policy::Limits;
use crate::core::session::reassembly::{Acceptance, Delivery, Start, Stream, StreamAnomaly, Trust};

/// One direction: its bytes, and the lines that they make.
#[derive(Debug)]
struct HalfStream {
    stream: Stream,
    lines: LineReader,
    /// The end of the last segment with an announcement that was refused.
    refused_to: Option<Seq>,
}

/// Both directions of a control connection, and the dialogue that they make.
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
    /// One end has nothing more to say, and the other one knows, or has nothing more to say either.
    Finished,
    /// One end aborted it.
    Reset,
}

impl Session {
    /// A session that is read from its start.
    pub fn from_the_start() -> Self {
        let synced = Synced { client: true, server: true };
        Self::new(Dialogue::from_the_start(), synced, Start::Known)
    }

    /// A session that went on before it was read, of which this is known.
    ///
    /// The first line of the server does not count, in sync or not. It may be the end of one that an earlier run has read
    /// whole: a client that acknowledges the beginning of a reply alone has the server send the rest again, and so
    /// chooses with what that begins.
    pub fn from_the_middle(progress: Progress, synced: Synced) -> Self {
        let synced = Synced { server: false, ..synced };
        Self::new(Dialogue::from_the_middle(progress, synced), synced, Start::Unknown)
    }

    fn new(dialogue: Dialogue, synced: Synced, start: Start) -> Self {
        let half = |ending, synced| HalfStream {
            stream: Stream::default(),
            lines: if synced { LineReader::new(ending) } else { LineReader::in_the_middle(ending) },
            refused_to: None,
        };
        let client = half(LineEnding::Lf, synced.client);
        Self { client, server: half(LineEnding::CrLf, synced.server), dialogue, start }
    }

    /// Whether all that this end sent has been read, and its next byte begins a line; the server's, a reply.
    ///
    /// While an announcement that was refused may be retransmitted, its sender is not in sync: the next run would take the
    /// retransmission for an announcement that nobody has decided about yet.
    pub fn is_synced(&self, end: Direction) -> bool {
        let HalfStream { stream, lines, refused_to } = self.half(end);
        let is_in_reply = end == Direction::FromServer && self.dialogue.is_inside_reply();
        let may_repeat_refused = refused_to.is_some_and(|to| !stream.is_acknowledged(to));
        lines.is_at_start() && !stream.is_waiting() && !is_in_reply && !may_repeat_refused
    }

    /// This segment holds an announcement that was refused.
    pub fn refuse(&mut self, segment: &Segment<'_>, direction: Direction) {
        self.half_mut(direction).refused_to = Some(segment.seq + segment.payload.len());
    }

    /// What has been said.
    pub fn dialogue(&self) -> &Dialogue {
        &self.dialogue
    }

    /// How many bytes its buffers hold, with what it takes to hold them.
    pub fn buffered_bytes(&self) -> usize {
        let of = |half: &HalfStream| half.stream.buffered_bytes() + half.lines.buffered_bytes();
        of(&self.client) + of(&self.server)
    }

    /// Whether bytes are missing in front of this segment, which may come yet.
    pub fn is_ahead(&self, segment: &Segment<'_>, direction: Direction) -> bool {
        !segment.payload.is_empty() && self.half(direction).stream.misses_before(segment.seq)
    }

    /// Whether the sender of this segment has got something from the other end that was not read here.
    pub fn acknowledges_unread(&self, segment: &Segment<'_>, direction: Direction) -> bool {
        let read_to = self.half(direction.opposite()).stream.next();
        segment.flags.has(Flags::ACK) && read_to.is_some_and(|next| segment.ack.is_after(next))
    }

    /// What is missing in front of this segment will not come.
    pub fn give_up_before(&mut self, segment: &Segment<'_>, direction: Direction) {
        let HalfStream { stream, lines, .. } = self.half_mut(direction);
        stream.give_up_before(segment.seq);
        lines.gap();
        match direction {
            Direction::FromClient => self.dialogue.client_was_lost(),
            Direction::FromServer => self.dialogue.server_was_lost(),
        }
    }

    /// The line of that end that has begun and not ended.
    pub fn unfinished(&self, direction: Direction) -> Option<Line<'_>> {
        self.half(direction).lines.unfinished().filter(|_| !self.dialogue.is_encrypted())
    }

    /// Where an address begins, or will begin, in the line of that end that has begun and not ended; and the byte in
    /// front of it.
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

    /// What of a segment may go on, so that its receiver reads nothing else than what is read here.
    ///
    /// `holds_back`: some of what the client says must not arrive, whatever it or somebody else does.
    pub fn judge(&self, segment: &Segment<'_>, direction: Direction, holds_back: bool, limits: &Limits) -> Acceptance {
        let trust = if holds_back && direction == Direction::FromClient {
            Trust::OnlyReadFrom(self.start)
        } else {
            Trust::Acknowledgements
        };
        self.half(direction).stream.judge(segment, direction, trust, limits.reorder_bytes.get() as usize)
    }

    /// Takes a segment, as it goes on, and tells in order what the lines mean that it completes.
    ///
    /// Returns how the connection ended, if it did.
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
        // The other end ignores what acknowledges more than it has sent; or else that passed unread.
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
            let HalfStream { stream, lines, .. } = listener;
            let doubt = Doubt { urgent_end: stream.urgent_end(), doubted_to: stream.doubted_to() };
            let deliver = |delivery: Delivery<'_>| {
                read(direction.opposite(), delivery, doubt, lines, dialogue, line_limit, &mut tell);
            };
            if let Some(anomaly) = stream.acknowledged(segment.ack, kept, deliver) {
                tell(SessionOutput::Anomaly(anomaly));
            }
        }
        let HalfStream { stream, lines, .. } = &mut *speaker;
        // What is doubtful, or urgent, has to be known before the first line.
        let doubt = Doubt { urgent_end: stream.urgent_end_with(segment), doubted_to: stream.doubted_to() };
        let deliver = |delivery: Delivery<'_>| {
            read(direction, delivery, doubt, lines, dialogue, line_limit, &mut tell);
        };
        if let Some(anomaly) = stream.segment(segment, kept, deliver) {
            tell(SessionOutput::Anomaly(anomaly));
        }
        (!had_ended && has_ended(&speaker.stream, &listener.stream)).then_some(Ending::Finished)
    }

    /// Settles whether a line of the client's ends where a byte of its CRLF was urgent. If the server has answered every
    /// command, it has found that end: a server without that byte would still wait for the rest of the line.
    ///
    /// Where the urgent pointer means the byte behind that (`tcp_stdurg`), the next line lacks its first letter in what the
    /// server reads. No command that announces becomes another one by that, and the server refuses it.
    fn settle_urgent_end(&mut self) {
        if self.dialogue.has_answered_all() {
            self.client.lines.believe_urgent_end();
            self.client.stream.believe_urgent_end();
        }
    }
}

/// Whether one end has nothing more to say and the other one knows, or neither has. Where both end at once, bare
/// acknowledgements are all that follows, and those may pass unseen.
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

/// What a [`Session`] tells while it takes a segment.
#[derive(Debug)]
pub enum SessionOutput<'a> {
    /// These bytes were read, the first of which has that sequence number.
    Read(Direction, Seq, &'a [u8]),
    /// What a line means, and the line.
    Event(Event<'a>, &'a Dialogue, &'a Line<'a>),
    /// The client sends something that no client of FTP would.
    NotFtp,
    /// Something about the segments.
    Anomaly(StreamAnomaly),
}

/// Takes what one direction delivers.
fn read(
    direction: Direction,
    delivery: Delivery<'_>,
    doubt: Doubt,
    lines: &mut LineReader,
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
        tell(SessionOutput::Event(event, dialogue, &line));
        !dialogue.is_encrypted()
    });
}
