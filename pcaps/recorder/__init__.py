"""Records FTP captures from real software: see README.md one folder up.

software    what has to be on the machine, and fetching what is not
lab         network namespaces, links, and waiting for conditions
servers     vsftpd, proftpd, pure-ftpd, pyftpdlib, inetutils-ftpd
clients     curl, lftp, tnftp, Python's ftplib, each doing the same three transfers
dialogue    a hand-made client for what no real one does on request
capture     tcpdump and dumpcap, started and stopped so that no packet is missed
wire        what the TCP headers of a finished capture say
truth       what happened, as the lab knows it, written beside each capture
scenarios   the list of captures
"""
