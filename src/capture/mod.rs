//! Where packets come from and where verdicts go. Knows nothing of FTP.
