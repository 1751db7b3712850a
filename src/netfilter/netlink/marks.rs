//! Finds the numbers in a rule with which a conntrack mark or packet mark is compared, masked or set.
//!
//! A rule is a list of expressions that work on registers. Which registers hold a mark follows from the expressions
//! that load them, so numbers that have nothing to do with marks are left alone.

use std::collections::HashMap;

use super::bytes::Attribute;

const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
/// Of `ct` and of `meta`.
const KEY: u16 = 2;
/// `NFT_CT_MARK`, and `NFT_META_MARK`.
const MARK: u32 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
/// What a `bitwise` does; without it, or with 0, a mask and an exclusive or.
const BITWISE_OPERATION: u16 = 6;
const CMP_DATA: u16 = 3;
const IMMEDIATE_DATA: u16 = 2;

/// Where an expression names the register that it reads, and the one that it fills; for those that a ruleset of ours may
/// have.
fn registers(name: &str) -> Option<[Option<u16>; 2]> {
    Some(match name {
        "ct" => [Some(4), Some(1)],
        "meta" => [Some(3), Some(1)],
        "payload" => [Some(5), Some(1)],
        "exthdr" => [Some(7), Some(1)],
        "bitwise" | "byteorder" | "hash" => [Some(1), Some(2)],
        "cmp" | "range" => [Some(1), None],
        "lookup" => [Some(2), Some(3)],
        "dynset" => [Some(4), None],
        "immediate" | "numgen" | "rt" | "fib" | "socket" => [None, Some(1)],
        "counter" | "limit" | "quota" | "last" | "log" | "objref" | "queue" | "target" | "match" | "nat" | "masq"
        | "redir" | "notrack" | "reject" | "synproxy" | "connlimit" => [None, None],
        _ => return None,
    })
}

/// What is in a register.
enum Content {
    /// A mark, perhaps with some of its bits cleared.
    Mark,
    /// A number that stands there in the rule.
    Number(usize),
}

/// A rule's expressions with other numbers for marks of connections: `other` says which takes the place of one. None if
/// it has none to give, or if the rule does something with a mark that is not understood here.
pub(super) fn exchanged(expressions: &[u8], other: impl Fn(u32) -> Option<u32>) -> Option<Box<[u8]>> {
    let mut exchanged: Box<[u8]> = expressions.into();
    for place in numbers(expressions)? {
        let bytes: &mut [u8] = exchanged.get_mut(place..place + size_of::<u32>())?;
        let number = u32::from_ne_bytes((&*bytes).try_into().ok()?);
        bytes.copy_from_slice(&other(number)?.to_ne_bytes());
    }
    Some(exchanged)
}

/// Where the numbers are.
fn numbers(expressions: &[u8]) -> Option<Vec<usize>> {
    let number_in = |attribute: Option<Attribute<'_>>| {
        let bytes = attribute?.nested().find(DATA_VALUE)?.bytes();
        (bytes.len() == size_of::<u32>()).then(|| bytes.as_ptr().addr() - expressions.as_ptr().addr())
    };
    let mut contents = HashMap::<u32, Content>::new();
    let mut numbers = Vec::new();
    for (_, expression) in Attribute::from(expressions).nested() {
        let name = expression.nested().find(EXPRESSION_NAME)?.text()?;
        let find = |kind| expression.nested().find(EXPRESSION_DATA)?.nested().find(kind);
        let Some([source, destination]) = registers(name) else {
            // Whatever it does, it does nothing to marks where there are none.
            if contents.values().any(|content| matches!(content, Content::Mark)) {
                return None;
            }
            continue;
        };
        let register = |kind: Option<u16>| find(kind?).and_then(Attribute::u32);
        let read = register(source).and_then(|register| contents.get(&register));
        let is_mark = matches!(name, "ct" | "meta") && find(KEY).and_then(Attribute::u32) == Some(MARK);
        let mut filled = is_mark.then_some(Content::Mark);
        match (name, read) {
            ("bitwise", Some(Content::Mark)) => {
                if find(BITWISE_OPERATION).and_then(Attribute::u32).unwrap_or(0) != 0 {
                    return None;
                }
                numbers.extend([number_in(find(BITWISE_MASK))?, number_in(find(BITWISE_XOR))?]);
                filled = Some(Content::Mark);
            }
            ("cmp", Some(Content::Mark)) => numbers.push(number_in(find(CMP_DATA))?),
            ("ct" | "meta", Some(Content::Number(place))) if is_mark => numbers.push(*place),
            // A mark that becomes another mark, as it is.
            ("ct" | "meta", Some(Content::Mark)) => {}
            (_, Some(Content::Mark)) => return None,
            ("immediate", _) => filled = number_in(find(IMMEDIATE_DATA)).map(Content::Number),
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

    const LIST_ELEMENT: u16 = 1;

    fn expression(list: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
        list.nested(LIST_ELEMENT, |w| {
            w.text(EXPRESSION_NAME, name);
            w.nested(EXPRESSION_DATA, data);
        });
    }

    fn value(w: &mut Writer, kind: u16, number: u32) {
        w.nested(kind, |w| w.attribute(DATA_VALUE, &number.to_ne_bytes()));
    }

    fn load(list: &mut Writer, key: u32) {
        expression(list, "ct", |w| {
            w.number(1, 1);
            w.number(KEY, key);
        });
    }

    fn bitwise(list: &mut Writer, mask: u32, xor: u32) {
        expression(list, "bitwise", |w| {
            w.number(1, 1);
            w.number(2, 1);
            value(w, BITWISE_MASK, mask);
            value(w, BITWISE_XOR, xor);
        });
    }

    fn cmp(list: &mut Writer, number: u32) {
        expression(list, "cmp", |w| {
            w.number(1, 1);
            value(w, CMP_DATA, number);
        });
    }

    fn set_mark(list: &mut Writer) {
        expression(list, "ct", |w| {
            w.number(4, 1);
            w.number(KEY, MARK);
        });
    }

    fn list(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.message(Head { kind: 0, flags: 0, sequence: 0, family: 0, resource: 0 }, |w| w.nested(9, write));
        let read = |message: Message<'_>| message.attributes().find(9).map(|list| list.bytes().to_vec());
        Messages::of(writer.as_bytes()).next().and_then(read).expect("a list")
    }

    fn plus_one(number: u32) -> Option<u32> {
        Some(number + 1)
    }

    #[test]
    fn numbers_that_marks_are_masked_by_compared_with_and_set_to_are_exchanged() {
        let rule = |d: u32| {
            list(|w| {
                load(w, MARK);
                bitwise(w, 10 + d, 20 + d);
                cmp(w, 30 + d);
                load(w, MARK);
                bitwise(w, 40 + d, 50 + d);
                set_mark(w);
                expression(w, "immediate", |w| {
                    w.number(1, 1);
                    value(w, IMMEDIATE_DATA, 60 + d);
                });
                set_mark(w);
            })
        };
        assert_eq!(exchanged(&rule(0), plus_one).as_deref(), Some(&*rule(1)));
        assert_eq!(exchanged(&rule(0), |number| (number != 50).then_some(number)), None, "no number for this one");
    }

    #[test]
    fn what_has_nothing_to_do_with_marks_stays_as_it_is() {
        let rule = list(|w| {
            load(w, MARK);
            // From here on the register holds the state of the connection.
            load(w, 0);
            bitwise(w, 1, 2);
            cmp(w, 3);
            expression(w, "immediate", |w| {
                w.number(1, 1);
                value(w, IMMEDIATE_DATA, 4);
            });
            expression(w, "something new", |w| w.number(1, 1));
        });
        assert_eq!(exchanged(&rule, plus_one).as_deref(), Some(&*rule));
    }

    #[test]
    fn a_mark_that_something_else_works_with_is_not_understood() {
        for name in ["lookup", "range", "byteorder", "something new"] {
            let rule = list(|w| {
                load(w, MARK);
                expression(w, name, |w| {
                    w.number(1, 1);
                    w.number(2, 1);
                });
            });
            assert_eq!(exchanged(&rule, plus_one), None, "{name}");
        }
        let shifted = list(|w| {
            load(w, MARK);
            expression(w, "bitwise", |w| {
                w.number(1, 1);
                w.number(2, 1);
                w.number(BITWISE_OPERATION, 1);
            });
        });
        assert_eq!(exchanged(&shifted, plus_one), None);
    }
}
