//! Named objects of nf_tables (linux/netfilter/nf_tables.h), `ct helper` and `ct expectation`: those that nft cannot
//! write, and those that must exist before nft runs.

use super::bytes::Writer;
use super::error::{Error, Operation, existing};
use super::socket::Batch;
use super::tables::{Family, Table, Tables, table_request};
use super::uapi::*;

/// An object of a table, for TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object<'a> {
    pub name: &'a str,
    pub kind: ObjectKind<'a>,
}

/// Type and data of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind<'a> {
    /// A `ct expectation` for IPv4 or IPv6 that expects nothing. It gives a new connection a helper extension
    /// (`nf_conn_help`), and because of that NAT gives the connection a seqadj extension.
    CtExpectation(Family),
    /// A `ct helper`: it gives a new connection the helper of that name. While the object exists, the helper cannot be
    /// unregistered.
    CtHelper(&'a str),
}

impl ObjectKind<'_> {
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::CtExpectation(_) => NFT_OBJECT_CT_EXPECT,
            Self::CtHelper(_) => NFT_OBJECT_CT_HELPER,
        }
    }
}

impl Tables {
    /// Adds those of the objects that do not exist, and the table if it does not exist.
    pub fn add_objects(&mut self, table: Table<'_>, objects: &[Object<'_>]) -> Result<(), Error> {
        let added = self.socket.transaction(|batch| {
            table_request(batch, NFT_MSG_NEWTABLE, NLM_F_CREATE, table);
            for object in objects {
                add_object(batch, table, object);
            }
        });
        added.map_err(|cause| Error::new(Operation::Add, format_args!("objects of table {table}"), cause))
    }

    /// Removes an object to which no rule refers. It is no error if it does not exist.
    pub fn remove_object(&mut self, table: Table<'_>, object: &Object<'_>) -> Result<(), Error> {
        let removed = self.socket.transaction(|batch| {
            batch.request(NFT_MSG_DELOBJ, 0, table.family.number(), |w| {
                w.string(NFTA_OBJ_TABLE, table.name);
                w.string(NFTA_OBJ_NAME, object.name);
                w.u32(NFTA_OBJ_TYPE, object.kind.number());
            });
        });
        let what = format_args!("object {} of table {table}", object.name);
        existing(removed).map(drop).map_err(|cause| Error::new(Operation::Remove, what, cause))
    }
}

fn add_object(batch: &mut Batch<'_>, table: Table<'_>, object: &Object<'_>) {
    batch.request(NFT_MSG_NEWOBJ, NLM_F_CREATE, table.family.number(), |w| {
        w.string(NFTA_OBJ_TABLE, table.name);
        w.string(NFTA_OBJ_NAME, object.name);
        w.u32(NFTA_OBJ_TYPE, object.kind.number());
        w.nested(NFTA_OBJ_DATA, |data| match object.kind {
            ObjectKind::CtExpectation(l3proto) => write_expectation(data, l3proto),
            ObjectKind::CtHelper(helper) => write_helper(data, helper, table.family),
        });
    });
}

fn write_helper(data: &mut Writer, helper: &str, l3proto: Family) {
    data.string(NFTA_CT_HELPER_NAME, helper);
    data.u16(NFTA_CT_HELPER_L3PROTO, l3proto.number().into());
    data.u8(NFTA_CT_HELPER_L4PROTO, IPPROTO_TCP);
}

fn write_expectation(data: &mut Writer, l3proto: Family) {
    data.u16(NFTA_CT_EXPECT_L3PROTO, l3proto.number().into());
    data.u8(NFTA_CT_EXPECT_L4PROTO, IPPROTO_TCP);
    // Size 0 expects nothing. Since Linux 7.2 it means the maximum; then the timeout of 0 ends each expectation at once.
    // No program can listen on port 0 either.
    data.u8(NFTA_CT_EXPECT_SIZE, 0);
    data.bytes(NFTA_CT_EXPECT_TIMEOUT, &0u32.to_ne_bytes());
    data.u16(NFTA_CT_EXPECT_DPORT, 0);
}
