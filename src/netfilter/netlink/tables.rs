//! nf_tables (linux/netfilter/nf_tables.h): tables, chains, rules. `elements.rs` has the elements of sets.

use std::fmt;
use std::time::Duration;

use rustix::io::Errno;

use super::bytes::{Attribute, Message, Writer};
use super::error::{Cause, Error, Operation, existing};
use super::expression::Expression;
use super::socket::{Batch, Socket};
use super::uapi::*;
use super::xt::{self, Target, XtParts};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Inet,
    Ip,
    Ip6,
}

impl Family {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Inet => NFPROTO_INET,
            Self::Ip => NFPROTO_IPV4,
            Self::Ip6 => NFPROTO_IPV6,
        }
    }

    pub(super) const fn of(number: u8) -> Option<Self> {
        match number {
            NFPROTO_INET => Some(Self::Inet),
            NFPROTO_IPV4 => Some(Self::Ip),
            NFPROTO_IPV6 => Some(Self::Ip6),
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Table<'a> {
    pub family: Family,
    pub name: &'a str,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// A chain in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: Box<str>,
    /// None if the chain is not a base chain.
    pub hook: Option<Hook>,
}

/// Hook and priority of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `NF_INET_*`: prerouting 0, input 1, forward 2, output 3, postrouting 4.
    pub number: u32,
    /// The priority: chains with lower ones come first.
    pub priority: i32,
}

/// Who may change a table with the flag `owner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The port ID of the netlink socket. None if that socket was closed, and the table has the flag `persist`.
    pub port_id: Option<u32>,
}

/// A rule in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub chain: Box<str>,
    /// Unique in its table; a handle is never used again.
    pub handle: u64,
    /// As nft or iptables-nft stores it.
    pub comment: Option<Box<str>>,
    /// Whether iptables-nft can read all its expressions. A single rule that it cannot read makes it refuse the whole table.
    pub is_readable_by_iptables: bool,
    /// iptables-nft gives each of its rules a counter.
    pub has_counter: bool,
    /// Its matches and target of x_tables.
    pub xt: XtParts,
}

/// A socket for requests to nf_tables. Each call returns when the kernel has carried out the request.
///
/// A transaction that fails takes milliseconds, because the kernel waits for an RCU grace period before it frees what it
/// rolls back. So the likely case never fails.
#[derive(Debug)]
pub struct Tables {
    pub(super) socket: Socket,
    /// Whether the kernel has `NFT_MSG_DESTROYSETELEM`.
    pub(super) has_destroy: bool,
}

impl Tables {
    /// Opens the socket. The kernel may take `timeout` to answer a request.
    pub fn open(timeout: Duration) -> Result<Self, Error> {
        const OBJECT: &str = "nf_tables";
        let mut socket = Socket::open(NFNL_SUBSYS_NFTABLES, OBJECT, timeout)?;
        let trial = Table { family: Family::Inet, name: "trial" };
        let destroyed = socket.dry_run(|batch| table_request(batch, NFT_MSG_DESTROYTABLE, 0, trial));
        match destroyed {
            Ok(()) => Ok(Self { socket, has_destroy: true }),
            Err(Cause::Refused(Errno::INVAL | Errno::OPNOTSUPP)) => Ok(Self { socket, has_destroy: false }),
            Err(cause) => Err(Error::new(Operation::Connect, OBJECT, cause)),
        }
    }

    /// The port ID of the socket: [`TableChange::port_id`](super::TableChange::port_id) of its changes.
    pub fn port_id(&self) -> Result<u32, Error> {
        self.socket.port_id().map_err(|cause| Error::new(Operation::Connect, "nf_tables", cause))
    }

    /// Whether a table exists.
    pub fn has_table(&mut self, table: Table<'_>) -> Result<bool, Error> {
        let name = |w: &mut Writer| w.string(NFTA_TABLE_NAME, table.name);
        let found = self.socket.look_up(NFT_MSG_GETTABLE, table.family.number(), name, |_| Some(()));
        match existing(found) {
            Ok(found) => Ok(found.is_some()),
            Err(cause) => Err(Error::new(Operation::Read, format_args!("table {table}"), cause)),
        }
    }

    /// The owner of a table with the flag `owner`: the kernel lets only this netlink socket change the table. None if there is
    /// no such table, or if everybody may change it.
    pub fn owner(&mut self, table: Table<'_>) -> Result<Option<Owner>, Error> {
        let name = |w: &mut Writer| w.string(NFTA_TABLE_NAME, table.name);
        let found = self.socket.look_up(NFT_MSG_GETTABLE, table.family.number(), name, |message| {
            let number = |attribute| message.attributes().find(attribute).and_then(Attribute::u32);
            let is_owned = number(NFTA_TABLE_FLAGS).unwrap_or(0) & NFT_TABLE_F_OWNER != 0;
            Some(is_owned.then(|| Owner { port_id: number(NFTA_TABLE_OWNER) }))
        });
        existing(found)
            .map(Option::flatten)
            .map_err(|cause| Error::new(Operation::Read, format_args!("table {table}"), cause))
    }

    /// Removes a table with everything in it. Returns whether it existed.
    pub fn remove_table(&mut self, table: Table<'_>) -> Result<bool, Error> {
        let removed = self.socket.transaction(|batch| table_request(batch, NFT_MSG_DELTABLE, 0, table));
        match existing(removed) {
            Ok(removed) => Ok(removed.is_some()),
            Err(cause) => Err(Error::new(Operation::Remove, format_args!("table {table}"), cause)),
        }
    }

    /// The chains of a table; none if there is no such table.
    pub fn chains(&mut self, table: Table<'_>) -> Result<Vec<Chain>, Error> {
        let read = |message: Message<'_>| read_chain(message).filter(|_| is_of_table(message, table));
        self.socket
            .list(NFT_MSG_GETCHAIN, table.family.number(), |_| {}, read)
            .map_err(|cause| Error::new(Operation::Read, format_args!("the chains of table {table}"), cause))
    }

    /// Whether a table other than this one has a base chain of the type `nat`, for IPv4 or IPv6.
    pub fn has_nat_chain_outside(&mut self, table: Table<'_>) -> Result<bool, Error> {
        let read = |message: Message<'_>| {
            let kind = message.attributes().find(NFTA_CHAIN_TYPE).and_then(Attribute::string);
            (kind == Some("nat") && !is_of_table(message, table)).then_some(())
        };
        let mut found = false;
        for family in [Family::Inet, Family::Ip, Family::Ip6] {
            let chains = self.socket.list(NFT_MSG_GETCHAIN, family.number(), |_| {}, read);
            let chains = chains.map_err(|cause| Error::new(Operation::Read, "the chains of all tables", cause))?;
            found |= !chains.is_empty();
        }
        Ok(found)
    }

    /// Whether a table other than this one has a flowtable, for IPv4 or IPv6.
    pub fn has_flowtable_outside(&mut self, table: Table<'_>) -> Result<bool, Error> {
        let read = |message: Message<'_>| (!is_of_table(message, table)).then_some(());
        let mut found = false;
        for family in [Family::Inet, Family::Ip, Family::Ip6] {
            let flowtables = self.socket.list(NFT_MSG_GETFLOWTABLE, family.number(), |_| {}, read);
            let flowtables =
                flowtables.map_err(|cause| Error::new(Operation::Read, "the flowtables of all tables", cause))?;
            found |= !flowtables.is_empty();
        }
        Ok(found)
    }

    /// The rules of a table, chain by chain in their order; none if there is no such table.
    pub fn rules(&mut self, table: Table<'_>) -> Result<Vec<Rule>, Error> {
        let name = |w: &mut Writer| w.string(NFTA_RULE_TABLE, table.name);
        let rules = self.socket.list(NFT_MSG_GETRULE, table.family.number(), name, read_rule);
        existing(rules)
            .map(Option::unwrap_or_default)
            .map_err(|cause| Error::new(Operation::Read, format_args!("the rules of table {table}"), cause))
    }

    /// The rules of all tables of a family, each with the name of its table.
    pub fn rules_everywhere(&mut self, family: Family) -> Result<Vec<(Box<str>, Rule)>, Error> {
        let read = |message: Message<'_>| {
            let table = message.attributes().find(NFTA_RULE_TABLE).and_then(Attribute::string);
            table.map(Into::into).zip(read_rule(message))
        };
        self.socket
            .list(NFT_MSG_GETRULE, family.number(), |_| {}, read)
            .map_err(|cause| Error::new(Operation::Read, "the rules of all tables", cause))
    }

    /// Inserts a rule at the top of a chain.
    pub fn insert_rule(
        &mut self,
        table: Table<'_>,
        chain: &str,
        comment: &str,
        rule: &[Expression],
    ) -> Result<(), Error> {
        let fill = |batch: &mut Batch<'_>| add_rule(batch, table, chain, 0, comment, rule);
        // If the kernel has no such match, it only says that there is no such thing.
        let needs = if rule.contains(&Expression::CompatComment) {
            " (the kernel needs nft_compat, xt_conntrack, xt_connmark and xt_comment for it)"
        } else {
            ""
        };
        self.socket
            .transaction(fill)
            .map_err(|cause| rule_error(Operation::Add, table, &format!("{chain}{needs}"), cause))
    }

    /// Removes a rule. Returns whether it existed.
    pub fn remove_rule(&mut self, table: Table<'_>, rule: &Rule) -> Result<bool, Error> {
        let removed = self.socket.transaction(|batch| {
            batch.request(NFT_MSG_DELRULE, 0, table.family.number(), |w| {
                w.string(NFTA_RULE_TABLE, table.name);
                w.string(NFTA_RULE_CHAIN, &rule.chain);
                w.u64(NFTA_RULE_HANDLE, rule.handle);
            });
        });
        match existing(removed) {
            Ok(removed) => Ok(removed.is_some()),
            Err(cause) => Err(rule_error(Operation::Remove, table, &rule.chain, cause)),
        }
    }

    /// Replaces the rules of a chain by one. Adds the table and the chain if they do not exist.
    pub fn fill_chain(
        &mut self,
        table: Table<'_>,
        chain: &str,
        comment: &str,
        rule: &[Expression],
    ) -> Result<(), Error> {
        self.add_to_chain(table, chain, |batch| fill_chain(batch, table, chain, comment, rule))
    }

    /// The same for a chain that exists, by some rules. If it does not, nothing is added.
    pub fn refill_chain(
        &mut self,
        table: Table<'_>,
        chain: &str,
        comment: &str,
        rules: &[&[Expression]],
    ) -> Result<(), Error> {
        self.add_to_chain(table, chain, |batch| refill_chain(batch, table, chain, comment, rules))
    }

    fn add_to_chain(&mut self, table: Table<'_>, chain: &str, add: impl FnMut(&mut Batch<'_>)) -> Result<(), Error> {
        self.socket.transaction(add).map_err(|cause| rule_error(Operation::Add, table, chain, cause))
    }

    /// Whether this kernel has all expressions of a rule. Changes nothing.
    pub fn supports(&mut self, rule: &[Expression]) -> Result<bool, Error> {
        let trial = Table { family: Family::Inet, name: "trial" };
        match self.socket.dry_run(|batch| fill_chain(batch, trial, "trial", "", rule)) {
            Ok(()) => Ok(true),
            // The kernel has no such expression, or not in this family.
            Err(Cause::Refused(Errno::NOENT | Errno::OPNOTSUPP)) => Ok(false),
            Err(cause) => Err(Error::new(Operation::Try, "a rule", cause)),
        }
    }
}

fn rule_error(operation: Operation, table: Table<'_>, chain: &str, cause: Cause) -> Error {
    Error::new(operation, format_args!("rule in chain {table} {chain}"), cause)
}

pub(super) fn table_request(batch: &mut Batch<'_>, message: u16, flags: u16, table: Table<'_>) {
    batch.request(message, flags, table.family.number(), |w| w.string(NFTA_TABLE_NAME, table.name));
}

/// Deletes all rules of a chain.
pub(super) fn flush_chain(batch: &mut Batch<'_>, table: Table<'_>, chain: &str) {
    batch.request(NFT_MSG_DELRULE, 0, table.family.number(), |w| {
        w.string(NFTA_RULE_TABLE, table.name);
        w.string(NFTA_RULE_CHAIN, chain);
    });
}

fn fill_chain(batch: &mut Batch<'_>, table: Table<'_>, chain: &str, comment: &str, rule: &[Expression]) {
    table_request(batch, NFT_MSG_NEWTABLE, NLM_F_CREATE, table);
    batch.request(NFT_MSG_NEWCHAIN, NLM_F_CREATE, table.family.number(), |w| {
        w.string(NFTA_CHAIN_TABLE, table.name);
        w.string(NFTA_CHAIN_NAME, chain);
    });
    refill_chain(batch, table, chain, comment, &[rule]);
}

fn refill_chain(batch: &mut Batch<'_>, table: Table<'_>, chain: &str, comment: &str, rules: &[&[Expression]]) {
    flush_chain(batch, table, chain);
    for rule in rules {
        add_rule(batch, table, chain, NLM_F_APPEND, comment, rule);
    }
}

/// Adds a rule at the bottom of a chain with `NLM_F_APPEND`, at the top without.
fn add_rule(batch: &mut Batch<'_>, table: Table<'_>, chain: &str, flags: u16, comment: &str, rule: &[Expression]) {
    batch.request(NFT_MSG_NEWRULE, NLM_F_CREATE | flags, table.family.number(), |w| {
        write_rule(w, table, chain, comment, rule);
    });
}

pub(super) fn write_rule(w: &mut Writer, table: Table<'_>, chain: &str, comment: &str, rule: &[Expression]) {
    w.string(NFTA_RULE_TABLE, table.name);
    w.string(NFTA_RULE_CHAIN, chain);
    w.nested(NFTA_RULE_EXPRESSIONS, |list| rule.iter().for_each(|expression| expression.write(list, comment)));
    if rule.contains(&Expression::CompatComment) {
        return;
    }
    // Type, length, value.
    if let Some(length) = u8::try_from(comment.len() + 1).ok().filter(|length| *length > 1) {
        let userdata = [&[NFTNL_UDATA_RULE_COMMENT, length], comment.as_bytes(), &[0]].concat();
        w.bytes(NFTA_RULE_USERDATA, &userdata);
    }
}

/// Whether a message is about a table or something in it: the first attribute of each is the table's name.
pub(super) fn is_of_table(message: Message<'_>, table: Table<'_>) -> bool {
    message.attributes().find(NFTA_TABLE_NAME).and_then(Attribute::string) == Some(table.name)
}

pub(super) fn read_chain(message: Message<'_>) -> Option<Chain> {
    let name = message.attributes().find(NFTA_CHAIN_NAME)?.string()?.into();
    let hook = message.attributes().find(NFTA_CHAIN_HOOK).and_then(|hook| {
        let number = hook.nested().find(NFTA_HOOK_HOOKNUM)?.u32()?;
        let priority = hook.nested().find(NFTA_HOOK_PRIORITY)?.u32()?.cast_signed();
        Some(Hook { number, priority })
    });
    Some(Chain { name, hook })
}

pub(super) fn read_rule(message: Message<'_>) -> Option<Rule> {
    let chain = message.attributes().find(NFTA_RULE_CHAIN)?.string()?.into();
    let handle = message.attributes().find(NFTA_RULE_HANDLE)?.u64()?;
    let userdata = message.attributes().find(NFTA_RULE_USERDATA).map(Attribute::bytes);
    let mut rule = Rule {
        chain,
        handle,
        comment: userdata.and_then(comment_in).map(Into::into),
        is_readable_by_iptables: true,
        has_counter: false,
        xt: XtParts::default(),
    };
    let expressions = message.attributes().find(NFTA_RULE_EXPRESSIONS).map(Attribute::nested);
    for (_, expression) in expressions.into_iter().flatten() {
        let name = expression.nested().find(NFTA_EXPR_NAME).and_then(Attribute::string).unwrap_or_default();
        rule.is_readable_by_iptables &= xt::is_readable(name);
        rule.has_counter |= name == "counter";
        let Some(data) = expression.nested().find(NFTA_EXPR_DATA) else { continue };
        match name {
            "match" => {
                rule.comment = xt::comment(data.nested()).map(Into::into).or(rule.comment);
                rule.xt.read_match(data.nested());
            }
            "target" => rule.xt.target = Some(Target::read(data.nested())),
            _ => {}
        }
    }
    Some(rule)
}

/// The comment in a rule's userdata: a list of types, lengths and values.
fn comment_in(mut userdata: &[u8]) -> Option<&str> {
    while let [kind, length, rest @ ..] = userdata {
        let (value, next) = rest.split_at_checked(usize::from(*length))?;
        if *kind == NFTNL_UDATA_RULE_COMMENT {
            return str::from_utf8(value.strip_suffix(b"\0").unwrap_or(value)).ok();
        }
        userdata = next;
    }
    None
}
