//! A table as the kernel dumps it, kept to be restored in one batch: chains, sets, objects, rules.
//!
//! The dump has the same attributes as the messages that create the table, so it is replayed without being
//! interpreted. Left out is only what a table collects in use: elements of sets with a timeout.

use super::bytes::{Attribute, Head, Message, Messages, Writer, flags};
use super::element::Element;
use super::elements::{ELEMENTS_A_MESSAGE, write_elements};
use super::error::{Cause, Error, Operation};
use super::expression::Expression;
use super::marks;
use super::tables::{Table, Tables, attribute, kind, write_rule_body};

/// Attributes that hold others.
const NESTED: u16 = 0x8000;

/// What of each kind of thing is repeated; the rest is the kernel's own to say: handles, counts, padding.
mod repeated {
    use super::NESTED;

    /// Name, flags, userdata.
    pub(super) const TABLE: &[u16] = &[1, 2, 6];
    /// Table, name, hook, policy, type, flags, userdata.
    pub(super) const CHAIN: &[u16] = &[1, 3, 4 | NESTED, 5, 7, 10, 12];
    /// Table, name, flags, types and lengths of key and data, policy, description, timeout, interval, userdata, type
    /// of object, expressions.
    pub(super) const SET: &[u16] = &[1, 2, 3, 4, 5, 6, 7, 8, 9 | NESTED, 11, 12, 13, 15, 17 | NESTED, 18 | NESTED];
    /// Table, set, elements.
    pub(super) const ELEMENTS: &[u16] = &[1, 2, 3 | NESTED];
    /// Table, name, type, data, userdata.
    pub(super) const OBJECT: &[u16] = &[1, 2, 3, 4 | NESTED, 8];
    /// Table, chain, expressions, userdata.
    pub(super) const RULE: &[u16] = &[1, 2, 4 | NESTED, 7];
}

/// A step of a rule, in a list: what it is, and what of it there is to say.
mod step {
    pub(super) const ELEMENT: u16 = 1;
    pub(super) const NAME: u16 = 1;
    pub(super) const DATA: u16 = 2;
    /// Reads, writes or removes an option of a packet's header. One that writes, which is one with a source, is shown with
    /// flags that it must not be given. One that removes has neither source nor destination, and is shown with flags, an
    /// offset and a length.
    pub(super) const OPTION: &str = "exthdr";
    pub(super) const OPTION_DESTINATION: u16 = 1;
    pub(super) const OPTION_OFFSET: u16 = 3;
    pub(super) const OPTION_LENGTH: u16 = 4;
    pub(super) const OPTION_FLAGS: u16 = 5;
    pub(super) const OPTION_SOURCE: u16 = 7;
}

const SET_FLAGS: u16 = 3;
const SET_DESCRIPTION: u16 = 9;
const SET_ID: u16 = 10;
/// The number of elements that a set has room for, within its description.
const SIZE: u16 = 1;
/// Sets that belong to one rule, and sets that nobody can change (`NFT_SET_ANONYMOUS`, `NFT_SET_CONSTANT`).
const FIXED: u32 = 0x1 | 0x2;
/// The elements of such a set come and go.
const WITH_TIMEOUT: u32 = 0x10;

/// A request: its attributes, each with its type, and those bits that say how it is meant.
#[derive(Clone, Debug)]
struct Request {
    kind: u16,
    flags: u16,
    attributes: Vec<(u16, Box<[u8]>)>,
}

impl Request {
    /// The request that makes what a message shows.
    fn repeating(message: Message<'_>, kind: u16, flags: u16, repeated: &[u16]) -> Self {
        let attributes = repeated.iter().filter_map(|&wanted| {
            let found = message.attributes().find(wanted & !NESTED)?;
            Some((wanted, found.bytes().into()))
        });
        Self { kind, flags, attributes: attributes.collect() }
    }

    /// The request whose attributes `body` writes.
    fn written(kind: u16, flags: u16, repeated: &[u16], body: impl FnOnce(&mut Writer)) -> Self {
        let mut writer = Writer::default();
        writer.message(Head { kind, flags, sequence: 0, family: 0, resource: 0 }, body);
        let message = Messages::of(writer.as_bytes()).next().expect("it has just been written");
        Self::repeating(message, kind, flags, repeated)
    }

    /// The steps of a rule as the kernel takes them, which is not always as it shows them.
    fn mend_steps(&mut self) {
        let steps = self.attributes.iter_mut().find(|(kind, _)| *kind == attribute::RULE_EXPRESSIONS | NESTED);
        let Some((_, bytes)) = steps else { return };
        let mut writer = Writer::default();
        for (_, step) in Attribute::from(&**bytes).nested() {
            writer.nested(step::ELEMENT, |w| loadable_step(w, step));
        }
        *bytes = writer.as_bytes().into();
    }

    /// The value of an attribute, to be changed.
    fn value_mut(&mut self, kind: u16) -> Option<&mut Box<[u8]>> {
        self.attributes.iter_mut().find(|(found, _)| found & !NESTED == kind).map(|(_, value)| value)
    }

    fn number(&self, kind: u16) -> Option<u32> {
        let (_, bytes) = self.attributes.iter().find(|(found, _)| *found == kind)?;
        (**bytes).try_into().ok().map(u32::from_be_bytes)
    }

    fn text(&self, kind: u16) -> Option<&str> {
        let (_, bytes) = self.attributes.iter().find(|(found, _)| *found == kind)?;
        str::from_utf8(bytes.strip_suffix(b"\0").unwrap_or(bytes)).ok()
    }

    fn write(&self, writer: &mut Writer) {
        self.attributes.iter().for_each(|(kind, value)| writer.attribute(*kind, value));
    }
}

fn loadable_step(w: &mut Writer, shown: Attribute<'_>) {
    let find = |kind| shown.nested().find(kind);
    let Some(name) = find(step::NAME) else { return };
    w.attribute(step::NAME, name.bytes());
    let Some(data) = find(step::DATA) else { return };
    let has = |kind| data.nested().find(kind).is_some();
    let surplus: &[u16] = match () {
        () if name.text() != Some(step::OPTION) => &[],
        () if has(step::OPTION_SOURCE) => &[step::OPTION_FLAGS],
        () if has(step::OPTION_DESTINATION) => &[],
        () => &[step::OPTION_OFFSET, step::OPTION_LENGTH, step::OPTION_FLAGS],
    };
    if surplus.is_empty() {
        return w.attribute(step::DATA | NESTED, data.bytes());
    }
    w.nested(step::DATA, |w| {
        let taken = data.nested().filter(|(kind, _)| !surplus.contains(kind));
        taken.for_each(|(kind, value)| w.attribute(kind, value.bytes()));
    });
}

/// A table, to be restored.
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

    /// Makes this the one rule of a chain, in the place of those that are in it.
    pub fn fill_chain(&mut self, table: Table<'_>, chain: &str, rule: &[Expression]) {
        let is_in_chain = |request: &Request| request.text(attribute::RULE_CHAIN) == Some(chain);
        let place = self.rules.iter().position(is_in_chain).unwrap_or(self.rules.len());
        self.rules.retain(|request| !is_in_chain(request));
        let body = |w: &mut Writer| write_rule_body(w, table, chain, "", rule);
        let request = Request::written(kind::NEW_RULE, flags::CREATE | flags::APPEND, repeated::RULE, body);
        self.rules.insert(place, request);
    }

    /// Makes these the elements of a set, in the place of those that are in it.
    pub fn fill_set(&mut self, table: Table<'_>, set: &str, elements: &[Element]) {
        self.elements.retain(|request| request.text(attribute::SET_NAME) != Some(set));
        self.elements.extend(elements.chunks(ELEMENTS_A_MESSAGE).map(|elements| {
            let body = |w: &mut Writer| write_elements(w, table, set, elements);
            Request::written(kind::NEW_ELEMENT, flags::CREATE, repeated::ELEMENTS, body)
        }));
    }

    /// Gives a set or map room for so many elements.
    pub fn resize_set(&mut self, set: &str, size: u32) {
        let sets = self.sets.iter_mut().filter(|request| request.text(attribute::SET_NAME) == Some(set));
        for description in sets.filter_map(|request| request.value_mut(SET_DESCRIPTION)) {
            let mut writer = Writer::default();
            writer.number(SIZE, size);
            let rest = Attribute::from(&**description).nested().filter(|(kind, _)| *kind != SIZE);
            rest.for_each(|(kind, value)| writer.attribute(kind, value.bytes()));
            *description = writer.as_bytes().into();
        }
    }

    /// Exchanges the numbers that rules compare marks of connections with, mask them by or set them to. Whether every
    /// use of such a mark was understood and has another number; if not, the image is of no use any more.
    pub fn exchange_marks(&mut self, other: impl Fn(u32) -> Option<u32>) -> bool {
        self.rules.iter_mut().all(|rule| {
            let Some(steps) = rule.value_mut(attribute::RULE_EXPRESSIONS) else { return true };
            match marks::exchanged(steps, &other) {
                Some(exchanged) => *steps = exchanged,
                None => return false,
            }
            true
        })
    }
}

impl Tables {
    /// What is needed to put a table back as it stands.
    pub fn image(&mut self, table: Table<'_>) -> Result<TableImage, Error> {
        self.try_image(table).map_err(|cause| Error::new(Operation::Read, format_args!("table {table}"), cause))
    }

    fn try_image(&mut self, table: Table<'_>) -> Result<TableImage, Cause> {
        let of_table = |message: Message<'_>| {
            message.attributes().find(attribute::TABLE).and_then(Attribute::text) == Some(table.name)
        };
        let family = table.family.number();
        let by_name = |w: &mut Writer| w.text(attribute::TABLE, table.name);
        let mut read = |ask: u16, make: u16, more: u16, repeated: &[u16]| {
            self.list(ask, family, by_name, |message, requests: &mut Vec<Request>| {
                if of_table(message) {
                    requests.push(Request::repeating(message, make, flags::CREATE | more, repeated));
                }
            })
        };
        let mut image = TableImage {
            table: read(kind::GET_TABLE, kind::NEW_TABLE, 0, repeated::TABLE)?,
            chains: read(kind::GET_CHAIN, kind::NEW_CHAIN, 0, repeated::CHAIN)?,
            sets: read(kind::GET_SET, kind::NEW_SET, 0, repeated::SET)?,
            objects: read(kind::GET_OBJECT, kind::NEW_OBJECT, 0, repeated::OBJECT)?,
            rules: read(kind::GET_RULE, kind::NEW_RULE, flags::APPEND, repeated::RULE)?,
            elements: Vec::new(),
        };
        image.rules.iter_mut().for_each(Request::mend_steps);
        for (id, set) in (1u32..).zip(&mut image.sets) {
            // Within a batch a set has a number besides its name.
            set.attributes.push((SET_ID, id.to_be_bytes().into()));
            if set.number(SET_FLAGS).unwrap_or(0) & WITH_TIMEOUT != 0 {
                continue;
            }
            let Some(name) = set.text(attribute::SET_NAME).map(ToOwned::to_owned) else { continue };
            let of_set = |w: &mut Writer| {
                by_name(w);
                w.text(attribute::SET_NAME, &name);
            };
            let elements = self.list(kind::GET_ELEMENT, family, of_set, |message, requests: &mut Vec<Request>| {
                if message.attributes().find(attribute::ELEMENTS).is_some() {
                    requests.push(Request::repeating(message, kind::NEW_ELEMENT, flags::CREATE, repeated::ELEMENTS));
                }
            })?;
            image.elements.extend(elements);
        }
        Ok(image)
    }

    /// Makes a table be again as it was, whatever is left of it, at once or not at all. Its chains are filled anew, and
    /// so are the sets of which the image has elements; others that still stand keep what is in them. The elements come with it, as far as they find room: what is left over
    /// is handed back.
    pub fn put_back<'e>(
        &mut self,
        table: Table<'_>,
        image: &TableImage,
        elements: &[(&'e str, &'e [Element])],
    ) -> Result<Vec<(&'e str, &'e [Element])>, Error> {
        let family = table.family.number();
        let mut left = Vec::new();
        let put = self.once_rearranged(|tables| {
            left.clear();
            tables.batch(|batch| {
                let mut make = |requests: &[Request]| {
                    for request in requests {
                        batch.request(request.kind, request.flags, family, |w| request.write(w));
                    }
                };
                make(&image.table);
                make(&image.chains);
                for chain in &image.chains {
                    let name = chain.text(attribute::CHAIN_NAME).unwrap_or_default();
                    batch.request(kind::DELETE_RULE, 0, family, |w| {
                        w.text(attribute::TABLE, table.name);
                        w.text(attribute::RULE_CHAIN, name);
                    });
                }
                let mut make = |requests: &[Request]| {
                    for request in requests {
                        batch.request(request.kind, request.flags, family, |w| request.write(w));
                    }
                };
                make(&image.sets);
                // What somebody else has put into a set whose elements are known goes.
                for set in image.sets.iter().filter(|set| set.number(SET_FLAGS).unwrap_or(0) & FIXED == 0) {
                    let name = set.text(attribute::SET_NAME).unwrap_or_default();
                    let is_of_set = |elements: &Request| elements.text(attribute::SET_NAME) == Some(name);
                    if image.elements.iter().any(is_of_set) {
                        batch.request(kind::DELETE_ELEMENT, 0, family, |w| {
                            w.text(attribute::TABLE, table.name);
                            w.text(attribute::SET_NAME, name);
                        });
                    }
                }
                let mut make = |requests: &[Request]| {
                    for request in requests {
                        batch.request(request.kind, request.flags, family, |w| request.write(w));
                    }
                };
                make(&image.elements);
                make(&image.objects);
                make(&image.rules);
                for &(set, all) in elements {
                    let (now, later) = all.split_at(all.len().min(ELEMENTS_A_MESSAGE));
                    if !now.is_empty() {
                        batch.request(kind::NEW_ELEMENT, flags::CREATE, family, |w| write_elements(w, table, set, now));
                    }
                    if !later.is_empty() {
                        left.push((set, later));
                    }
                }
            })
        });
        put.map_err(|cause| Error::new(Operation::Add, format_args!("table {table}"), cause))?;
        Ok(left)
    }
}
