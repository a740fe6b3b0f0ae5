//! Messages of netlink and a socket for them: as much as a router needs. The kernel is trusted to say the truth, and not to be short:
//! every length is checked before it is used.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

/// How long the kernel may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest datagram that is read, in bytes: dumps come in pieces of 32 KiB at most.
const DATAGRAM: usize = 64 * 1024;
/// Most answers to one request, in case the kernel goes on without end.
const MAX_ANSWERS: usize = 100_000;
/// Length of the header of a message.
const HEADER: usize = 16;

/// It is a request.
const REQUEST: u16 = 0x1;
/// It is answered, also when all is well.
const ACK: u16 = 0x4;
/// All objects are wanted.
const DUMP: u16 = 0x300;
/// In place of one that is there.
pub(crate) const REPLACE: u16 = 0x100;
/// Where there is none.
pub(crate) const CREATE: u16 = 0x400;
/// Behind those that are there.
pub(crate) const APPEND: u16 = 0x800;

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// An attribute holds others.
const NESTED: u16 = 0x8000;

/// A message that is being written.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message that begins with `head`, the part that its family prescribes.
    pub(crate) fn new(kind: u16, flags: u16, head: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        let mut message = Self { bytes };
        message.push(head);
        message
    }

    fn push(&mut self, part: &[u8]) {
        self.bytes.extend_from_slice(part);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Adds an attribute.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("attributes are short");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.push(value);
    }

    /// Adds a text, with its end.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// Adds an attribute that holds what `write` adds.
    pub(crate) fn nested(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        write(self);
        let length = u16::try_from(self.bytes.len() - at).expect("attributes are short");
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[at + 2..at + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
    }

    /// The message with its length and number, and whether it is to be answered.
    fn finish(mut self, sequence: u32, answered: bool) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("messages are short");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        if answered {
            let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | ACK;
            self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        }
        self.bytes
    }
}

/// A socket. One request at a time.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: OwnedFd,
    sequence: u32,
}

/// What a message holds behind its header.
type Body = Vec<u8>;

impl Socket {
    /// Opens one of a protocol of netlink; that of interfaces and routes has number 0, which is none.
    pub(crate) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))?;
        set_socket_timeout(&socket, Timeout::Send, Some(ANSWER))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Has one thing done.
    pub(crate) fn request(&mut self, message: Message) -> io::Result<()> {
        self.sequence += 1;
        let first = self.sequence;
        self.send(&message.finish(first, true))?;
        self.acknowledged(first, first)
    }

    /// Has all of this done, or nothing of it. The first and the last message are marks that are not answered.
    pub(crate) fn batch(&mut self, begin: Message, messages: Vec<Message>, end: Message) -> io::Result<()> {
        self.sequence += 1;
        let mut bytes = begin.finish(self.sequence, false);
        let first = self.sequence + 1;
        for message in messages {
            self.sequence += 1;
            bytes.extend(message.finish(self.sequence, true));
        }
        let last = self.sequence;
        self.sequence += 1;
        bytes.extend(end.finish(self.sequence, false));
        self.send(&bytes)?;
        self.acknowledged(first, last)
    }

    /// All objects of a kind.
    pub(crate) fn dump(&mut self, mut message: Message) -> io::Result<Vec<Body>> {
        let flags = u16::from_ne_bytes([message.bytes[6], message.bytes[7]]) | DUMP;
        message.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.sequence += 1;
        self.send(&message.finish(self.sequence, false))?;
        let mut found = Vec::new();
        loop {
            for (kind, sequence, body) in self.receive()? {
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    DONE => return Ok(found),
                    ERROR => check(&body)?,
                    _ => found.push(body),
                }
            }
            if found.len() > MAX_ANSWERS {
                return Err(io::Error::other("the kernel lists without end"));
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = sendto(&self.socket, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("the kernel took a part of a message")) }
    }

    /// Waits for the answers to the messages with these numbers; the first refusal is the result.
    fn acknowledged(&self, first: u32, last: u32) -> io::Result<()> {
        let mut open = last - first + 1;
        while open > 0 {
            for (kind, sequence, body) in self.receive()? {
                // A batch that is refused as a whole is answered by its mark.
                let is_mark = sequence + 1 == first || sequence == last + 1;
                if kind == ERROR && (is_mark || (first..=last).contains(&sequence)) {
                    check(&body)?;
                    open -= u32::from(!is_mark);
                }
            }
        }
        Ok(())
    }

    /// The messages of one datagram: kind, number and body.
    fn receive(&self) -> io::Result<Vec<(u16, u32, Body)>> {
        let mut bytes = vec![0; DATAGRAM];
        let length = match recv(&self.socket, &mut bytes, RecvFlags::empty()) {
            Ok((length, _)) => length,
            Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        };
        let mut rest = &bytes[..length];
        let mut found = Vec::new();
        while rest.len() >= HEADER {
            let word = |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
            let (size, sequence) = (word(0) as usize, word(8));
            if !(HEADER..=rest.len()).contains(&size) {
                return Err(io::Error::other("the kernel answered with a message that is cut off"));
            }
            found.push((u16::from_ne_bytes([rest[4], rest[5]]), sequence, rest[HEADER..size].to_vec()));
            rest = &rest[size.next_multiple_of(4).min(rest.len())..];
        }
        Ok(found)
    }
}

/// What the kernel answered: 0, or the number of an error below it.
fn check(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::Error::other("the kernel answered nothing")),
    }
}

/// The attributes behind the first `head` bytes of a body.
pub(crate) fn attributes(body: &[u8], head: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(head..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]) & !NESTED;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_cut_off_is_not() {
        let mut message = Message::new(16, CREATE, &[1, 2, 3, 4]);
        message.attribute(4, &1500_u32.to_ne_bytes());
        message.text(3, "ge1");
        message.nested(7, |m| m.attribute(1, &[9]));
        let bytes = message.finish(5, true);
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().expect("four")) as usize, bytes.len());
        let body = &bytes[HEADER..];
        let found: Vec<_> = attributes(body, 4).collect();
        assert_eq!(found[0], (4, &1500_u32.to_ne_bytes()[..]));
        assert_eq!(found[1], (3, &b"ge1\0"[..]));
        assert_eq!(attributes(found[2].1, 0).collect::<Vec<_>>(), [(1, &[9_u8][..])]);
        for length in 0..body.len() {
            assert!(attributes(&body[..length], 4).count() <= 3);
        }
        assert_eq!(attributes(&[2, 0, 1, 0], 0).count(), 0, "shorter than its own header");
    }

    #[test]
    fn an_error_of_the_kernel_is_one_of_the_system() {
        assert!(check(&0_i32.to_ne_bytes()).is_ok());
        let denied = check(&(-1_i32).to_ne_bytes()).expect_err("denied");
        assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        assert!(check(&[]).is_err() && check(&i32::MIN.to_ne_bytes()).is_err());
    }
}
