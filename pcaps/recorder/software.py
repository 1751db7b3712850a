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
CACHE = Path(os.environ.get("PINHOLE_LAB_CACHE", PROJECT / "target" / "pcaps-cache"))

# Unpacked into the cache: the program's package first (its version is the one that
# truth files name), then libraries that a small Debian does not have.
UNPACKED = {
    "vsftpd": ["vsftpd", "libwrap0"],
    "proftpd": [
        "proftpd-core",
        "proftpd-mod-crypto",
        "libhashkit2",
        "libhiredis0.14",
        "libmemcached11",
        "libmemcachedutil2",
        "libpcre2-posix3",
        "libsodium23",
    ],
    "pure-ftpd": ["pure-ftpd", "pure-ftpd-common", "libsodium23"],
    "inetutils-ftpd": ["inetutils-ftpd", "libwrap0"],
    "lftp": ["lftp"],
    "tnftp": ["tnftp", "libedit2"],
    "ethtool": ["ethtool", "libmnl0"],
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
    _step(f"download {name}", ["apt-get", "-o", "APT::Sandbox::User=root", "download", *UNPACKED[name]], cwd=packages)
    for package in packages.glob("*.deb"):
        _step(f"unpack {package.name}", ["dpkg-deb", "--extract", str(package), str(root)])
    _check_libraries(name, root)
    main_package = next(packages.glob(f"{UNPACKED[name][0]}_*.deb"))
    (root / "version").write_text(_output(["dpkg-deb", "--field", str(main_package), "Version"]) + "\n")
    shutil.rmtree(packages)


def _check_libraries(name, root):
    for folder in ("usr/sbin", "usr/bin", "sbin"):
        for binary in sorted((root / folder).glob("*")):
            listing = subprocess.run(["ldd", str(binary)], env=environment(name), capture_output=True, text=True)
            absent = re.findall(r"(\S+) => not found", listing.stdout)
            if absent:
                raise MissingSoftware(f"{binary.name} needs {', '.join(absent)}: "
                                      f"add the package that holds it to UNPACKED[{name!r}]")


def _step(what, command, **options):
    print(f"  {what}", file=sys.stderr)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        raise MissingSoftware(f"could not {what}:\n{done.stdout}")


def _output(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
