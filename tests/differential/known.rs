//! Sequences in which the reader and a socket once read different bytes.

use lab::Family;

use crate::case::{Ack, Case, CraftedSegment, Defect, Extension, Role, Step, TimestampOption, flag};
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

fn outcome(network: &Network, family: Family, role: Role, with: With, steps: &[CraftedSegment]) -> (Outcome, String) {
    let With { timestamps, oob_inline } = with;
    let steps = steps.iter().copied().map(Step::Sends).collect();
    let first = 1_000_000;
    let case = Case { family, role, timestamps, buffer: None, oob_inline, first, early_steps: Vec::new(), steps };
    let (result, log) = explain(network, &crate::policy(), &case);
    (result.unwrap_or_else(|failure| panic!("{family} {role:?}: {failure}\n{log}")), log)
}

/// Reader and socket read the same bytes, and announcements still open.
fn stays_open(with: With, steps: &[CraftedSegment]) {
    Network::with(Conntrack::Absent, |network| {
        for (family, role) in all() {
            let (outcome, log) = outcome(network, family, role, with, steps);
            assert_eq!(outcome, Outcome::OpensNewPinhole, "{family} {role:?}\n{log}");
        }
    });
}

/// Nothing opens that the socket did not read.
fn opens_nothing_else(with: With, steps: &[CraftedSegment]) {
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
fn two_lines() -> CraftedSegment {
    CraftedSegment { length: 58, ..CraftedSegment::default() }
}

fn bytes(length: u16) -> CraftedSegment {
    CraftedSegment { length, ..CraftedSegment::default() }
}

fn other(sent: CraftedSegment) -> CraftedSegment {
    CraftedSegment { text: 1, ..sent }
}

#[test]
fn plain_lines_are_read_by_reader_and_socket() {
    stays_open(USUALLY, &[two_lines(), two_lines()]);
    stays_open(TIMESTAMPS, &[two_lines(), two_lines()]);
}

#[test]
fn second_copy_of_a_byte_is_read_as_the_first() {
    let unreachable = CraftedSegment { defect: Defect::Unreachable, ..two_lines() };
    stays_open(USUALLY, &[unreachable, other(two_lines())]);
}

#[test]
fn second_copy_out_of_order_is_read_as_the_first() {
    let ahead = |text| CraftedSegment { offset: 20, text, ..two_lines() };
    stays_open(USUALLY, &[ahead(0), ahead(1), other(bytes(30))]);
}

#[test]
fn segment_that_the_socket_ignores_may_come_with_other_bytes() {
    for ignored in [
        CraftedSegment { defect: Defect::Checksum, ..two_lines() },
        CraftedSegment { defect: Defect::Md5, ..two_lines() },
        CraftedSegment { defect: Defect::Ao, ..two_lines() },
        CraftedSegment { flags: 0, ..two_lines() },
        CraftedSegment { flags: flag::PSH, ..two_lines() },
        CraftedSegment { flags: flag::SYN, ..two_lines() },
        CraftedSegment { flags: flag::SYN | flag::ACK, ..two_lines() },
        CraftedSegment { ack: Ack::Ahead(1), ..two_lines() },
        CraftedSegment { ack: Ack::Behind(1 << 30), ..two_lines() },
        CraftedSegment { offset: 1 << 17, ..two_lines() },
    ] {
        stays_open(USUALLY, &[ignored, other(two_lines())]);
    }
}

#[test]
fn segment_with_a_stale_timestamp_may_come_with_other_bytes() {
    for stamp in [
        TimestampOption::Stale(1000),
        TimestampOption::TwiceStaleLast,
        TimestampOption::TwiceStaleFirst,
        TimestampOption::StaleBehindEnd,
    ] {
        stays_open(TIMESTAMPS, &[bytes(0), CraftedSegment { stamp, ..two_lines() }, other(two_lines())]);
    }
}

#[test]
fn reset_with_an_inexact_sequence_number_ends_nothing() {
    let reset = |offset| CraftedSegment { offset, flags: flag::RST, ..CraftedSegment::default() };
    stays_open(USUALLY, &[two_lines(), reset(1), reset(30_000), reset(-1), two_lines()]);
}

#[test]
fn fin_that_does_not_arrive_ends_nothing() {
    let fin = CraftedSegment { flags: flag::FIN | flag::ACK, defect: Defect::Unreachable, ..CraftedSegment::default() };
    opens_nothing_else(USUALLY, &[fin, two_lines()]);
}

#[test]
fn nothing_opens_after_a_fin() {
    let fin = CraftedSegment { flags: flag::FIN | flag::ACK, ..CraftedSegment::default() };
    opens_nothing_else(USUALLY, &[fin, CraftedSegment { offset: -1, ..two_lines() }]);
    opens_nothing_else(USUALLY, &[fin, two_lines()]);
}

#[test]
fn nothing_opens_after_a_fin_before_bytes_already_read() {
    let unreachable = CraftedSegment { defect: Defect::Unreachable, ..bytes(1) };
    let fin = CraftedSegment { flags: flag::FIN | flag::ACK, ..CraftedSegment::default() };
    opens_nothing_else(USUALLY, &[unreachable, fin]);
    // Out of order bytes were read, too.
    let ahead = CraftedSegment { offset: 1, ..bytes(1) };
    opens_nothing_else(USUALLY, &[ahead, CraftedSegment { length: 1, ..fin }]);
}

#[test]
fn nothing_opens_after_a_reset_with_the_syn_flag() {
    let reset = CraftedSegment { flags: flag::SYN | flag::RST | flag::ACK, ..CraftedSegment::default() };
    opens_nothing_else(USUALLY, &[reset, two_lines()]);
    opens_nothing_else(USUALLY, &[reset, other(two_lines())]);
}

#[test]
fn nothing_opens_after_a_reset_before_bytes_already_read() {
    let unreachable = CraftedSegment { defect: Defect::Unreachable, ..bytes(1) };
    let reset = CraftedSegment { flags: flag::RST | flag::ACK, ..CraftedSegment::default() };
    opens_nothing_else(USUALLY, &[unreachable, reset, two_lines()]);
}

#[test]
fn bytes_half_the_sequence_space_away_are_not_read() {
    let unreachable = CraftedSegment { defect: Defect::Unreachable, ..bytes(2) };
    for offset in [i32::MIN, i32::MIN + 1, i32::MAX, i32::MAX - 1] {
        let far = CraftedSegment { offset, ..bytes(12) };
        stays_open(USUALLY, &[unreachable, bytes(1), far, bytes(1)]);
        stays_open(USUALLY, &[two_lines(), far]);
    }
}

#[test]
fn line_with_an_urgent_end_is_not_complete() {
    // The carriage return of a line that the next bytes end.
    opens_nothing_else(APART, &[CraftedSegment { urgent: Some(65), ..bytes(64) }]);
    for pointer in 0..64 {
        opens_nothing_else(APART, &[CraftedSegment { urgent: Some(pointer), ..two_lines() }, two_lines()]);
    }
}

#[test]
fn byte_already_read_does_not_become_urgent() {
    let unreachable = CraftedSegment { defect: Defect::Unreachable, ..two_lines() };
    let urgent = CraftedSegment { urgent: Some(53), ..CraftedSegment::default() };
    opens_nothing_else(APART, &[unreachable, urgent]);
}

#[test]
fn extension_headers_are_read_as_by_the_socket() {
    for conntrack in [Conntrack::Absent, Conntrack::Strict] {
        Network::with(conntrack, |network| {
            for extension in Extension::ALL {
                for role in [Role::Client, Role::Server] {
                    let sent = CraftedSegment { defect: Defect::Extension(extension), ..two_lines() };
                    let (outcome, log) = outcome(network, Family::V6, role, USUALLY, &[sent, other(two_lines())]);
                    assert_eq!(outcome, Outcome::OpensNewPinhole, "{conntrack:?} {role:?} {extension:?}\n{log}");
                }
            }
        });
    }
}
