//! The expressions of nf_tables rules that Pinhole writes without the program nft.

use super::bytes::Writer;

const LIST_ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
/// The register for verdicts, and the one for everything else.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;
const VALUE: u16 = 1;

/// A step of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expression {
    /// nf_tables' own statement: the packet goes to the queue of that number. `bypass`: if nobody reads it, it goes on.
    Queue {
        /// The queue, or the first of several.
        number: u16,
        /// How many there are: each processor queues into one of them.
        count: u16,
        /// What happens where nobody reads.
        bypass: bool,
    },
    /// The same with the target `NFQUEUE` of iptables, for kernels without that statement.
    CompatQueue {
        /// The queue, or the first of several.
        number: u16,
        /// How many there are.
        count: u16,
        /// What happens where nobody reads.
        bypass: bool,
    },
    /// Loads something about the packet's connection; the steps behind it look at that.
    Load(About),
    /// Clears all bits but these in what was loaded.
    Keep(u32),
    /// Ends the rule unless what was loaded is this.
    Is(u32),
    /// Ends the rule if what was loaded is this.
    IsNot(u32),
    /// Counts packets and bytes.
    Count,
    /// The packet is accepted.
    Accept,
}

/// Something that the kernel knows about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// Bits: invalid 1, established 2, related 4, new 8.
    State,
    /// Its mark.
    Mark,
}

impl About {
    /// The bit of the state of a connection that was expected.
    pub const RELATED: u32 = 4;
    /// The bit of a new connection's state.
    pub const NEW: u32 = 8;

    const fn key(self) -> u32 {
        match self {
            Self::State => 0,
            Self::Mark => 3,
        }
    }
}

impl Expression {
    const fn name(self) -> &'static str {
        match self {
            Self::Queue { .. } => "queue",
            Self::CompatQueue { .. } => "target",
            Self::Load(_) => "ct",
            Self::Keep(_) => "bitwise",
            Self::Is(_) | Self::IsNot(_) => "cmp",
            Self::Count => "counter",
            Self::Accept => "immediate",
        }
    }

    pub(super) fn write(self, list: &mut Writer) {
        list.nested(LIST_ELEMENT, |expression| {
            expression.text(NAME, self.name());
            expression.nested(DATA, |data| self.write_data(data));
        });
    }

    fn write_data(self, data: &mut Writer) {
        // Marks and states are the host's numbers, so what is compared with them is not in network order.
        let value = |data: &mut Writer, kind, number: u32| {
            data.nested(kind, |data| data.attribute(VALUE, &number.to_ne_bytes()));
        };
        match self {
            Self::Queue { number, count, bypass } => {
                data.attribute(1, &number.to_be_bytes());
                data.attribute(2, &count.to_be_bytes());
                data.attribute(3, &queue_flags(count, bypass).to_be_bytes());
            }
            Self::CompatQueue { number, count, bypass } => {
                // struct xt_NFQ_info_v3 { number; total; flags }, padded to eight bytes, in the host's order.
                let [n0, n1] = number.to_ne_bytes();
                let [t0, t1] = count.to_ne_bytes();
                let [f0, f1] = queue_flags(count, bypass).to_ne_bytes();
                data.text(1, "NFQUEUE");
                data.number(2, 3);
                data.attribute(3, &[n0, n1, t0, t1, f0, f1, 0, 0]);
            }
            Self::Load(what) => {
                data.number(1, REGISTER);
                data.number(2, what.key());
            }
            Self::Keep(bits) => {
                data.number(1, REGISTER);
                data.number(2, REGISTER);
                data.number(3, 4);
                value(data, 4, bits);
                value(data, 5, 0);
            }
            Self::Is(number) | Self::IsNot(number) => {
                data.number(1, REGISTER);
                data.number(2, u32::from(matches!(self, Self::IsNot(_))));
                value(data, 3, number);
            }
            Self::Count => {}
            Self::Accept => {
                data.number(1, VERDICT);
                // NF_ACCEPT is 1.
                data.nested(2, |data| data.nested(2, |verdict| verdict.number(1, 1)));
            }
        }
    }
}

/// Both ways to queue have the same flags: 1 for bypass, 2 to choose among several queues by the processor.
const fn queue_flags(count: u16, bypass: bool) -> u16 {
    bypass as u16 | if count > 1 { 2 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::{Attribute, Head, Messages};
    use super::*;

    fn written(expression: Expression) -> Vec<u8> {
        let mut writer = Writer::default();
        let head = Head { kind: 0, flags: 0, sequence: 0, family: 0, resource: 0 };
        writer.message(head, |w| expression.write(w));
        writer.as_bytes().to_vec()
    }

    #[test]
    fn the_compat_target_has_a_name_a_revision_and_eight_bytes() {
        let bytes = written(Expression::CompatQueue { number: 0x0102, count: 3, bypass: true });
        let message = Messages::of(&bytes).next().expect("a message");
        let expression = message.attributes().find(LIST_ELEMENT).expect("an expression").nested();
        assert_eq!(expression.find(NAME).and_then(Attribute::text), Some("target"));
        let data = expression.find(DATA).expect("its data").nested();
        assert_eq!(data.find(1).and_then(Attribute::text), Some("NFQUEUE"));
        assert_eq!(data.find(2).and_then(Attribute::u32), Some(3));
        let expected = [0x0102_u16.to_ne_bytes(), 3u16.to_ne_bytes(), 3u16.to_ne_bytes(), [0; 2]].concat();
        assert_eq!(data.find(3).map(Attribute::bytes), Some(expected.as_slice()));
    }

    #[test]
    fn numbers_of_the_connection_are_compared_in_the_hosts_order() {
        let bytes = written(Expression::IsNot(0x1000_0000));
        let message = Messages::of(&bytes).next().expect("a message");
        let data = message.attributes().find(1).and_then(|e| e.nested().find(DATA)).expect("its data").nested();
        assert_eq!(data.find(2).and_then(Attribute::u32), Some(1));
        let value = data.find(3).and_then(|value| value.nested().find(VALUE));
        assert_eq!(value.map(Attribute::bytes), Some(0x1000_0000_u32.to_ne_bytes().as_slice()));
    }
}
