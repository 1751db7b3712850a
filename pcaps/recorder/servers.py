"""The FTP servers: how each is configured, started and known to be ready."""

import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template

from . import software
from .lab import HOME, PASSWORD, USER, WORK, stop, wait_for

CONFIG = Path(__file__).parent / "config"
HERE = Path(__file__).parent

# Lines that look like announcements and logins, inside multi-line replies. Not every
# server puts "220-" in front of each line: a banner must not hold a line that starts
# with "220 ", which would end it, and a login message none that starts with "230 ".
BANNER = """\
Welcome to the Pinhole lab.
227 Entering Passive Mode (1,2,3,4,5,6)
229 Entering Extended Passive Mode (|||1286|)
228 Entering Long Passive Mode (4,4,1,2,3,4,2,5,6)
230 Login successful.
"""
LOGIN_MESSAGE = """\
You are in.
227 Entering Passive Mode (1,2,3,4,5,6)
229 Entering Extended Passive Mode (|||1286|)
220 Ready.
"""


@dataclass(frozen=True)
class Options:
    """What a recording may ask of any server."""

    tls: bool = False
    greeting: bool = False  # BANNER and LOGIN_MESSAGE
    passive_address: str | None = None  # what a 227 says instead of the server's own address
    no_active: bool = False  # refuses PORT and EPRT
    slow: bool = False  # a few KB a second, so that a download can be interrupted


class Server:
    """A server on port 21 of one of the lab's addresses."""

    name = None

    def __init__(self, lab, family, options):
        self.lab = lab
        self.family = family
        self.address = lab.address("server", family)
        self.options = options
        self.version = software.version(self.name)
        self._log = WORK / f"{self.name}.log"

    def __enter__(self):
        self._process = self.lab.server.start(self.command(), self._log, env=self.environment(), cwd=HOME)

        def listening():
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended: {self._log.read_text()[-2000:]}")
            return any(state == "LISTEN" and local.endswith(":21") for state, local in self.lab.server.sockets())

        try:
            wait_for(f"{self.name} to listen", listening)
        except Exception:
            stop(self._process)
            raise
        return self

    def __exit__(self, *_error):
        stop(self._process)

    def environment(self):
        return software.environment(self.name)

    def _configure(self, **values):
        template = Template((CONFIG / f"{self.name}.conf").read_text())
        path = WORK / f"{self.name}.conf"
        path.write_text(template.substitute(address=self.address, work=WORK, **values))
        return str(path)


class Vsftpd(Server):
    name = "vsftpd"

    def command(self):
        lines = []
        if self.options.tls:
            lines += ["ssl_enable=YES", f"rsa_cert_file={WORK}/both.pem", f"rsa_private_key_file={WORK}/both.pem",
                      "ssl_ciphers=HIGH", "require_ssl_reuse=NO"]
        if self.options.greeting:
            (WORK / "banner").write_text(BANNER)
            (HOME / ".message").write_text(LOGIN_MESSAGE)
            lines += [f"banner_file={WORK}/banner"]
        if self.options.passive_address:
            lines += [f"pasv_address={self.options.passive_address}"]
        if self.options.no_active:
            lines += ["port_enable=NO"]
        if self.options.slow:
            lines += ["local_max_rate=3000", "trans_chunk_size=1000"]
        ipv6 = self.family == "ipv6"
        listen = "listen=NO\nlisten_ipv6=YES" if ipv6 else "listen=YES\nlisten_ipv6=NO"
        return [software.program("vsftpd", "usr/sbin/vsftpd"),
                self._configure(listen=listen, listen_address="listen_address6" if ipv6 else "listen_address",
                                options="\n".join(lines))]


class Proftpd(Server):
    name = "proftpd"

    def command(self):
        lines = []
        if self.options.tls:
            lines += ["LoadModule mod_tls.c", "TLSEngine on", "TLSRequired on",
                      f"TLSECCertificateFile {WORK}/certificate.pem", f"TLSECCertificateKeyFile {WORK}/key.pem",
                      "TLSOptions NoSessionReuseRequired"]
        if self.options.greeting:
            (WORK / "banner").write_text(BANNER)
            (WORK / "login-message").write_text(LOGIN_MESSAGE)
            lines += [f"DisplayConnect {WORK}/banner", f"DisplayLogin {WORK}/login-message"]
        if self.options.passive_address:
            lines += [f"MasqueradeAddress {self.options.passive_address}"]
        if self.options.slow:
            lines += ["TransferRate RETR 3"]
        return [software.program("proftpd", "usr/sbin/proftpd"), "--nodaemon", "--config",
                self._configure(modules=software.program("proftpd", "usr/lib/proftpd"), options="\n".join(lines))]


class PureFtpd(Server):
    name = "pure-ftpd"

    def command(self):
        command = [software.program("pure-ftpd", "usr/sbin/pure-ftpd"), "--bind", f"{self.address},21",
                   "--login", "unix", "--minuid", "1", "--noanonymous", "--dontresolve",
                   "--passiveportrange", "50000:50100", "--pidfile", f"{WORK}/pure-ftpd.pid"]
        if self.options.tls:
            command += ["--tls", "1", "--certfile", f"{WORK}/both.pem"]
        if self.options.greeting:
            # A "fortune" is shown before the login; the message of the first folder after it.
            (WORK / "fortune").write_text(BANNER)
            (HOME / ".message").write_text(LOGIN_MESSAGE)
            (HOME / ".banner").write_text(LOGIN_MESSAGE)
            command += ["--fortunesfile", f"{WORK}/fortune"]
        if self.options.passive_address:
            command += ["--forcepassiveip", self.options.passive_address]
        if self.options.slow:
            command += ["--userbandwidth", "3"]
        return command


class Pyftpdlib(Server):
    name = "pyftpdlib"

    def environment(self):
        return None

    def command(self):
        command = [str(software.VENV_PYTHON), str(HERE / "pyftpdlib_server.py"), "--address", self.address,
                   "--user", USER, "--password", PASSWORD, "--home", str(HOME)]
        if self.options.tls:
            command += ["--certificate", f"{WORK}/both.pem"]
        if self.options.greeting:
            command += ["--banner", BANNER, "--login-message", LOGIN_MESSAGE]
        if self.options.passive_address:
            command += ["--passive-address", self.options.passive_address]
        if self.options.slow:
            command += ["--bytes-per-second", "3000"]
        return command


class InetutilsFtpd(Server):
    """The only one that speaks RFC 1639's LPRT and LPSV."""

    name = "inetutils-ftpd"

    def command(self):
        # It wants an inetd in front, which hands it an accepted connection; ours is a few lines.
        return [sys.executable, str(HERE / "inetd.py"), self.address, "21",
                software.program("inetutils-ftpd", "usr/sbin/ftpd")]


class Web(Server):
    """No FTP server at all: a web server on the FTP port."""

    name = "http.server"

    def environment(self):
        return None

    def command(self):
        return [sys.executable, "-m", "http.server", "--bind", self.address, "21"]


ALL = {server.name: server for server in (Vsftpd, Proftpd, PureFtpd, Pyftpdlib, InetutilsFtpd, Web)}
