//! Makes inputs of seeds: some bytes changed, taken out, doubled, spliced with another seed, or replaced by what breaks parsers.

/// Longest input. Longer ones find little that these do not, and cost rate.
pub const MOST: usize = 4 * 1024;

/// What has broken parsers before: lengths of varints and msgpack, ends of ranges, nesting, odd texts.
const ODD: [&[u8]; 40] = [
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xff\xff\xff\xff\x0f",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x81\x81\x81\x81\x81\x81\x81\x81",
    b"\x91\x91\x91\x91\x91\x91\x91\x91",
    b"18446744073709551615",
    b"18446744073709551616",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"4294967295",
    b"65535",
    b"65536",
    b"-1",
    b"0",
    b"1e400",
    b"NaN",
    b"null",
    b"[[[[[[[[[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":{\"a\":",
    b"{{{{{{{{",
    b"- - - - - - - -",
    b"&a [*a, *a]",
    b"!!binary ",
    b"? ",
    b"<<: ",
    b"---\n",
    b"\0",
    b"\r\n",
    b"\x1b[2J",
    b"\xe2\x80\xae",
    b"\xef\xbb\xbf",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"%00%2f..",
    b"@:@/?#",
    b"[::1]",
    b"\xf0\x9f\x9a\x80",
];

/// Numbers that look random (splitmix64), the same for the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers that follow from `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 when there is none.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number() % (end.max(1) as u64)).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.number().to_le_bytes()[0]
    }
}

/// Makes `input` out of one of `seeds`, reusing its memory.
pub fn mutate(random: &mut Random, seeds: &[Vec<u8>], input: &mut Vec<u8>) {
    input.clear();
    let Some(seed) = seeds.get(random.below(seeds.len())) else { return };
    input.extend_from_slice(&seed[..seed.len().min(MOST)]);
    // Mostly few changes: an input that is nearly valid gets furthest.
    for _ in 0..=random.below(4) * random.below(3) {
        change(random, seeds, input);
    }
    input.truncate(MOST);
}

fn change(random: &mut Random, seeds: &[Vec<u8>], input: &mut Vec<u8>) {
    let at = random.below(input.len() + 1);
    let run = at..(at + 1 + random.below(16)).min(input.len());
    let run = if run.start > run.end { at..at } else { run };
    match random.below(10) {
        0 | 1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        2 => {
            let new = random.byte();
            if let Some(byte) = input.get_mut(at) {
                *byte = new;
            }
        }
        3 => {
            let step = random.below(9) as u8;
            if let Some(byte) = input.get_mut(at) {
                *byte = byte.wrapping_add(step).wrapping_sub(4);
            }
        }
        4 => drop(input.drain(run)),
        5 => {
            let again = input[run].to_vec();
            let most = if random.below(8) == 0 { 200 } else { 4 };
            let times = 1 + random.below(most);
            insert(input, at, &again.repeat(times));
        }
        6 => {
            let odd = ODD[random.below(ODD.len())];
            insert(input, at, odd);
        }
        7 => {
            let odd = ODD[random.below(ODD.len())];
            input.splice(run, odd.iter().copied());
        }
        8 => {
            let Some(other) = seeds.get(random.below(seeds.len())) else { return };
            let from = random.below(other.len() + 1);
            let to = from + random.below(other.len() - from + 1);
            insert(input, at, &other[from..to]);
        }
        _ => {
            let Some(other) = seeds.get(random.below(seeds.len())) else { return };
            input.truncate(at);
            input.extend_from_slice(&other[at.min(other.len())..]);
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let room = MOST.saturating_sub(input.len());
    let bytes = &bytes[..bytes.len().min(room)];
    input.splice(at..at, bytes.iter().copied());
}
