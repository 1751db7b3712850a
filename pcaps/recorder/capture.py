"""Capturing, so that the first and the last packet are in the file."""

import re
import signal

from .lab import LabError, WORK, stop, wait_for
from .wire import connections

FULL = 262144  # tcpdump's own default: whole packets


class Capture:
    """A capture on a tap point, from `start` to `finish`."""

    def __init__(self, path, tap, *, snaplen=FULL, nanoseconds=False, link_type=None, tool="tcpdump"):
        self.path = path
        self._log = WORK / f"{path.name}.log"
        self._log.write_text("")
        if tool == "dumpcap":
            command = ["dumpcap", "-q", "-i", tap.interface, "-s", str(snaplen), "-w", str(path)]
            ready = "File: "
        else:
            # -U and immediate mode: what has been captured is in the file at once, so that
            # reading the file tells when the last packet has arrived. No name resolution, and
            # root stays root, because the folder is root's. The ring is large because immediate
            # mode gives each packet a slot of a whole snap length: 2 MB would be eight packets.
            command = ["tcpdump", "-n", "-U", "--immediate-mode", "-Z", "root", "-i", tap.interface,
                       "-B", "65536", "-s", str(snaplen), "-w", str(path)]
            command += ["--time-stamp-precision=nano"] if nanoseconds else []
            command += ["-y", link_type] if link_type else []
            ready = "listening on"
        self._process = tap.namespace.start(command, self._log)
        wait_for(f"{tool} to listen", lambda: self._alive() and ready in self._log.read_text())

    def _alive(self):
        if self._process.poll() is not None:
            raise LabError(f"{self._process.args[0]} ended: {self._log.read_text().strip()}")
        return True

    def finish(self):
        """Stops once every connection in the file is closed."""
        wait_for("the last packets in the capture", lambda: all(c.closed for c in connections(self.path)))
        stop(self._process, signal.SIGINT)
        dropped = re.search(r"([1-9]\d*) packets? dropped", self._log.read_text())
        if dropped:
            raise LabError(f"{self.path.name}: {dropped.group()}")

    def abandon(self):
        if self._process.poll() is None:
            stop(self._process)
