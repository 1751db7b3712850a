//! One end of a TCP connection without the kernel's TCP: a test decides every field of every segment.
//!
//! Segments leave by a raw socket, header included, and arrive by a packet socket. The namespace's own TCP never sees
//! segments for the port, so it sends no resets. Works for IPv4 and IPv6. The namespace must not be the one with the
//! firewall under test: there packets would be seen before they are filtered.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
use lab::Namespace;
use nix::sys::socket::{LinkAddr, MsgFlags, recvfrom, sendto};
use pinhole::core::net::Seq;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::daemon::TIMEOUT;

/// The window of an end that holds nothing back. There is no window scaling.
const OPEN_WINDOW: u16 = 60_000;
/// How long a lost SYN is waited for before it is sent again.
const RETRY: Duration = Duration::from_secs(1);
/// Where the values of the timestamp option begin: far from zero, so that older ones are older and not newer.
const FIRST_TIMESTAMP: u32 = 1_000_000_000;

/// Whether a segment's checksum is correct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Correct,
    Wrong,
}

/// A segment to be sent, from its IP header on.
#[derive(Clone, Debug)]
pub(crate) struct RawSegment<'a> {
    pub(crate) seq: Seq,
    /// None clears the ACK flag.
    pub(crate) ack: Option<Seq>,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    /// The urgent pointer; none clears the URG flag.
    pub(crate) urgent: Option<u16>,
    pub(crate) window: u16,
    pub(crate) ttl: u8,
    pub(crate) options: Vec<TcpOptionElement>,
    /// Options in front of the others that etherparse has no name for, in whole words of four bytes.
    pub(crate) raw_options: Vec<u8>,
    pub(crate) checksum: Checksum,
    /// Whether meaningless IP options, or an IPv6 extension header, precede the TCP header.
    pub(crate) has_ip_options: bool,
    pub(crate) payload: &'a [u8],
}

/// A TCP MD5 signature option (RFC 2385), with which no connection of the tests was set up.
pub(crate) fn md5_option() -> Vec<u8> {
    let mut option = vec![1, 1, 19, 18];
    option.extend([0xa5; 16]);
    option
}

/// A segment of the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) seq: Seq,
    pub(crate) ack: Option<Seq>,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) window: u16,
    pub(crate) timestamp: Option<u32>,
    pub(crate) payload: Vec<u8>,
}

/// A raw socket to send by and a packet socket to receive by.
struct Wire {
    namespace: Namespace,
    local: SocketAddr,
    out: Socket,
    tap: Socket,
    /// Where the latest packet came from, on the link.
    neighbour: Cell<Option<LinkAddr>>,
}

impl Wire {
    fn open(namespace: &Namespace, local: SocketAddr) -> Self {
        let port = local.port();
        let chain = format!("type filter hook prerouting priority -500; tcp dport {port} drop;");
        namespace
            .nft(&format!("table inet raw_tcp_{port} {{ chain prerouting {{ {chain} }}; }}"))
            .unwrap_or_else(|error| panic!("{error}"));
        let open = || -> io::Result<(Socket, Socket)> {
            const ALL_PACKETS: u16 = 3; // ETH_P_ALL
            let domain = if local.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
            let out = Socket::new(domain, Type::RAW, Some(Protocol::from(255)))?; // IPPROTO_RAW
            let tap = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(ALL_PACKETS.to_be()))))?;
            Ok((out, tap))
        };
        let (out, tap) = namespace.run(open).expect("root may enter").expect("root may open raw sockets");
        Self { namespace: namespace.clone(), local, out, tap, neighbour: Cell::new(None) }
    }

    fn send(&self, remote: SocketAddr, segment: &RawSegment<'_>) {
        let bytes = packet(self.local, remote, segment);
        let to = SockAddr::from(SocketAddr::new(remote.ip(), 0));
        self.out.send_to(&bytes, &to).unwrap_or_else(|error| panic!("send from {}: {error}", self.namespace));
    }

    /// Sends a segment with any addresses to the host on the link that the latest packet came from.
    fn inject(&self, from: SocketAddr, to: SocketAddr, segment: &RawSegment<'_>) {
        let neighbour = self.neighbour.get().expect("something has come");
        let bytes = packet(from, to, segment);
        sendto(self.tap.as_raw_fd(), &bytes, &neighbour, MsgFlags::empty())
            .unwrap_or_else(|error| panic!("send from {}: {error}", self.namespace));
    }

    /// The next segment for this port and who sent it, if one comes until then.
    fn receive(&self, until: Instant) -> Option<(SocketAddr, Received)> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.tap.set_read_timeout(Some(left.max(Duration::from_millis(1)))).expect("a duration that is not zero");
            let Ok((length, neighbour)) = recvfrom::<LinkAddr>(self.tap.as_raw_fd(), &mut buffer) else { continue };
            let Some((from, to, received)) = parse(&buffer[..length]) else { continue };
            if to == self.local {
                self.neighbour.set(neighbour);
                return Some((from, received));
            }
        }
    }
}

/// A segment as bytes, from its IP header on.
pub(crate) fn packet(from: SocketAddr, to: SocketAddr, segment: &RawSegment<'_>) -> Vec<u8> {
    let RawSegment { seq, window, ttl, .. } = *segment;
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), ttl),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), ttl),
        _ => panic!("both ends of a connection have addresses of the same family"),
    };
    let mut tcp = ip.tcp(from.port(), to.port(), seq.number(), window);
    if let Some(ack) = segment.ack {
        tcp = tcp.ack(ack.number());
    }
    if segment.syn {
        tcp = tcp.syn();
    }
    if segment.fin {
        tcp = tcp.fin();
    }
    if segment.rst {
        tcp = tcp.rst();
    }
    if !segment.payload.is_empty() {
        tcp = tcp.psh();
    }
    if let Some(pointer) = segment.urgent {
        tcp = tcp.urg(pointer);
    }
    let mut options = segment.raw_options.clone();
    let named = etherparse::TcpOptions::try_from_elements(&segment.options).expect("they fit a header");
    options.extend(named.as_slice());
    tcp = tcp.options_raw(&options).expect("they fit a header");
    let mut bytes = Vec::with_capacity(tcp.size(segment.payload.len()));
    tcp.write(&mut bytes, segment.payload).expect("a vector takes everything, and the payload fits a packet");
    if segment.checksum == Checksum::Wrong {
        let ip_header = if from.is_ipv4() { 20 } else { 40 };
        bytes[ip_header + 16] ^= 0x5a;
    }
    if segment.has_ip_options {
        add_ip_options(&mut bytes);
    }
    bytes
}

/// Adds meaningless options after the IP header. The sending kernel sets the checksum of IPv4.
fn add_ip_options(bytes: &mut Vec<u8>) {
    let at_length = if bytes[0] >> 4 == 4 {
        bytes[0] += 1;
        bytes.splice(20..20, [1, 1, 1, 0]);
        2
    } else {
        const DESTINATION_OPTIONS: u8 = 60;
        let next = std::mem::replace(&mut bytes[6], DESTINATION_OPTIONS);
        bytes.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
        4
    };
    let added = if at_length == 2 { 4 } else { 8 };
    let length = u16::from_be_bytes([bytes[at_length], bytes[at_length + 1]]) + added;
    bytes[at_length..at_length + 2].copy_from_slice(&length.to_be_bytes());
}

fn parse(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr, Received)> {
    let sliced = SlicedPacket::from_ip(bytes).ok()?;
    let (source, destination) = match sliced.net? {
        NetSlice::Ipv4(ip) => (IpAddr::V4(ip.header().source_addr()), IpAddr::V4(ip.header().destination_addr())),
        NetSlice::Ipv6(ip) => (IpAddr::V6(ip.header().source_addr()), IpAddr::V6(ip.header().destination_addr())),
        NetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
    let timestamp = tcp.options_iterator().flatten().find_map(|option| match option {
        TcpOptionElement::Timestamp(value, _) => Some(value),
        _ => None,
    });
    let received = Received {
        seq: Seq::new(tcp.sequence_number()),
        ack: tcp.ack().then(|| Seq::new(tcp.acknowledgment_number())),
        syn: tcp.syn(),
        fin: tcp.fin(),
        rst: tcp.rst(),
        window: tcp.window_size(),
        timestamp,
        payload: tcp.payload().to_vec(),
    };
    Some((SocketAddr::new(source, tcp.source_port()), SocketAddr::new(destination, tcp.destination_port()), received))
}

/// One end of a connection.
pub(crate) struct RawTcp {
    wire: Wire,
    remote: SocketAddr,
    next: Seq,
    expected: Seq,
    /// Up to where the other end has acknowledged.
    acked: Seq,
    /// Up to where the other end may send; none is far ahead.
    edge: Option<Seq>,
    /// The window where there is no edge.
    open: u16,
    /// The latest timestamp of the other end; none without that option.
    echo: Option<u32>,
    begun: Instant,
    unread: Vec<u8>,
    is_finished: bool,
    is_reset: bool,
    /// Everything that arrived.
    pub(crate) log: Vec<Received>,
}

/// A port on which a raw end waits for a connection.
pub(crate) struct RawListener(Wire);

impl RawListener {
    pub(crate) fn bind(namespace: &Namespace, local: SocketAddr) -> Self {
        Self(Wire::open(namespace, local))
    }

    /// Answers the next SYN. `window` limits what the other end may send at first.
    pub(crate) fn accept(self, window: usize) -> RawTcp {
        let mut end = self.answer(window);
        end.wait_for("the handshake's last segment", |end| end.acked == end.next);
        end
    }

    /// The same without waiting for the handshake's last segment.
    pub(crate) fn answer(self, window: usize) -> RawTcp {
        let until = Instant::now() + TIMEOUT;
        let (remote, syn) = loop {
            let (remote, received) = self.0.receive(until).expect("a SYN comes");
            if received.syn && received.ack.is_none() {
                break (remote, received);
            }
        };
        let mut end = RawTcp::new(self.0, remote, syn.timestamp);
        end.expected = syn.seq + 1;
        end.widen_window(window);
        let syn_ack = RawSegment { syn: true, ..end.segment(b"") };
        end.next += 1;
        end.wire.send(remote, &syn_ack);
        end
    }
}

impl RawTcp {
    fn new(wire: Wire, remote: SocketAddr, echo: Option<u32>) -> Self {
        let first = Seq::new(0x1234_5678 ^ u32::from(wire.local.port()) << 16);
        Self {
            wire,
            remote,
            next: first,
            expected: Seq::default(),
            acked: first,
            edge: None,
            open: OPEN_WINDOW,
            echo,
            begun: Instant::now(),
            unread: Vec::new(),
            is_finished: false,
            is_reset: false,
            log: Vec::new(),
        }
    }

    /// Connects without options but MSS and, if wanted, timestamps. `address` is the namespace's own.
    pub(crate) fn connect(namespace: &Namespace, address: IpAddr, remote: SocketAddr, timestamps: bool) -> Self {
        Self::connect_with(namespace, address, remote, timestamps, OPEN_WINDOW, b"")
    }

    /// The same with a window, which stays open, and with so much said in the SYN, or behind it if that is not answered.
    pub(crate) fn connect_with(
        namespace: &Namespace,
        address: IpAddr,
        remote: SocketAddr,
        timestamps: bool,
        window: u16,
        early: &[u8],
    ) -> Self {
        static PORT: AtomicU16 = AtomicU16::new(20_000);
        let local = SocketAddr::new(address, PORT.fetch_add(1, Ordering::Relaxed));
        Self::try_connect_from(namespace, local, remote, timestamps, window, early)
            .unwrap_or_else(|| panic!("no answer from {remote} to a SYN"))
    }

    /// The same from a certain port. None if the SYN is not answered in time.
    pub(crate) fn try_connect_from(
        namespace: &Namespace,
        local: SocketAddr,
        remote: SocketAddr,
        timestamps: bool,
        window: u16,
        early: &[u8],
    ) -> Option<Self> {
        let mut end = Self::new(Wire::open(namespace, local), remote, timestamps.then_some(0));
        end.open = window;
        let mut syn = RawSegment { syn: true, ack: None, ..end.segment(early) };
        syn.options.insert(0, TcpOptionElement::MaximumSegmentSize(1460));
        let first = end.next;
        end.next = first + 1 + early.len();
        let until = Instant::now() + TIMEOUT;
        while end.acked != end.next {
            if Instant::now() >= until {
                return None;
            }
            end.send_segment(&syn);
            let retry = Instant::now() + RETRY;
            while end.acked != end.next && end.take_next(retry) {}
            if end.acked != end.next {
                // As TCP Fast Open does if data in the SYN does not get through.
                syn.payload = b"";
                end.next = first + 1;
            }
        }
        if !early.is_empty() && syn.payload.is_empty() {
            end.send_until_acknowledged(early);
        }
        Some(end)
    }

    /// A segment with that payload as this end would send it next. It advances nothing.
    pub(crate) fn segment<'a>(&self, payload: &'a [u8]) -> RawSegment<'a> {
        let options = self.echo.map(|echo| TcpOptionElement::Timestamp(self.timestamp(), echo)).into_iter().collect();
        RawSegment {
            seq: self.next,
            ack: Some(self.expected),
            syn: false,
            fin: false,
            rst: false,
            urgent: None,
            window: self.window(),
            ttl: 64,
            options,
            raw_options: Vec::new(),
            checksum: Checksum::Correct,
            has_ip_options: false,
            payload,
        }
    }

    /// The same as a RST without ACK, with a sequence number that is off by so many bytes.
    pub(crate) fn reset(&self, off: u32) -> RawSegment<'static> {
        let offset = usize::try_from(off).expect("it fits");
        RawSegment { rst: true, ack: None, seq: self.next + offset, ..self.segment(b"") }
    }

    /// A segment with an older timestamp than the other end has seen: the other end drops it (PAWS).
    pub(crate) fn stale<'a>(&self, payload: &'a [u8]) -> RawSegment<'a> {
        let echo = self.echo.expect("the connection has timestamps");
        let options = vec![TcpOptionElement::Timestamp(self.timestamp() - 100_000_000, echo)];
        RawSegment { options, ..self.segment(payload) }
    }

    /// Sends a segment as it is. It advances nothing.
    pub(crate) fn send_segment(&self, segment: &RawSegment<'_>) {
        self.wire.send(self.remote, segment);
    }

    /// Sends a segment in the name of the other end to this one, by way of the host on the link. It says so much, behind
    /// all that the other end has said.
    pub(crate) fn forge_reply(&self, segment: &RawSegment<'_>) {
        self.wire.inject(self.remote, self.wire.local, segment);
    }

    /// Sends a segment with any addresses to the host on the link.
    pub(crate) fn inject(&self, from: SocketAddr, to: SocketAddr, segment: &RawSegment<'_>) {
        self.wire.inject(from, to, segment);
    }

    /// A segment of the other end, so many bytes after its latest byte, that acknowledges all bytes of this end.
    pub(crate) fn reply<'a>(&self, behind: usize, payload: &'a [u8]) -> RawSegment<'a> {
        RawSegment { seq: self.expected + behind, ack: Some(self.next), window: OPEN_WINDOW, ..self.segment(payload) }
    }

    /// Sends bytes in one segment.
    pub(crate) fn send(&mut self, payload: &[u8]) {
        self.send_segment(&self.segment(payload));
        self.next += payload.len();
    }

    /// Sends bytes in one segment, and again until the other end has acknowledged them.
    #[track_caller]
    pub(crate) fn send_until_acknowledged(&mut self, payload: &[u8]) {
        assert!(self.send_for(payload, TIMEOUT), "{} acknowledges nothing", self.remote);
    }

    /// The same for a limited time. Returns whether they were acknowledged.
    pub(crate) fn send_for(&mut self, payload: &[u8], timeout: Duration) -> bool {
        let again = self.segment(payload);
        self.next += payload.len();
        let until = Instant::now() + timeout;
        while self.acked.is_before(self.next) {
            if self.is_reset || Instant::now() >= until {
                return false;
            }
            self.send_segment(&RawSegment { ack: Some(self.expected), window: self.window(), ..again.clone() });
            let retry = until.min(Instant::now() + RETRY);
            while self.acked.is_before(self.next) && self.take_next(retry) {}
        }
        true
    }

    /// The sequence number of the next byte of this end.
    pub(crate) fn next(&self) -> Seq {
        self.next
    }

    /// The sequence number of the next byte of the other end.
    pub(crate) fn expected(&self) -> Seq {
        self.expected
    }

    /// This end's address.
    pub(crate) fn local(&self) -> SocketAddr {
        self.wire.local
    }

    /// The other end's address, as it is seen here.
    pub(crate) fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// The next bytes count as sent without being sent.
    pub(crate) fn skip(&mut self, bytes: usize) {
        self.next += bytes;
    }

    /// Allows the other end so many more bytes, from the next segment on.
    pub(crate) fn widen_window(&mut self, bytes: usize) {
        self.edge = Some(self.expected + bytes);
    }

    /// Removes the limit for the other end, from the next segment on.
    pub(crate) fn open_window(&mut self) {
        self.edge = None;
    }

    /// Sends a bare acknowledgement, which says the window.
    pub(crate) fn acknowledge(&self) {
        self.send_segment(&self.segment(b""));
    }

    /// Whether the other end has reset the connection.
    pub(crate) fn is_reset(&self) -> bool {
        self.is_reset
    }

    /// Receives and acknowledges segments until the condition holds.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + TIMEOUT;
        while !condition(self) {
            let came = self.take_next(until);
            assert!(came, "waited in vain for {what} from {}; unread: {:?}", self.remote, self.unread_text());
        }
    }

    /// Receives and acknowledges segments for a while.
    pub(crate) fn idle(&mut self, duration: Duration) {
        let until = Instant::now() + duration;
        while self.take_next(until) {}
    }

    /// Whether this text arrives within that time.
    pub(crate) fn receives_within(&mut self, text: &str, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        while !self.unread_text().contains(text) {
            if self.is_reset || !self.take_next(until) {
                return false;
            }
        }
        true
    }

    /// Waits until the other end has said this, and returns all that it said up to there.
    #[track_caller]
    pub(crate) fn read_until(&mut self, text: &str) -> String {
        let find = |unread: &[u8]| unread.windows(text.len()).position(|window| window == text.as_bytes());
        self.wait_for(&format!("{text:?}"), |end| find(&end.unread).is_some());
        let end = find(&self.unread).expect("it has come") + text.len();
        let said: Vec<u8> = self.unread.drain(..end).collect();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Waits until the other end has said a line that begins so, and returns all up to its end.
    #[track_caller]
    pub(crate) fn read_reply(&mut self, code: &str) -> String {
        let before = self.read_until(&format!("{code} "));
        before + &self.read_until("\r\n")
    }

    /// Text of the other end that has arrived and was not read.
    pub(crate) fn unread_text(&self) -> String {
        String::from_utf8_lossy(&self.unread).into_owned()
    }

    /// Sends a command, and returns everything up to a reply with that code.
    #[track_caller]
    pub(crate) fn asks(&mut self, command: &str, code: &str) -> String {
        self.send_until_acknowledged(format!("{command}\r\n").as_bytes());
        self.read_reply(code)
    }

    fn timestamp(&self) -> u32 {
        FIRST_TIMESTAMP + u32::try_from(self.begun.elapsed().as_millis()).unwrap_or(u32::MAX >> 1)
    }

    fn window(&self) -> u16 {
        let room = self.edge.map_or(i32::from(self.open), |edge| (edge - self.expected).max(0));
        u16::try_from(room).unwrap_or(self.open)
    }

    /// Takes the next segment of the other end, and acknowledges it if it asks for that.
    fn take_next(&mut self, until: Instant) -> bool {
        loop {
            let Some((from, received)) = self.wire.receive(until) else { return false };
            if from == self.remote {
                self.take(&received);
                self.log.push(received);
                return true;
            }
        }
    }

    fn take(&mut self, received: &Received) {
        if received.rst {
            self.is_reset = true;
            return;
        }
        if let (Some(_), Some(value)) = (self.echo, received.timestamp) {
            self.echo = Some(value);
        }
        if received.syn && received.ack == Some(self.next) {
            self.expected = received.seq + 1;
        }
        if let Some(ack) = received.ack {
            self.acked = self.acked.later(ack);
        }
        let known = usize::try_from(self.expected - received.seq).unwrap_or(usize::MAX);
        if let Some(bytes) = received.payload.get(known..).filter(|_| !received.syn) {
            self.unread.extend_from_slice(bytes);
            self.expected += bytes.len();
            if received.fin {
                self.is_finished = true;
                self.expected += 1;
            }
        }
        let asks = received.syn || received.fin || !received.payload.is_empty() || known == 1;
        if asks && received.ack.is_some() {
            self.acknowledge();
        }
    }
}
