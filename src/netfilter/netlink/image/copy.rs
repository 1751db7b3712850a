//! A copy of a table for another network namespace, which decides about a packet as the table does.
//!
//! Nobody reads queues there, and nothing is offloaded: a rule that queues a packet accepts it instead, as a verdict of the
//! program would, and a rule that offloads a connection does not. Statistics and limits begin anew.

use super::super::bytes::{Attribute, Attributes, Writer};
use super::super::error::{Cause, Error, Operation};
use super::super::expression::Expression;
use super::super::tables::{Table, Tables};
use super::super::uapi::*;
use super::{Request, TableImage};

impl Tables {
    /// An image of a table with all its elements, to be [loaded](Self::load_copy) elsewhere.
    pub fn copy(&mut self, table: Table<'_>) -> Result<TableImage, Error> {
        let copied = self.try_image(table, true).map(|mut image| {
            image.rules.iter_mut().for_each(Request::make_harmless);
            image
        });
        copied.map_err(|cause| Error::new(Operation::Read, format_args!("table {table}"), cause))
    }

    /// Creates a table from a copy, in one transaction. The table must not exist yet.
    pub fn load_copy(&mut self, table: Table<'_>, copy: &TableImage) -> Result<(), Error> {
        let TableImage { table: tables, chains, sets, elements, objects, rules } = copy;
        // Elements of maps name objects and chains, and rules name all of them.
        let requests: Vec<&Request> = [tables, chains, objects, sets, elements, rules].into_iter().flatten().collect();
        let Some((last, rest)) = requests.split_last() else { return Ok(()) };
        let length: usize = requests.iter().map(|request| request.length()).sum();
        let loaded = self.socket.set_send_buffer(length.saturating_mul(2)).and_then(|()| {
            self.socket.transaction(|batch| {
                let family = table.family.number();
                for request in rest {
                    batch.quiet_request(request.message, request.flags, family, |w| request.write(w));
                }
                batch.request(last.message, last.flags, family, |w| last.write(w));
            })
        });
        loaded.map_err(|cause: Cause| Error::new(Operation::Add, format_args!("copy of table {table}"), cause))
    }
}

impl Request {
    /// How many bytes its message has, or a little less.
    fn length(&self) -> usize {
        let attributes = self.attributes.iter().map(|(_, value)| value.len() + NLA_ALIGNTO);
        attributes.sum::<usize>() + NLMSG_HDRLEN + NFGENMSG_LEN
    }

    /// Replaces what a rule does outside its ruleset, and adds what x_tables asks for and the kernel does not dump: the
    /// protocol of the rule.
    fn make_harmless(&mut self) {
        let Some(expressions) = self.value_mut(NFTA_RULE_EXPRESSIONS) else { return };
        let list = Attribute::from(&**expressions);
        let has_xt = list.nested().any(|(_, one)| matches!(name(one), Some("match" | "target")));
        let protocol = has_xt.then(|| protocol(list.nested())).flatten();
        let mut writer = Writer::default();
        for (_, expression) in list.nested() {
            if queues(expression) {
                Expression::Accept.write(&mut writer, "");
            } else if name(expression) != Some("flow_offload") {
                writer.bytes(NFTA_LIST_ELEM | NLA_F_NESTED, expression.bytes());
            }
        }
        *expressions = writer.as_bytes().into();
        if let Some(protocol) = protocol {
            let mut writer = Writer::default();
            writer.u32(NFTA_RULE_COMPAT_PROTO, protocol.into());
            writer.u32(NFTA_RULE_COMPAT_FLAGS, 0);
            self.attributes.push((NFTA_RULE_COMPAT | NLA_F_NESTED, writer.as_bytes().into()));
        }
    }

    fn write(&self, w: &mut Writer) {
        self.attributes.iter().for_each(|(kind, value)| w.bytes(*kind, value));
    }
}

fn name(expression: Attribute<'_>) -> Option<&str> {
    expression.nested().find(NFTA_EXPR_NAME)?.string()
}

/// Whether an expression sends packets to a queue.
fn queues(expression: Attribute<'_>) -> bool {
    let target = || expression.nested().find(NFTA_EXPR_DATA)?.nested().find(NFTA_TARGET_NAME)?.string();
    match name(expression) {
        Some("queue") => true,
        Some("target") => target() == Some("NFQUEUE"),
        _ => false,
    }
}

/// The protocol with which a rule compares that of a packet.
fn protocol(expressions: Attributes<'_>) -> Option<u8> {
    let mut is_loaded = false;
    for (_, expression) in expressions {
        let Some(data) = expression.nested().find(NFTA_EXPR_DATA) else { continue };
        let number = |kind| data.nested().find(kind).and_then(Attribute::u32);
        match name(expression) {
            Some("cmp") if is_loaded => {
                let value = data.nested().find(NFTA_CMP_DATA)?.nested().find(NFTA_DATA_VALUE)?;
                return value.u8().filter(|_| number(NFTA_CMP_OP) == Some(NFT_CMP_EQ));
            }
            Some("meta") => is_loaded = number(NFTA_META_KEY) == Some(NFT_META_L4PROTO),
            // The protocol in a header of IPv4.
            Some("payload") => {
                is_loaded = number(NFTA_PAYLOAD_BASE) == Some(NFT_PAYLOAD_NETWORK_HEADER)
                    && number(NFTA_PAYLOAD_OFFSET) == Some(9)
                    && number(NFTA_PAYLOAD_LEN) == Some(1);
            }
            _ => is_loaded = false,
        }
    }
    None
}
