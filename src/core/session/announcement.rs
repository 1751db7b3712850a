//! An announcement: a line that names the address of a data connection, with the state of the dialogue at that line.

use std::ops::Range;

use super::pending::CommandNumber;
use crate::core::ftp::notation::Announced;
use crate::core::ftp::{Line, Mode};
use crate::core::net::Seq;

/// A line that announces a data connection, and the state of the dialogue at that line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement<'a> {
    /// How it was announced.
    pub mode: Mode,
    /// The announced address; `None` if it cannot be parsed.
    pub named: Option<Announced>,
    /// The number of the command, if the server's reply to it can be recognised.
    pub number: Option<CommandNumber>,
    /// The state of the dialogue.
    pub state: AnnouncementState,
    /// The bytes of the address, if it could be parsed.
    pub written: Option<Written<'a>>,
}

/// The bytes of the address in an announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written<'a> {
    /// The line.
    pub line: Line<'a>,
    /// The range of the address in the line's text.
    pub span: Range<usize>,
}

impl Written<'_> {
    /// The sequence number of the address's first byte.
    pub fn start(&self) -> Seq {
        self.line.start + self.span.start
    }
}

/// The state of the dialogue at an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnouncementState {
    /// Both ends have sent only FTP so far.
    pub is_ftp: bool,
    /// The dialogue was read from its start, by this run or, as the connection's mark says, by an earlier one.
    pub has_known_start: bool,
    /// All implementations read this line in the same way.
    pub is_unambiguous: bool,
    /// The client asked for it with PASV, EPSV or LPSV; always true for an active mode.
    pub asked_for: bool,
    /// A user is logged in.
    pub logged_in: bool,
    /// The client has sent EPSV ALL.
    pub extended_only: bool,
}
