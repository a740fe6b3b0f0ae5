//! The PROXY protocol: what a connection begins with to say whose connection it is (HAProxy's `proxy-protocol.txt`).
//!
//! Written for members in the version they ask for. Read from peers that are trusted with it, in either version; of version 2 what
//! comes after the addresses is skipped.

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use super::api::ProxyProtocol;

/// Longest header that is read: version 1 has at most 107 bytes, and real ones of version 2 some hundred.
const MOST: usize = 16 + 2048;

/// What headers of version 2 begin with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and the command: this very connection is one of the peer itself, or one that it passes on.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
/// TCP over IPv4 and IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// The two ends of a connection as its client sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    /// The client.
    pub(super) client: SocketAddr,
    /// Where it connected to.
    pub(super) to: SocketAddr,
}

/// A header that is no PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a header of the PROXY protocol")]
pub(super) struct NoHeader;

/// What reading the beginning of a connection came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// More has to be read.
    Incomplete,
    /// It was so many bytes long. Without ends the connection is of the peer itself.
    Complete(usize, Option<Ends>),
}

/// The header of a connection; without ends, of one that the load balancer makes for itself.
pub(super) fn write(version: ProxyProtocol, ends: Option<Ends>) -> Vec<u8> {
    let ends = ends.map(|ends| Ends { client: canonical(ends.client), to: canonical(ends.to) });
    let mut header = Vec::with_capacity(128);
    // Writing to memory does not fail.
    let _ = match version {
        ProxyProtocol::V1 => write_text(&mut header, ends),
        ProxyProtocol::V2 => write_binary(&mut header, ends),
    };
    header
}

/// An IPv4 address that came in the form of IPv6, as from a socket that listens for both, is one of IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn write_text(header: &mut Vec<u8>, ends: Option<Ends>) -> io::Result<()> {
    let Some(Ends { client, to }) = ends else { return header.write_all(b"PROXY UNKNOWN\r\n") };
    let family = match (client, to) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => "TCP4",
        (SocketAddr::V6(_), SocketAddr::V6(_)) => "TCP6",
        _ => return header.write_all(b"PROXY UNKNOWN\r\n"),
    };
    write!(header, "PROXY {family} {} {} {} {}\r\n", client.ip(), to.ip(), client.port(), to.port())
}

fn write_binary(header: &mut Vec<u8>, ends: Option<Ends>) -> io::Result<()> {
    header.write_all(SIGNATURE)?;
    match ends.map(|ends| (ends.client.ip(), ends.to.ip(), ends)) {
        Some((IpAddr::V4(client), IpAddr::V4(to), ends)) => {
            header.write_all(&[PROXY, TCP4, 0, 12])?;
            header.write_all(&client.octets())?;
            header.write_all(&to.octets())?;
            header.write_all(&ends.client.port().to_be_bytes())?;
            header.write_all(&ends.to.port().to_be_bytes())
        }
        Some((IpAddr::V6(client), IpAddr::V6(to), ends)) => {
            header.write_all(&[PROXY, TCP6, 0, 36])?;
            header.write_all(&client.octets())?;
            header.write_all(&to.octets())?;
            header.write_all(&ends.client.port().to_be_bytes())?;
            header.write_all(&ends.to.port().to_be_bytes())
        }
        _ => header.write_all(&[LOCAL, 0, 0, 0]),
    }
}

/// Reads the header that bytes begin with.
///
/// # Errors
/// [`NoHeader`], as soon as that can be told.
pub(super) fn read(bytes: &[u8]) -> Result<Header, NoHeader> {
    let header = if bytes.len() >= SIGNATURE.len() && bytes.starts_with(SIGNATURE) {
        read_binary(bytes)
    } else if SIGNATURE.starts_with(bytes) {
        Ok(Header::Incomplete)
    } else {
        read_text(bytes)
    };
    match header {
        Ok(Header::Incomplete) if bytes.len() >= MOST => Err(NoHeader),
        other => other,
    }
}

fn read_text(bytes: &[u8]) -> Result<Header, NoHeader> {
    const MOST_TEXT: usize = 107;
    const BEGIN: &[u8] = b"PROXY ";
    let known = bytes.len().min(BEGIN.len());
    if bytes[..known] != BEGIN[..known] {
        return Err(NoHeader);
    }
    let Some(end) = bytes.iter().take(MOST_TEXT).position(|byte| *byte == b'\n') else {
        return if bytes.len() < MOST_TEXT { Ok(Header::Incomplete) } else { Err(NoHeader) };
    };
    let line = std::str::from_utf8(&bytes[..end]).ok().and_then(|line| line.strip_suffix('\r')).ok_or(NoHeader)?;
    let mut words = line.split(' ').skip(1);
    let mut word = || words.next().ok_or(NoHeader);
    let family = word()?;
    if family == "UNKNOWN" {
        return Ok(Header::Complete(end + 1, None));
    }
    let (client, to): (IpAddr, IpAddr) = (parse(word()?)?, parse(word()?)?);
    let (client, to) = (SocketAddr::new(client, parse(word()?)?), SocketAddr::new(to, parse(word()?)?));
    let fits = match family {
        "TCP4" => client.is_ipv4() && to.is_ipv4(),
        "TCP6" => client.is_ipv6() && to.is_ipv6(),
        _ => false,
    };
    let ends = Ends { client: canonical(client), to: canonical(to) };
    if fits && words.next().is_none() { Ok(Header::Complete(end + 1, Some(ends))) } else { Err(NoHeader) }
}

fn parse<T: std::str::FromStr>(word: &str) -> Result<T, NoHeader> {
    word.parse().map_err(|_| NoHeader)
}

fn read_binary(bytes: &[u8]) -> Result<Header, NoHeader> {
    let Some([command, family, high, low]) = bytes.get(12..16) else { return Ok(Header::Incomplete) };
    let length = 16 + usize::from(u16::from_be_bytes([*high, *low]));
    if length > MOST || !matches!(*command, LOCAL | PROXY) {
        return Err(NoHeader);
    }
    let Some(content) = bytes.get(16..length) else { return Ok(Header::Incomplete) };
    let ends = match (*command, *family) {
        (LOCAL, _) => None,
        (_, TCP4) => Some(ends_of::<4>(content)?),
        (_, TCP6) => Some(ends_of::<16>(content)?),
        // Neither TCP nor an internet address: there is nothing to be said about its ends.
        _ => None,
    };
    Ok(Header::Complete(length, ends))
}

fn ends_of<const N: usize>(content: &[u8]) -> Result<Ends, NoHeader>
where
    IpAddr: From<[u8; N]>,
{
    let address = |at: usize| content.get(at..at + N).and_then(|bytes| <[u8; N]>::try_from(bytes).ok()).ok_or(NoHeader);
    let port = |at: usize| content.get(at..at + 2).and_then(|bytes| <[u8; 2]>::try_from(bytes).ok()).ok_or(NoHeader);
    let client = SocketAddr::new(IpAddr::from(address(0)?), u16::from_be_bytes(port(2 * N)?));
    let to = SocketAddr::new(IpAddr::from(address(N)?), u16::from_be_bytes(port(2 * N + 2)?));
    Ok(Ends { client: canonical(client), to: canonical(to) })
}

/// Reads a header and writes what it says. For the fuzz tests.
pub(crate) fn rewrite(bytes: &[u8]) -> Result<Option<(usize, Vec<u8>)>, String> {
    match read(bytes).map_err(|error| error.to_string())? {
        Header::Incomplete => Ok(None),
        Header::Complete(length, ends) => Ok(Some((length, write(ProxyProtocol::V2, ends)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(client: &str, to: &str) -> Ends {
        Ends { client: client.parse().expect("an address"), to: to.parse().expect("an address") }
    }

    #[test]
    fn both_versions_say_whose_connection_it_is() {
        let four = ends("192.0.2.7:4711", "203.0.113.1:80");
        assert_eq!(write(ProxyProtocol::V1, Some(four)), b"PROXY TCP4 192.0.2.7 203.0.113.1 4711 80\r\n");
        let binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xcb\0\x71\x01\x12\x67\0\x50";
        assert_eq!(write(ProxyProtocol::V2, Some(four)), binary);
        let mapped = ends("[::ffff:192.0.2.7]:4711", "[::ffff:203.0.113.1]:80");
        assert_eq!(write(ProxyProtocol::V2, Some(mapped)), binary, "a socket for both families");
        assert_eq!(write(ProxyProtocol::V1, None), b"PROXY UNKNOWN\r\n");
        assert_eq!(write(ProxyProtocol::V2, None), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    }

    #[test]
    fn what_is_written_is_read_and_nothing_is_taken_before_it_is_complete() {
        for ends in [None, Some(ends("192.0.2.7:4711", "203.0.113.1:80")), Some(ends("[2001:db8::1]:1", "[::1]:65535"))]
        {
            for version in ProxyProtocol::ALL {
                let header = write(version, ends);
                for cut in 0..header.len() {
                    assert_eq!(read(&header[..cut]), Ok(Header::Incomplete), "{cut} of {header:?}");
                }
                let more = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
                assert_eq!(read(&more), Ok(Header::Complete(header.len(), ends)));
            }
        }
        let with_more = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f\xc0\0\x02\x07\xcb\0\x71\x01\x12\x67\0\x50\x04\0\0GET";
        let four = ends("192.0.2.7:4711", "203.0.113.1:80");
        assert_eq!(read(with_more), Ok(Header::Complete(31, Some(four))), "what comes after the addresses is skipped");
    }

    #[test]
    fn anything_else_is_refused_at_once() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 192.0.2.7 203.0.113.1 4711\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP4 192.0.2.7 203.0.113.1 4711 80 9\r\n",
            b"PROXY TCP4 192.0.2.7 203.0.113.1 4711 80\n",
            b"PROXY TCP4 192.0.2.7 203.0.113.1 4711 65536\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x02ab",
            &[b"PROXY ", &[b'x'; 101][..]].concat(),
        ] {
            assert_eq!(read(bytes), Err(NoHeader), "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
