//! A table as the kernel dumps it (linux/netfilter/nf_tables.h), kept to be restored in one transaction: chains, sets,
//! objects, rules.
//!
//! The dump has the same attributes as the requests that create the table, so they are sent again without being
//! interpreted. The image leaves out only the elements of sets with a timeout.

mod copy;

use super::bytes::{Attribute, Head, Message, Messages, Writer};
use super::element::Element;
use super::elements::{MAX_ELEMENTS, write_elements};
use super::error::{Cause, Error, Operation};
use super::expression::Expression;
use super::marks;
use super::socket::Batch;
use super::tables::{Table, Tables, flush_chain, is_of_table, write_rule};
use super::uapi::*;

/// The attributes of a dump that a request repeats. The kernel chooses the others: handles, counts, padding.
mod repeated {
    use super::*;

    pub(super) const TABLE: &[u16] = &[NFTA_TABLE_NAME, NFTA_TABLE_FLAGS, NFTA_TABLE_USERDATA];
    pub(super) const CHAIN: &[u16] = &[
        NFTA_CHAIN_TABLE,
        NFTA_CHAIN_NAME,
        NFTA_CHAIN_HOOK | NLA_F_NESTED,
        NFTA_CHAIN_POLICY,
        NFTA_CHAIN_TYPE,
        NFTA_CHAIN_FLAGS,
        NFTA_CHAIN_USERDATA,
    ];
    pub(super) const SET: &[u16] = &[
        NFTA_SET_TABLE,
        NFTA_SET_NAME,
        NFTA_SET_FLAGS,
        NFTA_SET_KEY_TYPE,
        NFTA_SET_KEY_LEN,
        NFTA_SET_DATA_TYPE,
        NFTA_SET_DATA_LEN,
        NFTA_SET_POLICY,
        NFTA_SET_DESC | NLA_F_NESTED,
        NFTA_SET_TIMEOUT,
        NFTA_SET_GC_INTERVAL,
        NFTA_SET_USERDATA,
        NFTA_SET_OBJ_TYPE,
        NFTA_SET_EXPR | NLA_F_NESTED,
        NFTA_SET_EXPRESSIONS | NLA_F_NESTED,
    ];
    pub(super) const ELEMENTS: &[u16] =
        &[NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED];
    pub(super) const OBJECT: &[u16] =
        &[NFTA_OBJ_TABLE, NFTA_OBJ_NAME, NFTA_OBJ_TYPE, NFTA_OBJ_DATA | NLA_F_NESTED, NFTA_OBJ_USERDATA];
    pub(super) const RULE: &[u16] =
        &[NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS | NLA_F_NESTED, NFTA_RULE_USERDATA];
}

/// A request: its message type within nf_tables, its flags, and its attributes, some with `NLA_F_NESTED`.
#[derive(Clone, Debug)]
struct Request {
    message: u16,
    flags: u16,
    attributes: Vec<(u16, Box<[u8]>)>,
}

impl Request {
    /// The request that creates the dumped object.
    fn repeating(dumped: Message<'_>, message: u16, flags: u16, repeated: &[u16]) -> Self {
        let attributes = repeated.iter().filter_map(|&wanted| {
            let found = dumped.attributes().find(wanted & NLA_TYPE_MASK)?;
            Some((wanted, found.bytes().into()))
        });
        Self { message, flags: NLM_F_CREATE | flags, attributes: attributes.collect() }
    }

    /// The request whose attributes `body` writes.
    fn written(message: u16, flags: u16, repeated: &[u16], body: impl FnOnce(&mut Writer)) -> Self {
        let mut writer = Writer::default();
        writer.message(Head::default(), body);
        let written = Messages::of(writer.as_bytes()).next().expect("it was written above");
        Self::repeating(written, message, flags, repeated)
    }

    /// Changes the expressions of a rule into what the kernel takes, which is not always what it dumps.
    fn make_loadable(&mut self) {
        let Some(expressions) = self.value_mut(NFTA_RULE_EXPRESSIONS) else { return };
        let mut writer = Writer::default();
        for (_, expression) in Attribute::from(&**expressions).nested() {
            writer.nested(NFTA_LIST_ELEM, |w| write_loadable(w, expression));
        }
        *expressions = writer.as_bytes().into();
    }

    fn value(&self, kind: u16) -> Option<Attribute<'_>> {
        let (_, value) = self.attributes.iter().find(|(found, _)| found & NLA_TYPE_MASK == kind)?;
        Some(Attribute::from(&**value))
    }

    fn value_mut(&mut self, kind: u16) -> Option<&mut Box<[u8]>> {
        self.attributes.iter_mut().find(|(found, _)| found & NLA_TYPE_MASK == kind).map(|(_, value)| value)
    }

    fn string(&self, kind: u16) -> Option<&str> {
        self.value(kind)?.string()
    }

    fn set_flags(&self) -> u32 {
        self.value(NFTA_SET_FLAGS).and_then(Attribute::u32).unwrap_or(0)
    }

    fn append(&self, batch: &mut Batch<'_>, family: u8) {
        batch.request(self.message, self.flags, family, |w| {
            self.attributes.iter().for_each(|(kind, value)| w.bytes(*kind, value));
        });
    }
}

/// The kernel dumps `exthdr` with attributes that it refuses in a request: with flags, if the expression writes an option,
/// which is one with a source register; with flags, offset and length, if it removes an option, which is one without
/// registers.
fn write_loadable(w: &mut Writer, dumped: Attribute<'_>) {
    let find = |kind| dumped.nested().find(kind);
    let Some(name) = find(NFTA_EXPR_NAME) else { return };
    w.bytes(NFTA_EXPR_NAME, name.bytes());
    let Some(data) = find(NFTA_EXPR_DATA) else { return };
    let has = |kind| data.nested().find(kind).is_some();
    let refused: &[u16] = match () {
        () if name.string() != Some("exthdr") => &[],
        () if has(NFTA_EXTHDR_SREG) => &[NFTA_EXTHDR_FLAGS],
        () if has(NFTA_EXTHDR_DREG) => &[],
        () => &[NFTA_EXTHDR_OFFSET, NFTA_EXTHDR_LEN, NFTA_EXTHDR_FLAGS],
    };
    if refused.is_empty() {
        return w.bytes(NFTA_EXPR_DATA | NLA_F_NESTED, data.bytes());
    }
    w.nested(NFTA_EXPR_DATA, |w| {
        let taken = data.nested().filter(|(kind, _)| !refused.contains(kind));
        taken.for_each(|(kind, value)| w.bytes(kind, value.bytes()));
    });
}

/// The requests that create a table as it was.
#[derive(Clone, Debug, Default)]
pub struct TableImage {
    table: Vec<Request>,
    chains: Vec<Request>,
    sets: Vec<Request>,
    elements: Vec<Request>,
    objects: Vec<Request>,
    rules: Vec<Request>,
}

impl TableImage {
    /// How many rules it has.
    pub fn rules(&self) -> usize {
        self.rules.len()
    }

    /// Replaces the rules of a chain by one.
    pub fn fill_chain(&mut self, table: Table<'_>, chain: &str, comment: &str, rule: &[Expression]) {
        let is_in_chain = |request: &Request| request.string(NFTA_RULE_CHAIN) == Some(chain);
        let place = self.rules.iter().position(is_in_chain).unwrap_or(self.rules.len());
        self.rules.retain(|request| !is_in_chain(request));
        let body = |w: &mut Writer| write_rule(w, table, chain, comment, rule);
        self.rules.insert(place, Request::written(NFT_MSG_NEWRULE, NLM_F_APPEND, repeated::RULE, body));
    }

    /// Replaces the elements of a set.
    pub fn fill_set(&mut self, table: Table<'_>, set: &str, elements: &[Element]) {
        self.elements.retain(|request| request.string(NFTA_SET_ELEM_LIST_SET) != Some(set));
        self.elements.extend(elements.chunks(MAX_ELEMENTS).map(|elements| {
            let body = |w: &mut Writer| write_elements(w, table, set, elements);
            Request::written(NFT_MSG_NEWSETELEM, 0, repeated::ELEMENTS, body)
        }));
    }

    /// Changes the size of a set or map.
    pub fn resize_set(&mut self, set: &str, size: u32) {
        let sets = self.sets.iter_mut().filter(|request| request.string(NFTA_SET_NAME) == Some(set));
        for description in sets.filter_map(|request| request.value_mut(NFTA_SET_DESC)) {
            let mut writer = Writer::default();
            writer.u32(NFTA_SET_DESC_SIZE, size);
            let rest = Attribute::from(&**description).nested().filter(|(kind, _)| *kind != NFTA_SET_DESC_SIZE);
            rest.for_each(|(kind, value)| writer.bytes(kind, value.bytes()));
            *description = writer.as_bytes().into();
        }
    }

    /// Replaces the numbers that rules compare marks with, mask them by or set them to. Returns whether `other` has a
    /// number for each, and each use of a mark was understood. If not, the image cannot be used any more.
    pub fn replace_marks(&mut self, other: impl Fn(u32) -> Option<u32>) -> bool {
        self.rules.iter_mut().all(|rule| {
            let Some(expressions) = rule.value_mut(NFTA_RULE_EXPRESSIONS) else { return true };
            match marks::replaced(expressions, &other) {
                Some(replaced) => *expressions = replaced,
                None => return false,
            }
            true
        })
    }
}

impl Tables {
    /// An image of a table.
    pub fn image(&mut self, table: Table<'_>) -> Result<TableImage, Error> {
        self.try_image(table, false).map_err(|cause| Error::new(Operation::Read, format_args!("table {table}"), cause))
    }

    /// With or without the elements of sets with a timeout.
    fn try_image(&mut self, table: Table<'_>, with_timeouts: bool) -> Result<TableImage, Cause> {
        let family = table.family.number();
        let by_name = |w: &mut Writer| w.string(NFTA_TABLE_NAME, table.name);
        let mut dump = |get: u16, new: u16, flags: u16, repeated: &[u16]| {
            self.socket.list(get, family, by_name, |message| {
                is_of_table(message, table).then(|| Request::repeating(message, new, flags, repeated))
            })
        };
        let mut image = TableImage {
            table: dump(NFT_MSG_GETTABLE, NFT_MSG_NEWTABLE, 0, repeated::TABLE)?,
            chains: dump(NFT_MSG_GETCHAIN, NFT_MSG_NEWCHAIN, 0, repeated::CHAIN)?,
            sets: dump(NFT_MSG_GETSET, NFT_MSG_NEWSET, 0, repeated::SET)?,
            objects: dump(NFT_MSG_GETOBJ, NFT_MSG_NEWOBJ, 0, repeated::OBJECT)?,
            rules: dump(NFT_MSG_GETRULE, NFT_MSG_NEWRULE, NLM_F_APPEND, repeated::RULE)?,
            elements: Vec::new(),
        };
        image.rules.iter_mut().for_each(Request::make_loadable);
        for (id, set) in (1u32..).zip(&mut image.sets) {
            // Within a transaction a set also has a number.
            set.attributes.push((NFTA_SET_ID, id.to_be_bytes().into()));
            if set.set_flags() & NFT_SET_TIMEOUT != 0 && !with_timeouts {
                continue;
            }
            let Some(name) = set.string(NFTA_SET_NAME).map(ToOwned::to_owned) else { continue };
            let of_set = |w: &mut Writer| {
                w.string(NFTA_SET_ELEM_LIST_TABLE, table.name);
                w.string(NFTA_SET_ELEM_LIST_SET, &name);
            };
            image.elements.extend(self.socket.list(NFT_MSG_GETSETELEM, family, of_set, |message| {
                let has_elements = message.attributes().find(NFTA_SET_ELEM_LIST_ELEMENTS).is_some();
                has_elements.then(|| Request::repeating(message, NFT_MSG_NEWSETELEM, 0, repeated::ELEMENTS))
            })?);
        }
        Ok(image)
    }

    /// Restores a table from its image in one transaction, also if parts of it still exist. Replaces the rules of its chains and
    /// the elements of the sets of which the image has elements; other sets keep theirs. Adds `elements` as well, as
    /// many of each set as fit into one message, and returns the rest.
    pub fn restore<'e>(
        &mut self,
        table: Table<'_>,
        image: &TableImage,
        elements: &[(&'e str, &'e [Element])],
    ) -> Result<Vec<(&'e str, &'e [Element])>, Error> {
        let split = |&(set, all): &(&'e str, &'e [Element])| {
            let (now, later) = all.split_at(all.len().min(MAX_ELEMENTS));
            ((set, now), (set, later))
        };
        let (now, later): (Vec<_>, Vec<_>) = elements.iter().map(split).unzip();
        let restored =
            self.retry_while_busy(|tables| tables.socket.transaction(|batch| append_image(batch, table, image, &now)));
        restored.map_err(|cause| Error::new(Operation::Add, format_args!("table {table}"), cause))?;
        Ok(later.into_iter().filter(|(_, later)| !later.is_empty()).collect())
    }
}

fn append_image(batch: &mut Batch<'_>, table: Table<'_>, image: &TableImage, elements: &[(&str, &[Element])]) {
    let family = table.family.number();
    let append = |batch: &mut Batch<'_>, requests: &[Request]| {
        requests.iter().for_each(|request| request.append(batch, family));
    };
    append(batch, &image.table);
    append(batch, &image.chains);
    for chain in &image.chains {
        flush_chain(batch, table, chain.string(NFTA_CHAIN_NAME).unwrap_or_default());
    }
    append(batch, &image.sets);
    // Deletes what another program has added to sets of which the image has the elements.
    for set in image.sets.iter().filter(|set| set.set_flags() & (NFT_SET_ANONYMOUS | NFT_SET_CONSTANT) == 0) {
        let name = set.string(NFTA_SET_NAME).unwrap_or_default();
        if image.elements.iter().any(|elements| elements.string(NFTA_SET_ELEM_LIST_SET) == Some(name)) {
            batch.request(NFT_MSG_DELSETELEM, 0, family, |w| {
                w.string(NFTA_SET_ELEM_LIST_TABLE, table.name);
                w.string(NFTA_SET_ELEM_LIST_SET, name);
            });
        }
    }
    append(batch, &image.elements);
    append(batch, &image.objects);
    append(batch, &image.rules);
    for (set, elements) in elements.iter().filter(|(_, elements)| !elements.is_empty()) {
        batch.request(NFT_MSG_NEWSETELEM, NLM_F_CREATE, family, |w| write_elements(w, table, set, elements));
    }
}
