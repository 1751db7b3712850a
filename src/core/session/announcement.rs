//! An announcement: a line that names the address of a data connection, with the state of the dialogue at that line.

use std::ops::Range;

use super::pending::CommandNumber;
use crate::core::ftp::notation::Announced;
use crate::core::ftp::{Line, Mode};
use crate::core::net::Seq;

/// A line that names where a data connection will go, and how it stands in the dialogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement<'a> {
    /// How it was announced.
    pub mode: Mode,
    /// What it names; none if that cannot be read.
    pub named: Option<Announced>,
    /// Which command it was, where the server's answer will be known as its answer.
    pub number: Option<CommandNumber>,
    /// How it stands.
    pub standing: AnnouncementState,
    /// The bytes that name the address, where they can be read.
    pub written: Option<Written<'a>>,
}

/// The bytes of an announcement that name the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written<'a> {
    /// The line.
    pub line: Line<'a>,
    /// Where in its text the address stands.
    pub span: Range<usize>,
}

impl Written<'_> {
    /// The sequence number of the address's first byte.
    pub fn place(&self) -> Seq {
        self.line.start + self.span.start
    }
}

/// What the dialogue says about an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnouncementState {
    /// Both ends have spoken FTP so far.
    pub is_ftp: bool,
    /// The dialogue was read from its start, or by an earlier run that left word of it.
    pub is_known: bool,
    /// All readers agree what this line says.
    pub is_plain: bool,
    /// The client asked for it; always so where the client itself announces.
    pub asked_for: bool,
    /// Somebody is logged in.
    pub logged_in: bool,
    /// The client said before that it would use nothing but EPSV.
    pub extended_only: bool,
}
