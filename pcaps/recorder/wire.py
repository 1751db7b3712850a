"""What the TCP headers of a capture say.

tshark reads them, with its FTP dissector off: that a data connection came, from where
and to where, is known without understanding a line of FTP. So a program that does
understand FTP can be checked against it.
"""

import subprocess
from collections import Counter
from dataclasses import dataclass, field

CONTROL_PORT = 21
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

# What must not be in a capture of a link that loses nothing.
TROUBLE = {
    "_ws.malformed": "malformed packet",
    "tcp.analysis.retransmission": "retransmission",
    "tcp.analysis.out_of_order": "out of order",
    "tcp.analysis.lost_segment": "segment not captured",
    "tcp.analysis.ack_lost_segment": "acknowledges a segment that was not captured",
    "ip.checksum.status == Bad": "bad IP checksum",
    "tcp.checksum.status == Bad": "bad TCP checksum",
}


@dataclass
class Connection:
    """A TCP connection as the capture shows it; `opener` sent the SYN."""

    opened: float
    opener: tuple
    listener: tuple
    syn_seen: bool = False
    answered: bool = False
    reset: bool = False
    finished: set = field(default_factory=set)

    @property
    def closed(self):
        return self.reset or len(self.finished) == 2

    @property
    def is_control(self):
        return self.listener[1] == CONTROL_PORT

    def other_than(self, address):
        return self.listener if self.opener[0] == address else self.opener


def connections(path):
    """All TCP connections of a capture, by their first packet."""
    found = {}
    names = ["frame.time_epoch", "tcp.stream", "ip.src", "ipv6.src", "tcp.srcport",
             "ip.dst", "ipv6.dst", "tcp.dstport", "tcp.flags"]
    for time, stream, *ends, flags in fields(path, "tcp", names, "--disable-protocol", "ftp"):
        source, destination = ((v4 or v6, int(port)) for v4, v6, port in (ends[:3], ends[3:]))
        flags = int(flags, 16)
        if stream not in found:
            # Without a SYN (a capture that began too late) the well-known port tells.
            opener, listener = (destination, source) if source[1] == CONTROL_PORT else (source, destination)
            found[stream] = Connection(float(time), opener, listener)
        connection = found[stream]
        if flags & SYN and not flags & ACK:
            connection.opener, connection.listener, connection.syn_seen = source, destination, True
        connection.answered |= bool(flags & SYN and flags & ACK)
        connection.reset |= bool(flags & RST)
        if flags & FIN:
            connection.finished.add(source)
    return sorted(found.values(), key=lambda connection: connection.opened)


def packet_count(path):
    return len(fields(path, "frame", ["frame.number"]))


def trouble(path, expected=()):
    """What is wrong with a capture, in words; kinds that are `expected` are left out."""
    options = ["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
    tests = {test: meaning for test, meaning in TROUBLE.items() if meaning not in expected}
    # Once for all kinds, because tshark is slow to start; one by one only to name the kind.
    if not fields(path, " || ".join(tests), ["frame.number"], *options):
        return []
    return [f"packet {number}: {meaning}: {summary}"
            for test, meaning in tests.items()
            for number, summary in fields(path, test, ["frame.number", "_ws.col.Info"], *options)]


def announcing_commands(path):
    """Per control connection (by its client's address and port), how often tshark reads which
    command. Only a cross-check: the truth files are not made from it."""
    seen = {}
    names = ["ip.src", "ipv6.src", "tcp.srcport", "ftp.request.command"]
    for v4, v6, port, commands in fields(path, "ftp.request.command", names, "-E", "occurrence=a"):
        counter = seen.setdefault((v4 or v6, int(port)), Counter())
        counter.update(command for command in commands.upper().split(",")
                       if command in ("PORT", "EPRT", "LPRT", "PASV", "EPSV", "LPSV"))
    return seen


def fields(path, display_filter, names, *options):
    """Rows of tshark's fields."""
    command = ["tshark", "-n", "-r", str(path), "-Y", display_filter, "-T", "fields", "-E", "separator=/t"]
    if "occurrence=a" not in options:
        command += ["-E", "occurrence=f"]
    for name in names:
        command += ["-e", name]
    # The exit status is not looked at: a file that is still being written may end in half a packet.
    output = subprocess.run([*command, *options], capture_output=True, text=True).stdout
    return [line.split("\t") for line in output.splitlines()]
