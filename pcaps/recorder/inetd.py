"""inetd.py ADDRESS PORT PROGRAM: starts PROGRAM for each connection, as inetd would."""

import ipaddress
import socket
import subprocess
import sys

address, port, program = sys.argv[1:]
family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
running = []
with socket.create_server((address, int(port)), family=family) as listener:
    while True:
        connection, _ = listener.accept()
        with connection:
            running.append(subprocess.Popen([program], stdin=connection, stdout=connection))
        running = [process for process in running if process.poll() is None]
