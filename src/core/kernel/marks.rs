//! The bits of the conntrack mark and of the packet mark: which data connections are admitted, and how far each
//! control connection has come. The kernel keeps the conntrack mark when the daemon is gone.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use crate::core::net::Direction;

/// How far a session has come, as far as its mark records that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SessionProgress {
    /// Nothing is known.
    #[default]
    Unknown,
    /// The server has sent its greeting, and the client commands of FTP.
    Ftp,
    /// And a user has logged in.
    LoggedIn,
    /// It cannot be read any more: it is encrypted, or it is not FTP.
    Unreadable,
}

/// Which ends of a session are in sync when it is picked up: all that they sent was read, and their next byte begins a
/// line, the server's one that begins a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Synced {
    /// The client.
    pub client: bool,
    /// The server.
    pub server: bool,
}

/// The bits that Pinhole sets in the mark of a data connection that it admits: at least one. At least five other bits
/// are left; five of these are for control connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(NonZeroU32);

impl Mark {
    /// The mark with these bits, unless there is none, or fewer than five are left.
    pub const fn new(bits: u32) -> Option<Self> {
        match NonZeroU32::new(bits) {
            Some(bits) if bits.get().count_zeros() >= CONTROL_BITS => Some(Self(bits)),
            _ => None,
        }
    }

    /// The bits as a number.
    pub const fn bits(self) -> u32 {
        self.0.get()
    }

    /// The bits for control connections.
    pub const fn control_bits(self) -> ControlBits {
        let mut used = self.bits();
        let mut bits = [0; CONTROL_BITS as usize];
        let mut index = 0;
        while index < bits.len() {
            bits[index] = nearest_free(used);
            used |= bits[index];
            index += 1;
        }
        let [progress_low, progress_high, server_synced, client_synced, read] = bits;
        ControlBits { progress_low, progress_high, server_synced, client_synced, read }
    }
}

/// How many further bits Pinhole needs for control connections.
const CONTROL_BITS: u32 = 5;

/// The bits of the marks of control connections and of their packets.
///
/// Four bits of the conntrack mark outlive the daemon. Two are the progress: neither, nothing is known; the first,
/// both ends speak FTP; both, and a user is logged in; the second alone, the connection cannot be read any more. One
/// more bit for each end means that the end is in sync: the daemon has read all that it sent, and the next byte
/// begins a line. Each packet that passes unread clears the bit of its sender.
///
/// One bit of the packet mark is set with the verdict; the next chain clears it and sets the bits of the conntrack
/// mark accordingly. It is no bit of the conntrack mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlBits {
    progress_low: u32,
    progress_high: u32,
    server_synced: u32,
    client_synced: u32,
    read: u32,
}

impl ControlBits {
    /// All of these bits that are used in the conntrack mark.
    pub const fn all_of_connection(self) -> u32 {
        self.progress() | self.server_synced | self.client_synced
    }

    /// Each of them, in a fixed order.
    pub const fn each(self) -> [u32; CONTROL_BITS as usize] {
        [self.progress_low, self.progress_high, self.server_synced, self.client_synced, self.read]
    }

    /// The two bits of the progress.
    pub const fn progress(self) -> u32 {
        self.progress_low | self.progress_high
    }

    /// The bits of this progress.
    pub const fn of(self, progress: SessionProgress) -> u32 {
        match progress {
            SessionProgress::Unknown => 0,
            SessionProgress::Ftp => self.progress_low,
            SessionProgress::LoggedIn => self.progress_low | self.progress_high,
            SessionProgress::Unreadable => self.progress_high,
        }
    }

    /// The progress in a conntrack mark.
    pub const fn read_progress(self, mark: u32) -> SessionProgress {
        if self.was_overwritten(mark) {
            return SessionProgress::Unknown;
        }
        match (mark & self.progress_low != 0, mark & self.progress_high != 0) {
            (false, false) => SessionProgress::Unknown,
            (true, false) => SessionProgress::Ftp,
            (true, true) => SessionProgress::LoggedIn,
            (false, true) => SessionProgress::Unreadable,
        }
    }

    /// The bit of the conntrack mark for "this end is in sync".
    pub const fn synced(self, end: Direction) -> u32 {
        match end {
            Direction::FromClient => self.client_synced,
            Direction::FromServer => self.server_synced,
        }
    }

    /// Which ends are in sync, by the conntrack mark.
    pub const fn read_synced(self, mark: u32) -> Synced {
        if self.was_overwritten(mark) {
            return Synced { client: false, server: false };
        }
        Synced { client: mark & self.client_synced != 0, server: mark & self.server_synced != 0 }
    }

    /// Whether another program has written a packet mark with Pinhole's bits over a conntrack mark (`CONNMARK --save-mark`
    /// without a mask): no rule of Pinhole sets this bit in a conntrack mark. Then no bit says anything.
    const fn was_overwritten(self, mark: u32) -> bool {
        mark & self.read != 0
    }

    /// The bit of the packet mark for "this packet was read".
    pub const fn of_read_packet(self) -> u32 {
        self.read
    }

    /// The bit of the packet mark for "the sender is in sync after this packet".
    pub const fn of_packet_synced(self) -> u32 {
        self.progress_low
    }

    /// Whether the mark of a queued packet means that its source, by the routes, is not behind its input interface.
    pub const fn is_doubtful(self, mark: u32) -> bool {
        mark & self.of_read_packet() != 0
    }

    /// The mark of a packet that was read, with the bit for a sender that is in sync after it.
    pub const fn of_packet(self, mark: u32, synced: bool) -> u32 {
        let cleared = mark & !(self.of_read_packet() | self.of_packet_synced());
        cleared | self.of_read_packet() | if synced { self.of_packet_synced() } else { 0 }
    }
}

/// The bit above the highest of these; if there is none above, the highest bit that is not among them.
const fn nearest_free(bits: u32) -> u32 {
    match bits.leading_zeros() {
        0 => 1 << (31 - bits.leading_ones()),
        above => 1 << (32 - above),
    }
}

/// A bit that few other programs use.
impl Default for Mark {
    fn default() -> Self {
        Self(NonZeroU32::new(0x1000_0000).expect("the default mark has a bit"))
    }
}

/// A decimal number.
impl FromStr for Mark {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let bits = text.parse().map_err(|_| "it is not a number of 32 bits")?;
        Self::new(bits).ok_or("it leaves fewer than five bits for the marks of control connections")
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bits_are_nearest_to_the_mark() {
        let bits = |mark| Mark::new(mark).map(|mark| mark.control_bits().each());
        assert_eq!(bits(0x1000_0000), Some([0x2000_0000, 0x4000_0000, 0x8000_0000, 0x0800_0000, 0x0400_0000]));
        assert_eq!(bits(0x30), Some([0x40, 0x80, 0x100, 0x200, 0x400]));
        assert_eq!(bits(0x07ff_fffe), Some([0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000, 0x8000_0000]));
        assert_eq!((bits(0), bits(0x0fff_ffff), bits(u32::MAX)), (None, None, None));
    }

    #[test]
    fn progress_is_read_as_it_was_written() {
        let bits = Mark::default().control_bits();
        for progress in
            [SessionProgress::Unknown, SessionProgress::Ftp, SessionProgress::LoggedIn, SessionProgress::Unreadable]
        {
            let others = !(bits.progress() | bits.of_read_packet());
            assert_eq!(bits.read_progress(bits.of(progress) | others), progress);
            assert_eq!(bits.of(progress) & !bits.progress(), 0);
        }
    }

    /// With the progress of another connection, or one that is not FTP.
    #[test]
    fn packet_mark_saved_as_conntrack_mark_says_nothing() {
        let bits = Mark::default().control_bits();
        for before in
            [0, bits.of(SessionProgress::Ftp), bits.of(SessionProgress::Unreadable), bits.all_of_connection(), u32::MAX]
        {
            for synced in [false, true] {
                let saved = bits.of_packet(before, synced);
                assert_eq!(bits.read_progress(saved), SessionProgress::Unknown, "{saved:#x}");
                assert_eq!(bits.read_synced(saved), Synced::default(), "{saved:#x}");
            }
        }
    }

    #[test]
    fn control_bits_are_five_beside_the_mark() {
        for bits in [1, 0x1000_0000, 0x8000_0000, 0x07ff_ffff, 0xffff_ffe0] {
            let mark = Mark::new(bits).expect("five bits are left");
            let each = mark.control_bits().each();
            assert_eq!(each.iter().fold(bits, |all, bit| all | bit).count_ones(), bits.count_ones() + 5, "{bits:#x}");
            assert!(each.iter().all(|bit| bit.count_ones() == 1), "{bits:#x}");
        }
    }
}
