//! Bytes as IP and TCP. Knows nothing of FTP.
