//! Packets that are kept until the missing segment in front of them has come.
//!
//! The daemon keeps queued packets here, `pinhole replay` captured frames.
//!
//! All limits are here. A packet is handled without the missing segment (the tracker counts the missing bytes as lost,
//! or drops the packet if the policy denies something)
//! - at once, if it cannot be kept: see [`NotKept`];
//! - after 3 s, if the missing segment has not come.

use std::fmt;
use std::time::Duration;

use crate::core::net::{Flags, Flow, Segment, Seq};
use crate::core::time::Timestamp;
use crate::core::tracker::ClientKey;

/// How many packets are kept. More than a few are an attack, or a very bad path.
const MAX_PACKETS: usize = 128;

/// How many packets of one client's sessions are kept.
const MAX_PER_CLIENT: usize = MAX_PACKETS / 16;

/// How long a packet is kept. A missing segment is retransmitted much earlier, or its sender is gone.
const MAX_WAIT: Duration = Duration::from_secs(3);

/// A packet and what has to be known of it while it is kept.
#[derive(Debug)]
pub struct PendingPacket<T> {
    /// The packet.
    pub packet: T,
    flow: Flow,
    seq: Seq,
    client: ClientKey,
    since: Timestamp,
}

impl<T> PendingPacket<T> {
    /// A packet with these addresses and this sequence number, of a session of this client, which came now.
    pub const fn new(packet: T, (flow, seq): (Flow, Seq), client: ClientKey, now: Timestamp) -> Self {
        Self { packet, flow, seq, client, since: now }
    }
}

/// Why a packet is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotKept {
    /// It is a retransmission of a packet that is kept already: the missing segment will hardly come, or it has passed
    /// unread because the queue was full.
    Retransmission,
    /// Too many packets are kept, or too many of its client.
    Full,
}

/// The packets that are kept, the oldest first.
pub struct PendingPackets<T> {
    packets: Vec<PendingPacket<T>>,
}

impl<T> Default for PendingPackets<T> {
    fn default() -> Self {
        Self { packets: Vec::new() }
    }
}

impl<T> fmt::Debug for PendingPackets<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pending packets", self.packets.len())
    }
}

impl<T> PendingPackets<T> {
    /// Whether no packet is kept.
    pub const fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Keeps a packet, or gives it back.
    pub fn keep(&mut self, pending: PendingPacket<T>) -> Result<(), (T, NotKept)> {
        let PendingPacket { flow, seq, client, .. } = pending;
        if self.packets.iter().any(|kept| kept.flow == flow && kept.seq == seq) {
            return Err((pending.packet, NotKept::Retransmission));
        }
        let of_client = self.packets.iter().filter(|kept| kept.client == client).count();
        if self.packets.len() >= MAX_PACKETS || of_client >= MAX_PER_CLIENT {
            return Err((pending.packet, NotKept::Full));
        }
        self.packets.push(pending);
        Ok(())
    }

    /// Removes the oldest packet if it was kept for too long.
    pub fn take_expired(&mut self, now: Timestamp) -> Option<T> {
        let oldest = self.packets.first()?;
        if now.since(oldest.since) > MAX_WAIT { self.take_oldest() } else { None }
    }

    /// Removes the oldest packet.
    pub fn take_oldest(&mut self) -> Option<T> {
        (!self.packets.is_empty()).then(|| self.packets.remove(0).packet)
    }

    /// Removes the first packet of which this segment acknowledges everything in front of it: its receiver has the
    /// missing segment, only the capture lacks it.
    pub fn take_acknowledged(&mut self, segment: &Segment<'_>) -> Option<T> {
        if !segment.flags.has(Flags::ACK) {
            return None;
        }
        let flow = segment.flow.reversed();
        let index = self.packets.iter().position(|kept| kept.flow == flow && !segment.ack.is_before(kept.seq))?;
        Some(self.packets.remove(index).packet)
    }

    /// Removes the first packet of a flow from `index` on, to handle it again. Returns its index, too.
    pub fn take_of_flow(&mut self, flow: &Flow, index: usize) -> Option<(usize, PendingPacket<T>)> {
        let found = index + self.packets.iter().skip(index).position(|kept| kept.flow == *flow)?;
        Some((found, self.packets.remove(found)))
    }

    /// Puts a packet back that still has to wait.
    pub fn put_back(&mut self, index: usize, pending: PendingPacket<T>) {
        self.packets.insert(index, pending);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::core::script::endpoint;

    const NOW: Timestamp = Timestamp::from_secs(1);

    fn client(number: u8) -> ClientKey {
        ClientKey::of(Ipv4Addr::new(10, 0, 0, number).into())
    }

    fn flow(port: u16) -> Flow {
        Flow { source: endpoint(&format!("10.0.0.1:{port}")), destination: endpoint("10.0.0.2:21") }
    }

    fn packet(number: u32, of: ClientKey) -> PendingPacket<u32> {
        PendingPacket::new(number, (flow(4000), Seq::new(number)), of, NOW)
    }

    fn segment(flow: Flow, flags: Flags, ack: u32) -> Segment<'static> {
        Segment {
            flow,
            seq: Seq::new(0),
            ack: Seq::new(ack),
            flags,
            urgent: 0,
            timestamp: None,
            payload: b"",
            missing: 0,
            origin: None,
        }
    }

    #[test]
    fn packets_of_one_client_leave_room_for_others() {
        let mut pending = PendingPackets::default();
        let kept = (0..100).take_while(|&number| pending.keep(packet(number, client(1))).is_ok()).count();
        assert_eq!(kept, MAX_PER_CLIENT);
        assert_eq!(pending.keep(packet(100, client(1))), Err((100, NotKept::Full)));
        assert_eq!(pending.keep(packet(100, client(2))), Ok(()));
    }

    #[test]
    fn packets_of_all_clients_are_bounded() {
        let mut pending = PendingPackets::default();
        let kept = (0..1000).filter(|&number| pending.keep(packet(number, client((number / 4) as u8))).is_ok());
        assert_eq!(kept.count(), MAX_PACKETS);
    }

    #[test]
    fn retransmission_of_a_kept_packet_is_not_kept() {
        let mut pending = PendingPackets::default();
        assert_eq!(pending.keep(packet(1, client(1))), Ok(()));
        assert_eq!(pending.keep(packet(1, client(1))), Err((1, NotKept::Retransmission)));
        assert_eq!(pending.keep(PendingPacket::new(7, (flow(4001), Seq::new(1)), client(1), NOW)), Ok(()));
    }

    #[test]
    fn packet_expires_after_the_longest_time() {
        let mut pending = PendingPackets::default();
        pending.keep(packet(1, client(1))).expect("there is room");
        assert_eq!(pending.take_expired(NOW + MAX_WAIT), None);
        assert_eq!(pending.take_expired(NOW + MAX_WAIT + Duration::from_nanos(1)), Some(1));
        assert!(pending.is_empty());
    }

    #[test]
    fn acknowledgement_of_all_in_front_releases_a_packet() {
        let mut pending = PendingPackets::default();
        pending.keep(packet(10, client(1))).expect("there is room");
        let back = flow(4000).reversed();
        for other in [segment(back, Flags::ACK, 9), segment(back, Flags::RST, 10), segment(flow(4000), Flags::ACK, 10)]
        {
            assert_eq!(pending.take_acknowledged(&other), None);
        }
        assert_eq!(pending.take_acknowledged(&segment(back, Flags::ACK, 10)), Some(10));
    }

    #[test]
    fn packet_that_is_put_back_keeps_its_place() {
        let mut pending = PendingPackets::default();
        for number in 1..=3 {
            pending.keep(packet(number, client(1))).expect("there is room");
        }
        let (index, second) = pending.take_of_flow(&flow(4000), 1).expect("it is kept");
        assert_eq!((index, second.packet), (1, 2));
        pending.put_back(index, second);
        assert!(pending.take_of_flow(&flow(4001), 0).is_none() && pending.take_of_flow(&flow(4000), 3).is_none());
        assert_eq!(std::iter::from_fn(|| pending.take_oldest()).collect::<Vec<_>>(), [1, 2, 3]);
    }
}
