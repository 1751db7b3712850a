//! What nf_tables can have and the program nft cannot write.
//!
//! nft takes rules that name such a thing, once it is there.

use super::bytes::{Writer, flags};
use super::error::{Error, Operation};
use super::socket::Batch;
use super::tables::{Family, SUBSYSTEM, Table, Tables, attribute, kind};

const OBJECT_NAME: u16 = 2;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
const EXPECTATION: u32 = 9;
const EXPECTATION_NETWORK: u16 = 1;
const EXPECTATION_TRANSPORT: u16 = 2;
const EXPECTATION_PORT: u16 = 3;
const EXPECTATION_TIMEOUT: u16 = 4;
const EXPECTATION_SIZE: u16 = 5;
const TCP: u8 = 6;

/// An object `ct expectation` that expects nothing: it gives a new connection the place in its entry where helpers keep
/// what is theirs, and nothing else. NAT gives entries with such a place another one, for sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelperPlace<'a> {
    /// Its name.
    pub name: &'a str,
    /// IPv4 or IPv6, and not both.
    pub network: Family,
}

impl Tables {
    /// Makes what is missing of these, and the table if it is missing.
    pub fn define(&mut self, table: Table<'_>, places: &[HelperPlace<'_>]) -> Result<(), Error> {
        let defined = self.socket.batch(SUBSYSTEM, |batch| {
            batch.request(kind::NEW_TABLE, flags::CREATE, table.family.number(), |w| {
                w.text(attribute::TABLE, table.name);
            });
            for place in places {
                write_place(batch, table, place);
            }
        });
        defined.map_err(|cause| Error::new(Operation::Add, format_args!("objects of table {table}"), cause))
    }
}

fn write_place(batch: &mut Batch<'_>, table: Table<'_>, place: &HelperPlace<'_>) {
    batch.request(kind::NEW_OBJECT, flags::CREATE, table.family.number(), |w| {
        w.text(attribute::TABLE, table.name);
        w.text(OBJECT_NAME, place.name);
        w.number(OBJECT_TYPE, EXPECTATION);
        w.nested(OBJECT_DATA, |data| write_expectation(data, place.network));
    });
}

fn write_expectation(data: &mut Writer, network: Family) {
    data.attribute(EXPECTATION_NETWORK, &u16::from(network.number()).to_be_bytes());
    data.attribute(EXPECTATION_TRANSPORT, &[TCP]);
    // Neither matters, as none is ever made; the kernel wants them. The time is in the host's order.
    data.attribute(EXPECTATION_PORT, &1u16.to_be_bytes());
    data.attribute(EXPECTATION_TIMEOUT, &1000u32.to_ne_bytes());
    // None: a rule that uses it prepares the connection and ends there.
    data.attribute(EXPECTATION_SIZE, &[0]);
}
