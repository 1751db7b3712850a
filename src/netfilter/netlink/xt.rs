//! What iptables-nft writes and reads in nf_tables: its chains, and rules with matches of x_tables (nft_compat,
//! linux/netfilter/nf_tables_compat.h).

use super::bytes::{Attribute, Attributes, Writer};
use super::tables::{Chain, Hook};
use super::uapi::*;

/// The alignment of the structures of matches (`XT_ALIGN`).
const XT_ALIGNTO: usize = 8;
/// The size of `struct xt_conntrack_mtinfo3`, and where its fields `match_flags` and `state_mask` are.
const CONNTRACK_LEN: usize = 164;
const CONNTRACK_MATCH_FLAGS: usize = 146;
const CONNTRACK_INVERT_FLAGS: usize = 148;
const CONNTRACK_STATE_MASK: usize = 150;
/// Of `match_flags`: the state is compared.
const XT_CONNTRACK_STATE: u16 = 1;
/// The size of `struct xt_comment_info`.
const COMMENT_LEN: usize = 256;

/// Of the flags of `struct xt_ct_target_info`.
const XT_CT_NOTRACK: u16 = 1;
const XT_CT_ZONE_MARK: u16 = 1 << 4;

/// `NF_INET_*`.
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// The tables of iptables-nft, and the base chains that it has in each.
const BUILT_IN: [(&str, &[(&str, Hook)]); 5] = [
    ("filter", &[("INPUT", hook(INPUT, 0)), ("FORWARD", hook(FORWARD, 0)), ("OUTPUT", hook(OUTPUT, 0))]),
    (
        "nat",
        &[
            ("PREROUTING", hook(PREROUTING, -100)),
            ("INPUT", hook(INPUT, 100)),
            ("OUTPUT", hook(OUTPUT, -100)),
            ("POSTROUTING", hook(POSTROUTING, 100)),
        ],
    ),
    (
        "mangle",
        &[
            ("PREROUTING", hook(PREROUTING, -150)),
            ("INPUT", hook(INPUT, -150)),
            ("FORWARD", hook(FORWARD, -150)),
            ("OUTPUT", hook(OUTPUT, -150)),
            ("POSTROUTING", hook(POSTROUTING, -150)),
        ],
    ),
    ("raw", &[("PREROUTING", hook(PREROUTING, -300)), ("OUTPUT", hook(OUTPUT, -300))]),
    ("security", &[("INPUT", hook(INPUT, 150)), ("FORWARD", hook(FORWARD, 150)), ("OUTPUT", hook(OUTPUT, 150))]),
];

/// The expressions that iptables-nft reads, of whatever version.
const READABLE: [&str; 12] =
    ["match", "target", "payload", "meta", "cmp", "bitwise", "counter", "immediate", "lookup", "range", "limit", "log"];

const fn hook(number: u32, priority: i32) -> Hook {
    Hook { number, priority }
}

/// Whether the chains are those of an iptables-nft table of that name: each base chain is one that iptables-nft has there,
/// at its hook and priority, and there is at least one.
pub fn is_built_in(table: &str, chains: &[Chain]) -> bool {
    let Some((_, known)) = BUILT_IN.iter().find(|(name, _)| *name == table) else { return false };
    let mut base_chains = chains.iter().filter_map(|chain| Some((&*chain.name, chain.hook?))).peekable();
    base_chains.peek().is_some() && base_chains.all(|found| known.contains(&found))
}

/// The names of the tables that iptables-nft has.
pub fn built_in_tables() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

/// Whether iptables-nft reads expressions of that name.
pub(super) fn is_readable(expression: &str) -> bool {
    READABLE.contains(&expression)
}

/// What the match `connmark` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connmark {
    pub value: u32,
    pub mask: u32,
    pub is_inverted: bool,
}

impl Connmark {
    /// Reads the data of an expression `match`; none if it is another match.
    fn read(data: Attributes<'_>) -> Option<Self> {
        // struct xt_connmark_mtinfo1 { mark; mask; invert }
        let info = info(data, "connmark", 1)?;
        let (value, rest) = info.split_first_chunk()?;
        let (mask, rest) = rest.split_first_chunk()?;
        let [value, mask] = [value, mask].map(|bytes| u32::from_ne_bytes(*bytes));
        Some(Self { value, mask, is_inverted: *rest.first()? != 0 })
    }

    /// Whether a connection with that mark meets the condition.
    pub fn matches(self, mark: u32) -> bool {
        (mark & self.mask == self.value) != self.is_inverted
    }
}

/// What the match `conntrack` asks for, as far as it is about the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackState {
    /// The lower bits of `ct state`.
    pub states: u32,
    pub is_inverted: bool,
    /// It asks for nothing but the state.
    pub is_all: bool,
}

impl ConntrackState {
    /// Reads the data of an expression `match`; none if it is another match, or does not ask for the state.
    fn read(data: Attributes<'_>) -> Option<Self> {
        // struct xt_conntrack_mtinfo3
        let info = info(data, "conntrack", 3)?;
        let field = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
        let (flags, inverted) = (field(CONNTRACK_MATCH_FLAGS)?, field(CONNTRACK_INVERT_FLAGS)?);
        let states = u32::from(field(CONNTRACK_STATE_MASK)?);
        (flags & XT_CONNTRACK_STATE != 0).then_some(Self {
            states,
            is_inverted: inverted & XT_CONNTRACK_STATE != 0,
            is_all: flags == XT_CONNTRACK_STATE,
        })
    }

    /// Whether a connection in that state, one bit of `ct state`, can meet the condition.
    pub const fn matches(self, state: u32) -> bool {
        (self.states & state != 0) != self.is_inverted
    }
}

/// The matches and the target of a rule that are of x_tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XtParts {
    /// What the match `connmark` asks for.
    pub connmark: Option<Connmark>,
    /// What the match `conntrack` asks for.
    pub state: Option<ConntrackState>,
    pub has_comment: bool,
    /// It has matches that are not read.
    pub has_other_matches: bool,
    pub target: Option<Target>,
}

impl XtParts {
    /// Adds the data of an expression `match`.
    pub(super) fn read_match(&mut self, data: Attributes<'_>) {
        if comment(data).is_some() {
            self.has_comment = true;
        } else if let (Some(connmark), None) = (Connmark::read(data), self.connmark) {
            self.connmark = Some(connmark);
        } else if let (Some(state), None) = (ConntrackState::read(data), self.state) {
            self.state = Some(state);
            self.has_other_matches |= !state.is_all;
        } else {
            self.has_other_matches = true;
        }
    }

    /// Whether there are any.
    pub const fn is_some(&self) -> bool {
        self.connmark.is_some()
            || self.state.is_some()
            || self.has_comment
            || self.has_other_matches
            || self.target.is_some()
    }
}

/// What a target of x_tables does, as far as it matters to control connections and data connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `REJECT`: the packet is dropped.
    Reject,
    /// `CT --notrack`, or the older `NOTRACK`.
    Notrack,
    /// `CT --zone`.
    Zone,
    /// `SYNPROXY`.
    SynProxy,
    /// `CT --helper`.
    Helper(Box<str>),
    /// `NFQUEUE`: the packet goes to one of these queues.
    Queue { first: u16, count: u16, bypass: bool },
    /// `CONNMARK --set-xmark VALUE/MASK`.
    SetConnmark { value: u32, mask: u32 },
    /// `CONNMARK --save-mark`, with the mask of the connection's mark and of the packet's mark.
    SaveConnmark { connection_mask: u32, packet_mask: u32 },
    /// It is not read.
    Other,
}

impl Target {
    /// Reads the data of an expression `target`.
    pub(super) fn read(data: Attributes<'_>) -> Self {
        Self::read_known(data).unwrap_or(Self::Other)
    }

    fn read_known(data: Attributes<'_>) -> Option<Self> {
        let name = data.find(NFTA_TARGET_NAME)?.string()?;
        let revision = data.find(NFTA_TARGET_REV).and_then(Attribute::u32)?;
        let info = data.find(NFTA_TARGET_INFO).map(Attribute::bytes).unwrap_or_default();
        let short = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes));
        let word = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        match (name, revision) {
            ("REJECT", _) => Some(Self::Reject),
            ("NOTRACK", _) => Some(Self::Notrack),
            // struct xt_ct_target_info: flags, zone; ct_events; exp_events; helper
            ("CT", _) if short(0)? & XT_CT_NOTRACK != 0 => Some(Self::Notrack),
            ("CT", _) => {
                let name = info.get(12..28)?.split(|byte| *byte == 0).next()?;
                let helper = str::from_utf8(name).ok().filter(|name| !name.is_empty());
                // A zone may also come from the packet mark.
                let has_zone = short(2)? != 0 || short(0)? & XT_CT_ZONE_MARK != 0;
                helper.map(|name| Self::Helper(name.into())).or_else(|| has_zone.then_some(Self::Zone))
            }
            ("SYNPROXY", _) => Some(Self::SynProxy),
            // struct xt_NFQ_info: queuenum; since revision 1 queues_total; then bypass, or since revision 3 flags
            ("NFQUEUE", _) => Some(Self::Queue {
                first: short(0)?,
                count: if revision > 0 { short(2)?.max(1) } else { 1 },
                bypass: revision > 1 && short(4)? & NFT_QUEUE_FLAG_BYPASS != 0,
            }),
            // struct xt_connmark_tginfo1: ctmark; ctmask; nfmask; mode
            // struct xt_connmark_tginfo2: ctmark; ctmask; nfmask; shift_dir; shift_bits; mode
            ("CONNMARK", 1..) => match info.get(if revision == 1 { 12 } else { 14 })? {
                // iptables cannot shift a value that it sets.
                0 => Some(Self::SetConnmark { value: word(0)?, mask: word(4)? }),
                1 => Some(Self::SaveConnmark { connection_mask: word(4)?, packet_mask: word(8)? }),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The comment in the data of an expression `match`; none if it is another match.
pub(super) fn comment<'a>(data: Attributes<'a>) -> Option<&'a str> {
    let info = info(data, "comment", 0)?;
    str::from_utf8(info.split(|byte| *byte == 0).next()?).ok()
}

fn info<'a>(data: Attributes<'a>, name: &str, revision: u32) -> Option<&'a [u8]> {
    let is_it = data.find(NFTA_MATCH_NAME).and_then(Attribute::string) == Some(name)
        && data.find(NFTA_MATCH_REV).and_then(Attribute::u32) == Some(revision);
    data.find(NFTA_MATCH_INFO).filter(|_| is_it).map(Attribute::bytes)
}

/// Writes the match `conntrack`, which compares the state. Its bits are the lower ones of `ct state`.
pub(super) fn write_state(data: &mut Writer, states: u32) {
    let states = u16::try_from(states).unwrap_or(u16::MAX);
    let mut info = [0; CONNTRACK_LEN.next_multiple_of(XT_ALIGNTO)];
    info[CONNTRACK_MATCH_FLAGS..][..2].copy_from_slice(&XT_CONNTRACK_STATE.to_ne_bytes());
    info[CONNTRACK_STATE_MASK..][..2].copy_from_slice(&states.to_ne_bytes());
    write(data, "conntrack", 3, &info);
}

/// Writes the match `connmark` for a mark with all these bits.
pub(super) fn write_mark(data: &mut Writer, bits: u32) {
    let mut info = [0; 12_usize.next_multiple_of(XT_ALIGNTO)];
    info[..4].copy_from_slice(&bits.to_ne_bytes());
    info[4..8].copy_from_slice(&bits.to_ne_bytes());
    write(data, "connmark", 1, &info);
}

/// Writes the match `comment`.
pub(super) fn write_comment(data: &mut Writer, comment: &str) {
    let mut info = [0; COMMENT_LEN];
    // The last byte stays zero.
    info[..COMMENT_LEN - 1].iter_mut().zip(comment.bytes()).for_each(|(place, byte)| *place = byte);
    write(data, "comment", 0, &info);
}

fn write(data: &mut Writer, name: &str, revision: u32, info: &[u8]) {
    data.string(NFTA_MATCH_NAME, name);
    data.u32(NFTA_MATCH_REV, revision);
    data.bytes(NFTA_MATCH_INFO, info);
}

#[cfg(test)]
mod tests {
    use super::super::bytes::{Head, Messages};
    use super::*;

    fn chain(name: &str, hook: Option<Hook>) -> Chain {
        Chain { name: name.into(), hook }
    }

    fn message(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.message(Head::default(), write);
        writer.as_bytes().to_vec()
    }

    fn data(message: &[u8]) -> Attributes<'_> {
        Messages::of(message).next().expect("a message").attributes()
    }

    #[test]
    fn chains_are_built_in_by_name_hook_and_priority() {
        let input = chain("INPUT", Some(hook(INPUT, 0)));
        let user = chain("DOCKER-USER", None);
        assert!(is_built_in("filter", &[input.clone(), user.clone()]));
        assert!(!is_built_in("filter", &[input.clone(), chain("own", Some(hook(INPUT, 0)))]));
        assert!(!is_built_in("filter", &[chain("INPUT", Some(hook(INPUT, -1)))]));
        assert!(!is_built_in("filter", &[chain("input", Some(hook(INPUT, 0)))]));
        assert!(!is_built_in("firewall", &[input]));
        assert!(!is_built_in("filter", &[user]));
    }

    #[test]
    fn written_connmark_and_comment_are_read_again() {
        let bytes = message(|w| write_mark(w, 0x1000_0000));
        let connmark = Connmark::read(data(&bytes)).expect("the match connmark");
        assert_eq!(connmark, Connmark { value: 0x1000_0000, mask: 0x1000_0000, is_inverted: false });
        assert!(connmark.matches(0x1000_0001) && !connmark.matches(1));
        assert_eq!(comment(data(&bytes)), None);
        let bytes = message(|w| write_comment(w, "pinhole: \u{e4}"));
        assert_eq!(comment(data(&bytes)), Some("pinhole: \u{e4}"));
        assert_eq!(Connmark::read(data(&bytes)), None);
    }

    #[test]
    fn written_state_is_read_again() {
        let bytes = message(|w| write_state(w, 0b1100));
        let state = ConntrackState::read(data(&bytes)).expect("the match conntrack");
        assert_eq!(state, ConntrackState { states: 0b1100, is_inverted: false, is_all: true });
        assert!(state.matches(8) && state.matches(4) && !state.matches(2));
        let mut parts = XtParts::default();
        parts.read_match(data(&bytes));
        assert_eq!(parts, XtParts { state: Some(state), ..XtParts::default() });
        // A second one of the same kind, and one that is not known.
        parts.read_match(data(&bytes));
        assert!(parts.has_other_matches);
        let mut parts = XtParts::default();
        parts.read_match(data(&message(|w| write(w, "addrtype", 1, &[0; 8]))));
        assert!(parts.has_other_matches && parts.is_some());
    }

    #[test]
    fn targets_are_read() {
        let target = |name: &str, revision: u32, info: &[u8]| {
            let bytes = message(|w| {
                w.string(NFTA_TARGET_NAME, name);
                w.u32(NFTA_TARGET_REV, revision);
                w.bytes(NFTA_TARGET_INFO, info);
            });
            Target::read(data(&bytes))
        };
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
        let shorts = |shorts: &[u16]| shorts.iter().flat_map(|short| short.to_ne_bytes()).collect::<Vec<_>>();
        assert_eq!(target("REJECT", 0, &[0; 4]), Target::Reject);
        assert_eq!(target("CT", 2, &[shorts(&[1, 0]), vec![0; 60]].concat()), Target::Notrack);
        let helper = [vec![0; 12], b"ftp".to_vec(), vec![0; 50]].concat();
        assert_eq!(target("CT", 1, &helper), Target::Helper("ftp".into()));
        assert_eq!(target("CT", 1, &[0; 64]), Target::Other);
        assert_eq!(target("CT", 2, &[shorts(&[0, 7]), vec![0; 60]].concat()), Target::Zone);
        assert_eq!(target("SYNPROXY", 0, &[0; 6]), Target::SynProxy);
        let queue = |revision, info: &[u16]| target("NFQUEUE", revision, &shorts(info));
        assert_eq!(queue(3, &[5, 2, 1, 0]), Target::Queue { first: 5, count: 2, bypass: true });
        assert_eq!(queue(0, &[7]), Target::Queue { first: 7, count: 1, bypass: false });
        let connmark = |mode: u32| target("CONNMARK", 1, &words(&[1, 0xff, 0xf, mode.to_le()]));
        assert_eq!(connmark(0), Target::SetConnmark { value: 1, mask: 0xff });
        assert_eq!(connmark(1), Target::SaveConnmark { connection_mask: 0xff, packet_mask: 0xf });
        assert_eq!(connmark(2), Target::Other);
        // iptables 1.8.9 writes revision 2.
        let connmark = |mode: u8| target("CONNMARK", 2, &[words(&[1, 0xff, 0xf]), vec![0, 0, mode, 0]].concat());
        assert_eq!(connmark(0), Target::SetConnmark { value: 1, mask: 0xff });
        assert_eq!(connmark(1), Target::SaveConnmark { connection_mask: 0xff, packet_mask: 0xf });
        assert_eq!(connmark(2), Target::Other);
        // Truncated, or of no interest.
        for (name, revision) in [("CT", 2), ("NFQUEUE", 3), ("CONNMARK", 1), ("LOG", 0)] {
            assert_eq!(target(name, revision, &[0]), Target::Other, "{name}");
        }
    }

    #[test]
    fn truncated_matches_are_not_read() {
        let connmark = |info: &[u8]| message(|w| write(w, "connmark", 1, info));
        assert_eq!((0..9).filter(|length| Connmark::read(data(&connmark(&[0; 9][..*length]))).is_some()).count(), 0);
        assert!(Connmark::read(data(&connmark(&[0; 9]))).is_some());
        assert_eq!(comment(data(&message(|w| write(w, "comment", 0, &[])))), Some(""));
    }
}
