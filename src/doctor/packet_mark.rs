//! The value that a rule assigns to the packet mark or to the mark of the connection, as far as the ruleset tells.

use nftables::expr::{BinaryOperation, CT, Expression, Meta, MetaKey, NamedExpression};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Assigned {
    Known(u32),
    /// Not known, and made without the present marks: from a map or a number generator, say.
    New,
    /// Not known, and made from the present marks.
    Unknown,
}

impl Assigned {
    /// Whether this value lacks some of the bits that the connection's mark has.
    pub(super) const fn clears(self, bits: u32) -> bool {
        match self {
            Self::Known(value) => value & bits != bits,
            Self::New => true,
            Self::Unknown => false,
        }
    }

    fn join(self, other: Self, operation: fn(u32, u32) -> u32) -> Self {
        match (self, other) {
            (Self::Known(one), Self::Known(other)) => Self::Known(operation(one, other)),
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::New, _) | (_, Self::New) => Self::New,
        }
    }
}

/// The value of an expression for a packet with these marks.
pub(super) fn assigned(value: &Expression<'_>, connection_mark: u32, packet_mark: Assigned) -> Assigned {
    let of = |value: &Expression<'_>| assigned(value, connection_mark, packet_mark);
    match value {
        Expression::Number(number) => Assigned::Known(*number),
        Expression::Named(NamedExpression::CT(CT { key, .. })) if key == "mark" => Assigned::Known(connection_mark),
        Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Mark })) => packet_mark,
        Expression::BinaryOperation(operation) => match &**operation {
            BinaryOperation::AND(one, other) => of(one).join(of(other), |one, other| one & other),
            BinaryOperation::XOR(one, other) => of(one).join(of(other), |one, other| one ^ other),
            BinaryOperation::OR(values) => {
                values.iter().map(of).fold(Assigned::Known(0), |all, value| all.join(value, |one, other| one | other))
            }
            BinaryOperation::LSHIFT(..) | BinaryOperation::RSHIFT(..) => Assigned::Unknown,
        },
        _ => Assigned::New,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BITS: u32 = 0x1000_0000;

    /// The value that `text`, as nft prints JSON, assigns to the mark of a connection with Pinhole's mark.
    fn value(text: &str) -> Assigned {
        assigned(&serde_json::from_str(text).expect("an expression"), BITS, Assigned::Known(0))
    }

    #[test]
    fn operations_on_the_mark_of_the_connection_keep_its_bits() {
        let kept = r#"{"|": [{"ct": {"key": "mark"}}, 1]}"#;
        assert_eq!(value(kept), Assigned::Known(BITS | 1));
        let cleared = r#"{"|": [{"&": [{"ct": {"key": "mark"}}, 255]}, 1]}"#;
        assert_eq!(value(cleared), Assigned::Known(1));
        assert!(!value(kept).clears(BITS) && value(cleared).clears(BITS));
    }

    #[test]
    fn other_values_clear_the_bits() {
        assert!(value("1").clears(BITS) && !value("268435457").clears(BITS));
        assert!(value(r#"{"meta": {"key": "mark"}}"#).clears(BITS));
        assert!(value(r#"{"numgen": {"mode": "inc", "mod": 2, "offset": 1}}"#).clears(BITS));
        // A packet mark that was made from the connection's may have them.
        let restored =
            assigned(&serde_json::from_str(r#"{"meta": {"key": "mark"}}"#).expect("JSON"), 0, Assigned::Unknown);
        assert!(!restored.clears(BITS));
    }
}
