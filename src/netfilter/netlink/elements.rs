//! Adds, lists and deletes elements of nf_tables sets and maps.
//!
//! It handles a kernel that is busy with a set, and an element that a packet uses up while it is being deleted.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::bytes::{Message, Writer, flags};
use super::element::{Element, Key};
use super::error::{Cause, Error, Operation};
use super::socket::Batch;
use super::tables::{SUBSYSTEM, Table, Tables, attribute, kind};

/// Elements that go into one message: a list may have 64 KB, and an element takes at most 112 bytes.
pub(super) const ELEMENTS_A_MESSAGE: usize = 256;
/// How long the kernel may take to rearrange a set, and how often it is asked meanwhile: seldom, as every attempt that
/// fails interrupts it.
const REARRANGING: Duration = Duration::from_secs(1);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(30);

impl Tables {
    /// Puts an element into a set. One with the same key is replaced, its age with it.
    pub fn insert(&mut self, table: Table<'_>, set: &str, element: &Element) -> Result<(), Error> {
        self.exchange(table, &[], &[(set, *element)])
    }

    /// Removes an element from a set. That it is not there is fine.
    pub fn remove(&mut self, table: Table<'_>, set: &str, element: &Element) -> Result<(), Error> {
        self.exchange(table, &[(set, *element)], &[])
    }

    /// Removes elements from sets and puts others into sets, all at once. What is to go may be missing; what is to come
    /// takes the place of what is there with the same key, its age included.
    pub fn exchange<'a>(
        &mut self,
        table: Table<'_>,
        go: &[(&'a str, Element)],
        come: &[(&'a str, Element)],
    ) -> Result<(), Error> {
        // Kernels up to 6.11 keep the old element's age when one is added again, so it has to go first.
        let leave = go.iter().chain(come).copied();
        let is_removal = come.is_empty();
        let exchanged = self.uncertain(|tables| {
            let missing = tables.missing(table, leave.clone())?;
            let kind = if tables.destroys { kind::DESTROY_ELEMENT } else { kind::DELETE_ELEMENT };
            let stands = |(set, element): &(&str, Element)| !missing.contains(&(*set, element.key));
            if is_removal && !leave.clone().any(|one| stands(&one)) {
                return Ok(());
            }
            tables.socket.batch(SUBSYSTEM, |batch| {
                let mut left = leave.clone().filter(stands).count() + come.len();
                let mut is_last = || {
                    left -= 1;
                    left == 0
                };
                for (set, element) in leave.clone().filter(stands) {
                    delete(batch, kind, table, set, &element, is_last());
                }
                for (set, element) in come {
                    write(batch, table, set, std::slice::from_ref(element), is_last());
                }
            })
        });
        exchanged.map_err(|cause| {
            let operation = if is_removal { Operation::Remove } else { Operation::Add };
            match come.iter().chain(go).next() {
                Some((set, element)) => error_of_element(operation, table, set, &element.key, cause),
                None => Error::new(operation, format_args!("elements of table {table}"), cause),
            }
        })
    }

    /// Puts many elements into a set, in few requests. One that is there already stays as it is.
    pub fn insert_all(&mut self, table: Table<'_>, set: &str, elements: &[Element]) -> Result<(), Error> {
        elements.chunks(ELEMENTS_A_MESSAGE).try_for_each(|chunk| {
            let written = self.once_rearranged(|tables| {
                tables.socket.batch(SUBSYSTEM, |batch| write(batch, table, set, chunk, true))
            });
            written.map_err(|cause| Error::new(Operation::Add, InSet { table, set }, cause))
        })
    }

    /// Whether an element is in a set.
    pub fn has_element(&mut self, table: Table<'_>, set: &str, key: &Key) -> Result<bool, Error> {
        self.element(table, set, key).map(|found| found.is_some())
    }

    /// An element of a set; none if it is not there.
    pub fn element(&mut self, table: Table<'_>, set: &str, key: &Key) -> Result<Option<Element>, Error> {
        match self.get(table, set, key) {
            Ok(element) => Ok(Some(element)),
            Err(cause) if cause.is_missing() => Ok(None),
            Err(cause) => Err(error_of_element(Operation::Read, table, set, key, cause)),
        }
    }

    /// The elements of a set.
    pub fn elements(&mut self, table: Table<'_>, set: &str) -> Result<Vec<Element>, Error> {
        let name = |w: &mut Writer| {
            w.text(attribute::TABLE, table.name);
            w.text(attribute::SET_NAME, set);
        };
        let read = |message: Message<'_>, elements: &mut Vec<Element>| {
            let list = message.attributes().find(attribute::ELEMENTS);
            elements.extend(list.into_iter().flat_map(|list| Element::read_all(list.nested())));
        };
        self.list(kind::GET_ELEMENT, table.family.number(), name, read)
            .map_err(|cause| Error::new(Operation::Read, InSet { table, set }, cause))
    }

    /// Those of some elements that are not there, for a kernel that cannot be told to remove what may be missing.
    fn missing<'a>(
        &mut self,
        table: Table<'_>,
        elements: impl Iterator<Item = (&'a str, Element)>,
    ) -> Result<Vec<(&'a str, Key)>, Cause> {
        let mut missing = Vec::new();
        if self.destroys {
            return Ok(missing);
        }
        for (set, element) in elements {
            match self.get(table, set, &element.key) {
                Ok(_) => {}
                Err(cause) if cause.is_missing() => missing.push((set, element.key)),
                Err(cause) => return Err(cause),
            }
        }
        Ok(missing)
    }

    /// Asks for an element; the answer is that it is missing, if it is.
    fn get(&mut self, table: Table<'_>, set: &str, key: &Key) -> Result<Element, Cause> {
        let element = Element { key: *key, last: None, value: None, timeout: None, remaining: None };
        let name = |w: &mut Writer| write_elements(w, table, set, &[element]);
        self.socket.look_up(kind::GET_ELEMENT, table.family.number(), name, |message| {
            let list = message.attributes().find(attribute::ELEMENTS)?;
            Element::read_all(list.nested()).next()
        })
    }

    /// Does something again that may have happened already, or that something else came in between of.
    fn uncertain(&mut self, mut work: impl FnMut(&mut Self) -> Result<(), Cause>) -> Result<(), Cause> {
        match self.once_rearranged(&mut work) {
            // The answer was lost; or an element that had been seen is used up or expired.
            Err(cause) if cause == Cause::Lost || cause.is_missing() => self.once_rearranged(&mut work),
            result => result,
        }
    }

    /// Does something again while the kernel says that a set is busy: a hash table that grows or shrinks twice in a
    /// short time takes nothing until a thread of the kernel has moved all elements.
    pub(super) fn once_rearranged(
        &mut self,
        mut work: impl FnMut(&mut Self) -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        let deadline = Instant::now() + REARRANGING;
        loop {
            match work(self) {
                Err(Cause::Refused(Errno::BUSY)) if Instant::now() < deadline => thread::sleep(BETWEEN_ATTEMPTS),
                result => return result,
            }
        }
    }
}

struct InSet<'a> {
    table: Table<'a>,
    set: &'a str,
}

impl fmt::Display for InSet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "elements of set {} {}", self.table, self.set)
    }
}

fn error_of_element(operation: Operation, table: Table<'_>, set: &str, key: &Key, cause: Cause) -> Error {
    Error::new(operation, format_args!("element {key} of set {table} {set}"), cause)
}

fn write(batch: &mut Batch<'_>, table: Table<'_>, set: &str, elements: &[Element], is_last: bool) {
    let body = |w: &mut Writer| write_elements(w, table, set, elements);
    append(batch, kind::NEW_ELEMENT, flags::CREATE, table, body, is_last);
}

fn delete(batch: &mut Batch<'_>, kind: u16, table: Table<'_>, set: &str, element: &Element, is_last: bool) {
    let bare = Element { timeout: None, value: None, ..*element };
    append(batch, kind, 0, table, |w| write_elements(w, table, set, std::slice::from_ref(&bare)), is_last);
}

/// Of a batch only the last request is acknowledged.
fn append(
    batch: &mut Batch<'_>,
    kind: u16,
    more: u16,
    table: Table<'_>,
    body: impl FnOnce(&mut Writer),
    is_last: bool,
) {
    let family = table.family.number();
    if is_last { batch.request(kind, more, family, body) } else { batch.quiet_request(kind, more, family, body) }
}

pub(super) fn write_elements(w: &mut Writer, table: Table<'_>, set: &str, elements: &[Element]) {
    w.text(attribute::TABLE, table.name);
    w.text(attribute::SET_NAME, set);
    w.nested(attribute::ELEMENTS, |list| elements.iter().for_each(|element| element.write(list)));
}
