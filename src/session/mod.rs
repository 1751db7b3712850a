//! One control connection and what its two ends have said.
//!
//! Segments in, meanings out. Knows nothing of policy, the kernel, or other sessions.

mod asked;
mod dialogue;
mod excerpt;

pub use asked::CommandNumber;
pub use dialogue::{Announcement, Dialogue, Event, Standing, Written};

use crate::ftp::unfinished::{address_in_command, address_in_reply};
use crate::ftp::{Line, LineReader};
use crate::packet::{Direction, Flags, Segment, Seq};
use crate::policy::{Inspect, Limits};
use crate::stream::{Delivery, Oddity, Stream};

/// One direction: its bytes, and the lines that they make.
#[derive(Debug, Default)]
struct Voice {
    stream: Stream,
    lines: LineReader,
}

/// Both directions of a control connection, and the dialogue that they make.
#[derive(Debug)]
pub struct Session {
    client: Voice,
    server: Voice,
    dialogue: Dialogue,
    /// Its start has been read, and whoever brings the segments knows that: excerpts may be all that is brought,
    /// whenever the policy asks for no more.
    has_settled: bool,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// One end has nothing more to say.
    Finished,
    /// One end aborted it.
    Reset,
}

impl Session {
    /// A session that begins with this segment, or is picked up at it; `has_settled` if its start was read by somebody
    /// before.
    pub fn new(first: &Segment<'_>, has_settled: bool) -> Self {
        let begins = first.flags.has(Flags::SYN);
        let dialogue = if begins { Dialogue::from_the_start() } else { Dialogue::from_the_middle() };
        let has_settled = has_settled && !begins;
        Self { client: Voice::default(), server: Voice::default(), dialogue, has_settled }
    }

    fn voices(&mut self) -> impl Iterator<Item = &mut Voice> {
        [&mut self.client, &mut self.server].into_iter()
    }

    /// From here on not everything is brought, only what names an address, or changes how that stands.
    fn settle(&mut self) {
        self.has_settled = true;
        self.dialogue.expect_excerpts();
        self.voices().for_each(|voice| voice.stream.expect_excerpts());
    }

    /// From here on everything is brought again.
    fn unsettle(&mut self) {
        self.dialogue.expect_all();
        for voice in self.voices() {
            voice.stream.expect_all();
            voice.lines = LineReader::default();
        }
    }

    /// Whether nothing is under way, so that it makes no difference where the reading of excerpts begins.
    fn is_settled(&self) -> bool {
        let is_quiet = |voice: &Voice| !voice.stream.is_waiting() && !voice.lines.is_in_line();
        self.dialogue.is_settled() && is_quiet(&self.client) && is_quiet(&self.server)
    }

    /// Reads a little of every part, so that all of it is near when it is needed.
    pub(crate) fn touch(&self) -> u32 {
        let in_line = self.client.lines.is_in_line() ^ self.server.lines.is_in_line();
        self.client.stream.touch() ^ self.server.stream.touch() ^ self.dialogue.touch() ^ u32::from(in_line)
    }

    /// What has been said.
    pub fn dialogue(&self) -> &Dialogue {
        &self.dialogue
    }

    /// How many bytes its buffers hold, with what it takes to hold them: bytes out of order, and lines without their end.
    pub fn buffered_bytes(&self) -> usize {
        let of = |voice: &Voice| voice.stream.buffered_bytes() + voice.lines.buffered_bytes();
        of(&self.client) + of(&self.server)
    }

    /// Whether bytes are missing in front of this segment, which may come yet.
    pub fn is_ahead(&self, segment: &Segment<'_>, direction: Direction) -> bool {
        !segment.payload.is_empty() && self.voice(direction).stream.misses_before(segment.seq)
    }

    /// The line of that end that has begun and not ended.
    pub fn unfinished(&self, direction: Direction) -> Option<Line<'_>> {
        // What follows an excerpt may never come.
        let may_end = !self.dialogue.is_encrypted() && !self.dialogue.is_excerpt();
        self.voice(direction).lines.unfinished().filter(|_| may_end)
    }

    /// Where an address begins, or will begin, in the line of that end that has begun and not ended; and the byte in
    /// front of it.
    pub fn unfinished_address(&self, direction: Direction) -> Option<(Seq, u8)> {
        let Line { text, start, .. } = self.unfinished(direction).filter(|line| line.whole && line.verbatim)?;
        let offset = match direction {
            Direction::FromClient => address_in_command(text),
            Direction::FromServer => address_in_reply(text),
        }?;
        Some((start + offset, *text.get(offset.checked_sub(1)?)?))
    }

    fn voice(&self, direction: Direction) -> &Voice {
        match direction {
            Direction::FromClient => &self.client,
            Direction::FromServer => &self.server,
        }
    }

    /// Whether this segment can only belong to a new connection with the same addresses.
    pub fn is_superseded_by(&self, segment: &Segment<'_>, direction: Direction) -> bool {
        // A stray SYN proves nothing, and the server would ignore it; only the server's own SYN does.
        direction == Direction::FromServer
            && segment.flags.has(Flags::SYN)
            && self.server.stream.start().is_some_and(|start| start != segment.seq + 1)
    }

    /// Takes a segment and tells, in order, what the lines mean that it completes. `inspect` says whether all segments
    /// are brought, or only some once that has been told to be enough.
    ///
    /// Returns how the connection ended, if it did.
    pub fn segment(
        &mut self,
        segment: &Segment<'_>,
        direction: Direction,
        limits: &Limits,
        inspect: Inspect,
        mut tell: impl FnMut(Told<'_>),
    ) -> Option<Ending> {
        if inspect == Inspect::Dialogue && self.dialogue.is_excerpt() {
            self.unsettle();
        }
        if inspect == Inspect::Announcements && !self.dialogue.is_excerpt() && self.has_settled {
            self.settle();
            self.dialogue.continue_in_excerpts();
        }
        let ending = self.converse(segment, direction, limits, &mut tell);
        if inspect == Inspect::Announcements && !self.dialogue.is_excerpt() && self.is_settled() {
            self.settle();
            tell(Told::Settled);
        }
        ending
    }

    fn converse(
        &mut self,
        segment: &Segment<'_>,
        direction: Direction,
        limits: &Limits,
        mut tell: impl FnMut(Told<'_>),
    ) -> Option<Ending> {
        let Self { client, server, dialogue, .. } = self;
        let (speaker, listener) = match direction {
            Direction::FromClient => (client, server),
            Direction::FromServer => (server, client),
        };
        if segment.flags.has(Flags::RST) {
            return speaker.stream.believes_reset_at(segment.seq).then_some(Ending::Reset);
        }
        let line_limit = limits.line_bytes.get() as usize;
        if segment.flags.has(Flags::ACK) {
            if segment.flags.has(Flags::SYN) {
                listener.stream.begin_at(segment.ack);
            }
            let Voice { stream, lines } = listener;
            let hear = |delivery: Delivery<'_>| {
                hear(direction.opposite(), delivery, lines, dialogue, line_limit, &mut tell);
            };
            if let Some(oddity) = stream.acknowledged(segment.ack, hear) {
                tell(Told::Odd(oddity));
            }
            // What waits, or is a line half heard, is missing for a reason that will show.
            let is_whole = !listener.stream.is_waiting() && !listener.lines.is_in_line();
            let unheard = if is_whole { listener.stream.unheard_before(segment.ack) } else { 0 };
            dialogue.speaker_has_heard(direction, segment.ack, unheard);
        }
        let Voice { stream, lines } = speaker;
        let hear = |delivery: Delivery<'_>| hear(direction, delivery, lines, dialogue, line_limit, &mut tell);
        if let Some(oddity) = stream.segment(segment, limits.reorder_bytes.get() as usize, hear) {
            tell(Told::Odd(oddity));
        }
        stream.has_ended().then_some(Ending::Finished)
    }
}

/// What a [`Session`] tells while it takes a segment.
#[derive(Debug)]
pub enum Told<'a> {
    /// What a line means, and the line, where there is one.
    Event(Event<'a>, &'a Dialogue, Option<&'a Line<'a>>),
    /// Something about the segments.
    Odd(Oddity),
    /// From here on excerpts will do.
    Settled,
}

/// Takes what one direction delivers.
fn hear(
    direction: Direction,
    delivery: Delivery<'_>,
    lines: &mut LineReader,
    dialogue: &mut Dialogue,
    limit: usize,
    tell: &mut impl FnMut(Told<'_>),
) {
    if dialogue.is_encrypted() {
        return;
    }
    match (delivery, direction) {
        (Delivery::Bytes(at, bytes), _) => read(direction, at, bytes, lines, dialogue, limit, tell),
        (Delivery::Overtaken(at, bytes), _) => {
            // It stands alone, whichever lines have begun meanwhile, and in no order with the others.
            dialogue.client_was_not_heard();
            read(direction, at, bytes, &mut LineReader::default(), dialogue, limit, tell);
            dialogue.client_was_not_heard();
        }
        (Delivery::Gap(_), Direction::FromClient) if dialogue.is_excerpt() => {
            lines.gap(|line| tell(Told::Event(dialogue.client_broke_off(&line), dialogue, Some(&line))));
            dialogue.client_was_not_heard();
        }
        (Delivery::Gap(_), Direction::FromServer) if dialogue.is_excerpt() => {
            // The beginning of a reply tells its code, and no more.
            lines.gap(|_| {});
            let event = dialogue.server_was_not_read();
            tell(Told::Event(event, dialogue, None));
        }
        (Delivery::Gap(_), Direction::FromClient) => {
            lines.gap(|line| tell(Told::Event(dialogue.client_says(&line), dialogue, Some(&line))));
            dialogue.client_was_not_heard();
        }
        (Delivery::Gap(resumes), Direction::FromServer) => {
            lines.gap(|line| tell(Told::Event(dialogue.server_says(&line), dialogue, Some(&line))));
            let event = dialogue.server_was_not_heard(resumes);
            tell(Told::Event(event, dialogue, None));
        }
    }
}

/// Takes the lines that these bytes complete.
fn read(
    direction: Direction,
    at: Seq,
    bytes: &[u8],
    lines: &mut LineReader,
    dialogue: &mut Dialogue,
    limit: usize,
    tell: &mut impl FnMut(Told<'_>),
) {
    lines.feed(at, bytes, limit, |line: Line<'_>| {
        let event = match direction {
            Direction::FromClient => dialogue.client_says(&line),
            Direction::FromServer => dialogue.server_says(&line),
        };
        tell(Told::Event(event, dialogue, Some(&line)));
        !dialogue.is_encrypted()
    });
}
