//! nf_tables: tables, chains, rules. `elements.rs` has the elements of their sets.

use std::fmt;
use std::time::Duration;

use rustix::io::Errno;

use super::bytes::{Attribute, Message, Writer, flags};
use super::error::{Cause, Error, Operation};
use super::expression::Expression;
use super::socket::{Batch, Socket};

pub(super) const SUBSYSTEM: u16 = 10;
/// Times that a list is read anew when somebody changes it meanwhile.
const ATTEMPTS: usize = 16;

/// Messages, with the subsystem in the high byte.
pub(super) mod kind {
    pub(crate) const NEW_TABLE: u16 = 0x0a00;
    pub(crate) const GET_TABLE: u16 = 0x0a01;
    pub(crate) const DELETE_TABLE: u16 = 0x0a02;
    pub(crate) const NEW_CHAIN: u16 = 0x0a03;
    pub(crate) const GET_CHAIN: u16 = 0x0a04;
    pub(crate) const DELETE_CHAIN: u16 = 0x0a05;
    pub(crate) const NEW_RULE: u16 = 0x0a06;
    pub(crate) const GET_RULE: u16 = 0x0a07;
    pub(crate) const DELETE_RULE: u16 = 0x0a08;
    pub(crate) const NEW_SET: u16 = 0x0a09;
    pub(crate) const GET_SET: u16 = 0x0a0a;
    pub(crate) const DELETE_SET: u16 = 0x0a0b;
    pub(crate) const NEW_ELEMENT: u16 = 0x0a0c;
    pub(crate) const GET_ELEMENT: u16 = 0x0a0d;
    pub(crate) const DELETE_ELEMENT: u16 = 0x0a0e;
    pub(crate) const NEW_OBJECT: u16 = 0x0a12;
    pub(crate) const GET_OBJECT: u16 = 0x0a13;
    /// As to delete, but no error where there is nothing. Since Linux 6.3.
    pub(crate) const DESTROY_TABLE: u16 = 0x0a1a;
    pub(crate) const DESTROY_ELEMENT: u16 = 0x0a1e;
}

/// Attributes. A table's name is the first of every message.
pub(super) mod attribute {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const CHAIN_NAME: u16 = 3;
    pub(crate) const CHAIN_HOOK: u16 = 4;
    pub(crate) const HOOK_NUMBER: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;
    pub(crate) const RULE_CHAIN: u16 = 2;
    pub(crate) const RULE_HANDLE: u16 = 3;
    pub(crate) const RULE_EXPRESSIONS: u16 = 4;
    pub(crate) const RULE_USERDATA: u16 = 7;
    pub(crate) const SET_NAME: u16 = 2;
    pub(crate) const ELEMENTS: u16 = 3;
}

/// The type of a comment within a rule's userdata, as the program nft writes and shows it.
const COMMENT: u8 = 0;

/// The family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl Family {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }

    pub(super) const fn of(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Inet),
            2 => Some(Self::Ip),
            10 => Some(Self::Ip6),
            _ => None,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}

/// The name of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Table<'a> {
    /// Its family.
    pub family: Family,
    /// Its name within the family.
    pub name: &'a str,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// A chain that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: Box<str>,
    /// Where it begins; none for a chain that others jump to.
    pub hook: Option<Hook>,
}

/// The place from which the kernel calls a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Prerouting 0, input 1, forward 2, output 3, postrouting 4.
    pub number: u32,
    /// The lower, the earlier.
    pub priority: i32,
}

/// A rule that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its chain.
    pub chain: Box<str>,
    /// Its number, never used again in its table.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<Box<str>>,
}

/// A connection to nf_tables. Each call returns when the kernel has done it.
///
/// A batch that fails costs milliseconds: the kernel waits until no processor looks at what it takes back. So what is
/// likely is asked in a way that does not fail.
#[derive(Debug)]
pub struct Tables {
    pub(super) socket: Socket,
    /// Whether the kernel can be told to remove what may not be there.
    pub(super) destroys: bool,
}

impl Tables {
    /// Opens it; an answer may take so long.
    pub fn open(patience: Duration) -> Result<Self, Error> {
        let connect = |cause| Error::new(Operation::Connect, "nf_tables", cause);
        let mut socket = Socket::open(0, patience).map_err(connect)?;
        let destroys = socket.dry_run(SUBSYSTEM, |batch| {
            batch.request(kind::DESTROY_TABLE, 0, Family::Inet.number(), |w| w.text(attribute::TABLE, "trial"));
        });
        match destroys {
            Ok(()) => Ok(Self { socket, destroys: true }),
            // It knows no such message.
            Err(Cause::Refused(Errno::INVAL | Errno::OPNOTSUPP)) => Ok(Self { socket, destroys: false }),
            Err(cause) => Err(connect(cause)),
        }
    }

    /// The number that a [`TableChange`](super::TableChange) has for what was done through here.
    pub fn number(&self) -> Result<u32, Error> {
        self.socket.number().map_err(|cause| Error::new(Operation::Connect, "nf_tables", cause))
    }

    /// Whether a table stands.
    pub fn has_table(&mut self, table: Table<'_>) -> Result<bool, Error> {
        let name = |w: &mut Writer| w.text(attribute::TABLE, table.name);
        match self.socket.look_up(kind::GET_TABLE, table.family.number(), name, |_| Some(())) {
            Ok(()) => Ok(true),
            Err(cause) if cause.is_missing() => Ok(false),
            Err(cause) => Err(Error::new(Operation::Read, format_args!("table {table}"), cause)),
        }
    }

    /// Removes a table and all that is in it. Whether it was there.
    pub fn remove_table(&mut self, table: Table<'_>) -> Result<bool, Error> {
        let removed = self.socket.batch(SUBSYSTEM, |batch| {
            batch.request(kind::DELETE_TABLE, 0, table.family.number(), |w| w.text(attribute::TABLE, table.name));
        });
        match removed {
            Ok(()) => Ok(true),
            Err(cause) if cause.is_missing() => Ok(false),
            Err(cause) => Err(Error::new(Operation::Remove, format_args!("table {table}"), cause)),
        }
    }

    /// The chains of a table; none if there is no such table.
    pub fn chains(&mut self, table: Table<'_>) -> Result<Vec<Chain>, Error> {
        let read = |message: Message<'_>, chains: &mut Vec<Chain>| {
            if message.attributes().find(attribute::TABLE).and_then(Attribute::text) == Some(table.name) {
                chains.extend(read_chain(message));
            }
        };
        self.list(kind::GET_CHAIN, table.family.number(), |_| {}, read)
            .map_err(|cause| Error::new(Operation::Read, format_args!("the chains of table {table}"), cause))
    }

    /// The rules of a table, chain by chain in their order; none if there is no such table.
    pub fn rules(&mut self, table: Table<'_>) -> Result<Vec<Rule>, Error> {
        let name = |w: &mut Writer| w.text(attribute::TABLE, table.name);
        let read = |message: Message<'_>, rules: &mut Vec<Rule>| rules.extend(read_rule(message));
        match self.list(kind::GET_RULE, table.family.number(), name, read) {
            Err(cause) if cause.is_missing() => Ok(Vec::new()),
            result => {
                result.map_err(|cause| Error::new(Operation::Read, format_args!("the rules of table {table}"), cause))
            }
        }
    }

    /// The rules of all tables of a family, each with the name of its table.
    pub fn rules_everywhere(&mut self, family: Family) -> Result<Vec<(Box<str>, Rule)>, Error> {
        let read = |message: Message<'_>, rules: &mut Vec<(Box<str>, Rule)>| {
            let table = message.attributes().find(attribute::TABLE).and_then(Attribute::text);
            rules.extend(table.map(Into::into).zip(read_rule(message)));
        };
        self.list(kind::GET_RULE, family.number(), |_| {}, read)
            .map_err(|cause| Error::new(Operation::Read, "the rules of all tables", cause))
    }

    /// Puts a rule at the top of a chain.
    pub fn add_rule_on_top(
        &mut self,
        table: Table<'_>,
        chain: &str,
        comment: &str,
        rule: &[Expression],
    ) -> Result<(), Error> {
        let fill = |batch: &mut Batch<'_>| write_rule(batch, table, chain, 0, comment, rule);
        self.socket.batch(SUBSYSTEM, fill).map_err(|cause| error_of_rule(Operation::Add, table, chain, cause))
    }

    /// Removes a rule. Whether it was there.
    pub fn remove_rule(&mut self, table: Table<'_>, rule: &Rule) -> Result<bool, Error> {
        let removed = self.socket.batch(SUBSYSTEM, |batch| {
            batch.request(kind::DELETE_RULE, 0, table.family.number(), |w| {
                w.text(attribute::TABLE, table.name);
                w.text(attribute::RULE_CHAIN, &rule.chain);
                w.attribute(attribute::RULE_HANDLE, &rule.handle.to_be_bytes());
            });
        });
        match removed {
            Ok(()) => Ok(true),
            Err(cause) if cause.is_missing() => Ok(false),
            Err(cause) => Err(error_of_rule(Operation::Remove, table, &rule.chain, cause)),
        }
    }

    /// Fills a chain with one rule, whatever was in it, and makes the table and the chain where they are missing.
    pub fn fill_chain(
        &mut self,
        table: Table<'_>,
        chain: &str,
        comment: &str,
        rule: &[Expression],
    ) -> Result<(), Error> {
        let fill = |batch: &mut Batch<'_>| write_chain(batch, table, chain, comment, rule);
        self.socket.batch(SUBSYSTEM, fill).map_err(|cause| error_of_rule(Operation::Add, table, chain, cause))
    }

    /// Whether this kernel could carry out a rule. Nothing is changed.
    pub fn could(&mut self, rule: &[Expression]) -> Result<bool, Error> {
        let table = Table { family: Family::Inet, name: "trial" };
        match self.socket.dry_run(SUBSYSTEM, |batch| write_chain(batch, table, "trial", "", rule)) {
            Ok(()) => Ok(true),
            // It knows no such expression, or not in this family.
            Err(cause) if cause.is_missing() || cause == Cause::Refused(Errno::OPNOTSUPP) => Ok(false),
            Err(cause) => Err(Error::new(Operation::Try, "a rule", cause)),
        }
    }

    /// What `fill` asks for happens together or not at all.
    pub(super) fn batch(&mut self, fill: impl FnOnce(&mut Batch<'_>)) -> Result<(), Cause> {
        self.socket.batch(SUBSYSTEM, fill)
    }

    /// Reads a list, anew if somebody changes it meanwhile.
    pub(super) fn list<T>(
        &mut self,
        kind: u16,
        family: u8,
        ask: impl Fn(&mut Writer),
        read: impl Fn(Message<'_>, &mut Vec<T>),
    ) -> Result<Vec<T>, Cause> {
        let mut list = Vec::new();
        for _ in 0..ATTEMPTS {
            list.clear();
            match self.socket.dump(kind, family, &ask, |message| read(message, &mut list)) {
                Err(Cause::Restless | Cause::Refused(Errno::INTR)) => {}
                result => return result.map(|()| list),
            }
        }
        Err(Cause::Restless)
    }
}

fn error_of_rule(operation: Operation, table: Table<'_>, chain: &str, cause: Cause) -> Error {
    Error::new(operation, format_args!("rule in chain {table} {chain}"), cause)
}

fn write_chain(batch: &mut Batch<'_>, table: Table<'_>, chain: &str, comment: &str, rule: &[Expression]) {
    let family = table.family.number();
    batch.request(kind::NEW_TABLE, flags::CREATE, family, |w| w.text(attribute::TABLE, table.name));
    batch.request(kind::NEW_CHAIN, flags::CREATE, family, |w| {
        w.text(attribute::TABLE, table.name);
        w.text(attribute::CHAIN_NAME, chain);
    });
    batch.request(kind::DELETE_RULE, 0, family, |w| {
        w.text(attribute::TABLE, table.name);
        w.text(attribute::RULE_CHAIN, chain);
    });
    write_rule(batch, table, chain, flags::APPEND, comment, rule);
}

fn write_rule(batch: &mut Batch<'_>, table: Table<'_>, chain: &str, place: u16, comment: &str, rule: &[Expression]) {
    batch.request(kind::NEW_RULE, flags::CREATE | place, table.family.number(), |w| {
        write_rule_body(w, table, chain, comment, rule);
    });
}

pub(super) fn write_rule_body(w: &mut Writer, table: Table<'_>, chain: &str, comment: &str, rule: &[Expression]) {
    w.text(attribute::TABLE, table.name);
    w.text(attribute::RULE_CHAIN, chain);
    w.nested(attribute::RULE_EXPRESSIONS, |list| rule.iter().for_each(|step| step.write(list)));
    // Type, length, text, zero.
    if let Some(length) = u8::try_from(comment.len() + 1).ok().filter(|length| *length > 1) {
        let userdata = [&[COMMENT, length], comment.as_bytes(), &[0]].concat();
        w.attribute(attribute::RULE_USERDATA, &userdata);
    }
}

pub(super) fn read_chain(message: Message<'_>) -> Option<Chain> {
    let name = message.attributes().find(attribute::CHAIN_NAME)?.text()?.into();
    let hook = message.attributes().find(attribute::CHAIN_HOOK).and_then(|hook| {
        let number = hook.nested().find(attribute::HOOK_NUMBER)?.u32()?;
        let priority = hook.nested().find(attribute::HOOK_PRIORITY)?.u32()?.cast_signed();
        Some(Hook { number, priority })
    });
    Some(Chain { name, hook })
}

pub(super) fn read_rule(message: Message<'_>) -> Option<Rule> {
    let chain = message.attributes().find(attribute::RULE_CHAIN)?.text()?.into();
    let handle = message.attributes().find(attribute::RULE_HANDLE)?.u64()?;
    let userdata = message.attributes().find(attribute::RULE_USERDATA).map(Attribute::bytes);
    Some(Rule { chain, handle, comment: userdata.and_then(comment_in).map(Into::into) })
}

/// The comment in a rule's userdata: a list of types, lengths and values.
fn comment_in(mut userdata: &[u8]) -> Option<&str> {
    while let [kind, length, rest @ ..] = userdata {
        let (value, next) = rest.split_at_checked(usize::from(*length))?;
        if *kind == COMMENT {
            return str::from_utf8(value.strip_suffix(b"\0").unwrap_or(value)).ok();
        }
        userdata = next;
    }
    None
}
