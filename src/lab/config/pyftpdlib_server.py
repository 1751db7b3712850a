"""pyftpdlib as a program: ADDRESS PORT FIRST LAST USER PASSWORD HOME."""

import sys

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer

address, port, first, last, user, password, home = sys.argv[1:]
FTPHandler.authorizer = DummyAuthorizer()
FTPHandler.authorizer.add_user(user, password, home, perm="elradfmwMT")
FTPHandler.passive_ports = range(int(first), int(last) + 1)
FTPServer((address, int(port)), FTPHandler).serve_forever()
