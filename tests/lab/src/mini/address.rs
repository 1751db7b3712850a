//! The notations of RFC 959 and RFC 2428 for an address and a port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// `h1,h2,h3,h4,p1,p2`
pub(super) fn classic(address: Ipv4Addr, port: u16) -> String {
    let [a, b, c, d] = address.octets();
    let [high, low] = port.to_be_bytes();
    format!("{a},{b},{c},{d},{high},{low}")
}

/// `|family|address|port|`
pub(super) fn extended(address: SocketAddr) -> String {
    let family = if address.is_ipv4() { 1 } else { 2 };
    format!("|{family}|{}|{}|", address.ip(), address.port())
}

/// Reads six numbers wherever they begin in `text`, as in the argument of PORT or the text of a 227.
pub(super) fn read_classic(text: &str) -> Option<SocketAddr> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let list = &text[start..];
    let end = list.find(|c: char| !c.is_ascii_digit() && c != ',').unwrap_or(list.len());
    let numbers: Vec<u8> = list[..end].split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [a, b, c, d, high, low] = numbers[..] else { return None };
    Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([high, low])))
}

/// Reads the argument of EPRT.
pub(super) fn read_extended(text: &str) -> Option<SocketAddr> {
    let delimiter = text.chars().next()?;
    let mut fields = text.split(delimiter).skip(1);
    let (family, address, port) = (fields.next()?, fields.next()?, fields.next()?);
    let address: IpAddr = address.parse().ok()?;
    let fits = matches!((family, address), ("1", IpAddr::V4(_)) | ("2", IpAddr::V6(_)));
    fits.then_some(SocketAddr::new(address, port.parse().ok()?))
}

/// Reads the port from the text of a 229: `… (|||port|)`.
pub(super) fn read_extended_port(text: &str) -> Option<u16> {
    let inside = text.split_once('(')?.1;
    let delimiter = inside.chars().next()?;
    inside.split(delimiter).nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_addresses_are_read_back() {
        let four: SocketAddr = "10.21.1.10:50001".parse().expect("an address");
        let six: SocketAddr = "[fd21:1::a]:50001".parse().expect("an address");
        assert_eq!(classic(Ipv4Addr::new(10, 21, 1, 10), 50001), "10,21,1,10,195,81");
        assert_eq!(read_classic("Entering Passive Mode (10,21,1,10,195,81)."), Some(four));
        assert_eq!(read_extended(&extended(four)), Some(four));
        assert_eq!(read_extended(&extended(six)), Some(six));
        assert_eq!(read_extended_port("Entering Extended Passive Mode (|||50001|)"), Some(50001));
    }

    #[test]
    fn malformed_addresses_are_refused() {
        assert_eq!(read_classic("10,21,1,10,195"), None);
        assert_eq!(read_classic("10,21,1,10,195,256"), None);
        assert_eq!(read_extended("|2|10.21.1.10|50001|"), None);
        assert_eq!(read_extended_port("Entering"), None);
    }
}
