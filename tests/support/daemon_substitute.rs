//! A substitute for a daemon that is killed in the middle of a packet: it handles the packet as the daemon does, and
//! ends before or after the verdict.

use std::sync::mpsc::{Receiver, Sender, channel};

use lab::Namespace;
use pinhole::core::net::{Segment, replace_payload};
use pinhole::core::policy;
use pinhole::core::seqadj::{Replacement, Verdict};
use pinhole::core::time::Timestamp;
use pinhole::core::tracker::{Environment, Tracker, TrackerVerdict};
use pinhole::netfilter::backend::KernelFirewall;

use crate::daemon::{TIMEOUT, with_mechanism};

/// When it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KillPoint {
    /// The kernel has all that the packet needs; there is no verdict.
    BeforeVerdict,
    /// The verdict was given.
    AfterVerdict,
}

/// The daemon's substitute, until a certain packet.
pub(crate) struct DaemonSubstitute(Receiver<&'static str>);

impl DaemonSubstitute {
    /// Starts reading the queue in a namespace. It ends at the first packet whose payload begins with that word.
    pub(crate) fn start(namespace: &Namespace, policy: &str, word: &'static str, kill_point: KillPoint) -> Self {
        let (sender, receiver) = channel();
        let policy = with_mechanism(policy);
        let work = move || read_until(&policy, word, kill_point, &sender);
        namespace.start(work).unwrap_or_else(|error| panic!("{error}"));
        let substitute = Self(receiver);
        substitute.wait_for("reading");
        substitute
    }

    /// Waits until it has ended.
    pub(crate) fn wait(self) {
        self.wait_for("ended");
    }

    fn wait_for(&self, message: &str) {
        assert_eq!(self.0.recv_timeout(TIMEOUT), Ok(message), "the substitute");
    }
}

fn read_until(policy: &str, word: &str, kill_point: KillPoint, sender: &Sender<&'static str>) {
    let policy = policy::parse("policy.yaml", policy).expect("it is good").policy;
    let queue_number = policy.capture.queue;
    let mut queue = nfq::Queue::open().expect("root may");
    queue.bind(queue_number).expect("nobody reads it");
    let mut firewall = KernelFirewall::install(&policy).expect("it can be installed");
    let mut tracker = Tracker::default();
    sender.send("reading").expect("somebody waits");
    loop {
        let mut message = queue.recv().expect("the queue is read");
        let packet = message.get_payload();
        let segment = Segment::parse(packet).expect("packets are sound here");
        let is_it = segment.payload.starts_with(word.as_bytes());
        let mut env =
            Environment { now: Timestamp::from_secs(1), policy: &policy, firewall: &mut firewall, observer: &mut () };
        let handled = tracker.handle(&segment, &mut env);
        if is_it && kill_point == KillPoint::BeforeVerdict {
            break;
        }
        if let TrackerVerdict::Session(Verdict::Replace(Replacement { seq, payload })) = handled
            && let Some(other) = replace_payload(packet, seq, &payload)
        {
            message.set_payload(other);
        }
        queue.verdict(message).expect("it waits");
        if is_it {
            break;
        }
    }
    // As for a killed process, the kernel drops the packets in the queue, and keeps everything else. Closing the socket
    // is not enough: processes that other tests start meanwhile may have inherited it.
    queue.unbind(queue_number).expect("it is bound");
    sender.send("ended").expect("somebody waits");
}
