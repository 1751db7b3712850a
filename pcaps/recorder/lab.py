"""Two network namespaces and a link between them, all of it gone when we are.

Everything happens inside namespaces that the recorder makes for itself: mounts (so
that /run, /etc/passwd and friends can be our own), processes (so that no server can
outlive us, however we die) and network (so that no packet meets the machine's own
network). The kernel takes all of it down with the last process, `kill -9` included,
which no cleanup code could promise.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from . import software

WORK = Path("/run/pinhole-lab")  # on a tmpfs of our own: see enter()
HOME = WORK / "home"
USER = "pinhole"
PASSWORD = "secret"
USER_ID = 61021

ADDRESSES = {
    "ipv4": {"client": "10.21.0.10", "server": "10.21.0.1"},
    "ipv6": {"client": "fd21::10", "server": "fd21::1"},
}
# A client has more than one address so that concurrent sessions can be told apart by
# address alone, whatever they say to each other.
MORE_CLIENTS = {
    "ipv4": ["10.21.0.11", "10.21.0.12", "10.21.0.13"],
    "ipv6": ["fd21::11", "fd21::12", "fd21::13"],
}
LOOPBACK = {"ipv4": "127.0.0.1", "ipv6": "::1"}
PREFIX = {"ipv4": 24, "ipv6": 64}

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1


class LabError(Exception):
    """The lab could not do what a recording asked of it."""


def wait_for(what, condition, seconds=15):
    """Returns as soon as `condition()` is true; never just hopes that it is by now."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds} s for {what}")
        time.sleep(0.01)


# --- our own world -----------------------------------------------------------------


def enter(run):
    """Calls `run()` in a child with namespaces of its own; returns its exit status."""
    _check(LIBC.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET), "unshare")
    child = os.fork()
    if child == 0:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            _make_private_world()
            status = run()
        except KeyboardInterrupt:
            status = 130
        except Exception as error:
            print(f"record: {error}", file=sys.stderr)
            status = 1
        sys.stdout.flush()
        # The first process of a process namespace: when it ends, so does all the rest.
        os._exit(status)

    def stop(_signal, _frame):
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child hears it, too, and ends by itself
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _make_private_world():
    _run("mount", "--make-rprivate", "/")
    _run("mount", "-t", "proc", "proc", "/proc")
    # An own /run: `ip netns` keeps its names there, servers their pid files, and
    # without the system's log socket nothing of ours reaches the system's log.
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for folder in (WORK, HOME, Path("/run/vsftpd/empty"), Path("/run/pure-ftpd"), Path("/run/proftpd")):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(HOME=str(WORK), TMPDIR=str(WORK), TZ="UTC", LC_ALL="C.UTF-8")
    _add_lab_user()
    _make_certificate()


def _add_lab_user():
    """A user whom only our mount namespace knows: the files are bound over the real ones."""
    secret = _run("openssl", "passwd", "-6", "-salt", "pinhole", PASSWORD).strip()
    extra = {
        "/etc/passwd": f"{USER}:x:{USER_ID}:{USER_ID}:Pinhole lab:{HOME}:/bin/sh\n"
                       f"ftp:x:{USER_ID + 1}:{USER_ID}::/run/vsftpd/empty:/bin/false\n",  # vsftpd insists on it
        "/etc/group": f"{USER}:x:{USER_ID}:\n",
        "/etc/shadow": f"{USER}:{secret}:19000:0:99999:7:::\n",
    }
    for path, lines in extra.items():
        ours = WORK / Path(path).name
        kept = [line for line in Path(path).read_text().splitlines() if not line.startswith(("ftp:", f"{USER}:"))]
        ours.write_text("\n".join(kept) + "\n" + lines)
        shutil.copymode(path, ours)
        _run("mount", "--bind", str(ours), path)
    pam = WORK / "pam.d"
    pam.mkdir()
    for service in ("vsftpd", "ftpd", "pure-ftpd"):
        (pam / service).write_text("auth required pam_unix.so nodelay\n"
                                   "account required pam_unix.so\n"
                                   "session required pam_permit.so\n")
    _run("mount", "--bind", str(pam), "/etc/pam.d")


def _make_certificate():
    """Self-signed, of this run, and on an elliptic curve because that keeps captures small."""
    key, certificate = WORK / "key.pem", WORK / "certificate.pem"
    _run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "30", "-subj", "/CN=pinhole-lab", "-keyout", str(key), "-out", str(certificate))
    both = WORK / "both.pem"
    both.write_text(key.read_text() + certificate.read_text())
    both.chmod(0o600)


# --- namespaces --------------------------------------------------------------------


class Namespace:
    """A network namespace of `ip netns`."""

    def __init__(self, name):
        self.name = name
        _run("ip", "netns", "add", name)
        self.run("ip", "link", "set", "lo", "up")

    @contextlib.contextmanager
    def entered(self):
        """The calling thread, and what it starts, is inside. Sockets stay where they were made."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        inside = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            _check(LIBC.setns(inside, CLONE_NEWNET), "setns")
            yield
        finally:
            _check(LIBC.setns(outside, CLONE_NEWNET), "setns")
            os.close(inside)
            os.close(outside)

    def run(self, *command, **options):
        with self.entered():
            return _run(*command, **options)

    def start(self, command, log, **options):
        """Starts a program that goes on running, in a process group of its own."""
        with self.entered(), open(log, "ab") as output:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                    start_new_session=True, **options)

    def tune(self, name, value):
        """Sets a sysctl of this namespace."""
        with self.entered():
            Path("/proc/sys", name).write_text(value)

    def sockets(self):
        """Pairs of state and local address of all TCP sockets."""
        return [tuple(line.split()[0::3][:2]) for line in self.run("ss", "-Htan").splitlines()]

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        _run("ip", "netns", "delete", self.name)


def stop(process, with_signal=signal.SIGTERM):
    """Ends a program that `start` started, and its children."""
    for number in (with_signal, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(5)
    raise LabError(f"process {process.args[0]} does not end")


# --- links -------------------------------------------------------------------------


@dataclass
class TapPoint:
    """Where a capture listens."""

    namespace: Namespace
    interface: str


class Lab:
    """A client and a server, joined by one kind of link. Use it in a `with`.

    Links: veth, loopback, and those of Wire (tun, vlan, qinq, lossy).
    """

    def __init__(self, link="veth"):
        self.link = link

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            self.client = undo.enter_context(Namespace("client"))
            # On loopback both ends are one host.
            self.server = self.client if self.link == "loopback" else undo.enter_context(Namespace("server"))
            if self.link == "veth":
                self._join_by_veth()
            elif self.link == "loopback":
                self.tap = TapPoint(self.client, "lo")
            else:
                self._join_by_wire(undo)
            for namespace in (self.client, self.server):
                # No tail-loss probes: on a busy machine they repeat segments that are not lost.
                namespace.tune("net/ipv4/tcp_early_retrans", "0")
            self._fill_home()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_error):
        self._undo.close()

    def address(self, who, family):
        return LOOPBACK[family] if self.link == "loopback" else ADDRESSES[family][who]

    def _join_by_veth(self):
        self.server.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", "client")
        for number, namespace in enumerate((self.client, self.server), 1):
            # Packets as they would be on a cable: no segment larger than the MTU, and
            # checksums that are filled in.
            namespace.run(software.program("ethtool", "sbin/ethtool"), "-K", "eth0",
                          "tx", "off", "tso", "off", "gso", "off", "gro", "off",
                          env=software.environment("ethtool"))
            namespace.run("ip", "link", "set", "eth0", "address", f"02:00:00:00:00:{number:02x}")
        self._configure("eth0")
        self.tap = TapPoint(self.client, "eth0")

    def _join_by_wire(self, undo):
        wire = Wire(self)
        self.tap = wire.tap
        self._configure("eth0")
        undo.enter_context(wire)

    def _configure(self, interface):
        for who, namespace in (("client", self.client), ("server", self.server)):
            # No link-local addresses, hence no router solicitations in the captures.
            namespace.run("ip", "link", "set", interface, "addrgenmode", "none")
            for family, addresses in ADDRESSES.items():
                more = MORE_CLIENTS[family] if who == "client" else []
                for address in [addresses[who], *more]:
                    # Nobody else can have the address: no duplicate detection to wait for.
                    options = ["nodad"] if family == "ipv6" else []
                    # Deprecated: not chosen as a source address unless somebody binds to it.
                    options += ["preferred_lft", "0"] if family == "ipv6" and address in more else []
                    namespace.run("ip", "address", "add", f"{address}/{PREFIX[family]}", "dev", interface, *options)
            namespace.run("ip", "link", "set", interface, "up")
        for namespace in (self.client, self.server):
            wait_for("the link", lambda n=namespace: "LOWER_UP" in n.run("ip", "link", "show", interface))
            wait_for("usable addresses", lambda n=namespace: not n.run("ip", "-6", "address", "show", "tentative"))

    def _fill_home(self):
        shutil.rmtree(HOME, ignore_errors=True)
        HOME.mkdir()
        for name, content in FILES.items():
            (HOME / name).write_bytes(content)
            os.utime(HOME / name, (1_700_000_000, 1_700_000_000))
        for path in (HOME, *HOME.iterdir()):
            os.chown(path, USER_ID, USER_ID)

    def wait_until_quiet(self):
        """Until neither end has a connection left: then every packet has been sent."""
        wait_for("the connections to close", lambda: self._only("LISTEN", "TIME-WAIT"))

    def wait_until_idle(self):
        """Until no data connection is closing any more; the control connection stays."""
        wait_for("the data connections to close", lambda: self._only("LISTEN", "TIME-WAIT", "ESTAB"))

    def _only(self, *states):
        sockets = [*self.client.sockets(), *self.server.sockets()]
        return all(state in states for state, _ in sockets)


# The content of a file is nobody's announcement, however much it looks like one.
FILES = {
    "readme.txt": b"Files are data.\r\n227 Entering Passive Mode (10,21,0,1,0,22)\r\nPORT 10,21,0,10,0,22\r\n" * 2,
    "pinhole.bin": bytes((7 * index + index // 251) % 256 for index in range(300)),
}
UPLOAD = b"Upward.\r\n229 Entering Extended Passive Mode (|||22|)\r\n" * 2


class Wire:
    """A cable made in user space, for links that not every kernel can make.

    Each end is a tun or tap interface of which we hold the other side, and a thread
    carries frames across. `tun` is captured on the client's interface (packets without
    a link header). `vlan` and `qinq` are captured as an operator does it: on the mirror
    port of a switch, where each frame carries the tags of its VLAN. `lossy` has such a
    mirror port, too, and behind it loses and delays frames, so that the capture holds
    what was lost and what was sent again.
    """

    TUNSETIFF, IFF_TUN, IFF_TAP, IFF_NO_PI = 0x400454CA, 1, 2, 0x1000
    TAGS = {
        "vlan": bytes.fromhex("8100 002a"),  # VLAN 42
        "qinq": bytes.fromhex("88a8 0064 8100 002a"),  # VLAN 42 inside service VLAN 100
        "tun": b"",
        "lossy": b"",
    }
    LOSE_EVERY, DELAY_EVERY = 11, 7  # in frames; of a delayed one, the next goes first

    def __init__(self, lab):
        self._tags = self.TAGS[lab.link]
        kind = self.IFF_TUN if lab.link == "tun" else self.IFF_TAP
        self._lossy = lab.link == "lossy"
        self._ends = [self._open(namespace, kind) for namespace in (lab.client, lab.server)]
        self._wake, self._woken = os.pipe()
        self._mirror = None
        self.tap = TapPoint(lab.client, "eth0")
        if kind == self.IFF_TAP:
            lab.client.run("ip", "link", "add", "mirror", "type", "veth", "peer", "name", "monitor")
            for interface in ("mirror", "monitor"):
                lab.client.run("ip", "link", "set", interface, "addrgenmode", "none")
                lab.client.run("ip", "link", "set", interface, "up", "mtu", "1600")
            with lab.client.entered():
                self._mirror = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                self._mirror.bind(("mirror", 0))
            self.tap = TapPoint(lab.client, "mirror")
        self._thread = threading.Thread(target=self._carry)

    def _open(self, namespace, kind):
        with namespace.entered():
            end = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(end, self.TUNSETIFF, struct.pack("16sH22x", b"eth0", kind | self.IFF_NO_PI))
            return end

    def __enter__(self):
        self._thread.start()
        return self

    def _carry(self):
        across = {self._ends[0]: self._ends[1], self._ends[1]: self._ends[0]}
        count = 0
        delayed = []
        while True:
            # A frame that nothing follows is not delayed for ever.
            ready, _, _ = select.select([*across, self._wake], [], [], 0.03 if delayed else None)
            if self._wake in ready:
                return
            for end in ready:
                frame = os.read(end, 65536)
                if self._mirror:
                    self._mirror.send(frame[:12] + self._tags + frame[12:])
                count += 1
                if self._lossy and count % self.LOSE_EVERY == 0:
                    continue
                if self._lossy and count % self.DELAY_EVERY == 0:
                    delayed.append((across[end], frame))
                    continue
                os.write(across[end], frame)
            if delayed and (not ready or count % self.DELAY_EVERY != 0):
                for end, frame in delayed:
                    os.write(end, frame)
                delayed.clear()

    def __exit__(self, *_error):
        os.write(self._woken, b"x")
        self._thread.join()
        for end in (*self._ends, self._wake, self._woken):
            os.close(end)
        if self._mirror:
            self._mirror.close()


def _run(*command, **options):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _check(result, what):
    if result != 0:
        raise LabError(f"{what}: {os.strerror(ctypes.get_errno())}")
