//! Segments of rewritten lines: withheld bytes, retransmissions, gaps.

use super::*;

#[test]
fn partial_address_is_withheld_in_a_nonempty_segment() {
    for line in ["PORT 192,168,0,9,15,161\r\n", "EPRT |1|192.168.0.9|4001|\r\n"] {
        for size in 1..line.len() {
            let mut gateway = Gateway::masquerade();
            let first = gateway.client_next;
            let mut heard = Vec::new();
            let mut rest = line;
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(size.min(rest.len()));
                let seq = gateway.client_next;
                let Left::As(place, text) = gateway.passes(FromClient, seq, Flags::ACK, piece.as_bytes()) else {
                    panic!("it waits")
                };
                gateway.client_next += piece.len();
                assert!(!text.is_empty(), "a segment without text is not answered");
                let place = usize::try_from(place - first).expect("behind the first");
                heard.resize(heard.len().max(place + text.len()), 0);
                heard[place..place + text.len()].copy_from_slice(text.as_bytes());
                // The receiver has all that came so far, and so hears its sender.
                let adjustment = gateway.firewall.adjustments(&gateway.connection).of(FromClient);
                let acked = first + heard.len();
                let acked = adjustment.map_or(acked, |adjustment| adjustment.acknowledgement(acked));
                assert_eq!(acked, gateway.client_next, "{line:?} in pieces of {size}: {piece:?}");
                rest = behind;
            }
            let expected = line.replace("192,168,0,9", "198,51,100,100").replace("192.168.0.9", "198.51.100.100");
            assert_eq!(String::from_utf8_lossy(&heard), expected, "in pieces of {size}");
            assert_eq!(gateway.says(FromClient, "LIST\r\n"), "LIST\r\n");
        }
    }
}

#[test]
fn withheld_bytes_without_an_announcement_are_released() {
    let mut gateway = Gateway::masquerade();
    assert_eq!(gateway.says(FromClient, "PORT 192,1"), "PORT ");
    assert_eq!(gateway.says(FromClient, "68 is not\r\nNOOP\r\n"), "192,168 is not\r\nNOOP\r\n");
    assert_eq!(gateway.took(), ["bad-syntax"]);
}

/// Where the server will look for the next byte of the client's, once it has all that came before.
fn place_of_next(gateway: &mut Gateway) -> Seq {
    let next = gateway.client_next;
    let Left::As(place, _) = gateway.passes(FromClient, next, Flags::ACK, b"NOOP\r\n") else { panic!("it waits") };
    gateway.client_next += 6;
    place
}

#[test]
fn withheld_part_of_an_unread_line_is_given_up() {
    let mut gateway = Gateway::masquerade();
    let first = gateway.client_next;
    assert_eq!(gateway.says(FromClient, "PORT 192,16"), "PORT ");
    // The queue was full: the server has got this, and so says.
    gateway.client_next += "8,0,9,".len();
    gateway.says(FromServer, "226 and here is what you asked for before\r\n");
    assert_eq!(gateway.says(FromClient, "15,161\r\n"), "15,161\r\n");
    let sent = "PORT 8,0,9,15,161\r\n".len();
    assert_eq!(place_of_next(&mut gateway), first + sent, "the server misses nothing");
    assert_eq!(gateway.says(FromClient, "PORT 192,1"), "PORT ");
    assert_eq!(gateway.says(FromClient, "68,0,9,15,161\r\n"), "198,51,100,100,15,161\r\n");
    assert_eq!(place_of_next(&mut gateway), first + sent + "NOOP\r\nPORT 198,51,100,100,15,161\r\n".len());
    let opened = "opened 203.0.113.5 -> 198.51.100.100:4001 (to 192.168.0.9:4001)";
    assert_eq!(gateway.took(), [opened]);
}

#[test]
fn withheld_bytes_do_not_shift_bytes_already_released() {
    let mut gateway = Gateway::masquerade();
    let first = gateway.client_next;
    assert_eq!(gateway.says(FromClient, "PORT 192,16"), "PORT ");
    let middle = gateway.client_next;
    gateway.client_next += "8,0,9,".len();
    let end = gateway.client_next;
    assert_eq!(gateway.passes(FromClient, end, Flags::ACK, b"15,161\r\n"), Left::Waits);
    gateway.at_last = true;
    let went_on = gateway.passes(FromClient, end, Flags::ACK, b"15,161\r\n");
    assert_eq!(went_on, Left::As(first + "PORT 8,0,9,".len(), "15,161\r\n".to_owned()));
    gateway.at_last = false;
    let in_between = gateway.passes(FromClient, middle, Flags::ACK, b"8,0,9,");
    assert_eq!(in_between, Left::As(first + "PORT ".len(), "8,0,9,".to_owned()));
    assert_eq!(gateway.took(), ["cannot-rewrite"]);
    assert_eq!(gateway.passes(FromClient, end, Flags::ACK, b"15,161\r\n"), went_on, "it stays where it is");
    gateway.client_next += "15,161\r\n".len();
    assert_eq!(place_of_next(&mut gateway), first + "PORT 8,0,9,15,161\r\n".len());
    assert_eq!(gateway.says(FromClient, "PORT 192,168,0,9,15,161\r\n"), "PORT 198,51,100,100,15,161\r\n");
}

#[test]
fn withheld_bytes_are_released_before_a_denied_command() {
    let original = ["192.168.0.9:4000", "203.0.113.5:21"];
    let policy = "defaults: { data_ports: 5000-6000, commands: { deny: [DELE] } }";
    let mut gateway = Gateway::new(original, ["203.0.113.5:21", "198.51.100.100:6000"], policy);
    let first = gateway.client_next;
    assert_eq!(gateway.says(FromClient, "PORT 192,16"), "PORT ");
    let heard = gateway.says(FromClient, "8,0,9,15,161\r\nDELE x\r\n");
    assert_eq!(heard, "192,168,0,9,15,161\r\nDELX x\r\n");
    assert_eq!(gateway.took(), ["port-not-allowed", "denied DELE"]);
    assert_eq!(place_of_next(&mut gateway), first + "PORT 192,168,0,9,15,161\r\nDELX x\r\n".len());
}

#[test]
fn packets_do_not_wait_for_acknowledged_bytes() {
    let mut gateway = Gateway::masquerade();
    gateway.client_next += "NOOP\r\n".len();
    gateway.says(FromServer, "200 done\r\n");
    assert_eq!(gateway.says(FromClient, "LIST\r\n"), "LIST\r\n");
}

#[test]
fn lengthened_reply_does_not_count_as_unread() {
    let original = ["192.0.2.9:4000", "203.0.113.5:21"];
    let policy = "defaults: { commands: { deny: [DELE] } }";
    let mut gateway = Gateway::new(original, ["10.0.0.5:21", "192.0.2.9:4000"], policy);
    gateway.says(FromClient, "PASV\r\n");
    gateway.says(FromServer, "227 Entering Passive Mode (10,0,0,5,195,81).\r\n");
    let missing = gateway.client_next;
    gateway.client_next += "TYPE I\r\n".len();
    let behind = gateway.client_next;
    assert_eq!(gateway.passes(FromClient, behind, Flags::ACK, b"SIZE a\r\n"), Left::Waits);
    gateway.at_last = true;
    assert_eq!(gateway.passes(FromClient, behind, Flags::ACK, b"SIZE a\r\n"), Left::Dropped);
    assert_eq!(
        gateway.passes(FromClient, missing, Flags::ACK, b"TYPE I\r\n"),
        Left::As(missing, "TYPE I\r\n".to_owned())
    );
    assert_eq!(
        gateway.passes(FromClient, behind, Flags::ACK, b"SIZE a\r\n"),
        Left::As(behind, "SIZE a\r\n".to_owned())
    );
}

#[test]
fn retransmission_after_the_session_is_rewritten_identically() {
    let mut gateway = Gateway::masquerade();
    let seq = gateway.client_next;
    let line = b"PORT 192,168,0,9,15,161\r\n";
    let first = gateway.passes(FromClient, seq, Flags::ACK, line);
    gateway.client_next += line.len();
    gateway.passes(FromClient, gateway.client_next, Flags::ACK.and(Flags::FIN), b"QUIT\r\n");
    assert_eq!(gateway.passes(FromClient, seq, Flags::ACK, line), first);
}

#[test]
fn retransmission_is_rewritten_identically() {
    let mut gateway = Gateway::masquerade();
    let seq = gateway.client_next;
    let line = b"PORT 192,168,0,9,15,161\r\n";
    let first = gateway.passes(FromClient, seq, Flags::ACK, line);
    let adjustments = gateway.firewall.adjustments(&gateway.connection);
    assert_eq!(gateway.passes(FromClient, seq, Flags::ACK, line), first);
    let Left::As(_, text) = gateway.passes(FromClient, seq, Flags::ACK, &line[..10]) else { panic!("it waits") };
    assert_eq!(text, "PORT ");
    assert_eq!(gateway.firewall.adjustments(&gateway.connection), adjustments);
    assert_eq!(gateway.took().len(), 1);
}

#[test]
fn retransmission_after_a_restart_is_rewritten_identically() {
    let mut gateway = Gateway::masquerade();
    let seq = gateway.client_next;
    let line = b"PORT 192,168,0,9,15,161\r\n";
    let first = gateway.passes(FromClient, seq, Flags::ACK, line);
    let adjustments = gateway.firewall.adjustments(&gateway.connection);
    gateway.tracker = Tracker::default();
    gateway.policy = policy::parse("p", "defaults: { login: optional }").expect("good").policy;
    assert_eq!(gateway.passes(FromClient, seq, Flags::ACK, line), first);
    assert_eq!(gateway.firewall.adjustments(&gateway.connection), adjustments);
    gateway.client_next += line.len();
    assert_eq!(gateway.says(FromServer, "200 good\r\n"), "200 good\r\n");
    assert_eq!(gateway.says(FromClient, "PORT 192,168,0,9,15,162\r\n"), "PORT 198,51,100,100,15,162\r\n");
}

/// A daemon that is killed, and another one that finds what the kernel remembers.
fn restart(gateway: &mut Gateway) {
    let flow = |direction| gateway.connection.flow(direction);
    let of = |direction| gateway.tracker.is_synced(flow(direction)).unwrap_or_default();
    gateway.firewall.set_synced(Synced { client: of(FromClient), server: of(FromServer) });
    gateway.tracker = Tracker::default();
}

#[test]
fn refused_227_stays_as_it_was_when_retransmitted_after_restart() {
    let original = ["192.0.2.9:4000", "203.0.113.5:21"];
    let mut gateway = Gateway::new(original, ["10.0.0.5:2121", "192.0.2.9:4000"], "control_ports: [21]");
    // The client has it, but nobody has read the question, nor does anybody read the acknowledgement.
    let seq = gateway.server_next;
    let line = "227 Entering Passive Mode (10,0,0,5,15,161).\r\n";
    let first = gateway.passes(FromServer, seq, Flags::ACK, line.as_bytes());
    assert_eq!(first, Left::As(seq, line.to_owned()));
    restart(&mut gateway);
    assert_eq!(gateway.passes(FromServer, seq, Flags::ACK, line.as_bytes()), first);
    let refused = Refusal::NotAskedFor.to_string();
    assert_eq!(gateway.took(), [refused, Refusal::Ambiguous.to_string()]);
    // After the restart, only the first line does not count.
    gateway.server_next += line.len();
    gateway.says(FromClient, "NOOP\r\n");
    gateway.says(FromServer, "200 good\r\n");
    restart(&mut gateway);
    gateway.says(FromClient, "NOOP\r\n");
    gateway.says(FromServer, "200 good\r\n");
    gateway.says(FromClient, "PASV\r\n");
    assert_eq!(gateway.says(FromServer, line), "227 Entering Passive Mode (203,0,113,5,15,161).\r\n");
}

#[test]
fn reply_tail_before_a_rewritten_227_opens_nothing() {
    let original = ["192.0.2.9:4000", "203.0.113.5:21"];
    let mut gateway = Gateway::new(original, ["10.0.0.5:2121", "192.0.2.9:4000"], "control_ports: [21]");
    let rest = gateway.server_next + 4;
    gateway.says(FromServer, "550 227 (10,0,0,5,58,231) is no directory\r\n");
    gateway.says(FromClient, "PASV\r\n");
    gateway.says(FromServer, "227 Entering Passive Mode (10,0,0,5,15,161).\r\n");
    gateway.took();
    restart(&mut gateway);
    gateway.passes(FromServer, rest, Flags::ACK, b"227 (10,0,0,5,58,231) is no directory\r\n");
    assert_eq!(gateway.took(), [Refusal::Ambiguous.to_string()]);
}

#[test]
fn line_keeps_its_length_without_seqadj() {
    let mut gateway = Gateway::masquerade();
    gateway.firewall.refuse_to_adjust();
    let said = gateway.says(FromClient, "PORT 192,168,0,9,195,161\r\n");
    assert_eq!(said.len(), "PORT 192,168,0,9,195,161\r\n".len());
    assert!(said.starts_with("PORT 198,51,100,100,"), "{said}");
    assert_eq!(gateway.took().len(), 1);
    // Nothing shorter than this can be said of that address.
    let line = "PORT 192,168,0,9,4,1\r\n";
    assert_eq!(gateway.says(FromClient, line), line);
    assert_eq!(gateway.took(), ["cannot-rewrite"]);

    let original = ["192.0.2.9:4000", "203.0.113.5:21"];
    let mut gateway = Gateway::new(original, ["10.0.0.5:21", "192.0.2.9:4000"], "control_ports: [21]");
    gateway.firewall.refuse_to_adjust();
    gateway.says(FromClient, "PASV\r\n");
    let line = "227 Entering Passive Mode (10,0,0,5,4,1).\r\n";
    let said = gateway.says(FromServer, line);
    assert_eq!(said.len(), line.len());
    assert!(said.contains("(203,0,113,5,4,1"), "{said}");
}

#[test]
fn out_of_order_segment_waits_where_lines_are_rewritten() {
    let mut gateway = Gateway::masquerade();
    let seq = gateway.client_next;
    let behind = gateway.passes(FromClient, seq + 10, Flags::ACK, b",0,9,15,161\r\n");
    assert_eq!(behind, Left::Waits);
    assert!(matches!(gateway.passes(FromClient, seq, Flags::ACK, b"PORT 192,1"), Left::As(..)));
}

#[test]
fn denied_announcement_is_stopped_in_any_segmentation() {
    let line = "PORT 192,168,0,9,15,161\r\n";
    for shown in ["192.168.0.9:4000", "198.51.100.100:6000"] {
        for size in 1..=line.len() {
            let policy = "defaults: { commands: { deny: [PORT] } }";
            let mut gateway = Gateway::new(["192.168.0.9:4000", "203.0.113.5:21"], ["203.0.113.5:21", shown], policy);
            let pieces = line.as_bytes().chunks(size).map(|piece| std::str::from_utf8(piece).expect("ASCII"));
            let heard: String = pieces.map(|piece| gateway.says(FromClient, piece)).collect();
            assert!(heard.starts_with("PORX"), "{heard:?} in pieces of {size}");
            assert_eq!(gateway.took(), ["by-rule"]);
        }
    }
}

#[test]
fn denied_command_is_stopped_in_any_segmentation() {
    let policy = "defaults: { commands: { deny: [DELE] }, tls: deny }";
    let direct =
        |policy| Gateway::new(["192.0.2.9:4000", "203.0.113.5:21"], ["203.0.113.5:21", "192.0.2.9:4000"], policy);
    for (line, command) in [("DELE /etc/passwd\r\n", "DELE"), ("dele x\r\n", "DELE"), ("AUTH TLS\r\n", "AUTH")] {
        for size in 1..=line.len() {
            let mut gateway = direct(policy);
            let pieces = line.as_bytes().chunks(size).map(|piece| std::str::from_utf8(piece).expect("ASCII"));
            let heard: String = pieces.map(|piece| gateway.says(FromClient, piece)).collect();
            assert_eq!(heard.len(), line.len());
            assert!(!heard.to_uppercase().starts_with(command), "{heard:?} in pieces of {size}");
            assert_eq!(gateway.took(), [format!("denied {command}")]);
        }
    }
    let mut gateway = direct(policy);
    assert_eq!(gateway.says(FromClient, "RETR a\r\nDELE a\r\nNOOP\r\n"), "RETR a\r\nDELX a\r\nNOOP\r\n");
    let mut gateway = direct("defaults: { commands: { deny: [ABOX, FEAT, FEAX, FEAZ] } }");
    assert_eq!(gateway.says(FromClient, "ABOX\r\nfeax\r\nFEAT\r\n"), "ABOZ\r\nfeaQ\r\nFEAQ\r\n");
    let mut gateway = direct(policy);
    let mut hidden = Vec::from(*b"DE\xff\xf1LE a\r\n");
    let seq = gateway.client_next;
    let bytes = packet(gateway.connection.flow(FromClient), seq, gateway.server_next, Flags::ACK, &hidden);
    let segment = Segment::parse(&bytes).expect("a segment");
    let mut observer = |_: Timestamp, _: SessionNumber, _: &SessionEvent<'_>| {};
    let now = Timestamp::from_secs(1000);
    let mut env =
        Environment { now, policy: &gateway.policy, firewall: &mut gateway.firewall, observer: &mut observer };
    let TrackerVerdict::Session(Verdict::Replace(said)) = gateway.tracker.handle(&segment, &mut env) else {
        panic!("Telnet hides nothing")
    };
    hidden.fill(b'X');
    hidden[9..].copy_from_slice(b"\n");
    assert_eq!(String::from_utf8_lossy(&said.payload), "XXXXXXXXX\n");
}
