"""A client made by hand, for dialogues that no real client holds on request.

What it knows of its own doing (which announcement it made, whether the server took it,
whether the file arrived whole) goes into its Session as it happens.
"""

import contextlib
import re
import socket
import struct
from dataclasses import dataclass

from .lab import FILES, HOME, LabError, PASSWORD, UPLOAD, USER
from .truth import ACTIVE, ANNOUNCED_BY, Session

IAC, INTERRUPT_PROCESS, DATA_MARK = b"\xff", b"\xf4", b"\xf2"


@dataclass
class Reply:
    code: int
    text: str

    @property
    def good(self):
        return self.code < 400


class Dialogue:
    """A control connection. Use it in a `with`: it says QUIT at the end."""

    def __init__(self, stage, mode=None, source=None, bytewise=False):
        self.stage = stage
        self.family = stage.family
        self.session = Session(client="dialogue", mode=mode, source=source)
        self._bytewise = bytewise
        with stage.lab.client.entered():
            self._socket = socket.create_connection((stage.server.address, 21), 20, source and (source, 0))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.address = self._socket.getsockname()[0]
        self._lines = self._socket.makefile("rb")

    def __enter__(self):
        self.expect(self.reply(), 220)
        return self

    def __exit__(self, kind, *_error):
        with contextlib.closing(self._socket), contextlib.closing(self._lines):
            if kind is None and not self._lines.closed:
                self.expect(self.command("QUIT"), 221)
                with contextlib.suppress(ConnectionError):
                    self._socket.recv(1)

    # --- lines

    def send(self, text):
        data = text.encode() if isinstance(text, str) else text
        pieces = [bytes([byte]) for byte in data] if self._bytewise else [data]
        for piece in pieces:
            self._socket.sendall(piece)

    def command(self, line):
        self.send(f"{line}\r\n")
        return self.reply()

    def reply(self):
        """The next reply that is not a preliminary one, over as many lines as it has."""
        while True:
            first = self._line()
            code, text = first[:3], first
            if first[3:4] == "-":
                line = ""
                while not line.startswith(f"{code} "):
                    line = self._line()
                    text += line
            if not code.startswith("1"):
                return Reply(int(code), text)

    def preliminary(self):
        """A 1xx reply, for those who want to act between it and the last one."""
        line = self._line()
        if not line.startswith("1"):
            raise LabError(f"a 1xx reply expected, not {line!r}")

    def _line(self):
        line = self._lines.readline().decode(errors="replace")
        if not line:
            raise LabError("the server closed the control connection")
        return line

    @staticmethod
    def expect(reply, *codes):
        if reply.code not in codes:
            raise LabError(f"{' or '.join(map(str, codes))} expected, not {reply.text!r}")
        return reply

    # --- login

    def login(self, password=PASSWORD):
        self.expect(self.command(f"USER {USER}"), 331)
        self.expect(self.command(f"PASS {password}"), 230)
        self.expect(self.command("TYPE I"), 200)

    # --- announcements

    def listener(self):
        """A socket that an active data connection can come to, and its port."""
        with self.stage.lab.client.entered():
            family = socket.AF_INET6 if self.family == "ipv6" else socket.AF_INET
            listener = socket.create_server((self.address, 0), family=family)
        listener.settimeout(20)
        return listener, listener.getsockname()[1]

    def active_command(self, mode, port, address=None):
        return active_command(mode, address or self.address, port)

    def announce(self, mode):
        """Announces a data connection. Returns a function that gives its socket."""
        if mode in ACTIVE:
            listener, port = self.listener()
            self.expect(self.command(self.active_command(mode, port)), 200)
            return lambda: accept(listener)
        return self.enter_passive(self.command(mode), mode)

    def enter_passive(self, reply, mode):
        """Connects to where a reply to PASV, EPSV or LPSV points."""
        self.expect(reply, int(ANNOUNCED_BY[mode]))
        connection = self._connect(passive_port(reply.text, mode))
        return lambda: connection

    def _connect(self, port):
        with self.stage.lab.client.entered():
            return socket.create_connection((self.stage.server.address, port), 20)

    # --- transfers, each with its content compared

    def download(self, mode, name="pinhole.bin"):
        data = self.announce(mode)
        self.send(f"RETR {name}\r\n")
        self.finish_download(mode, data, name)

    def finish_download(self, mode, data, name="pinhole.bin"):
        with data() as connection:
            content = read_all(connection)
        self.expect(self.reply(), 226)
        self.succeeded(mode, content == FILES[name])

    def listing(self, mode):
        data = self.announce(mode)
        self.send("LIST\r\n")
        with data() as connection:
            content = read_all(connection).decode(errors="replace")
        self.expect(self.reply(), 226)
        self.succeeded(mode, all(name in content for name in FILES))

    def upload(self, mode):
        name = "upload-dialogue.txt"
        data = self.announce(mode)
        self.send(f"STOR {name}\r\n")
        with data() as connection:
            # The server takes the data only after its 150; an end of data before
            # that is an empty file to some.
            self.preliminary()
            connection.sendall(UPLOAD)
        self.expect(self.reply(), 226)
        self.succeeded(mode, (HOME / name).read_bytes() == UPLOAD)
        (HOME / name).unlink()

    def succeeded(self, mode, same, readable=True):
        if not same:
            raise LabError(f"{mode}: what arrived is not what was sent")
        self.session.connected(mode, readable)
        self.session.transfers += 1

    # --- the rest

    def interrupt(self):
        """What RFC 959 wants before an ABOR: Telnet's "interrupt process" and, urgent, "synch"."""
        self._socket.sendall(IAC + INTERRUPT_PROCESS)
        self._socket.send(IAC, socket.MSG_OOB)
        self._socket.sendall(DATA_MARK + b"ABOR\r\n")

    def reset(self):
        """Ends the control connection with a RST instead of a QUIT."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._lines.close()
        self._socket.close()


def active_command(mode, address, port):
    numbers = address.split(".")
    high_low = [str(port >> 8), str(port & 255)]
    if mode == "PORT":
        return f"PORT {','.join(numbers + high_low)}"
    if mode == "EPRT":
        return f"EPRT |{2 if ':' in address else 1}|{address}|{port}|"
    six = ":" in address
    octets = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, address)
    return "LPRT " + ",".join(map(str, [6 if six else 4, len(octets), *octets, 2, *high_low]))


def passive_port(text, mode):
    if mode == "EPSV":
        return int(re.search(r"\(\|\|\|(\d+)\|\)", text)[1])
    numbers = re.search(r"\d+(,\d+){5,}", text)[0].split(",")
    return int(numbers[-2]) * 256 + int(numbers[-1])


def accept(listener):
    with listener:
        return listener.accept()[0]


def read_all(connection):
    connection.settimeout(20)
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)
