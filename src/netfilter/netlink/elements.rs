//! Adds, lists and deletes elements of nf_tables sets and maps (linux/netfilter/nf_tables.h).
//!
//! Tries again while the kernel resizes a set, and when a packet removes an element while a request deletes it.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::bytes::Writer;
use super::element::{Element, Key};
use super::error::{Cause, Error, Operation, existing};
use super::socket::Batch;
use super::tables::{Table, Tables};
use super::uapi::*;

/// How many elements one message adds: an attribute has at most 64 KB, an element 112 bytes.
pub(super) const MAX_ELEMENTS: usize = 256;
/// How long the kernel may take to resize a set.
const RESIZE_TIMEOUT: Duration = Duration::from_secs(1);
/// The time between two attempts during a resize. Each failed attempt delays the resize.
const RETRY_INTERVAL: Duration = Duration::from_millis(30);

impl Tables {
    /// Adds an element to a set. Replaces an element with the same key, and its age.
    pub fn insert(&mut self, table: Table<'_>, set: &str, element: &Element) -> Result<(), Error> {
        self.exchange(table, &[], &[(set, *element)])
    }

    /// Removes an element from a set, if it is there.
    pub fn remove(&mut self, table: Table<'_>, set: &str, element: &Element) -> Result<(), Error> {
        self.exchange(table, &[(set, *element)], &[])
    }

    /// Removes elements from sets, if they are there, and adds others to sets, in one transaction. Replaces elements with
    /// the keys of added ones, and their age.
    pub fn exchange<'a>(
        &mut self,
        table: Table<'_>,
        removed: &[(&'a str, Element)],
        added: &[(&'a str, Element)],
    ) -> Result<(), Error> {
        // Kernels up to 6.11 keep the age of an element that is added again, so the old one is deleted first.
        let deleted = removed.iter().chain(added).copied();
        let is_removal = added.is_empty();
        let exchanged = self.retry_once(|tables| {
            let missing = tables.missing(table, deleted.clone())?;
            let delete = if tables.has_destroy { NFT_MSG_DESTROYSETELEM } else { NFT_MSG_DELSETELEM };
            let exists = |(set, element): &(&str, Element)| !missing.contains(&(*set, element.key));
            if is_removal && !deleted.clone().any(|one| exists(&one)) {
                return Ok(());
            }
            tables.socket.transaction(|batch| {
                let mut left = deleted.clone().filter(exists).count() + added.len();
                let mut is_last = || {
                    left -= 1;
                    left == 0
                };
                for (set, element) in deleted.clone().filter(exists) {
                    let bare = Element { timeout: None, value: None, ..element };
                    append(batch, delete, 0, table, set, &[bare], is_last());
                }
                for (set, element) in added {
                    append(batch, NFT_MSG_NEWSETELEM, NLM_F_CREATE, table, set, &[*element], is_last());
                }
            })
        });
        exchanged.map_err(|cause| {
            let operation = if is_removal { Operation::Remove } else { Operation::Add };
            match added.iter().chain(removed).next() {
                Some((set, element)) => element_error(operation, table, set, &element.key, cause),
                None => Error::new(operation, format_args!("elements of table {table}"), cause),
            }
        })
    }

    /// Adds many elements to a set, in few requests. Keeps elements with the same keys as they are.
    pub fn insert_all(&mut self, table: Table<'_>, set: &str, elements: &[Element]) -> Result<(), Error> {
        elements.chunks(MAX_ELEMENTS).try_for_each(|chunk| {
            let added = self.retry_while_busy(|tables| {
                tables
                    .socket
                    .transaction(|batch| append(batch, NFT_MSG_NEWSETELEM, NLM_F_CREATE, table, set, chunk, true))
            });
            added.map_err(|cause| Error::new(Operation::Add, InSet { table, set }, cause))
        })
    }

    /// Whether an element is in a set.
    pub fn has_element(&mut self, table: Table<'_>, set: &str, key: &Key) -> Result<bool, Error> {
        self.element(table, set, key).map(|found| found.is_some())
    }

    /// An element of a set; none if it does not exist.
    pub fn element(&mut self, table: Table<'_>, set: &str, key: &Key) -> Result<Option<Element>, Error> {
        existing(self.get(table, set, key)).map_err(|cause| element_error(Operation::Read, table, set, key, cause))
    }

    /// The elements of a set.
    pub fn elements(&mut self, table: Table<'_>, set: &str) -> Result<Vec<Element>, Error> {
        let name = |w: &mut Writer| {
            w.string(NFTA_SET_ELEM_LIST_TABLE, table.name);
            w.string(NFTA_SET_ELEM_LIST_SET, set);
        };
        self.socket
            .list(NFT_MSG_GETSETELEM, table.family.number(), name, Element::read_message)
            .map_err(|cause| Error::new(Operation::Read, InSet { table, set }, cause))
    }

    /// Filters out elements that do not exist, for a kernel without `NFT_MSG_DESTROYSETELEM`.
    fn missing<'a>(
        &mut self,
        table: Table<'_>,
        elements: impl Iterator<Item = (&'a str, Element)>,
    ) -> Result<Vec<(&'a str, Key)>, Cause> {
        let mut missing = Vec::new();
        if self.has_destroy {
            return Ok(missing);
        }
        for (set, element) in elements {
            if existing(self.get(table, set, &element.key))?.is_none() {
                missing.push((set, element.key));
            }
        }
        Ok(missing)
    }

    fn get(&mut self, table: Table<'_>, set: &str, key: &Key) -> Result<Element, Cause> {
        let element = Element::permanent(*key);
        let name = |w: &mut Writer| write_elements(w, table, set, &[element]);
        self.socket.look_up(NFT_MSG_GETSETELEM, table.family.number(), name, |message| {
            Element::read_message(message).into_iter().next()
        })
    }

    /// Tries again once if the answer was lost, or if an element that existed was used or has expired meanwhile.
    fn retry_once(&mut self, mut work: impl FnMut(&mut Self) -> Result<(), Cause>) -> Result<(), Cause> {
        match self.retry_while_busy(&mut work) {
            Err(cause) if cause == Cause::Overrun || cause.is_missing() => self.retry_while_busy(&mut work),
            result => result,
        }
    }

    /// Tries again while the kernel says that a set is busy: a hash table that has to be resized twice in a short time
    /// takes no element until a worker of the kernel has moved all elements.
    pub(super) fn retry_while_busy(
        &mut self,
        mut work: impl FnMut(&mut Self) -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        let deadline = Instant::now() + RESIZE_TIMEOUT;
        loop {
            match work(self) {
                Err(Cause::Refused(Errno::BUSY)) if Instant::now() < deadline => thread::sleep(RETRY_INTERVAL),
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

fn element_error(operation: Operation, table: Table<'_>, set: &str, key: &Key, cause: Cause) -> Error {
    Error::new(operation, format_args!("element {key} of set {table} {set}"), cause)
}

/// Appends a request to a transaction. The kernel acknowledges only the last one.
fn append(
    batch: &mut Batch<'_>,
    message: u16,
    flags: u16,
    table: Table<'_>,
    set: &str,
    elements: &[Element],
    is_last: bool,
) {
    let family = table.family.number();
    let body = |w: &mut Writer| write_elements(w, table, set, elements);
    if is_last {
        batch.request(message, flags, family, body);
    } else {
        batch.quiet_request(message, flags, family, body);
    }
}

pub(super) fn write_elements(w: &mut Writer, table: Table<'_>, set: &str, elements: &[Element]) {
    w.string(NFTA_SET_ELEM_LIST_TABLE, table.name);
    w.string(NFTA_SET_ELEM_LIST_SET, set);
    w.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |list| elements.iter().for_each(|element| element.write(list)));
}
