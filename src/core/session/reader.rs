//! Reads the lines of one segment.

use super::dialogue::{Dialogue, Event};
use super::reassembly::{StreamAnomaly, StreamEvent, StreamEvents};
use super::{HalfStream, TcpClose, has_ended};
use crate::core::ftp::embedded::{command_in, reply_in};
use crate::core::ftp::{Line, UnreadBytes};
use crate::core::net::{Direction, Flags, Segment, Seq};
use crate::core::policy::Limits;

/// What was read in a segment.
#[derive(Debug)]
pub enum SessionOutput<'a> {
    /// Bytes, of which the first has this sequence number.
    Bytes(Direction, Seq, &'a [u8]),
    /// A line, the event that it causes, and the dialogue after it.
    Line(Event<'a>, Line<'a>, &'a Dialogue),
    /// The client sent bytes before the greeting: it is no FTP client. If the first one is a control character, and so may
    /// begin a TLS record, its sequence number.
    NotFtp(Option<Seq>),
    /// The client began with a TLS handshake, with the byte of this sequence number.
    TlsOffered(Seq),
    /// The server has answered the client's TLS handshake: everything is encrypted.
    ImplicitTls,
    /// An anomaly of the segments.
    Anomaly(StreamAnomaly),
}

/// Bytes that the receiver may not read, or may not have accepted.
#[derive(Clone, Copy, Debug, Default)]
struct Doubt {
    /// The byte before this sequence number may be urgent data.
    urgent_end: Option<Seq>,
    /// All bytes before this sequence number may not have been accepted.
    doubted_to: Option<Seq>,
}

/// Reads one segment: line by line, in the order of the streams.
///
/// A segment may complete lines of both directions, because its acknowledgement may show that bytes of the other
/// direction will never come.
#[derive(Debug)]
pub struct SegmentReader<'a> {
    sender: &'a mut HalfStream,
    receiver: &'a mut HalfStream,
    dialogue: &'a mut Dialogue,
    direction: Direction,
    line_limit: usize,
    /// The events that the acknowledgement causes in the other direction.
    acknowledged: StreamEvents<'static>,
    acknowledged_doubt: Doubt,
    /// The events that the payload causes.
    received: StreamEvents<'a>,
    received_doubt: Doubt,
    /// The bytes that are being read, of this direction.
    unread: Option<(Direction, UnreadBytes<'a>)>,
    /// Whether the rest of these bytes is encrypted.
    is_encrypted: bool,
    /// What the first bytes of an end show, to be returned next.
    opening: Option<Opening>,
    tcp_close: Option<TcpClose>,
}

/// What the first bytes of an end show.
#[derive(Clone, Copy, Debug)]
enum Opening {
    NotFtp(Option<Seq>),
    TlsOffered(Seq),
    ImplicitTls,
}

/// The next output, without what it borrows.
enum Step {
    Bytes(Seq),
    Line,
    Opening(Opening),
    Anomaly(StreamAnomaly),
}

impl<'a> SegmentReader<'a> {
    /// Has the streams reassemble the segment.
    pub(super) fn new(
        (sender, receiver): (&'a mut HalfStream, &'a mut HalfStream),
        dialogue: &'a mut Dialogue,
        segment: &Segment<'a>,
        direction: Direction,
        limits: &Limits,
    ) -> Self {
        let mut reader = Self {
            sender,
            receiver,
            dialogue,
            direction,
            line_limit: limits.line_bytes.get() as usize,
            acknowledged: StreamEvents::default(),
            acknowledged_doubt: Doubt::default(),
            received: StreamEvents::default(),
            received_doubt: Doubt::default(),
            unread: None,
            is_encrypted: false,
            opening: None,
            tcp_close: None,
        };
        reader.reassemble(segment, limits.reorder_bytes.get() as usize);
        reader
    }

    fn reassemble(&mut self, segment: &Segment<'a>, limit: usize) {
        let (sender, receiver) = (&mut self.sender.stream, &mut self.receiver.stream);
        let acknowledges = segment.flags.has(Flags::ACK);
        if segment.flags.has(Flags::RST) {
            self.tcp_close = sender.accepts_reset_at(segment.seq).then_some(TcpClose::Rst);
            return;
        }
        // The receiver ignores a segment that acknowledges more than it has sent; or those bytes passed unread.
        let read_to = receiver.next();
        if acknowledges && read_to.is_some_and(|next| segment.ack.is_after(next)) {
            sender.doubt_before(segment.seq + segment.payload.len());
        }
        let had_ended = has_ended(sender, receiver);
        if acknowledges {
            if segment.flags.has(Flags::SYN) {
                receiver.begin_at(segment.ack);
            }
            self.acknowledged_doubt = Doubt { urgent_end: receiver.urgent_end(), doubted_to: receiver.doubted_to() };
            self.acknowledged = receiver.acknowledged(segment.ack, limit);
        }
        // Doubtful and urgent bytes have to be known before the first line is read.
        self.received_doubt = Doubt { urgent_end: sender.urgent_end_with(segment), doubted_to: sender.doubted_to() };
        self.received = sender.segment(segment, limit);
        if !had_ended && has_ended(sender, receiver) {
            self.tcp_close = Some(TcpClose::Fin);
        }
    }

    /// Reads on, up to the next line or event of the streams. Returns `None` when all of the segment has been read.
    pub fn advance(&mut self) -> Option<SessionOutput<'_>> {
        match self.step()? {
            Step::Line => self.line(),
            Step::Bytes(at) => {
                let (direction, unread) = self.unread.as_ref()?;
                Some(SessionOutput::Bytes(*direction, at, unread.bytes()))
            }
            Step::Opening(Opening::NotFtp(record)) => Some(SessionOutput::NotFtp(record)),
            Step::Opening(Opening::TlsOffered(at)) => Some(SessionOutput::TlsOffered(at)),
            Step::Opening(Opening::ImplicitTls) => Some(SessionOutput::ImplicitTls),
            Step::Anomaly(anomaly) => Some(SessionOutput::Anomaly(anomaly)),
        }
    }

    /// How the connection ended, if this segment ends it.
    pub fn tcp_close(&self) -> Option<TcpClose> {
        self.tcp_close
    }

    fn step(&mut self) -> Option<Step> {
        if let Some(opening) = self.opening.take() {
            return Some(Step::Opening(opening));
        }
        if let Some((direction, unread)) = &mut self.unread
            && !self.is_encrypted
        {
            let half = if *direction == self.direction { &mut *self.sender } else { &mut *self.receiver };
            if half.lines.advance(unread) {
                return Some(Step::Line);
            }
        }
        loop {
            let (direction, event) = match self.acknowledged.next() {
                Some(event) => (self.direction.opposite(), event),
                None => (self.direction, self.received.next()?),
            };
            match event {
                StreamEvent::Bytes(at, bytes) => {
                    let urgent_end = self.doubt(direction).urgent_end;
                    self.unread = Some((direction, UnreadBytes::new(at, bytes, urgent_end, self.line_limit)));
                    self.opening = self.opening(direction, at);
                    self.is_encrypted = self.dialogue.is_encrypted();
                    return Some(Step::Bytes(at));
                }
                StreamEvent::Gap => self.gap(direction),
                StreamEvent::Anomaly(anomaly) => return Some(Step::Anomaly(anomaly)),
            }
        }
    }

    /// Has the dialogue look at the bytes that will be read next, which may be the first ones of their sender.
    fn opening(&mut self, direction: Direction, at: Seq) -> Option<Opening> {
        let (_, unread) = self.unread.as_ref()?;
        let event = match direction {
            _ if self.dialogue.is_encrypted() => return None,
            Direction::FromClient => self.dialogue.client_bytes(unread.bytes()),
            Direction::FromServer => self.dialogue.server_bytes(unread.bytes()),
        };
        match event {
            Event::NotFtp => {
                let may_be_record = direction == Direction::FromClient && may_begin_record(unread.bytes());
                Some(Opening::NotFtp(may_be_record.then_some(at)))
            }
            Event::TlsOffered => Some(Opening::TlsOffered(at)),
            Event::Encrypted => {
                self.sender.lines.stop();
                self.receiver.lines.stop();
                Some(Opening::ImplicitTls)
            }
            _ => None,
        }
    }

    fn gap(&mut self, direction: Direction) {
        let half = if direction == self.direction { &mut *self.sender } else { &mut *self.receiver };
        half.lines.gap();
        match direction {
            Direction::FromClient => self.dialogue.client_gap(),
            Direction::FromServer => self.dialogue.server_gap(),
        }
    }

    /// Has the dialogue interpret the line that has just been read.
    fn line(&mut self) -> Option<SessionOutput<'_>> {
        let (direction, unread) = self.unread.as_ref()?;
        let direction = *direction;
        let mut line = unread.line();
        line.is_unambiguous &= self.doubt(direction).doubted_to.is_none_or(|to| !to.is_after(line.start));
        let event = match direction {
            _ if !line.begins => self.dialogue.may_announce(&line, direction),
            Direction::FromClient => self.dialogue.client_line(&line),
            Direction::FromServer => self.dialogue.server_line(&line),
        };
        let half = if direction == self.direction { &mut *self.sender } else { &mut *self.receiver };
        let behind_announcement = usize::from(matches!(event, Event::Announced(_)));
        let rest = line.text.get(behind_announcement..).unwrap_or_default();
        half.never_in_sync = half.never_in_sync
            || line.text.len() >= self.line_limit
            || match direction {
                Direction::FromClient => command_in(rest),
                Direction::FromServer => reply_in(rest),
            };
        if self.dialogue.is_encrypted() {
            half.lines.stop();
            self.is_encrypted = true;
        }
        Some(SessionOutput::Line(event, line, self.dialogue))
    }

    fn doubt(&self, direction: Direction) -> Doubt {
        if direction == self.direction { self.received_doubt } else { self.acknowledged_doubt }
    }
}

/// Whether a TLS record may begin so: the types of records are control characters.
fn may_begin_record(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace())
}
