//! Sequences in which the reader and a socket once read different bytes.

use lab::Family;

use crate::case::{Ack, Case, Defect, Extension, Role, Sent, Stamp, Step, flag};
use crate::network::{Conntrack, Network};
use crate::run::{Outcome, explain};

/// The settings of a case.
#[derive(Clone, Copy)]
struct With {
    timestamps: bool,
    oob_inline: bool,
}

const USUALLY: With = With { timestamps: false, oob_inline: true };
const TIMESTAMPS: With = With { timestamps: true, ..USUALLY };
/// The application does not read urgent data in line.
const APART: With = With { oob_inline: false, ..USUALLY };

fn outcome(network: &Network, family: Family, role: Role, with: With, steps: &[Sent]) -> (Outcome, String) {
    let With { timestamps, oob_inline } = with;
    let steps = steps.iter().copied().map(Step::Sends).collect();
    let first = 1_000_000;
    let case = Case { family, role, timestamps, buffer: None, oob_inline, first, early_steps: Vec::new(), steps };
    let (result, log) = explain(network, &crate::policy(), &case);
    (result.unwrap_or_else(|failure| panic!("{family} {role:?}: {failure}\n{log}")), log)
}

/// Reader and socket read the same bytes, and announcements still open.
fn stays_open(with: With, steps: &[Sent]) {
    Network::with(Conntrack::Absent, |network| {
        for (family, role) in all() {
            let (outcome, log) = outcome(network, family, role, with, steps);
            assert_eq!(outcome, Outcome::Open, "{family} {role:?}\n{log}");
        }
    });
}

/// Nothing opens that the socket did not read.
fn opens_nothing_else(with: With, steps: &[Sent]) {
    Network::with(Conntrack::Absent, |network| {
        for (family, role) in all() {
            outcome(network, family, role, with, steps);
        }
    });
}

fn all() -> impl Iterator<Item = (Family, Role)> {
    Family::ALL.into_iter().flat_map(|family| [Role::Client, Role::Server].map(|role| (family, role)))
}

/// A line that announces nothing and one that announces a port.
fn two_lines() -> Sent {
    Sent { length: 58, ..Sent::default() }
}

fn bytes(length: u16) -> Sent {
    Sent { length, ..Sent::default() }
}

fn other(sent: Sent) -> Sent {
    Sent { text: 1, ..sent }
}

#[test]
fn plain_lines_are_read_by_reader_and_socket() {
    stays_open(USUALLY, &[two_lines(), two_lines()]);
    stays_open(TIMESTAMPS, &[two_lines(), two_lines()]);
}

#[test]
fn second_copy_of_a_byte_is_read_as_the_first() {
    let unreachable = Sent { defect: Defect::Unreachable, ..two_lines() };
    stays_open(USUALLY, &[unreachable, other(two_lines())]);
}

#[test]
fn second_copy_out_of_order_is_read_as_the_first() {
    let ahead = |text| Sent { offset: 20, text, ..two_lines() };
    stays_open(USUALLY, &[ahead(0), ahead(1), other(bytes(30))]);
}

#[test]
fn segment_that_the_socket_ignores_may_come_with_other_bytes() {
    for ignored in [
        Sent { defect: Defect::Checksum, ..two_lines() },
        Sent { defect: Defect::Md5, ..two_lines() },
        Sent { defect: Defect::Ao, ..two_lines() },
        Sent { flags: 0, ..two_lines() },
        Sent { flags: flag::PSH, ..two_lines() },
        Sent { flags: flag::SYN, ..two_lines() },
        Sent { flags: flag::SYN | flag::ACK, ..two_lines() },
        Sent { ack: Ack::Ahead(1), ..two_lines() },
        Sent { ack: Ack::Behind(1 << 30), ..two_lines() },
        Sent { offset: 1 << 17, ..two_lines() },
    ] {
        stays_open(USUALLY, &[ignored, other(two_lines())]);
    }
}

#[test]
fn segment_with_a_stale_timestamp_may_come_with_other_bytes() {
    for stamp in [Stamp::Stale(1000), Stamp::TwiceStaleLast, Stamp::TwiceStaleFirst, Stamp::StaleBehindEnd] {
        stays_open(TIMESTAMPS, &[bytes(0), Sent { stamp, ..two_lines() }, other(two_lines())]);
    }
}

#[test]
fn reset_with_an_inexact_sequence_number_ends_nothing() {
    let reset = |offset| Sent { offset, flags: flag::RST, ..Sent::default() };
    stays_open(USUALLY, &[two_lines(), reset(1), reset(30_000), reset(-1), two_lines()]);
}

#[test]
fn fin_that_does_not_arrive_ends_nothing() {
    let fin = Sent { flags: flag::FIN | flag::ACK, defect: Defect::Unreachable, ..Sent::default() };
    opens_nothing_else(USUALLY, &[fin, two_lines()]);
}

#[test]
fn nothing_opens_after_a_fin() {
    let fin = Sent { flags: flag::FIN | flag::ACK, ..Sent::default() };
    opens_nothing_else(USUALLY, &[fin, Sent { offset: -1, ..two_lines() }]);
    opens_nothing_else(USUALLY, &[fin, two_lines()]);
}

#[test]
fn nothing_opens_after_a_fin_before_bytes_already_read() {
    let unreachable = Sent { defect: Defect::Unreachable, ..bytes(1) };
    let fin = Sent { flags: flag::FIN | flag::ACK, ..Sent::default() };
    opens_nothing_else(USUALLY, &[unreachable, fin]);
    // Out of order bytes were read, too.
    let ahead = Sent { offset: 1, ..bytes(1) };
    opens_nothing_else(USUALLY, &[ahead, Sent { length: 1, ..fin }]);
}

#[test]
fn nothing_opens_after_a_reset_with_the_syn_flag() {
    let reset = Sent { flags: flag::SYN | flag::RST | flag::ACK, ..Sent::default() };
    opens_nothing_else(USUALLY, &[reset, two_lines()]);
    opens_nothing_else(USUALLY, &[reset, other(two_lines())]);
}

#[test]
fn nothing_opens_after_a_reset_before_bytes_already_read() {
    let unreachable = Sent { defect: Defect::Unreachable, ..bytes(1) };
    let reset = Sent { flags: flag::RST | flag::ACK, ..Sent::default() };
    opens_nothing_else(USUALLY, &[unreachable, reset, two_lines()]);
}

#[test]
fn bytes_half_the_sequence_space_away_are_not_read() {
    let unreachable = Sent { defect: Defect::Unreachable, ..bytes(2) };
    for offset in [i32::MIN, i32::MIN + 1, i32::MAX, i32::MAX - 1] {
        let far = Sent { offset, ..bytes(12) };
        stays_open(USUALLY, &[unreachable, bytes(1), far, bytes(1)]);
        stays_open(USUALLY, &[two_lines(), far]);
    }
}

#[test]
fn line_with_an_urgent_end_is_not_complete() {
    // The carriage return of a line that the next bytes end.
    opens_nothing_else(APART, &[Sent { urgent: Some(65), ..bytes(64) }]);
    for pointer in 0..64 {
        opens_nothing_else(APART, &[Sent { urgent: Some(pointer), ..two_lines() }, two_lines()]);
    }
}

#[test]
fn byte_already_read_does_not_become_urgent() {
    let unreachable = Sent { defect: Defect::Unreachable, ..two_lines() };
    let urgent = Sent { urgent: Some(53), ..Sent::default() };
    opens_nothing_else(APART, &[unreachable, urgent]);
}

#[test]
fn packets_with_extension_headers_are_read_as_the_socket_reads_them() {
    for conntrack in [Conntrack::Absent, Conntrack::Strict] {
        Network::with(conntrack, |network| {
            for extension in Extension::ALL {
                for role in [Role::Client, Role::Server] {
                    let sent = Sent { defect: Defect::Extension(extension), ..two_lines() };
                    let (outcome, log) = outcome(network, Family::V6, role, USUALLY, &[sent, other(two_lines())]);
                    assert_eq!(outcome, Outcome::Open, "{conntrack:?} {role:?} {extension:?}\n{log}");
                }
            }
        });
    }
}
