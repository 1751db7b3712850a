//! Named objects of nf_tables (linux/netfilter/nf_tables.h) that must exist before nft runs: `ct helper`.

use super::error::{Error, Operation};
use super::tables::{Table, Tables, table_request};
use super::uapi::*;

/// A `ct helper` object for TCP connections: it gives a new connection a helper. While the object exists, the helper cannot
/// be unregistered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelperObject<'a> {
    /// The object's name.
    pub name: &'a str,
    /// The helper's.
    pub helper: &'a str,
}

impl Tables {
    /// Adds a `ct helper` object, and the table, if they do not exist.
    pub fn add_helper_object(&mut self, table: Table<'_>, object: &HelperObject<'_>) -> Result<(), Error> {
        let added = self.socket.transaction(|batch| {
            table_request(batch, NFT_MSG_NEWTABLE, NLM_F_CREATE, table);
            batch.request(NFT_MSG_NEWOBJ, NLM_F_CREATE, table.family.number(), |w| {
                w.string(NFTA_OBJ_TABLE, table.name);
                w.string(NFTA_OBJ_NAME, object.name);
                w.u32(NFTA_OBJ_TYPE, NFT_OBJECT_CT_HELPER);
                w.nested(NFTA_OBJ_DATA, |data| {
                    data.string(NFTA_CT_HELPER_NAME, object.helper);
                    data.u16(NFTA_CT_HELPER_L3PROTO, table.family.number().into());
                    data.u8(NFTA_CT_HELPER_L4PROTO, IPPROTO_TCP);
                });
            });
        });
        added
            .map_err(|cause| Error::new(Operation::Add, format_args!("object {} of table {table}", object.name), cause))
    }
}
