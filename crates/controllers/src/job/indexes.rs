//! Sets of completion indexes as a Job's status writes them: `0,2-5,7`. Pure.

use std::fmt;

/// A set of indexes: intervals in order that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(u32, u32)>);

impl Indexes {
    /// Reads a set, leaving out what is not below `end` and what makes no sense.
    pub fn parse(text: &str, end: u32) -> Self {
        let interval = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u32 = first.trim().parse().ok()?;
            let last: u32 = last.trim().parse().ok()?;
            (first < end && first <= last).then(|| (first, last.min(end - 1)))
        };
        Self::from_intervals(text.split(',').filter_map(interval).collect())
    }

    fn from_intervals(mut all: Vec<(u32, u32)>) -> Self {
        all.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// How many indexes there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|(a, b)| (b - a) as usize + 1).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `index` is one of them.
    pub fn contains(&self, index: u32) -> bool {
        let after = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(after).is_some_and(|(first, _)| *first <= index)
    }

    /// These and those of `other`.
    pub fn union(&self, other: &Self) -> Self {
        Self::from_intervals(self.0.iter().chain(&other.0).copied().collect())
    }

    /// How many are in both.
    pub fn overlap(&self, other: &Self) -> usize {
        let both = |(a, b): &(u32, u32), (c, d): &(u32, u32)| {
            (b.min(d) + 1).saturating_sub(*a.max(c)) as usize
        };
        let (mut i, mut j, mut sum) = (0, 0, 0);
        while let (Some(x), Some(y)) = (self.0.get(i), other.0.get(j)) {
            sum += both(x, y);
            if x.1 <= y.1 { i += 1 } else { j += 1 }
        }
        sum
    }

    /// The first `count` indexes below `end` that are not among them.
    pub fn missing(&self, end: u32, count: usize) -> Vec<u32> {
        let mut missing = Vec::new();
        let mut next = 0;
        for (first, last) in self.0.iter().copied().chain([(end, end)]) {
            let room = count - missing.len();
            missing.extend((next..first.min(end)).take(room));
            next = next.max(last.saturating_add(1));
        }
        missing
    }
}

impl FromIterator<u32> for Indexes {
    fn from_iter<I: IntoIterator<Item = u32>>(all: I) -> Self {
        Self::from_intervals(all.into_iter().map(|i| (i, i)).collect())
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (first, last)) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn texts() {
        for (text, end, expected, len) in [
            ("", 5, "", 0),
            ("0", 5, "0", 1),
            ("0,1", 5, "0,1", 2),
            ("0,1,2,4", 5, "0-2,4", 4),
            ("0-9", 3, "0-2", 3),
            ("x,2-y,3", 5, "3", 1),
            ("4-2", 9, "", 0),
            ("7", 5, "", 0),
        ] {
            let set = Indexes::parse(text, end);
            assert_eq!(
                (set.to_string().as_str(), set.len()),
                (expected, len),
                "{text}"
            );
        }
    }

    /// Small sets from the bits of numbers, compared with what a plain set says.
    #[test]
    fn behaves_as_a_set_does() {
        let of = |bits: u32| (0..8).filter(move |i| bits & (1 << i) != 0);
        for a in 0..256_u32 {
            for b in [0, 1, 0b1010_1010, 0b0011_1100, 0b1111_0001, 255, a ^ 0x5a] {
                let (x, y): (Indexes, Indexes) = (of(a).collect(), of(b).collect());
                let (p, q): (BTreeSet<u32>, BTreeSet<u32>) = (of(a).collect(), of(b).collect());
                assert_eq!(x.len(), p.len());
                assert_eq!(x.union(&y), p.union(&q).copied().collect());
                assert_eq!(x.overlap(&y), p.intersection(&q).count(), "{x} {y}");
                assert_eq!(Indexes::parse(&x.to_string(), 8), x);
                for i in 0..10 {
                    assert_eq!(x.contains(i), p.contains(&i));
                }
                let absent: Vec<u32> = (0..6).filter(|i| !p.contains(i)).take(3).collect();
                assert_eq!(x.missing(6, 3), absent, "{x}");
            }
        }
    }
}
