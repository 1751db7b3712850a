"""Aborts transfers with ftplib: ADDRESS PORT USER PASSWORD MODE LAST-REPLY LOST HOW.

LAST-REPLY is how the code of the last reply behind an ABOR begins. LOST is "lost" for a server that does not find the end
of ABOR's line, because that byte is urgent, and so takes the next command for a part of it. HOW is "reads" for a client
that goes on reading the data connection until the server closes it, and "closes" for one that closes it first.
"""

import sys
import threading

sys.modules["ssl"] = None

import ftplib

address, port, user, password, mode, last_reply, lost, how = sys.argv[1:]


class ModalFtp(ftplib.FTP):
    def sendport(self, host, port):
        return super().sendport(host, port) if mode == "PORT" else self.sendeprt(host, port)

    def makepasv(self):
        return super().makepasv() if mode == "PASV" else ftplib.parse229(self.sendcmd("EPSV"), self.sock.getpeername())


def drain(data):
    while data.recv(65536):
        pass
    data.close()


def abort(name):
    data = ftp.transfercmd(f"RETR {name}")
    data.recv(65536)
    if how == "reads":
        threading.Thread(target=lambda: drain(data)).start()
    else:
        # A server that is busy sending may not read commands.
        data.close()
    try:
        reply = ftp.abort()
    except ftplib.error_proto as error:
        reply = str(error)
    print("behind ABOR:", reply)
    while not reply.startswith(last_reply):
        reply = ftp.getmultiline()
        print("behind ABOR:", reply)


def fetch(name):
    content = bytearray()
    with ftp.transfercmd(f"RETR {name}") as data:
        while piece := data.recv(65536):
            content += piece
    ftp.voidresp()
    return bytes(content)


ftp = ModalFtp(timeout=20)
ftp.set_debuglevel(1)
ftp.set_pasv(mode in ("PASV", "EPSV"))
ftp.connect(address, int(port))
ftp.login(user, password)
ftp.voidcmd("TYPE I")
for _ in range(2):
    abort("big")
    if lost == "lost":
        try:
            fetch("small")
        except ftplib.error_perm as error:
            assert str(error).startswith("500"), error
        else:
            raise AssertionError("the server found the end of ABOR's line")
    # No other command comes between the ABOR and the PORT or PASV of this.
    assert fetch("small") == b"small\n"
    assert fetch("small") == b"small\n"
ftp.quit()
