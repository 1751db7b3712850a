//! Expressions of nf_tables rules (linux/netfilter/nf_tables.h) that Pinhole writes without the program nft.

use super::bytes::Writer;
use super::objects::Object;
use super::tables::Family;
use super::uapi::*;
use super::xt;

/// An expression of a rule. All load into or read from `NFT_REG_1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expression {
    /// `queue`: the packet goes to a queue.
    Queue {
        /// The number of the queue, or the lowest of several.
        number: u16,
        /// How many queues there are; the processor's number chooses one (`NFT_QUEUE_FLAG_CPU_FANOUT`).
        count: u16,
        /// `NFT_QUEUE_FLAG_BYPASS`: while no program reads the queue, the packet continues. Without, it is dropped.
        bypass: bool,
    },
    /// The iptables target `NFQUEUE` (nft_compat), for kernels without `queue`.
    CompatQueue {
        /// The number of the queue, or the lowest of several.
        number: u16,
        count: u16,
        /// As of [`Queue`](Self::Queue).
        bypass: bool,
    },
    /// The iptables match `conntrack --ctstate` (nft_compat): the rule ends unless the connection's state is one of these
    /// bits, as of [`CtKey`].
    CompatState(u32),
    /// The iptables match `connmark --mark BITS/BITS` (nft_compat): the rule ends unless the connection's mark has all these
    /// bits.
    CompatMark(u32),
    /// The iptables match `comment` (nft_compat), with the comment of the rule. Without it, the comment is in the rule's
    /// userdata, where iptables does not look.
    CompatComment,
    /// `ct`: loads state or mark of the packet's connection.
    Ct(CtKey),
    /// `bitwise`: clears all bits but these.
    Bitwise(u32),
    /// `cmp eq`: the rule ends unless the register has this value.
    CmpEq(u32),
    /// `cmp neq`: the rule ends if the register has this value.
    CmpNeq(u32),
    /// `meta time`: loads the time of day, in nanoseconds since 1970.
    Time,
    /// `byteorder`: changes a number of eight bytes from the host's order to that in which `cmp` compares.
    ToBigEndian,
    /// `cmp gte`: the rule ends if the register has a lower value, in big endian.
    CmpGte(u64),
    Counter,
    Accept,
    /// `meta nfproto`: loads the protocol, in one byte.
    NfProto,
    /// `cmp eq`: the rule ends unless the protocol in the register is this one.
    CmpEqNfProto(Family),
    /// `objref`: applies an object of the table to the packet's connection.
    Object(Object<'static>),
}

/// What a `ct` expression loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtKey {
    /// The state, as bits.
    State,
    Mark,
}

impl CtKey {
    /// The state of later packets of any connection.
    pub const ESTABLISHED: u32 = NF_CT_STATE_ESTABLISHED;
    /// The state of the first packet of an expected connection.
    pub const RELATED: u32 = NF_CT_STATE_RELATED;
    /// The state of the first packet of any other connection.
    pub const NEW: u32 = NF_CT_STATE_NEW;

    const fn number(self) -> u32 {
        match self {
            Self::State => NFT_CT_STATE,
            Self::Mark => NFT_CT_MARK,
        }
    }
}

impl Expression {
    const fn name(self) -> &'static str {
        match self {
            Self::Queue { .. } => "queue",
            Self::CompatQueue { .. } => "target",
            Self::CompatState(_) | Self::CompatMark(_) | Self::CompatComment => "match",
            Self::Ct(_) => "ct",
            Self::Bitwise(_) => "bitwise",
            Self::CmpEq(_) | Self::CmpNeq(_) | Self::CmpGte(_) | Self::CmpEqNfProto(_) => "cmp",
            Self::Time | Self::NfProto => "meta",
            Self::ToBigEndian => "byteorder",
            Self::Counter => "counter",
            Self::Accept => "immediate",
            Self::Object(_) => "objref",
        }
    }

    /// `comment` is the comment of the rule.
    pub(super) fn write(self, list: &mut Writer, comment: &str) {
        list.nested(NFTA_LIST_ELEM, |expression| {
            expression.string(NFTA_EXPR_NAME, self.name());
            expression.nested(NFTA_EXPR_DATA, |data| self.write_data(data, comment));
        });
    }

    fn write_data(self, data: &mut Writer, comment: &str) {
        // Registers hold marks and states in the byte order of the host.
        let bytes = |data: &mut Writer, kind, bytes: &[u8]| {
            data.nested(kind, |data| data.bytes(NFTA_DATA_VALUE, bytes));
        };
        let value = |data: &mut Writer, kind, number: u32| bytes(data, kind, &number.to_ne_bytes());
        match self {
            Self::Queue { number, count, bypass } => {
                data.u16(NFTA_QUEUE_NUM, number);
                data.u16(NFTA_QUEUE_TOTAL, count);
                data.u16(NFTA_QUEUE_FLAGS, queue_flags(count, bypass));
            }
            Self::CompatQueue { number, count, bypass } => {
                // struct xt_NFQ_info_v3 { queuenum; queues_total; flags }, padded to eight bytes, in the host's order.
                let [n0, n1] = number.to_ne_bytes();
                let [t0, t1] = count.to_ne_bytes();
                let [f0, f1] = queue_flags(count, bypass).to_ne_bytes();
                data.string(NFTA_TARGET_NAME, "NFQUEUE");
                data.u32(NFTA_TARGET_REV, 3);
                data.bytes(NFTA_TARGET_INFO, &[n0, n1, t0, t1, f0, f1, 0, 0]);
            }
            Self::CompatState(states) => xt::write_state(data, states),
            Self::CompatMark(bits) => xt::write_mark(data, bits),
            Self::CompatComment => xt::write_comment(data, comment),
            Self::Ct(key) => {
                data.u32(NFTA_CT_DREG, NFT_REG_1);
                data.u32(NFTA_CT_KEY, key.number());
            }
            Self::Bitwise(mask) => {
                data.u32(NFTA_BITWISE_SREG, NFT_REG_1);
                data.u32(NFTA_BITWISE_DREG, NFT_REG_1);
                data.u32(NFTA_BITWISE_LEN, 4);
                value(data, NFTA_BITWISE_MASK, mask);
                value(data, NFTA_BITWISE_XOR, 0);
            }
            Self::CmpEq(number) | Self::CmpNeq(number) => {
                let operation = if matches!(self, Self::CmpEq(_)) { NFT_CMP_EQ } else { NFT_CMP_NEQ };
                data.u32(NFTA_CMP_SREG, NFT_REG_1);
                data.u32(NFTA_CMP_OP, operation);
                value(data, NFTA_CMP_DATA, number);
            }
            Self::Time => {
                data.u32(NFTA_META_DREG, NFT_REG_1);
                data.u32(NFTA_META_KEY, NFT_META_TIME_NS);
            }
            Self::NfProto => {
                data.u32(NFTA_META_DREG, NFT_REG_1);
                data.u32(NFTA_META_KEY, NFT_META_NFPROTO);
            }
            Self::CmpEqNfProto(family) => {
                data.u32(NFTA_CMP_SREG, NFT_REG_1);
                data.u32(NFTA_CMP_OP, NFT_CMP_EQ);
                bytes(data, NFTA_CMP_DATA, &[family.number()]);
            }
            Self::ToBigEndian => {
                data.u32(NFTA_BYTEORDER_SREG, NFT_REG_1);
                data.u32(NFTA_BYTEORDER_DREG, NFT_REG_1);
                data.u32(NFTA_BYTEORDER_OP, NFT_BYTEORDER_HTON);
                data.u32(NFTA_BYTEORDER_LEN, 8);
                data.u32(NFTA_BYTEORDER_SIZE, 8);
            }
            Self::CmpGte(number) => {
                data.u32(NFTA_CMP_SREG, NFT_REG_1);
                data.u32(NFTA_CMP_OP, NFT_CMP_GTE);
                bytes(data, NFTA_CMP_DATA, &number.to_be_bytes());
            }
            Self::Counter => {}
            Self::Object(object) => {
                data.string(NFTA_OBJREF_IMM_NAME, object.name);
                data.u32(NFTA_OBJREF_IMM_TYPE, object.kind.number());
            }
            Self::Accept => {
                data.u32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
                data.nested(NFTA_IMMEDIATE_DATA, |data| {
                    data.nested(NFTA_DATA_VERDICT, |verdict| verdict.u32(NFTA_VERDICT_CODE, NF_ACCEPT));
                });
            }
        }
    }
}

/// The flags of `queue`, and the same bits of the target `NFQUEUE`.
const fn queue_flags(count: u16, bypass: bool) -> u16 {
    let fanout = if count > 1 { NFT_QUEUE_FLAG_CPU_FANOUT } else { 0 };
    if bypass { NFT_QUEUE_FLAG_BYPASS | fanout } else { fanout }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::{Attribute, Head, Messages};
    use super::*;

    fn written(expression: Expression) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.message(Head::default(), |w| expression.write(w, ""));
        writer.as_bytes().to_vec()
    }

    #[test]
    fn compat_target_has_name_revision_and_eight_bytes() {
        let bytes = written(Expression::CompatQueue { number: 0x0102, count: 3, bypass: true });
        let message = Messages::of(&bytes).next().expect("a message");
        let expression = message.attributes().find(NFTA_LIST_ELEM).expect("an expression").nested();
        assert_eq!(expression.find(NFTA_EXPR_NAME).and_then(Attribute::string), Some("target"));
        let data = expression.find(NFTA_EXPR_DATA).expect("its data").nested();
        assert_eq!(data.find(NFTA_TARGET_NAME).and_then(Attribute::string), Some("NFQUEUE"));
        assert_eq!(data.find(NFTA_TARGET_REV).and_then(Attribute::u32), Some(3));
        let expected = [0x0102_u16.to_ne_bytes(), 3u16.to_ne_bytes(), 3u16.to_ne_bytes(), [0; 2]].concat();
        assert_eq!(data.find(NFTA_TARGET_INFO).map(Attribute::bytes), Some(expected.as_slice()));
    }

    #[test]
    fn marks_are_compared_in_the_hosts_byte_order() {
        let bytes = written(Expression::CmpNeq(0x1000_0000));
        let message = Messages::of(&bytes).next().expect("a message");
        let data = message
            .attributes()
            .find(NFTA_LIST_ELEM)
            .and_then(|e| e.nested().find(NFTA_EXPR_DATA))
            .expect("its data")
            .nested();
        assert_eq!(data.find(NFTA_CMP_OP).and_then(Attribute::u32), Some(NFT_CMP_NEQ));
        let value = data.find(NFTA_CMP_DATA).and_then(|value| value.nested().find(NFTA_DATA_VALUE));
        assert_eq!(value.map(Attribute::bytes), Some(0x1000_0000_u32.to_ne_bytes().as_slice()));
    }
}
