"""The FTP clients. Each does the same in one control connection: a listing, a download
and an upload, every one of them over a data connection of the mode that was asked for.
"""

import ftplib
import io
import shutil
import signal
import subprocess
from dataclasses import dataclass

from . import software
from .lab import FILES, HOME, LabError, PASSWORD, UPLOAD, USER, WORK, wait_for
from .truth import ACTIVE, Session

CLASSIC, EXTENDED, LONG = ("PORT", "PASV"), ("EPRT", "EPSV"), ("LPRT", "LPSV")

# What a client cannot be told to do; README.md gives the reasons.
CANNOT = {
    ("lftp", "EPRT", "ipv4"): "lftp sends PORT on IPv4, whatever ftp:prefer-epsv says",
}


def modes(client, family):
    """The modes that a client can use, in the order in which they are recorded."""
    wanted = ["PORT", "EPRT", "PASV", "EPSV"] if family == "ipv4" else ["EPRT", "EPSV"]
    return [mode for mode in wanted if (client, mode, family) not in CANNOT]


class Mismatch(LabError):
    """What arrived is not what was sent."""


@dataclass
class Job:
    """What a client is to do."""

    lab: object
    server: str  # address
    family: str
    mode: str
    source: str | None = None  # the client's own address, if not the first
    tls: str | None = None  # "required", "tried" (and refused), or None
    options: tuple = ()  # more of the client's own options

    def __post_init__(self):
        self.upload_name = f"upload-{self.source or self.mode}.txt".replace(":", "_")
        self.folder = WORK / f"job-{self.source or ''}-{self.mode}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        (self.folder / "up").write_bytes(UPLOAD)

    @property
    def active(self):
        return self.mode in ACTIVE

    @property
    def host(self):
        """As URLs want it."""
        return f"[{self.server}]" if self.family == "ipv6" else self.server

    def run(self, command, *, name=None, **options):
        with self.lab.client.entered():
            try:
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
                                      errors="replace", env=software.environment(name) if name else None, **options)
            except subprocess.TimeoutExpired as late:
                raise LabError(f"{command[0]} does not end: {late.output}") from late
        if done.returncode != 0:
            raise LabError(f"{command[0]} ended with {done.returncode}: {done.stdout}")
        return done.stdout

    def check(self, log=""):
        """Three transfers, each compared with what it should have brought."""
        def read(path):
            return path.read_bytes() if path.exists() else b"(nothing)"

        listing = read(self.folder / "listing").decode(errors="replace")
        problems = []
        if not all(name in listing for name in FILES):
            problems.append(f"listing: {listing!r}")
        if read(self.folder / "down") != FILES["pinhole.bin"]:
            problems.append("download differs")
        stored = HOME / self.upload_name
        # The server may still be closing the file when the client has gone.
        try:
            wait_for("the upload", lambda: read(stored) == UPLOAD, 3)
        except LabError:
            problems.append("upload differs")
        stored.unlink(missing_ok=True)
        shutil.rmtree(self.folder)
        if problems:
            raise Mismatch(f"{self.mode}: {'; '.join(problems)}\n{log}")
        return 3


def transfer(client, job):
    """Runs `client`; returns what it did, once the contents have been compared."""
    session = Session(client=client, mode=job.mode, source=job.source)
    if job.tls == "required":
        session.tls = True
        session.user = None  # said inside TLS
    log = {"curl": _curl, "lftp": _lftp, "tnftp": _tnftp, "ftplib": _ftplib}[client](job)
    session.transfers = job.check(log)
    for _ in range(session.transfers):
        session.connected(job.mode)
    return session


def _curl(job):
    always = ["--silent", "--show-error", "--max-time", "30", "--user", f"{USER}:{PASSWORD}"]
    if job.active:
        always += ["--ftp-port", job.source or "-"]
        always += ["--disable-eprt"] if job.mode == "PORT" else []
    else:
        always += ["--disable-epsv"] if job.mode == "PASV" else []
    if job.source:
        always += ["--interface", job.source]
    if job.tls:
        always += ["--insecure", "--ssl-reqd" if job.tls == "required" else "--ssl"]
    always += job.options
    url = f"ftp://{job.host}/"
    # One curl with several transfers keeps its control connection from one to the next.
    return job.run(["curl", *always, "--output", "listing", url,
                    "--next", *always, "--output", "down", f"{url}pinhole.bin",
                    "--next", *always, "--upload-file", "up", f"{url}{job.upload_name}"], cwd=job.folder)


def _lftp(job):
    script = [
        "set cmd:fail-exit yes",
        "set net:max-retries 1",
        "set net:timeout 10",
        "set ssl:verify-certificate no",
        f"set ftp:ssl-allow {'yes' if job.tls else 'no'}",
        f"set ftp:ssl-force {'yes' if job.tls == 'required' else 'no'}",
        f"set ftp:ssl-protect-data {'yes' if job.tls == 'required' else 'no'}",
        f"set ftp:passive-mode {'no' if job.active else 'yes'}",
        f"set ftp:prefer-epsv {'yes' if job.mode in EXTENDED else 'no'}",
        *([f"set net:socket-bind-{job.family} {job.source}"] if job.source else []),
        *job.options,
        f"open -u {USER},{PASSWORD} ftp://{job.host}",
        "ls > listing",
        "get pinhole.bin -o down",
        f"put up -o {job.upload_name}",
        "quit",
    ]
    return job.run([software.program("lftp", "usr/bin/lftp"), "--norc", "-c", "; ".join(script)],
                   name="lftp", cwd=job.folder)


def tnftp_command(job):
    """Without automatic login, questions and .netrc; verbose, for when it fails."""
    source = ["-s", job.source] if job.source else []
    return [software.program("tnftp", "usr/bin/tnftp"), "-n", "-i", "-v", "-A" if job.active else "-p", *source]


def tnftp_opening(job):
    """The first lines of a session: extended commands are on until they are toggled."""
    toggle = [] if job.mode in EXTENDED else ["epsv4" if job.family == "ipv4" else "epsv6"]
    return [*toggle, f"open {job.server}", f"user {USER} {PASSWORD}", "binary"]


def _tnftp(job):
    script = [*tnftp_opening(job), "ls . listing", "get pinhole.bin down", f"put up {job.upload_name}", "quit"]
    return job.run(tnftp_command(job), name="tnftp", cwd=job.folder, input="\n".join(script) + "\n")


def interrupt_download(job):
    """tnftp again: a Ctrl-C in the middle of a download makes it send ABOR the Telnet way.

    The server must be slow. After that, the same three transfers as ever.
    """
    (HOME / "large.bin").write_bytes(bytes(40_000))
    script = [*tnftp_opening(job), "get large.bin large", "ls . listing", "get pinhole.bin down",
              f"put up {job.upload_name}", "quit"]
    log = job.folder / "log"
    with job.lab.client.entered(), open(log, "w") as output:
        process = subprocess.Popen(tnftp_command(job), stdin=subprocess.PIPE, stdout=output, stderr=output, text=True,
                                   cwd=job.folder, env=software.environment("tnftp"))
    process.stdin.write("\n".join(script) + "\n")
    process.stdin.flush()
    large = job.folder / "large"
    wait_for("the download to begin", lambda: large.exists() and large.stat().st_size > 0)
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired as late:
        process.kill()
        process.wait()
        raise LabError(f"tnftp does not end: {log.read_text()}") from late
    session = Session(client="tnftp", mode=job.mode)
    session.connected(job.mode)
    if large.stat().st_size >= 40_000:
        raise LabError("the download was complete before the interrupt")
    session.transfers = job.check(log.read_text())
    for _ in range(session.transfers):
        session.connected(job.mode)
    (HOME / "large.bin").unlink()
    return session


class _ModalFtp(ftplib.FTP):
    """ftplib chooses by the family of the address: this one by the mode it is given."""

    def __init__(self, mode, **options):
        self._mode = mode
        super().__init__(**options)
        self.set_pasv(mode not in ACTIVE)

    def sendport(self, host, port):
        return super().sendport(host, port) if self._mode == "PORT" else self.sendeprt(host, port)

    def sendeprt(self, host, port):
        family = 2 if ":" in host else 1
        return self.voidcmd(f"EPRT |{family}|{host}|{port}|")

    def makepasv(self):
        if self._mode == "PASV":
            return super().makepasv()
        return ftplib.parse229(self.sendcmd("EPSV"), self.sock.getpeername())


def _ftplib(job):
    listing, down = [], io.BytesIO()
    with job.lab.client.entered(), _ModalFtp(job.mode, timeout=30) as ftp:
        ftp.connect(job.server, source_address=(job.source, 0) if job.source else None)
        ftp.login(USER, PASSWORD)
        ftp.retrlines("LIST", listing.append)
        ftp.retrbinary("RETR pinhole.bin", down.write)
        ftp.storbinary(f"STOR {job.upload_name}", io.BytesIO(UPLOAD))
    (job.folder / "listing").write_text("\n".join(listing))
    (job.folder / "down").write_bytes(down.getvalue())
    return ""
