//! Named objects of nf_tables (`ct helper`, `ct expectation`): those that nft cannot write, and those that must
//! exist before nft runs.

use super::bytes::{Writer, flags};
use super::error::{Error, Operation};
use super::socket::Batch;
use super::tables::{Family, SUBSYSTEM, Table, Tables, attribute, kind};
use super::tuple::TCP;

const OBJECT_NAME: u16 = 2;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
const HELPER: u32 = 3;
const HELPER_NAME: u16 = 1;
const HELPER_NETWORK: u16 = 2;
const HELPER_TRANSPORT: u16 = 3;
const EXPECTATION: u32 = 9;
const EXPECTATION_NETWORK: u16 = 1;
const EXPECTATION_TRANSPORT: u16 = 2;
const EXPECTATION_PORT: u16 = 3;
const EXPECTATION_TIMEOUT: u16 = 4;
const EXPECTATION_SIZE: u16 = 5;

/// An object of a table, for connections of TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is.
    pub kind: ObjectKind<'a>,
}

/// What an object does to a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind<'a> {
    /// A `ct expectation` that lets nothing in: it gives the connection the place in its entry where helpers keep what
    /// is theirs, and nothing else. NAT gives entries with such a place another one, for sequence numbers. It is for
    /// IPv4 or IPv6, and not for both.
    Place(Family),
    /// A `ct helper`: it gives the connection the helper of that name. While it stands the helper cannot be removed.
    Helper(&'a str),
}

impl Tables {
    /// Makes what is missing of these, and the table if it is missing.
    pub fn define(&mut self, table: Table<'_>, objects: &[Object<'_>]) -> Result<(), Error> {
        let defined = self.socket.batch(SUBSYSTEM, |batch| {
            batch.request(kind::NEW_TABLE, flags::CREATE, table.family.number(), |w| {
                w.text(attribute::TABLE, table.name);
            });
            for object in objects {
                write_object(batch, table, object);
            }
        });
        defined.map_err(|cause| Error::new(Operation::Add, format_args!("objects of table {table}"), cause))
    }
}

fn write_object(batch: &mut Batch<'_>, table: Table<'_>, object: &Object<'_>) {
    batch.request(kind::NEW_OBJECT, flags::CREATE, table.family.number(), |w| {
        w.text(attribute::TABLE, table.name);
        w.text(OBJECT_NAME, object.name);
        match object.kind {
            ObjectKind::Place(network) => {
                w.number(OBJECT_TYPE, EXPECTATION);
                w.nested(OBJECT_DATA, |data| write_expectation(data, network));
            }
            ObjectKind::Helper(helper) => {
                w.number(OBJECT_TYPE, HELPER);
                w.nested(OBJECT_DATA, |data| write_helper(data, helper, table.family));
            }
        }
    });
}

fn write_helper(data: &mut Writer, helper: &str, network: Family) {
    data.text(HELPER_NAME, helper);
    data.attribute(HELPER_NETWORK, &u16::from(network.number()).to_be_bytes());
    data.attribute(HELPER_TRANSPORT, &[TCP]);
}

fn write_expectation(data: &mut Writer, network: Family) {
    data.attribute(EXPECTATION_NETWORK, &u16::from(network.number()).to_be_bytes());
    data.attribute(EXPECTATION_TRANSPORT, &[TCP]);
    // Of size 0, and where that means as many as possible (Linux 7.2), over at once: none is ever met. No program can listen
    // on this port either.
    data.attribute(EXPECTATION_SIZE, &[0]);
    data.attribute(EXPECTATION_TIMEOUT, &0u32.to_ne_bytes());
    data.attribute(EXPECTATION_PORT, &0u16.to_be_bytes());
}
