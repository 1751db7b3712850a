//! Replaces the numbers in a rule with which a conntrack mark or packet mark is compared, masked or set (expressions of
//! linux/netfilter/nf_tables.h).
//!
//! A rule is a list of expressions that work on registers. Which registers hold a mark follows from the expressions that
//! load them, so other numbers are left alone.

use std::collections::HashMap;

use super::bytes::Attribute;
use super::uapi::*;

/// The attributes that hold the source and the destination register of an expression, for the expressions that Pinhole's
/// ruleset may have.
fn registers(name: &str) -> Option<[Option<u16>; 2]> {
    Some(match name {
        "ct" => [Some(NFTA_CT_SREG), Some(NFTA_CT_DREG)],
        "meta" => [Some(NFTA_META_SREG), Some(NFTA_META_DREG)],
        "payload" => [Some(NFTA_PAYLOAD_SREG), Some(NFTA_PAYLOAD_DREG)],
        "exthdr" => [Some(NFTA_EXTHDR_SREG), Some(NFTA_EXTHDR_DREG)],
        "bitwise" => [Some(NFTA_BITWISE_SREG), Some(NFTA_BITWISE_DREG)],
        "byteorder" => [Some(NFTA_BYTEORDER_SREG), Some(NFTA_BYTEORDER_DREG)],
        "hash" => [Some(NFTA_HASH_SREG), Some(NFTA_HASH_DREG)],
        "cmp" => [Some(NFTA_CMP_SREG), None],
        "range" => [Some(NFTA_RANGE_SREG), None],
        "lookup" => [Some(NFTA_LOOKUP_SREG), Some(NFTA_LOOKUP_DREG)],
        "dynset" => [Some(NFTA_DYNSET_SREG_KEY), None],
        "immediate" => [None, Some(NFTA_IMMEDIATE_DREG)],
        "numgen" => [None, Some(NFTA_NG_DREG)],
        "rt" => [None, Some(NFTA_RT_DREG)],
        "fib" => [None, Some(NFTA_FIB_DREG)],
        "socket" => [None, Some(NFTA_SOCKET_DREG)],
        "counter" | "limit" | "quota" | "last" | "log" | "objref" | "queue" | "target" | "match" | "nat" | "masq"
        | "redir" | "notrack" | "reject" | "synproxy" | "connlimit" => [None, None],
        _ => return None,
    })
}

/// What a register holds.
enum Content {
    /// A mark, perhaps with some of its bits cleared.
    Mark,
    /// The number at this offset in the rule.
    Number(usize),
}

/// The expressions of a rule, with each number for a mark replaced by what `other` returns for it. None if `other` returns
/// none, or if an expression uses a mark in a way that this module does not know.
pub(super) fn replaced(expressions: &[u8], other: impl Fn(u32) -> Option<u32>) -> Option<Box<[u8]>> {
    let mut replaced: Box<[u8]> = expressions.into();
    for place in numbers(expressions)? {
        let bytes: &mut [u8] = replaced.get_mut(place..place + size_of::<u32>())?;
        let number = u32::from_ne_bytes((&*bytes).try_into().ok()?);
        bytes.copy_from_slice(&other(number)?.to_ne_bytes());
    }
    Some(replaced)
}

/// The offsets of the numbers for marks.
fn numbers(expressions: &[u8]) -> Option<Vec<usize>> {
    let number_in = |attribute: Option<Attribute<'_>>| {
        let bytes = attribute?.nested().find(NFTA_DATA_VALUE)?.bytes();
        (bytes.len() == size_of::<u32>()).then(|| bytes.as_ptr().addr() - expressions.as_ptr().addr())
    };
    let mut contents = HashMap::<u32, Content>::new();
    let mut numbers = Vec::new();
    for (_, expression) in Attribute::from(expressions).nested() {
        let name = expression.nested().find(NFTA_EXPR_NAME)?.string()?;
        let find = |kind| expression.nested().find(NFTA_EXPR_DATA)?.nested().find(kind);
        let Some([source, destination]) = registers(name) else {
            // An unknown expression uses no mark if no register holds one.
            if contents.values().any(|content| matches!(content, Content::Mark)) {
                return None;
            }
            continue;
        };
        let register = |kind: Option<u16>| find(kind?).and_then(Attribute::u32);
        let read = register(source).and_then(|register| contents.get(&register));
        let is_mark = match name {
            "ct" => find(NFTA_CT_KEY).and_then(Attribute::u32) == Some(NFT_CT_MARK),
            "meta" => find(NFTA_META_KEY).and_then(Attribute::u32) == Some(NFT_META_MARK),
            _ => false,
        };
        let mut filled = is_mark.then_some(Content::Mark);
        match (name, read) {
            ("bitwise", Some(Content::Mark)) => {
                if find(NFTA_BITWISE_OP).and_then(Attribute::u32).unwrap_or(NFT_BITWISE_BOOL) != NFT_BITWISE_BOOL {
                    return None;
                }
                numbers.extend([number_in(find(NFTA_BITWISE_MASK))?, number_in(find(NFTA_BITWISE_XOR))?]);
                filled = Some(Content::Mark);
            }
            ("cmp", Some(Content::Mark)) => numbers.push(number_in(find(NFTA_CMP_DATA))?),
            ("ct" | "meta", Some(Content::Number(place))) if is_mark => numbers.push(*place),
            // One mark is set to another one.
            ("ct" | "meta", Some(Content::Mark)) => {}
            (_, Some(Content::Mark)) => return None,
            ("immediate", _) => filled = number_in(find(NFTA_IMMEDIATE_DATA)).map(Content::Number),
            _ => {}
        }
        if let Some(register) = register(destination) {
            match filled {
                Some(content) => drop(contents.insert(register, content)),
                None => drop(contents.remove(&register)),
            }
        }
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::super::bytes::{Head, Message, Messages, Writer};
    use super::*;

    fn expression(list: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
        list.nested(NFTA_LIST_ELEM, |w| {
            w.string(NFTA_EXPR_NAME, name);
            w.nested(NFTA_EXPR_DATA, data);
        });
    }

    fn value(w: &mut Writer, kind: u16, number: u32) {
        w.nested(kind, |w| w.bytes(NFTA_DATA_VALUE, &number.to_ne_bytes()));
    }

    fn load(list: &mut Writer, key: u32) {
        expression(list, "ct", |w| {
            w.u32(NFTA_CT_DREG, NFT_REG_1);
            w.u32(NFTA_CT_KEY, key);
        });
    }

    fn bitwise(list: &mut Writer, mask: u32, xor: u32) {
        expression(list, "bitwise", |w| {
            w.u32(NFTA_BITWISE_SREG, NFT_REG_1);
            w.u32(NFTA_BITWISE_DREG, NFT_REG_1);
            value(w, NFTA_BITWISE_MASK, mask);
            value(w, NFTA_BITWISE_XOR, xor);
        });
    }

    fn cmp(list: &mut Writer, number: u32) {
        expression(list, "cmp", |w| {
            w.u32(NFTA_CMP_SREG, NFT_REG_1);
            value(w, NFTA_CMP_DATA, number);
        });
    }

    fn set_mark(list: &mut Writer) {
        expression(list, "ct", |w| {
            w.u32(NFTA_CT_SREG, NFT_REG_1);
            w.u32(NFTA_CT_KEY, NFT_CT_MARK);
        });
    }

    fn list(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.message(Head::default(), |w| w.nested(9, write));
        let read = |message: Message<'_>| message.attributes().find(9).map(|list| list.bytes().to_vec());
        Messages::of(writer.as_bytes()).next().and_then(read).expect("a list")
    }

    fn plus_one(number: u32) -> Option<u32> {
        Some(number + 1)
    }

    #[test]
    fn numbers_in_bitwise_cmp_and_set_of_marks_are_replaced() {
        let rule = |d: u32| {
            list(|w| {
                load(w, NFT_CT_MARK);
                bitwise(w, 10 + d, 20 + d);
                cmp(w, 30 + d);
                load(w, NFT_CT_MARK);
                bitwise(w, 40 + d, 50 + d);
                set_mark(w);
                expression(w, "immediate", |w| {
                    w.u32(NFTA_IMMEDIATE_DREG, NFT_REG_1);
                    value(w, NFTA_IMMEDIATE_DATA, 60 + d);
                });
                set_mark(w);
            })
        };
        assert_eq!(replaced(&rule(0), plus_one).as_deref(), Some(&*rule(1)));
        assert_eq!(replaced(&rule(0), |number| (number != 50).then_some(number)), None, "no number for this one");
    }

    #[test]
    fn numbers_for_other_keys_than_marks_are_left_alone() {
        let rule = list(|w| {
            load(w, NFT_CT_MARK);
            // From here on the register holds the state of the connection.
            load(w, NFT_CT_STATE);
            bitwise(w, 1, 2);
            cmp(w, 3);
            expression(w, "immediate", |w| {
                w.u32(NFTA_IMMEDIATE_DREG, NFT_REG_1);
                value(w, NFTA_IMMEDIATE_DATA, 4);
            });
            expression(w, "something new", |w| w.u32(1, 1));
        });
        assert_eq!(replaced(&rule, plus_one).as_deref(), Some(&*rule));
    }

    #[test]
    fn overwritten_register_holds_no_mark() {
        let rule = list(|w| {
            load(w, NFT_CT_MARK);
            expression(w, "socket", |w| {
                w.u32(NFTA_SOCKET_DREG, NFT_REG_1);
            });
            cmp(w, 3);
        });
        assert_eq!(replaced(&rule, plus_one).as_deref(), Some(&*rule));
    }

    #[test]
    fn mark_in_an_unknown_expression_is_refused() {
        for name in ["lookup", "range", "byteorder", "something new"] {
            let rule = list(|w| {
                load(w, NFT_CT_MARK);
                expression(w, name, |w| {
                    w.u32(1, 1);
                    w.u32(2, 1);
                });
            });
            assert_eq!(replaced(&rule, plus_one), None, "{name}");
        }
        let shifted = list(|w| {
            load(w, NFT_CT_MARK);
            expression(w, "bitwise", |w| {
                w.u32(1, 1);
                w.u32(2, 1);
                w.u32(NFTA_BITWISE_OP, 1);
            });
        });
        assert_eq!(replaced(&shifted, plus_one), None);
    }
}
