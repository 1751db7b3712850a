//! The kernel adjusts sequence numbers when lines become longer or shorter on the way.
//!
//! A minimal substitute for Pinhole: it replaces lines that are whole segments, and sets conntrack's seqadj as
//! described at [`Adjustment`].

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use etherparse::{IpHeaders, NetHeaders, PacketHeaders, TcpHeader, TransportHeader};
use lab::allow;
use pinhole::core::kernel::Firewall;
use pinhole::core::net::{Connection, Direction, Seq};
use pinhole::core::policy::Policy;
use pinhole::core::seqadj::{Adjustment, Adjustments, NotAdjusted};
use pinhole::netfilter::backend::KernelFirewall;

use super::capture::in_queue;
use super::host::{connects, flow, flow_of, listens};
use super::nat::Site;
use crate::firewall;

const MASQUERADE: &str = "table inet nat {
    chain srcnat { type nat hook postrouting priority 100; oifname wan masquerade; }
}
table inet watch {
    chain prerouting { type filter hook prerouting priority -140; ct state invalid counter drop; }
}";

/// The addresses of a masqueraded control connection, by its two ends.
fn translated(inside: &TcpStream, outside: &TcpStream) -> Connection {
    Connection { original: flow_of(inside), reply: flow_of(outside) }
}

fn control(site: &Site, server: &str) -> (TcpStream, TcpStream) {
    let listener = listens(&site.outside, server);
    let inside = connects(&site.inside, server).expect("it listens");
    let (outside, _) = listener.accept().expect("it came");
    // A lost line must not block the test forever.
    for end in [&inside, &outside] {
        end.set_read_timeout(Some(allow(Duration::from_secs(5)))).expect("more than nothing");
    }
    (inside, outside)
}

#[test]
fn seqadj_is_either_set_or_refused() {
    for (server, own) in [("10.9.2.1:21", "10.9.2.254:21"), ("[fd09:2::1]:21", "[fd09:2::fe]:21")] {
        let site = Site::new();
        site.gateway.nft(MASQUERADE);
        let (_old, _server) = control(&site, "10.9.2.1:21");
        let older = translated(&_old, &_server);
        let mut sets = site.gateway.run(|| firewall::install(&Policy::embedded())).expect("installed");
        let one = Adjustment { position: Seq::new(u32::MAX), before: -3, after: 4 };
        let refused = sets.adjust(&older, Direction::FromClient, &one, &[]);
        assert_eq!(refused, Err(NotAdjusted::NotPrepared), "older than the rules");

        let (inside, outside) = control(&site, server);
        let connection = translated(&inside, &outside);
        let adjustments = |sets: &mut KernelFirewall| {
            sets.control_connection(&connection.reply).expect("an answer").expect("it is one").adjustments
        };
        assert_eq!(adjustments(&mut sets), Adjustments::default());
        assert_eq!(sets.adjust(&connection, Direction::FromClient, &one, &[]), Ok(()));
        assert_eq!(adjustments(&mut sets), Adjustments { from_client: Some(one), from_server: None });
        let other = Adjustment { position: Seq::new(7), before: 0, after: 0 };
        assert_eq!(sets.adjust(&connection, Direction::FromServer, &other, &[]), Ok(()));
        assert_eq!(adjustments(&mut sets), Adjustments { from_client: Some(one), from_server: Some(other) });

        let here = listens(&site.gateway, own);
        let direct = connects(&site.inside, own).expect("it listens");
        let (_accepted, _) = here.accept().expect("it came");
        let direct = Connection::direct(flow_of(&direct));
        assert_eq!(sets.adjust(&direct, Direction::FromClient, &one, &[]), Err(NotAdjusted::NotPrepared), "no NAT");
        let nobody: SocketAddr = "10.9.3.1:9".parse().expect("an address");
        let unknown = Connection::direct(flow(nobody, "10.9.3.2:21".parse().expect("an address")));
        assert_eq!(sets.adjust(&unknown, Direction::FromClient, &one, &[]), Err(NotAdjusted::Unknown));
        assert_eq!(sets.take_refused().count, 0);
    }
}

/// Replaces whole segments, and tells the kernel the offset of the following bytes.
struct Rewriter<'a> {
    sets: &'a mut KernelFirewall,
    connection: Connection,
    adjustments: Adjustments,
    /// Where lines were replaced. One that is sent again, as on a slow machine, is replaced again and moves nothing.
    replaced: HashSet<(bool, Seq)>,
}

impl Rewriter<'_> {
    /// The same packet with another line in it, if its line is one to be replaced: `grow 7` becomes seven bytes longer,
    /// `fall 7` shorter.
    fn rewrite(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let PacketHeaders { net, transport, payload, .. } = PacketHeaders::from_ip_slice(packet).ok()?;
        let Some(TransportHeader::Tcp(mut tcp)) = transport else { return None };
        let line = payload.slice();
        let word = line.first_chunk::<4>()?;
        let by: usize = std::str::from_utf8(line.get(5..8)?).ok()?.trim().parse().ok()?;
        let new = match word {
            b"grow" => [&line[..line.len() - 1], &vec![b'+'; by], b"\n"].concat(),
            b"fall" => [&line[..line.len() - 1 - by], b"\n"].concat(),
            _ => return None,
        };
        let direction = if tcp.destination_port == 21 { Direction::FromClient } else { Direction::FromServer };
        let start = Seq::new(tcp.sequence_number);
        if self.replaced.insert((direction == Direction::FromClient, start)) {
            let before = self.adjustments.of(direction).map_or(0, |earlier| earlier.after);
            let adjustment = Adjustment {
                position: start + (line.len().min(new.len()) - 1),
                before,
                after: before + new.len() as i32 - line.len() as i32,
            };
            self.sets.adjust(&self.connection, direction, &adjustment, &[]).expect("it is prepared");
            self.adjustments.set(direction, adjustment);
        }
        let mut ip = match net? {
            NetHeaders::Ipv4(header, more) => IpHeaders::Ipv4(header, more),
            NetHeaders::Ipv6(header, more) => IpHeaders::Ipv6(header, more),
            NetHeaders::Arp(_) => return None,
        };
        Some(written(&mut ip, &mut tcp, &new))
    }
}

fn written(ip: &mut IpHeaders, tcp: &mut TcpHeader, payload: &[u8]) -> Vec<u8> {
    ip.set_payload_len(tcp.header_len() + payload.len()).expect("it is short");
    let mut packet = Vec::new();
    match ip {
        IpHeaders::Ipv4(header, _) => {
            header.header_checksum = header.calc_header_checksum();
            tcp.checksum = tcp.calc_checksum_ipv4(header, payload).expect("it is short");
        }
        IpHeaders::Ipv6(header, _) => tcp.checksum = tcp.calc_checksum_ipv6(header, payload).expect("it is short"),
    }
    ip.write(&mut packet).expect("memory");
    tcp.write(&mut packet).expect("memory");
    packet.extend_from_slice(payload);
    packet
}

/// A line as it is sent, and as it arrives.
fn line(change: i32) -> (Vec<u8>, Vec<u8>) {
    let by = change.unsigned_abs() as usize;
    let rest = "x".repeat(100);
    let (sent, arrives) = match change {
        1.. => (format!("grow {by:<3}{rest}\n"), format!("grow {by:<3}{rest}{}\n", "+".repeat(by))),
        0 => (format!("same    {rest}\n"), format!("same    {rest}\n")),
        _ => (format!("fall {by:<3}{rest}\n"), format!("fall {by:<3}{}\n", &rest[by..])),
    };
    (sent.into_bytes(), arrives.into_bytes())
}

#[test]
fn longer_and_shorter_lines_keep_conntrack_valid() {
    for server in ["10.9.2.1:21", "[fd09:2::1]:21"] {
        let site = Site::new();
        site.gateway.nft(MASQUERADE);
        let mut sets = site.gateway.run(|| firewall::install(&Policy::embedded())).expect("installed");
        let (inside, outside) = control(&site, server);
        let connection = translated(&inside, &outside);
        let mut rewriter =
            Rewriter { sets: &mut sets, connection, adjustments: Adjustments::default(), replaced: HashSet::new() };
        in_queue(
            &site.gateway,
            |packet| rewriter.rewrite(packet),
            || {
                // Down by more than a thousand, so that acknowledgements are far from the sent bytes, and up again.
                let downs = (0..20).map(|n| -60 - n);
                let ups = (0..40).map(|n| 50 + n);
                let mixed = (0..40).map(|n| if n % 2 == 0 { 5 + n } else { -3 - n });
                for (number, change) in downs.chain(ups).chain(mixed).chain([0, 0]).enumerate() {
                    for (mut from, mut to) in [(&inside, &outside), (&outside, &inside)] {
                        let (sent, expected) = line(change);
                        from.write_all(&sent).expect("open");
                        let mut came = vec![0; expected.len()];
                        to.read_exact(&mut came).unwrap_or_else(|error| panic!("line {number}: {error}"));
                        assert_eq!(String::from_utf8_lossy(&came), String::from_utf8_lossy(&expected), "line {number}");
                    }
                }
            },
        );
        let watched = site.gateway.sh(&["nft", "list", "table", "inet", "watch"]);
        assert!(watched.contains("ct state invalid counter packets 0 bytes 0 drop"), "{watched}");
    }
}
