//! What a worker and the shim that runs a command for an operator say to each other, through one socket: frames of a kind, a length and so many bytes.
//!
//! The worker gives the lease first: until when the command may run, on CLOCK_BOOTTIME, so that it ends in time also where the worker stands still. Of
//! the input at most [`WINDOW`] bytes are on their way that the command has not taken, so that the lease is never behind input that nobody reads.

use crate::order::Verdict;

/// Most bytes in a frame.
pub const MAX_FRAME: usize = 32 << 10;

/// Bytes of input that may be on their way.
pub const WINDOW: usize = 64 << 10;

/// Bytes before those of a frame: its kind, and how many there are.
const HEAD: usize = 5;

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToShim {
    /// The command may run until then, in nanoseconds of CLOCK_BOOTTIME.
    Lease(u64),
    /// Input of the command.
    Input(Vec<u8>),
    /// There is no more input.
    InputEnds,
}

/// What a shim says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromShim {
    /// Standard output of the command.
    Stdout(Vec<u8>),
    /// Standard error of the command.
    Stderr(Vec<u8>),
    /// The command has taken so many bytes of input, or will never take them.
    Taken(u32),
    /// It is over, and nothing of it is left. The text says why it was not run.
    Ended(Verdict, String),
    /// It was ended because its lease was over.
    LeaseOver,
}

/// Bytes that are no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidFrame;

fn frame(kind: u8, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    [&[kind][..], &length.to_be_bytes(), data].concat()
}

impl ToShim {
    /// The frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Lease(until) => frame(b'l', &until.to_be_bytes()),
            Self::Input(data) => frame(b'i', data),
            Self::InputEnds => frame(b'e', &[]),
        }
    }

    fn decode(kind: u8, data: &[u8]) -> Result<Self, InvalidFrame> {
        Ok(match kind {
            b'l' => Self::Lease(u64::from_be_bytes(data.try_into().map_err(|_| InvalidFrame)?)),
            b'i' => Self::Input(data.to_vec()),
            b'e' => Self::InputEnds,
            _ => return Err(InvalidFrame),
        })
    }
}

impl FromShim {
    /// The frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Stdout(data) => frame(b'o', data),
            Self::Stderr(data) => frame(b'r', data),
            Self::Taken(bytes) => frame(b't', &bytes.to_be_bytes()),
            Self::Ended(verdict, text) => frame(b'x', &[verdict.encode().as_bytes(), text.as_bytes()].concat()),
            Self::LeaseOver => frame(b'v', &[]),
        }
    }

    fn decode(kind: u8, data: &[u8]) -> Result<Self, InvalidFrame> {
        Ok(match kind {
            b'o' => Self::Stdout(data.to_vec()),
            b'r' => Self::Stderr(data.to_vec()),
            b't' => Self::Taken(u32::from_be_bytes(data.try_into().map_err(|_| InvalidFrame)?)),
            b'x' => {
                let (verdict, text) = Verdict::decode(data).ok_or(InvalidFrame)?;
                Self::Ended(verdict, String::from_utf8_lossy(text).into_owned())
            }
            b'v' => Self::LeaseOver,
            _ => return Err(InvalidFrame),
        })
    }
}

/// Bytes that have come, and the frames in them.
#[derive(Debug, Default)]
pub struct Frames(Vec<u8>);

impl Frames {
    /// More bytes have come.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next frame of a worker, if it is there as a whole.
    ///
    /// # Errors
    /// It is none.
    pub fn next_to_shim(&mut self) -> Result<Option<ToShim>, InvalidFrame> {
        self.take()?.map(|(kind, data)| ToShim::decode(kind, &data)).transpose()
    }

    /// The next frame of a shim, if it is there as a whole.
    ///
    /// # Errors
    /// It is none.
    pub fn next_from_shim(&mut self) -> Result<Option<FromShim>, InvalidFrame> {
        self.take()?.map(|(kind, data)| FromShim::decode(kind, &data)).transpose()
    }

    fn take(&mut self) -> Result<Option<(u8, Vec<u8>)>, InvalidFrame> {
        let Some((head, rest)) = self.0.split_at_checked(HEAD) else { return Ok(None) };
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > MAX_FRAME {
            return Err(InvalidFrame);
        }
        let Some(data) = rest.get(..length) else { return Ok(None) };
        let found = (head[0], data.to_vec());
        self.0.drain(..HEAD + length);
        Ok(Some(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::EndCause;

    #[test]
    fn frames_are_read_as_they_were_written_however_they_come() {
        let said = [
            FromShim::Stdout(b"out".to_vec()),
            FromShim::Stderr(vec![0; MAX_FRAME]),
            FromShim::Taken(7),
            FromShim::LeaseOver,
            FromShim::Ended(Verdict::Ended(EndCause::Exit(3)), String::new()),
            FromShim::Ended(Verdict::NotRun, "no such file".to_owned()),
        ];
        let bytes: Vec<u8> = said.iter().flat_map(FromShim::encode).collect();
        let (mut frames, mut read) = (Frames::default(), Vec::new());
        for piece in bytes.chunks(997) {
            frames.add(piece);
            while let Some(one) = frames.next_from_shim().expect("frames") {
                read.push(one);
            }
        }
        assert_eq!(read, said);
        let told = [ToShim::Lease(9), ToShim::Input(b"in".to_vec()), ToShim::InputEnds];
        told.iter().for_each(|one| frames.add(&one.encode()));
        for one in told {
            assert_eq!(frames.next_to_shim(), Ok(Some(one)));
        }
        assert_eq!(frames.next_to_shim(), Ok(None));
        frames.add(&frame(b'i', &vec![0; MAX_FRAME + 1]));
        assert_eq!(frames.next_to_shim(), Err(InvalidFrame), "too long");
        let mut other = Frames::default();
        other.add(&frame(b'?', b""));
        assert_eq!(other.next_to_shim(), Err(InvalidFrame));
    }
}
