//! Traces packets through the ruleset (`meta nftrace`, NFT_MSG_TRACE).
//!
//! The rules that select the packets are in a table that belongs to the socket (`NFT_TABLE_F_OWNER`): no other program can
//! change it, and the kernel removes it when the socket is closed, also if the program is killed.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::bytes::{Attribute, Message, Messages, Writer, message_type};
use super::error::{Cause, Error, Operation};
use super::socket::{Batch, Socket};
use super::tables::Family;
use super::uapi::*;

const TABLE: &str = "pinhole-trace";
/// The hooks at which packets come into the ruleset, `NF_INET_PRE_ROUTING` and `NF_INET_LOCAL_OUT`.
const CHAINS: [(&str, u32); 2] = [("prerouting", 0), ("output", 3)];
/// Before connection tracking and all rules of other programs.
const PRIORITY: i32 = -1000;
/// After the latest step, how long the next one may take.
const SETTLED: Duration = Duration::from_millis(300);
/// More steps than a packet can make.
const MAX_STEPS: usize = 1024;

/// Which SYN is traced.
#[derive(Clone, Copy, Debug)]
pub struct TracedSyn {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// None: any port from 1024 on.
    pub port: Option<u16>,
}

/// A step of a packet through the ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceStep {
    /// The same for all steps of a packet.
    id: u32,
    pub family: Family,
    pub table: Box<str>,
    pub chain: Box<str>,
    /// The rule, by its handle. None for the policy of a chain.
    pub rule: Option<u64>,
    /// The packet ends here.
    pub is_drop: bool,
}

/// A socket with its table.
#[derive(Debug)]
pub struct Tracer {
    socket: Socket,
}

impl Tracer {
    /// Begins to trace.
    pub fn open(syns: &[TracedSyn], timeout: Duration) -> Result<Self, Error> {
        let mut socket = Socket::subscribe(NFNL_SUBSYS_NFTABLES, &[NFNLGRP_NFTRACE], timeout).map_err(error)?;
        socket.transaction(|batch| fill(batch, syns)).map_err(error)?;
        Ok(Self { socket })
    }

    /// The steps of the first SYN that comes; empty if none comes in time.
    pub fn first(&mut self, within: Duration) -> Result<Vec<TraceStep>, Error> {
        self.first_settled(within, SETTLED)
    }

    /// The same, with another time that the next step may take.
    pub fn first_settled(&mut self, within: Duration, settled: Duration) -> Result<Vec<TraceStep>, Error> {
        let deadline = Instant::now() + within;
        let mut steps: Vec<TraceStep> = Vec::new();
        while steps.len() < MAX_STEPS && !steps.last().is_some_and(|step| step.is_drop) {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = if steps.is_empty() { left } else { settled };
            match self.socket.receive(wait) {
                Ok(Some(datagram)) => {
                    for step in Messages::of(datagram).filter_map(read) {
                        if steps.first().is_none_or(|first| first.id == step.id) {
                            steps.push(step);
                        }
                    }
                }
                Ok(None) if !steps.is_empty() || left.is_zero() => break,
                Ok(None) => {}
                Err(cause) => return Err(error(cause)),
            }
        }
        // Those of the table itself say nothing.
        steps.retain(|step| &*step.table != TABLE);
        Ok(steps)
    }
}

fn error(cause: Cause) -> Error {
    Error::new(Operation::Watch, "the path of a packet (which needs Linux 5.12)", cause)
}

fn fill(batch: &mut Batch<'_>, syns: &[TracedSyn]) {
    batch.request(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, NFPROTO_INET, |w| {
        w.string(NFTA_TABLE_NAME, TABLE);
        w.u32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
    });
    for (chain, hook) in CHAINS {
        batch.request(NFT_MSG_NEWCHAIN, NLM_F_CREATE, NFPROTO_INET, |w| {
            w.string(NFTA_CHAIN_TABLE, TABLE);
            w.string(NFTA_CHAIN_NAME, chain);
            w.nested(NFTA_CHAIN_HOOK, |w| {
                w.u32(NFTA_HOOK_HOOKNUM, hook);
                w.u32(NFTA_HOOK_PRIORITY, PRIORITY.cast_unsigned());
            });
            w.string(NFTA_CHAIN_TYPE, "filter");
        });
        for syn in syns {
            batch.request(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, NFPROTO_INET, |w| {
                w.string(NFTA_RULE_TABLE, TABLE);
                w.string(NFTA_RULE_CHAIN, chain);
                w.nested(NFTA_RULE_EXPRESSIONS, |list| select(list, syn));
            });
        }
    }
}

/// Writes the expressions of a rule that sets `meta nftrace` for such a SYN.
fn select(list: &mut Writer, syn: &TracedSyn) {
    let (family, source_at, destination_at) = match (syn.source, syn.destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) => (NFPROTO_IPV4, 12, 16),
        _ => (NFPROTO_IPV6, 8, 24),
    };
    let octets = |address: IpAddr| -> Vec<u8> {
        match address {
            IpAddr::V4(address) if family == NFPROTO_IPV4 => address.octets().into(),
            IpAddr::V4(address) => address.to_ipv6_mapped().octets().into(),
            IpAddr::V6(address) => address.octets().into(),
        }
    };
    meta(list, NFT_META_NFPROTO);
    compare(list, NFT_CMP_EQ, &[family]);
    meta(list, NFT_META_L4PROTO);
    compare(list, NFT_CMP_EQ, &[IPPROTO_TCP]);
    for (offset, address) in [(source_at, octets(syn.source)), (destination_at, octets(syn.destination))] {
        payload(list, NFT_PAYLOAD_NETWORK_HEADER, offset, if family == NFPROTO_IPV4 { 4 } else { 16 });
        compare(list, NFT_CMP_EQ, &address);
    }
    payload(list, NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
    match syn.port {
        Some(port) => compare(list, NFT_CMP_EQ, &port.to_be_bytes()),
        None => compare(list, NFT_CMP_GTE, &1024_u16.to_be_bytes()),
    }
    payload(list, NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1);
    expression(list, "bitwise", |data| {
        data.u32(NFTA_BITWISE_SREG, NFT_REG_1);
        data.u32(NFTA_BITWISE_DREG, NFT_REG_1);
        data.u32(NFTA_BITWISE_LEN, 1);
        value(data, NFTA_BITWISE_MASK, &[SYN | ACK]);
        value(data, NFTA_BITWISE_XOR, &[0]);
    });
    compare(list, NFT_CMP_EQ, &[SYN]);
    expression(list, "immediate", |data| {
        data.u32(NFTA_IMMEDIATE_DREG, NFT_REG_1);
        value(data, NFTA_IMMEDIATE_DATA, &[1]);
    });
    expression(list, "meta", |data| {
        data.u32(NFTA_META_KEY, NFT_META_NFTRACE);
        data.u32(NFTA_META_SREG, NFT_REG_1);
    });
}

/// Flags of TCP.
const SYN: u8 = 2;
const ACK: u8 = 16;

fn expression(list: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
    list.nested(NFTA_LIST_ELEM, |expression| {
        expression.string(NFTA_EXPR_NAME, name);
        expression.nested(NFTA_EXPR_DATA, data);
    });
}

fn value(data: &mut Writer, kind: u16, bytes: &[u8]) {
    data.nested(kind, |data| data.bytes(NFTA_DATA_VALUE, bytes));
}

fn meta(list: &mut Writer, key: u32) {
    expression(list, "meta", |data| {
        data.u32(NFTA_META_DREG, NFT_REG_1);
        data.u32(NFTA_META_KEY, key);
    });
}

fn payload(list: &mut Writer, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |data| {
        data.u32(NFTA_PAYLOAD_DREG, NFT_REG_1);
        data.u32(NFTA_PAYLOAD_BASE, base);
        data.u32(NFTA_PAYLOAD_OFFSET, offset);
        data.u32(NFTA_PAYLOAD_LEN, length);
    });
}

fn compare(list: &mut Writer, operation: u32, bytes: &[u8]) {
    expression(list, "cmp", |data| {
        data.u32(NFTA_CMP_SREG, NFT_REG_1);
        data.u32(NFTA_CMP_OP, operation);
        value(data, NFTA_CMP_DATA, bytes);
    });
}

fn read(message: Message<'_>) -> Option<TraceStep> {
    if message.kind != message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_TRACE) {
        return None;
    }
    let find = |kind| message.attributes().find(kind);
    let string = |kind| find(kind).and_then(Attribute::string).map(Into::into);
    let is_policy = find(NFTA_TRACE_TYPE)?.u32()? == NFT_TRACETYPE_POLICY;
    let rule = find(NFTA_TRACE_RULE_HANDLE).and_then(Attribute::u64);
    // The end of a chain, which decides nothing.
    if !is_policy && rule.is_none() {
        return None;
    }
    let verdict = match is_policy {
        true => find(NFTA_TRACE_POLICY).and_then(Attribute::u32),
        false => find(NFTA_TRACE_VERDICT).and_then(|verdict| verdict.nested().find(NFTA_VERDICT_CODE)?.u32()),
    };
    Some(TraceStep {
        id: find(NFTA_TRACE_ID)?.u32()?,
        family: Family::of(message.family()?)?,
        table: string(NFTA_TRACE_TABLE)?,
        chain: string(NFTA_TRACE_CHAIN)?,
        rule,
        is_drop: verdict == Some(NF_DROP),
    })
}
