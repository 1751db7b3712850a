"""The captures: what each shows, and how it comes about."""

import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import Callable

from . import capture, truth, wire
from .clients import Job, interrupt_download, modes, transfer
from .dialogue import Dialogue, accept, passive_port, read_all
from .lab import HOME, MORE_CLIENTS, Lab, LabError, WORK
from .servers import ALL, Options, Server
from .truth import ANNOUNCED_BY, Session, endpoint

SERVERS = ("vsftpd", "proftpd", "pure-ftpd", "pyftpdlib")
CLIENTS = ("curl", "lftp", "tnftp", "ftplib")
FAMILIES = ("ipv4", "ipv6")
CUT_LINES = ("malformed packet",)  # tshark reads each piece of a line by itself, and frowns
NOT_OURS = {"ipv4": "10.21.0.99", "ipv6": "fd21::99"}  # nobody in the lab has it


@dataclass
class Recording:
    """One capture, and everything needed to make it again."""

    name: str
    about: str
    run: Callable  # takes a Stage, returns the Sessions
    server: str
    family: str = "ipv4"
    options: Options = Options()
    link: str = "veth"
    snaplen: int = capture.FULL
    interface: str | None = None  # instead of the lab's tap point
    link_type: str | None = None
    tool: str = "tcpdump"
    starts_late: bool = False  # the scenario starts the capture itself
    # Trouble in the TCP sense that belongs to this capture.
    expected_trouble: tuple = ()

    @property
    def file_name(self):
        return f"{self.name}.{'pcapng' if self.tool == 'dumpcap' else 'pcap'}"

    @property
    def link_name(self):
        cooked = {"LINUX_SLL": "cooked-v1", "LINUX_SLL2": "cooked-v2"}.get(self.link_type)
        return cooked or {"veth": "ethernet", "lossy": "ethernet", "tun": "raw"}.get(self.link, self.link)


@dataclass
class Stage:
    """What a scenario plays on."""

    lab: Lab
    server: Server
    family: str
    start_capture: Callable

    def job(self, mode, **more):
        return Job(lab=self.lab, server=self.server.address, family=self.family, mode=mode, **more)


def record(recording):
    """Makes one capture and its truth in the work folder; returns the paths of both."""
    path = WORK / recording.file_name
    running = []

    def start_capture():
        tap = lab.tap
        if recording.interface:
            tap = replace(tap, interface=recording.interface)
        running.append(capture.Capture(
            path, tap, snaplen=recording.snaplen, link_type=recording.link_type, tool=recording.tool,
            # Both time formats occur: microseconds with IPv4, nanoseconds with IPv6.
            nanoseconds=recording.family == "ipv6"))

    with Lab(recording.link) as lab, ALL[recording.server](lab, recording.family, recording.options) as server:
        if not recording.starts_late:
            start_capture()
        try:
            sessions = recording.run(Stage(lab, server, recording.family, start_capture))
            lab.wait_until_quiet()
            running[0].finish()
        finally:
            for each in running:
                each.abandon()
    problems = wire.trouble(path, recording.expected_trouble)
    if problems:
        raise LabError("\n".join([f"{recording.file_name} is not clean:", *problems[:10]]))
    document = truth.write(path, recording, server, sessions)
    if recording.snaplen == capture.FULL:
        truth.check_commands(path, document["sessions"])
    return path, path.with_suffix(".truth.json"), document


# --- scenarios with real clients ---------------------------------------------------


def one_session_a_mode(client, wanted, stage, **job):
    return [transfer(client, stage.job(mode, **job)) for mode in wanted]


def without_waiting(wanted, stage):
    """lftp says its first command before the server has greeted it: that alone is not FTP (RFC 959, 5.4)."""
    sessions = one_session_a_mode("lftp", wanted, stage, options=("set ftp:sync-mode no",))
    for session in sessions:
        session.refusal = "not-ftp"
        session.user = None
    return sessions


def truncated(client, wanted, from_client_fits, stage):
    """With a short snap length the server's reply is cut, and the client's command is not.

    The 331 is cut as well. The 230 behind it may be the rest of any line, so it does not count as a login.
    """
    sessions = one_session_a_mode(client, wanted, stage)
    for session in sessions:
        fits = session.mode in from_client_fits
        session.data = [(mode, fits) for mode, _ in session.data]
        session.user = None
        session.refusal = "not-logged-in"
    return sessions


def side_by_side(stage):
    """Every client at once, each from an address of its own."""
    wanted = dict(zip(CLIENTS, ["PASV", "PORT", "EPRT", "EPSV"] if stage.family == "ipv4" else
                      ["EPSV", "EPRT", "EPRT", "EPSV"]))
    addresses = [stage.lab.address("client", stage.family), *MORE_CLIENTS[stage.family]]
    sessions, errors = [], []

    def work(client, source):
        try:
            sessions.append(transfer(client, stage.job(wanted[client], source=source)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(CLIENTS, addresses)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sessions


def foreign_reply(address, stage):
    """The 227 names an address of its own; curl and ftplib connect to the server's all the same."""
    sessions = one_session_a_mode("curl", ["PASV"], stage) + one_session_a_mode("ftplib", ["PASV"], stage)
    for session in sessions:
        session.misdirected_to = address
    return sessions


# --- scenarios by hand -------------------------------------------------------------


def refused_addresses(stage):
    """A third party's address and a low port, both refused by the server; then a proper one."""
    mode = "PORT" if stage.family == "ipv4" else "EPRT"
    with Dialogue(stage, mode) as talk:
        talk.login()
        for address, port, reason in ((NOT_OURS[stage.family], 40001, "third-party"), (talk.address, 22, "low-port")):
            reply = talk.command(talk.active_command(mode, port, address))
            if reply.good:
                # Some take a low port and think again when the transfer starts.
                raise LabError(f"{stage.server.name} did not refuse {address} {port}: {reply.text}")
            talk.session.refuse(mode, endpoint(address, port), reason)
        talk.download(mode)
    return [talk.session]


def active_forbidden(stage):
    """The server refuses a PORT and an EPRT that are in order; the client goes on with PASV."""
    with Dialogue(stage) as talk:
        talk.login()
        for mode in ("PORT", "EPRT"):
            listener, port = talk.listener()
            with listener:
                reply = talk.command(talk.active_command(mode, port))
            if reply.good:
                raise LabError(f"{stage.server.name} took the {mode}: {reply.text}")
            talk.session.unuse(mode, endpoint(talk.address, port))
        talk.download("PASV")
        talk.listing("EPSV")
    return [talk.session]


def start_over(stage):
    """REIN logs out; the same connection logs in again."""
    with Dialogue(stage) as talk:
        talk.login()
        talk.download("PASV")
        talk.expect(talk.command("REIN"), 220, 230)
        listener, port = talk.listener()
        with listener:
            reply = talk.command(talk.active_command("PORT", port))
        if reply.good:
            talk.session.unuse("PORT", endpoint(talk.address, port))
        else:
            talk.session.refuse("PORT", endpoint(talk.address, port), "not-logged-in")
        talk.login()
        talk.upload("PORT")
        talk.listing("EPSV")
    return [talk.session]


def abort(mode, stage):
    """ABOR with Telnet's urgent signal in the middle of a download."""
    size = 400_000
    (HOME / "large.bin").write_bytes(bytes(size))
    # Little may be under way between server and client, or all of it would be.
    stage.lab.server.tune("net/ipv4/tcp_wmem", "4096 8192 8192")
    stage.lab.client.tune("net/ipv4/tcp_rmem", "4096 8192 8192")
    with Dialogue(stage, mode) as talk:
        talk.login()
        data = talk.announce(mode)
        talk.send("RETR large.bin\r\n")
        talk.preliminary()
        with data() as connection:
            received = len(connection.recv(1000))
            talk.interrupt()
            # These look at their control connection only between two blocks: keep reading.
            if stage.server.name in ("proftpd", "pure-ftpd"):
                received += len(read_all(connection))
            # What became of the transfer, and what became of the ABOR: proftpd says the latter first.
            codes = {talk.reply().code, talk.reply().code}
        if received >= size:
            raise LabError("the download was complete before the interrupt")
        if codes not in ({426, 225}, {426, 226}):
            raise LabError(f"ABOR was answered by {codes}")
        talk.session.connected(mode)
        talk.download(mode)
    return [talk.session]


def only_extended(stage):
    """EPSV ALL: from then on nothing else is allowed, to the client or to a firewall."""
    with Dialogue(stage) as talk:
        talk.login()
        talk.expect(talk.command("EPSV ALL"), 200, 220)
        talk.download("EPSV")
        extended = "EPRT"
        classic = [("PORT", 40002)] if stage.family == "ipv4" else []
        for mode, port in [*classic, (extended, 40003)]:
            # Whether the server minds or not: a client that has said EPSV ALL may not.
            talk.command(talk.active_command(mode, port))
            talk.session.refuse(mode, endpoint(talk.address, port), "after-epsv-all")
        talk.listing("EPSV")
        talk.upload("EPSV")
    return [talk.session]


def pipelined(stage):
    """Several commands in one segment: the announcement together with its transfer."""
    with Dialogue(stage) as talk:
        talk.login()
        # Active: the server may connect before anybody has read its 200. Not with pyftpdlib,
        # which then sends the whole file and never closes the data connection.
        for mode in ("PORT", "EPRT") if stage.server.name != "pyftpdlib" else ():
            listener, port = talk.listener()
            talk.send(f"TYPE I\r\n{talk.active_command(mode, port)}\r\nRETR pinhole.bin\r\n")
            talk.expect(talk.reply(), 200)
            talk.expect(talk.reply(), 200)
            talk.finish_download(mode, lambda listener=listener: accept(listener))
        # Passive: the reply comes second of three.
        for mode in ("PASV", "EPSV"):
            talk.send(f"TYPE I\r\n{mode}\r\nNOOP\r\n")
            talk.expect(talk.reply(), 200)
            data = talk.enter_passive(talk.reply(), mode)
            talk.expect(talk.reply(), 200)
            talk.send("RETR readme.txt\r\n")
            talk.finish_download(mode, data, "readme.txt")
    return [talk.session]


def bytewise(stage):
    """Every byte that the client sends is a segment of its own."""
    wanted = ("PORT", "EPSV") if stage.family == "ipv4" else ("EPRT",)
    with Dialogue(stage, bytewise=True) as talk:
        talk.login()
        for mode in wanted:
            talk.download(mode)
    return [talk.session]


def second_try(stage):
    """A wrong password, an announcement that comes too early, then the right password."""
    with Dialogue(stage) as talk:
        talk.expect(talk.command("USER pinhole"), 331)
        talk.expect(talk.command("PASS wrong"), 530)
        listener, port = talk.listener()
        with listener:
            reply = talk.command(talk.active_command("PORT", port))
        if reply.good:
            raise LabError(f"a PORT before the login was taken: {reply.text}")
        talk.session.refuse("PORT", endpoint(talk.address, port), "not-logged-in")
        talk.login()
        talk.download("PORT")
        talk.upload("PASV")
    return [talk.session]


def cut_off(stage):
    """A passive announcement that nobody uses, then a RST on the control connection."""
    sessions = []
    for mode in ("PASV", "EPSV"):
        with Dialogue(stage, mode) as talk:
            talk.login()
            talk.download(mode)
            reply = talk.expect(talk.command(mode), int(ANNOUNCED_BY[mode]))
            talk.session.unuse(ANNOUNCED_BY[mode], endpoint(stage.server.address, passive_port(reply.text, mode)))
            talk.reset()
        sessions.append(talk.session)
    return sessions


def replaced(stage):
    """Announcements that are replaced by the next one before anybody used them."""
    with Dialogue(stage) as talk:
        talk.login()
        for mode in ("PORT", "EPRT"):
            listener, port = talk.listener()
            with listener:
                talk.expect(talk.command(talk.active_command(mode, port)), 200)
            talk.session.unuse(mode, endpoint(talk.address, port))
        for mode in ("PASV", "EPSV"):
            reply = talk.expect(talk.command(mode), int(ANNOUNCED_BY[mode]))
            talk.session.unuse(ANNOUNCED_BY[mode], endpoint(stage.server.address, passive_port(reply.text, mode)))
        talk.download("PASV")
        talk.download("PORT")
    return [talk.session]


def joined_late(stage):
    """The capture starts when the client has logged in and transferred a file."""
    with Dialogue(stage) as talk:
        talk.login()
        talk.download("PASV")
        talk.session.data.clear()
        talk.session.transfers = 0
        talk.session.user = None  # said before anybody listened
        talk.session.picked_up = True
        talk.session.refusal = "picked-up"
        stage.lab.wait_until_idle()
        stage.start_capture()
        talk.download("PASV")
        talk.download("PORT")
        talk.listing("EPSV")
        talk.upload("EPRT")
    return [talk.session]


def long_commands(stage):
    """RFC 1639 by hand, where no client speaks it: on IPv4."""
    with Dialogue(stage) as talk:
        talk.login()
        for mode in ("LPRT", "LPSV"):
            talk.listing(mode)
            talk.download(mode)
            talk.upload(mode)
    return [talk.session]


def slipstream(stage):
    """A browser that is made to send FTP lines in a POST: it is HTTP, and nothing may open."""
    body = f"USER pinhole\r\n{'x' * 40}\r\nPORT 10,21,0,10,0,22\r\nPORT 10,21,0,10,156,64\r\nEPRT |1|10.21.0.10|40000|\r\n"
    job = stage.job("PORT")
    job.run(["curl", "--silent", "--output", "/dev/null", "--data-binary", body, f"http://{job.host}:21/"],
            cwd=job.folder)
    session = Session(client="curl", user=None, ftp=False)
    for port, by, reason in ((22, "PORT", "not-ftp"), (40000, "PORT", "not-ftp"), (40000, "EPRT", "not-ftp")):
        session.refuse(by, endpoint("10.21.0.10", port), reason)
    return [session]


# --- the list ----------------------------------------------------------------------


def all_recordings():
    return [*_matrix(), *_encryption(), *_dialogues(), *_links()]


def _matrix():
    for server in SERVERS:
        for client in CLIENTS:
            for family in FAMILIES:
                wanted = modes(client, family)
                yield Recording(f"{server}-{client}-{family}",
                                f"{client} against {server}: {', '.join(wanted)}, a session each",
                                partial(one_session_a_mode, client, wanted), server, family)
    yield Recording("inetutils-tnftp-long-ipv6", "LPRT and LPSV (RFC 1639), from a client and a server that speak them",
                    partial(one_session_a_mode, "tnftp", ["LPRT", "LPSV"]), "inetutils-ftpd", "ipv6")


def _encryption():
    for server, client in zip(SERVERS, ("curl", "lftp", "curl", "lftp")):
        yield Recording(f"tls-{server}", f"AUTH TLS accepted, then {client}'s transfers inside TLS",
                        partial(one_session_a_mode, client, ["EPSV"], tls="required"), server,
                        options=Options(tls=True))
        yield Recording(f"tls-refused-{server}", "AUTH TLS refused; the client goes on in clear",
                        partial(one_session_a_mode, "curl", ["PASV"], tls="tried"), server)


def _dialogues():
    for server in SERVERS:
        yield Recording(f"banner-{server}", "multi-line banner and login message that hold 227, 228 and 229 lines",
                        partial(one_session_a_mode, "ftplib", ["PASV", "PORT"]), server, options=Options(greeting=True))
        yield Recording(f"pipelined-{server}", "several commands in one segment", pipelined, server)
        yield Recording(f"login-retry-{server}", "a wrong password, a PORT without a login, the right password",
                        second_try, server)
        yield Recording(f"epsv-all-{server}", "EPSV ALL, then commands that it forbids", only_extended, server)
        yield Recording(f"abor-{server}", "ABOR as Telnet urgent data in the middle of a download",
                        partial(abort, {"vsftpd": "PASV", "proftpd": "EPSV", "pure-ftpd": "PORT", "pyftpdlib": "EPRT"}[server]),
                        server, options=Options(slow=True))
        yield Recording(f"port-refused-{server}", "PORT to a third party and to a low port, refused by the server",
                        refused_addresses, server)
    yield Recording("eprt-refused-ipv6", "EPRT to a third party and to a low port, refused by the server",
                    refused_addresses, "vsftpd", "ipv6")
    yield Recording("port-disabled", "proper PORT and EPRT that the server does not allow", active_forbidden, "vsftpd",
                    options=Options(no_active=True))
    yield Recording("abor-tnftp", "Ctrl-C in tnftp: it sends ABOR by itself",
                    lambda stage: [interrupt_download(stage.job("EPSV"))], "vsftpd", options=Options(slow=True))
    yield Recording("rein-pyftpdlib", "REIN, and a new login on the same connection", start_over, "pyftpdlib")
    yield Recording("long-ipv4", "LPRT and LPSV on IPv4", long_commands, "inetutils-ftpd")
    yield Recording("pipelined-lftp", "lftp with ftp:sync-mode off",
                    partial(without_waiting, ["PASV", "EPSV", "PORT"]), "proftpd")
    yield Recording("bytewise-ipv4", "every byte from the client in a segment of its own", bytewise, "vsftpd",
                    expected_trouble=CUT_LINES)
    yield Recording("bytewise-ipv6", "every byte from the client in a segment of its own", bytewise, "proftpd", "ipv6",
                    expected_trouble=CUT_LINES)
    yield Recording("reset", "a RST on the control connection while an announcement is open", cut_off, "vsftpd")
    yield Recording("replaced", "announcements that the next one replaces", replaced, "vsftpd")
    yield Recording("foreign-227", "a 227 with an address that is not the server's",
                    partial(foreign_reply, "198.51.100.7"), "vsftpd",
                    options=Options(passive_address="198.51.100.7"))
    yield Recording("zero-227", "a 227 with 0.0.0.0, which means the server itself",
                    partial(foreign_reply, None), "vsftpd", options=Options(passive_address="0.0.0.0"))
    yield Recording("slipstream-http", "FTP lines in the body of an HTTP POST to port 21", slipstream, "http.server")


def _links():
    everything = partial(one_session_a_mode, "curl")
    for family in FAMILIES:
        wanted = ["PORT", "PASV"] if family == "ipv4" else ["EPSV"]
        yield Recording(f"loopback-{family}", "both ends on one host: captured on lo, where checksums are left out",
                        partial(everything, wanted), "vsftpd", family, link="loopback",
                        expected_trouble=("bad TCP checksum",))
        yield Recording(f"vlan-{family}", "frames with a VLAN tag, from the mirror port of a switch",
                        partial(everything, wanted), "vsftpd", family, link="vlan")
        yield Recording(f"qinq-{family}", "frames with two VLAN tags (802.1ad)",
                        partial(everything, wanted), "vsftpd", family, link="qinq")
        yield Recording(f"tun-{family}", "captured on a tun interface: packets without a link header",
                        partial(everything, wanted), "vsftpd", family, link="tun")
        yield Recording(f"lossy-{family}", "one frame in eleven lost, one in seven delayed: retransmissions, real ones",
                        partial(everything, wanted), "vsftpd", family, link="lossy",
                        expected_trouble=("retransmission", "out of order"))
        yield Recording(f"concurrent-{family}", "four clients at once, each from an address of its own",
                        side_by_side, "proftpd", family)
    classic = ["PORT", "PASV"]
    yield Recording("any-cooked-v2", "tcpdump -i any: Linux cooked v2", partial(everything, classic), "vsftpd",
                    interface="any", link_type="LINUX_SLL2")
    yield Recording("any-cooked-v1", "tcpdump -i any -y LINUX_SLL: Linux cooked v1", partial(everything, classic),
                    "vsftpd", interface="any", link_type="LINUX_SLL")
    yield Recording("pcapng", "pcapng, from dumpcap", partial(everything, classic), "vsftpd", tool="dumpcap")
    yield Recording("snaplen-96", "tcpdump -s 96: the announcements of the server are cut, those of the client are not",
                    partial(truncated, "curl", ["PORT", "EPRT", "PASV", "EPSV"], ("PORT", "EPRT")), "vsftpd", snaplen=96,
                    expected_trouble=CUT_LINES)
    yield Recording("late-start", "the capture starts in the middle of a session", joined_late, "vsftpd",
                    starts_late=True)
