"""pyftpdlib as a program, with what the recordings ask of it. Runs in the lab's venv."""

import argparse

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler, ThrottledDTPHandler
from pyftpdlib.servers import FTPServer


def main():
    parser = argparse.ArgumentParser()
    for option in ("address", "user", "password", "home"):
        parser.add_argument(f"--{option}", required=True)
    for option in ("certificate", "banner", "login-message", "passive-address"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--bytes-per-second", type=int)
    asked = parser.parse_args()

    authorizer = DummyAuthorizer()
    authorizer.add_user(asked.user, asked.password, asked.home, perm="elradfmwMT",
                        msg_login=_inside_reply(asked.login_message) or "Login successful.")
    if asked.certificate:
        from pyftpdlib.handlers import TLS_FTPHandler as base

        base.certfile = asked.certificate
        base.tls_control_required = base.tls_data_required = True
    else:
        base = FTPHandler

    class Handler(base):
        passive_ports = range(50000, 50101)
        banner = _inside_reply(asked.banner) or "Pinhole lab ready."
        masquerade_address = asked.passive_address
        dtp_handler = ThrottledDTPHandler if asked.bytes_per_second else base.dtp_handler

    Handler.authorizer = authorizer
    ThrottledDTPHandler.read_limit = ThrottledDTPHandler.write_limit = asked.bytes_per_second or 0
    FTPServer((asked.address, 21), Handler).serve_forever()


def _inside_reply(text):
    """pyftpdlib puts "CODE-" before a text longer than 75 characters and "CODE " after it,
    so lines inside stand as they are: exactly what RFC 959 allows and few servers do."""
    return text and "\r\n".join(text.splitlines())


if __name__ == "__main__":
    main()
