//! Random changes of bytes, from a seed.

/// A small generator of pseudorandom numbers (SplitMix64).
pub(crate) struct Dice(pub(crate) u64);

/// Numbers at which something ends.
const EDGES: [u64; 22] = [
    0,
    1,
    2,
    9,
    10,
    0x7f,
    0x80,
    0xff,
    0x100,
    0xddf,
    0xfff,
    0x1000,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 62,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 where there is none.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound as u64).max(1)).unwrap()
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// A number at which something ends, or beside it.
    pub(crate) fn edge(&mut self) -> u64 {
        let edge = *self.pick(&EDGES);
        edge.wrapping_add_signed(i64::try_from(self.below(3)).unwrap() - 1)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// A part of `bytes`: mostly short, sometimes of any length.
    fn part(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let from = self.below(bytes.len() + 1);
        let most = bytes.len() - from;
        let most = if self.below(4) == 0 { most } else { most.min(16) };
        from..from + self.below(most + 1)
    }

    /// One to six changes of `bytes`, which stay at most `longest` long. `others` are what is spliced in, `words` what
    /// the format is made of.
    pub(crate) fn mutate(&mut self, bytes: &mut Vec<u8>, others: &[Vec<u8>], words: &[&[u8]], longest: usize) {
        let changes = 1 << self.below(3);
        for _ in 0..changes.min(1 + self.below(6)) {
            self.change(bytes, others, words);
            bytes.truncate(longest);
        }
    }

    fn change(&mut self, bytes: &mut Vec<u8>, others: &[Vec<u8>], words: &[&[u8]]) {
        let at = self.below(bytes.len());
        match self.below(12) {
            0 => {
                let bit = 1 << self.below(8);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= bit);
            }
            1 => {
                let new = self.byte();
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = new);
            }
            2 => self.number(bytes, at),
            3 => self.small_step(bytes, at),
            4 => bytes.truncate(at),
            5 => {
                let part = self.part(bytes);
                bytes.drain(part);
            }
            6 => {
                let part = self.part(bytes);
                let again = bytes[part].repeat(1 + self.below(4));
                bytes.splice(at..at, again);
            }
            7 => {
                let new: Vec<u8> = (0..=self.below(8)).map(|_| self.byte()).collect();
                bytes.splice(at..at, new);
            }
            8 => {
                // A run of one byte, over what is there or in between.
                let (byte, part) = (if self.below(2) == 0 { 0 } else { self.byte() }, self.part(bytes));
                let length = part.len().max(1 + self.below(32));
                bytes.splice(part, std::iter::repeat_n(byte, length));
            }
            9 => {
                let (from, to) = (self.part(bytes), self.part(bytes));
                let part = bytes[from].to_vec();
                bytes.splice(to, part);
            }
            10 if !others.is_empty() => {
                let other = self.pick(others);
                let (from, to) = (self.part(other), self.part(bytes));
                let part = other[from].to_vec();
                bytes.splice(to, part);
            }
            _ if !words.is_empty() => {
                let word = self.pick(words).to_vec();
                let to = self.part(bytes);
                let to = if self.below(2) == 0 { at..at } else { to };
                bytes.splice(to, word);
            }
            _ => self.number(bytes, at),
        }
    }

    /// An edge of 1, 2, 4 or 8 bytes, or as decimal digits where digits stand.
    fn number(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let edge = self.edge();
        if bytes.get(at).is_some_and(u8::is_ascii_digit) {
            let end = at + bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            bytes.splice(at..end, edge.to_string().into_bytes());
            return;
        }
        let width = 1 << self.below(4);
        // Fields mostly start at multiples of their width.
        let at = if self.below(4) == 0 { at } else { at - at % width };
        for (place, byte) in bytes.iter_mut().skip(at).zip(edge.to_le_bytes()).take(width) {
            *place = byte;
        }
    }

    fn small_step(&mut self, bytes: &mut [u8], at: usize) {
        let step = *self.pick(&[1, 2, 0x10, 0xf0, 0xfe, 0xff]);
        bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = byte.wrapping_add(step));
    }
}

#[test]
fn a_seed_gives_the_same_changes_again_and_another_others() {
    let run = |seed| {
        let mut dice = Dice(seed);
        let start = vec![b"{\"a\": 12}".to_vec(), vec![0; 40]];
        (0..200)
            .map(|_| {
                let mut bytes = dice.pick(&start).clone();
                dice.mutate(&mut bytes, &start, &[b"word"], 100);
                assert!(bytes.len() <= 100);
                bytes
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    assert!(run(1).iter().collect::<std::collections::BTreeSet<_>>().len() > 150);
}
