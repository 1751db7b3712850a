"""pyftpdlib as a program: ADDRESS PORT FIRST LAST USER PASSWORD HOME ANNOUNCE."""

import sys

# What it would load for TLS takes longer to load than all the rest, and nobody here speaks it.
sys.modules["OpenSSL"] = sys.modules["ssl"] = None

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer

address, port, first, last, user, password, home, announce = sys.argv[1:]
FTPHandler.authorizer = DummyAuthorizer()
FTPHandler.authorizer.add_user(user, password, home, perm="elradfmwMT")
FTPHandler.passive_ports = range(int(first), int(last) + 1)
FTPHandler.masquerade_address = announce or None
FTPServer((address, int(port)), FTPHandler).serve_forever()
