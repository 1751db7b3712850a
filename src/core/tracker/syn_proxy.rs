//! Control connections behind SYNPROXY. The kernel answers the client's SYN itself, and translates the server's sequence
//! numbers from the server's SYN-ACK on. Packets come here with the numbers that their senders gave them, so the
//! acknowledgements of the client do not fit the bytes of the server.

use super::Environment;
use super::table::Tracked;
use crate::core::kernel::Firewall;
use crate::core::net::{Direction, Flags, Segment};
use crate::core::seqadj::Rewriters;

impl Tracked {
    /// If the client acknowledges bytes that the server has not sent, asks the kernel whether it translates the server's
    /// sequence numbers. When the session began, it did not do so yet.
    pub(super) fn find_syn_proxy<F: Firewall, O>(
        &mut self,
        segment: &Segment<'_>,
        direction: Direction,
        env: &mut Environment<'_, F, O>,
    ) {
        let is_client_data =
            direction == Direction::FromClient && segment.flags.has(Flags::ACK) && !segment.payload.is_empty();
        if !is_client_data || !self.session.acknowledges_unsent(segment) || self.has_server_offset() {
            return;
        }
        let Ok(Some(control)) = env.firewall.control_connection(&segment.flow) else { return };
        if control.connection == self.connection && control.adjustments.from_server.is_some() {
            self.rewriters = Some(Box::new(Rewriters::with_adjustments(&control.adjustments)));
        }
    }

    fn has_server_offset(&self) -> bool {
        self.rewriters.as_deref().is_some_and(|rewriters| rewriters.get(Direction::FromServer).has_offset())
    }
}
