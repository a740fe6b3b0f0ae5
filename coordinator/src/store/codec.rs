//! Packed rows: many small entries in one byte string, with a checksum and a table of the names that occur in them.
//!
//! ```text
//! row    = format u8 · checksum u64 · header · names · entries
//! names  = count · (length · bytes)*          entries = count · entry*
//! ```
//! Counts, lengths and numbers are LEB128; fixed-width numbers are little-endian; the checksum (FNV-1a) covers
//! everything after it. Data of a damaged disk is expected: invalid input ends in [`Odd`], never in a panic, and no
//! buffer is allocated for a length before that many bytes are there.

use std::collections::HashMap;

/// Bytes of format and checksum.
const PREFIX: usize = 9;
/// Entries are split into rows of about this many bytes: within the limits of every database and cheap to move, and
/// large enough that the cost of a row itself is negligible.
pub(super) const ROW_BYTES: usize = 256 * 1024;

/// What is wrong with a packed row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Odd(pub(super) String);

impl Odd {
    pub(super) fn new(reason: &str) -> Self {
        Self(reason.to_owned())
    }
}

/// Builds the entries of one row.
#[derive(Debug, Default)]
pub(super) struct Packer {
    names: Vec<u8>,
    index: HashMap<Vec<u8>, u64>,
    entries: Vec<u8>,
    count: u64,
}

impl Packer {
    /// Begins an entry.
    pub(super) fn entry(&mut self, tag: u8) -> &mut Self {
        self.count += 1;
        self.entries.push(tag);
        self
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.entries.extend_from_slice(bytes);
        self
    }

    pub(super) fn number(&mut self, value: u64) -> &mut Self {
        put_number(&mut self.entries, value);
        self
    }

    /// Refers to `name`, which is written once per row.
    pub(super) fn name(&mut self, name: &[u8]) -> &mut Self {
        let at = match self.index.get(name) {
            Some(at) => *at,
            None => {
                let at = self.index.len() as u64;
                put_number(&mut self.names, name.len() as u64);
                self.names.extend_from_slice(name);
                self.index.insert(name.to_vec(), at);
                at
            }
        };
        self.number(at)
    }

    /// As [`Packer::name`], for a name that may be missing.
    pub(super) fn optional_name(&mut self, name: Option<&[u8]>) -> &mut Self {
        match name {
            Some(name) => self.number(1).name(name),
            None => self.number(0),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Approximate size of the row so far, in bytes.
    pub(super) fn len(&self) -> usize {
        self.names.len() + self.entries.len()
    }

    /// The row.
    pub(super) fn seal(self, format: u8, header: &[u64]) -> Vec<u8> {
        let mut row = Vec::with_capacity(PREFIX + self.len() + 10 * (header.len() + 2));
        row.push(format);
        row.extend_from_slice(&[0; 8]);
        for value in header {
            put_number(&mut row, *value);
        }
        put_number(&mut row, self.index.len() as u64);
        row.extend_from_slice(&self.names);
        put_number(&mut row, self.count);
        row.extend_from_slice(&self.entries);
        let sum = checksum(format, &row[PREFIX..]);
        row[1..PREFIX].copy_from_slice(&sum.to_le_bytes());
        row
    }
}

/// The row with the checksum that belongs to the rest of it.
pub(super) fn mended(row: &[u8]) -> Vec<u8> {
    let mut row = row.to_vec();
    if row.len() >= PREFIX {
        let sum = checksum(row[0], &row[PREFIX..]);
        row[1..PREFIX].copy_from_slice(&sum.to_le_bytes());
    }
    row
}

/// Reads one row.
#[derive(Debug)]
pub(super) struct Unpacker<'a> {
    rest: &'a [u8],
    names: Vec<&'a [u8]>,
    left: u64,
}

impl<'a> Unpacker<'a> {
    /// Checks the row and reads its header of `N` numbers.
    pub(super) fn open<const N: usize>(row: &'a [u8], formats: &[u8]) -> Result<(u8, [u64; N], Self), Odd> {
        let Some((prefix, rest)) = row.split_at_checked(PREFIX) else {
            return Err(Odd(format!("it has {} bytes, at least {PREFIX} are needed", row.len())));
        };
        let format = prefix[0];
        if !formats.contains(&format) {
            return Err(Odd(format!("format {format} is not known")));
        }
        let stored = prefix[1..].iter().rev().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        if stored != checksum(format, rest) {
            return Err(Odd::new("its checksum does not match"));
        }
        let mut it = Self { rest, names: Vec::new(), left: 0 };
        let mut header = [0; N];
        for value in &mut header {
            *value = it.number()?;
        }
        for _ in 0..it.number()? {
            let length = it.number()?;
            let name = it.take(usize::try_from(length).map_err(|_| Odd::new("a name is too long"))?)?;
            it.names.push(name);
        }
        it.left = it.number()?;
        Ok((format, header, it))
    }

    /// The tag of the next entry, or the end of the row.
    pub(super) fn next_entry(&mut self) -> Result<Option<u8>, Odd> {
        if self.left == 0 {
            return if self.rest.is_empty() { Ok(None) } else { Err(Odd::new("bytes follow the last entry")) };
        }
        self.left -= 1;
        Ok(Some(self.take(1)?[0]))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Odd> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(|| Odd::new("it ends in the middle"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Odd> {
        self.take(N)?.try_into().map_err(|_| Odd::new("it ends in the middle"))
    }

    pub(super) fn number(&mut self) -> Result<u64, Odd> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Odd::new("a number is too long"))
    }

    /// The number of a name in the row's table, checked.
    pub(super) fn name_index(&mut self) -> Result<usize, Odd> {
        let at = self.number()?;
        usize::try_from(at)
            .ok()
            .filter(|at| *at < self.names.len())
            .ok_or_else(|| Odd(format!("name {at} is not in its table of {}", self.names.len())))
    }

    pub(super) fn optional_name_index(&mut self) -> Result<Option<usize>, Odd> {
        match self.number()? {
            0 => Ok(None),
            1 => self.name_index().map(Some),
            _ => Err(Odd::new("an option is neither 0 nor 1")),
        }
    }

    /// The table of names.
    pub(super) fn names(&self) -> &[&'a [u8]] {
        &self.names
    }
}

fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn checksum(format: u8, bytes: &[u8]) -> u64 {
    std::iter::once(&format)
        .chain(bytes)
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Text of a name.
pub(super) fn text(name: &[u8]) -> Result<&str, Odd> {
    std::str::from_utf8(name).map_err(|_| Odd::new("a name is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row() -> Vec<u8> {
        let mut packer = Packer::default();
        packer.entry(1).name(b"w1").number(u64::MAX).optional_name(None);
        packer.entry(2).name(b"w1").number(300).optional_name(Some(b"host"));
        packer.seal(7, &[5, u64::MAX])
    }

    type GrantLogEntry = (u8, String, u64, Option<usize>);

    fn read(row: &[u8]) -> Result<Vec<GrantLogEntry>, Odd> {
        let (_, _, mut it) = Unpacker::open::<2>(row, &[7])?;
        let mut found = Vec::new();
        while let Some(tag) = it.next_entry()? {
            let name = it.name_index()?;
            let name = text(it.names()[name])?.to_owned();
            found.push((tag, name, it.number()?, it.optional_name_index()?));
        }
        Ok(found)
    }

    #[test]
    fn a_row_reads_back() {
        let (format, header, _) = Unpacker::open::<2>(&row(), &[7]).expect("sound");
        assert_eq!((format, header), (7, [5, u64::MAX]));
        assert_eq!(read(&row()), Ok(vec![(1, "w1".into(), u64::MAX, None), (2, "w1".into(), 300, Some(1))]));
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_detected() {
        let row = row();
        for end in 0..row.len() {
            assert!(read(&row[..end]).is_err(), "cut at {end}");
        }
        for bit in 0..row.len() * 8 {
            let mut row = row.clone();
            row[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&row).is_err(), "bit {bit}");
        }
    }

    proptest! {
        /// The checksum is made valid, so that the parser itself reads the invalid data.
        #[test]
        fn invalid_data_is_refused_without_a_panic(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut row = vec![7];
            row.extend_from_slice(&checksum(7, &body).to_le_bytes());
            row.extend_from_slice(&body);
            let _ = read(&row);
        }
    }
}
