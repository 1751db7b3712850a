"""The programs that the lab needs, and where to get those the machine lacks.

Debian's FTP servers exclude each other as packages, and a test machine should not
grow services. So their packages are downloaded and unpacked into a cache folder
and run from there: nothing is installed, and no package script runs.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("PINHOLE_LAB_CACHE") or PROJECT / "target" / "pcaps-cache")

# Unpacked into the cache: the program's package first (its version is the one that
# truth files name), then others that belong to it, those with a question mark only
# where this release has them. The libraries that a small Debian
# does not have come with them: which those are, and what they are called in this
# release, the packages themselves say.
UNPACKED = {
    "vsftpd": ["vsftpd"],
    "proftpd": ["proftpd-core", "proftpd-mod-crypto"],
    "pure-ftpd": ["pure-ftpd", "pure-ftpd-common"],
    "inetutils-ftpd": ["inetutils-ftpd"],
    "lftp": ["lftp"],
    "tnftp": ["tnftp"],
    "ethtool": ["ethtool"],
    "iptables": ["iptables"],
    # Since Debian 13 its client is a package of its own.
    "docker": ["docker.io", "containerd", "runc", "tini", "docker-cli?"],
}

# Program: the Debian package that installs it, for those too large to unpack.
INSTALLED = {
    "ip": "iproute2",
    "ss": "iproute2",
    "curl": "curl",
    "openssl": "openssl",
    "tcpdump": "tcpdump",
    "dumpcap": "wireshark-common",
    "tshark": "tshark",
    "wget": "wget",
}

PYTHON_PACKAGES = ["pyftpdlib==2.2.0", "pyOpenSSL"]
VENV_PYTHON = CACHE / "venv" / "bin" / "python"


class MissingSoftware(Exception):
    """A program that could be neither found nor fetched."""


def provide_all():
    """Makes every program of the lab runnable. Needs a network only the first time."""
    missing = sorted({package for program, package in INSTALLED.items() if not shutil.which(program)})
    if missing:
        _step(f"install {' '.join(missing)}", ["apt-get", "install", "-y", "--no-install-recommends", *missing],
              env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    for name in UNPACKED:
        _unpack(name)
    if not (CACHE / "venv" / "complete").exists():
        shutil.rmtree(CACHE / "venv", ignore_errors=True)
        _step("make a Python environment", [sys.executable, "-m", "venv", str(CACHE / "venv")])
        _step("install pyftpdlib", [str(VENV_PYTHON), "-m", "pip", "install", "--quiet", *PYTHON_PACKAGES])
        (CACHE / "venv" / "complete").touch()


def program(name, path):
    """The full path of an unpacked program, for example program("vsftpd", "usr/sbin/vsftpd")."""
    return str(CACHE / name / path)


def environment(name):
    """The environment in which an unpacked program finds its libraries."""
    folders = [str(folder) for folder in sorted((CACHE / name).glob("**/*-linux-gnu")) if folder.is_dir()]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(folders)}


def version(name):
    """The version that the truth files name."""
    if name in ("ftplib", "http.server"):  # parts of Python
        return sys.version.split()[0]
    if name == "dialogue":
        return "1"
    if name == "pyftpdlib":
        return _output([str(VENV_PYTHON), "-c", "import pyftpdlib; print(pyftpdlib.__ver__)"])
    if name in UNPACKED:
        return (CACHE / name / "version").read_text().strip()
    return _output(["dpkg-query", "--show", "--showformat=${Version}", INSTALLED[name]])


def _unpack(name):
    root = CACHE / name
    if (root / "version").exists():
        return
    shutil.rmtree(root, ignore_errors=True)
    packages = root / "packages"
    packages.mkdir(parents=True)
    # Root may read any folder, apt's own user may not: hence the sandbox option.
    wanted = [package.rstrip("?") for package in UNPACKED[name] if not package.endswith("?") or _exists(package[:-1])]
    wanted += _missing_libraries(wanted)
    _step(f"download {name}", ["apt-get", "-o", "APT::Sandbox::User=root", "download", *wanted], cwd=packages)
    for package in packages.glob("*.deb"):
        _step(f"unpack {package.name}", ["dpkg-deb", "--extract", str(package), str(root)])
    _check_libraries(name, root)
    main_package = next(packages.glob(f"{UNPACKED[name][0]}_*.deb"))
    (root / "version").write_text(_output(["dpkg-deb", "--field", str(main_package), "Version"]) + "\n")
    shutil.rmtree(packages)


def _missing_libraries(packages):
    """The libraries that these packages need, directly or not, and that are not installed."""
    seen, libraries, rest = set(packages), [], list(packages)
    while rest:
        for needed in _dependencies(rest.pop(0)):
            if needed not in seen:
                seen.add(needed)
                if _section(needed) in ("libs", "oldlibs") and not _is_installed(needed):
                    libraries.append(needed)
                    rest.append(needed)
    return libraries


def _dependencies(package):
    # Names in angle brackets are of no package.
    lists = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    listing = _output(["apt-cache", "depends", *lists, package])
    return re.findall(r"^ [ |](?:Pre)?Depends: ([^<\s:]+)", listing, re.MULTILINE)


def _section(package):
    about = _output(["apt-cache", "show", "--no-all-versions", package])
    section = re.search(r"^Section: (\S+)", about, re.MULTILINE)
    # Outside of main it is called contrib/libs.
    return section.group(1).rsplit("/", 1)[-1] if section else None


def _exists(package):
    return bool(_output(["apt-cache", "search", "--names-only", f"^{re.escape(package)}$"]))


def _is_installed(package):
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}\n", package]
    return "installed" in subprocess.run(query, capture_output=True, text=True).stdout.split()


def _check_libraries(name, root):
    for folder in ("usr/sbin", "usr/bin", "sbin"):
        for binary in sorted((root / folder).glob("*")):
            listing = subprocess.run(["ldd", str(binary)], env=environment(name), capture_output=True, text=True)
            absent = re.findall(r"(\S+) => not found", listing.stdout)
            if absent:
                raise MissingSoftware(f"{binary.name} needs {', '.join(absent)}: "
                                      f"no package that {name} depends on has it; add the one that does to "
                                      f"UNPACKED[{name!r}]")


def _step(what, command, **options):
    print(f"  {what}", file=sys.stderr)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        raise MissingSoftware(f"could not {what}:\n{done.stdout}")


def _output(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
