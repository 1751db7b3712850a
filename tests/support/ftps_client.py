"""An FTPS session that stays: ADDRESS PORT USER PASSWORD COMMANDS. COMMANDS is a FIFO; each line in it is a command."""

import ftplib
import ssl
import sys


class Session(ftplib.FTP_TLS):
    """The address in a 227 counts, as it does for most clients."""

    trust_server_pasv_ipv4_address = True


address, port, user, password, commands = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with Session(context=context, timeout=20) as ftp:
    ftp.connect(address, int(port))
    ftp.login(user, password)
    ftp.prot_p()
    print("logged in", flush=True)
    with open(commands) as lines:
        for number, line in enumerate(lines, 1):
            try:
                names = ftp.nlst()
                print(f"{number}: listed {names}", flush=True)
            except (OSError, ftplib.Error) as error:
                print(f"{number}: failed: {error}", flush=True)
                # The control connection may wait for the reply to a command that was given up.
                break
print("left", flush=True)
