//! The TCP sockets of this network namespace that listen, and the programs that have them open (`/proc/net/tcp`,
//! `/proc/PID/fd`).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

/// The sockets in the network namespace of this thread.
const TABLES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
const ESTABLISHED: &str = "01";
const LISTEN: &str = "0A";

/// A socket that other hosts can connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub port: u16,
    /// None if its files cannot be listed: it is in another PID namespace, or hidden.
    pub program: Option<Program>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// `/proc/PID/comm`.
    pub name: String,
    /// Its name, or what it was started with, is that of an FTP server.
    pub is_ftp_server: bool,
    /// It has connections. Then a listening socket may be one for a data connection.
    pub has_connections: bool,
}

/// A socket in the kernel's list.
struct Socket<'a> {
    /// Hexadecimal.
    address: &'a str,
    port: u16,
    state: &'a str,
    inode: u64,
}

/// The listening sockets, without those on a loopback address.
pub(super) fn listeners() -> Vec<Listener> {
    let tables = TABLES.map(|path| fs::read_to_string(path).unwrap_or_default());
    let sockets: Vec<Socket<'_>> = tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(parse).collect();
    let listening: Vec<&Socket<'_>> =
        sockets.iter().filter(|socket| socket.state == LISTEN && !is_loopback(socket.address)).collect();
    if listening.is_empty() {
        return Vec::new();
    }
    let wanted: HashSet<u64> = listening.iter().map(|socket| socket.inode).collect();
    let connected: HashSet<u64> =
        sockets.iter().filter(|socket| socket.state == ESTABLISHED).map(|socket| socket.inode).collect();
    let mut programs = programs(Path::new("/proc"), &wanted, &connected);
    let listener = |socket: &Socket<'_>| Listener { port: socket.port, program: programs.remove(&socket.inode) };
    listening.into_iter().map(listener).collect()
}

/// A line of the kernel's list: number, address and port of this end, of the other end, state, six other columns, inode.
fn parse(line: &str) -> Option<Socket<'_>> {
    let mut words = line.split_whitespace().skip(1);
    let (address, port) = words.next()?.split_once(':')?;
    let state = words.nth(1)?;
    let inode = words.nth(5)?.parse().ok()?;
    Some(Socket { address, port: u16::from_str_radix(port, 16).ok()?, state, inode })
}

/// Whether the hexadecimal address is 127.0.0.0/8 or `::1`, each word of four bytes in the order of the host.
fn is_loopback(address: &str) -> bool {
    let words: Option<Vec<[u8; 4]>> = address
        .as_bytes()
        .chunks(8)
        .map(|word| Some(u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok()?.to_ne_bytes()))
        .collect();
    match words.as_deref() {
        Some([[127, ..]]) => true,
        Some([[0, 0, 0, 0], [0, 0, 0, 0], third, last]) => {
            let is_mapped = *third == [0, 0, 0xff, 0xff] && last[0] == 127;
            is_mapped || (*third == [0; 4] && *last == [0, 0, 0, 1])
        }
        _ => false,
    }
}

/// The programs that have these sockets open, by inode. Of several processes with one socket, one without connections.
fn programs(proc: &Path, wanted: &HashSet<u64>, connected: &HashSet<u64>) -> HashMap<u64, Program> {
    let mut programs: HashMap<u64, Program> = HashMap::new();
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let files = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let inodes: Vec<u64> = files
            .filter_map(|file| {
                let target = fs::read_link(file.path()).ok()?;
                target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
            })
            .collect();
        let has_connections = inodes.iter().any(|inode| connected.contains(inode));
        for inode in inodes.into_iter().filter(|inode| wanted.contains(inode)) {
            if has_connections && programs.contains_key(&inode) {
                continue;
            }
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim().to_owned();
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let is_ftp_server = is_ftp_server(&name, &command);
            programs.insert(inode, Program { name, is_ftp_server, has_connections });
        }
    }
    programs
}

/// Whether a program of this name and command line (`/proc/PID/cmdline`) serves FTP.
fn is_ftp_server(name: &str, command: &[u8]) -> bool {
    let command = String::from_utf8_lossy(command);
    // The program, and a module or script that an interpreter runs.
    let words = command.split('\0').take(3).map(|word| word.rsplit('/').next().unwrap_or(word));
    words.chain([name]).any(|word| {
        let word = word.to_ascii_lowercase();
        (word.contains("ftpd") || word.contains("filezilla-server"))
            && !word.contains("tftp")
            && !word.starts_with("sftp")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernels_list_are_read() {
        let line = "   0: 0101150A:0015 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 91234 1 0 100 0 0 10 0";
        let socket = parse(line).expect("a socket");
        assert_eq!((socket.address, socket.port, socket.state, socket.inode), ("0101150A", 21, LISTEN, 91_234));
        assert!(parse("  sl  local_address rem_address   st").is_none());
    }

    #[test]
    fn loopback_addresses_are_recognised() {
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let address = |words: &[[u8; 4]]| words.iter().map(|bytes| word(*bytes)).collect::<String>();
        assert!(is_loopback(&address(&[[127, 0, 0, 1]])) && !is_loopback(&address(&[[10, 0, 0, 1]])));
        assert!(is_loopback(&address(&[[0; 4], [0; 4], [0; 4], [0, 0, 0, 1]])) && !is_loopback(&address(&[[0; 4]; 4])));
        assert!(is_loopback(&address(&[[0; 4], [0; 4], [0, 0, 0xff, 0xff], [127, 0, 0, 1]])));
        assert!(!is_loopback("not an address"));
    }

    #[test]
    fn ftp_servers_are_recognised_by_name_or_command() {
        let is = |name, command: &str| is_ftp_server(name, command.replace(' ', "\0").as_bytes());
        assert!(is("vsftpd", "/usr/sbin/vsftpd /etc/vsftpd.conf") && is("pure-ftpd", "pure-ftpd"));
        assert!(is("python3", "/usr/bin/python3 -m pyftpdlib -p 2121"));
        assert!(!is("sshd", "sshd: /usr/sbin/sshd -D") && !is("in.tftpd", "in.tftpd") && !is("sftpd", "sftpd"));
        assert!(!is("less", "less a b /var/log/vsftpd.log"));
    }

    #[test]
    fn own_listener_is_found_with_its_program() {
        // Not on a loopback address, which is left out.
        let socket = std::net::TcpListener::bind("0.0.0.0:0").expect("a free port");
        let port = socket.local_addr().expect("its address").port();
        let found = listeners().into_iter().find(|listener| listener.port == port).expect("it is listed");
        let program = found.program.expect("this program");
        assert!(!program.is_ftp_server && !program.name.is_empty(), "{program:?}");
    }
}
