"""ftplib as a program: ADDRESS PORT MODE TIMEOUT USER PASSWORD ANNOUNCE, then list N, get N NAME, put N NAME for each task."""

import sys

# Loading it takes longer than a session without it.
sys.modules["ssl"] = None

import ftplib


class ModalFtp(ftplib.FTP):
    """ftplib chooses the command by the address family; this one uses the mode that it is told."""

    def sendport(self, host, port):
        return super().sendport(announce or host, port) if mode == "PORT" else self.sendeprt(host, port)

    def sendeprt(self, host, port):
        host = announce or host
        return self.voidcmd(f"EPRT |{2 if ':' in host else 1}|{host}|{port}|")

    def makepasv(self):
        if mode == "PASV":
            return super().makepasv()
        return ftplib.parse229(self.sendcmd("EPSV"), self.sock.getpeername())


address, port, mode, timeout, user, password, announce, *tasks = sys.argv[1:]
with ModalFtp(timeout=float(timeout)) as ftp:
    ftp.set_debuglevel(1)
    ftp.set_pasv(mode in ("PASV", "EPSV"))
    ftp.connect(address, int(port))
    ftp.login(user, password)
    while tasks:
        task, number = tasks.pop(0), tasks.pop(0)
        if task == "list":
            with open(f"{number}.out", "w") as out:
                ftp.retrlines("LIST", lambda line: print(line, file=out))
        elif task == "get":
            with open(f"{number}.out", "wb") as out:
                ftp.retrbinary(f"RETR {tasks.pop(0)}", out.write)
        else:
            with open(f"{number}.in", "rb") as content:
                ftp.storbinary(f"STOR {tasks.pop(0)}", content)
