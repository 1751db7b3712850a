"""What happened in a capture, as the lab knows it.

Three sources, and FTP's text is none of them: the recorder itself (which program it
ran, in which mode, and whether the file that arrived equals the file that was sent),
the order in which it did so, and the TCP headers (from where to where).
"""

import json
from dataclasses import dataclass, field

from . import software, wire

# The announcement that each mode's command leads to: in the active modes it is the
# command itself, in the passive ones the server's reply.
ANNOUNCED_BY = {"PORT": "PORT", "EPRT": "EPRT", "LPRT": "LPRT", "PASV": "227", "EPSV": "229", "LPSV": "228"}
ACTIVE = ("PORT", "EPRT", "LPRT")


class Untrue(Exception):
    """The capture does not show what the lab believes to have done."""


@dataclass
class Session:
    """One control connection. Clients fill it in while they work."""

    client: str
    mode: str | None = None  # of the whole session, where it has just one
    user: str | None = "pinhole"  # None: the capture does not show it
    source: str | None = None  # the client's address, where sessions run side by side
    tls: bool = False
    ftp: bool = True
    picked_up: bool = False  # it began before the capture did
    refusal: str | None = None  # why nothing may open, whatever it announces
    # One for each data connection, in order: its mode, and whether the capture holds
    # its announcement in clear and whole.
    data: list = field(default_factory=list)
    transfers: int = 0
    refused: list = field(default_factory=list)
    unused: list = field(default_factory=list)
    # The address that the server's 227 named instead of its own. The client knew better,
    # so a data connection came, but it is none that was announced.
    misdirected_to: str | None = None

    def connected(self, mode, readable=True):
        self.data.append((mode, readable))

    def refuse(self, announced_by, to, reason):
        """Something was announced that a firewall must not open."""
        self.refused.append({"announced_by": announced_by, "to": to, "reason": reason})

    def unuse(self, announced_by, to):
        """Something was announced properly, but no data connection followed."""
        self.unused.append({"announced_by": announced_by, "to": to})


def endpoint(address, port):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def write(path, recording, server, sessions):
    """Joins what the sessions know with the capture's TCP headers, and writes the result."""
    seen = wire.connections(path)
    controls = [connection for connection in seen if connection.is_control]
    if len(controls) != len(sessions):
        raise Untrue(f"{len(sessions)} sessions, but {len(controls)} control connections")
    pairs = _pair(controls, sessions)
    data = _share_out([c for c in seen if not c.is_control], [control for control, _ in pairs], sessions)
    document = {
        "capture": path.name,
        "about": recording.about,
        "server": {"name": server.name, "version": server.version},
        "link": recording.link_name,
        "snaplen": recording.snaplen,
        "packets": wire.packet_count(path),
        "sessions": [_session(control, session, data[id(control)]) for control, session in pairs],
    }
    truth = path.with_suffix(".truth.json")
    truth.write_text(json.dumps(document, indent=2) + "\n")
    return document


def check_commands(path, sessions_written):
    """The mode that the lab asked of a client is the one that the client used."""
    seen = wire.announcing_commands(path)
    for session in sessions_written:
        if session["mode"] is None or session["tls"]:
            continue
        address, port = session["from"].rsplit(":", 1)
        commands = set(seen.get((address.strip("[]"), int(port)), ()))
        if commands != {session["mode"]}:
            raise Untrue(f"{session['client']['name']} was to use {session['mode']}, and used "
                         f"{', '.join(sorted(commands)) or 'nothing'}")


def _pair(controls, sessions):
    """Sessions in the order in which their connections opened."""
    if all(session.source for session in sessions):
        by_source = {session.source: session for session in sessions}
        return [(control, by_source[control.opener[0]]) for control in controls]
    return list(zip(controls, sessions))


def _share_out(data, controls, sessions):
    """Data connections by control connection: of the same client, and the last to open before."""
    apart = all(session.source for session in sessions)
    shares = {id(control): [] for control in controls}
    for connection in data:
        owners = [control for control in controls if control.opened < connection.opened]
        if apart:
            hosts = {connection.opener[0], connection.listener[0]}
            owners = [control for control in owners if control.opener[0] in hosts]
        if not owners:
            raise Untrue(f"nobody's data connection: {connection}")
        shares[id(owners[-1])].append(connection)
    return shares


def _session(control, session, connections):
    name = session.client
    if len(connections) != len(session.data):
        raise Untrue(f"{name}, {session.mode}: {len(session.data)} data connections expected, "
                     f"{len(connections)} captured")
    server_address = control.listener[0]
    data = []
    for connection, (mode, readable) in zip(connections, session.data):
        same_host = control.opener[0] == server_address
        if not same_host and (connection.opener[0] == server_address) != (mode in ACTIVE):
            raise Untrue(f"{name}: a {mode} data connection in the wrong direction")
        if not connection.answered:
            raise Untrue(f"{name}: a {mode} data connection that was not accepted")
        announced_by = ANNOUNCED_BY[mode]
        if session.misdirected_to:
            session.refuse(announced_by, endpoint(session.misdirected_to, connection.listener[1]), "third-party")
            announced_by = None
        if session.refusal and readable:
            session.refuse(announced_by, endpoint(*connection.listener), session.refusal)
            announced_by = None
        data.append({
            "from": endpoint(*connection.opener),
            "to": endpoint(*connection.listener),
            "announced_by": announced_by,
            "readable": readable and not session.tls,
        })
    return {
        "client": {"name": name, "version": software.version(name)},
        "from": endpoint(*control.opener),
        "to": endpoint(*control.listener),
        "user": session.user,
        "mode": session.mode,
        "ftp": session.ftp,
        "tls": session.tls,
        "picked_up": session.picked_up,
        "transfers": session.transfers,
        "data": data,
        "unused": session.unused,
        "refused": session.refused,
    }
