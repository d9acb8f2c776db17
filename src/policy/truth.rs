//! Three-valued logic (Kleene's): what cannot be known must deny, whichever way round it is asked.

use std::ops::Not;

/// Ordered so that `min` is 'and' and `max` is 'or'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Truth {
    No,
    /// Cannot be told: an Allow does not count on it, a Deny does.
    Unknown,
    Yes,
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Self::Yes } else { Self::No }
    }
}

impl Not for Truth {
    type Output = Self;

    fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Unknown => Self::Unknown,
            Self::Yes => Self::No,
        }
    }
}

impl Truth {
    pub(super) fn all(truths: impl Iterator<Item = Self>) -> Self {
        let mut result = Self::Yes;
        for truth in truths {
            if truth == Self::No {
                return truth;
            }
            result = result.min(truth);
        }
        result
    }

    pub(super) fn any(truths: impl Iterator<Item = Self>) -> Self {
        !Self::all(truths.map(Not::not))
    }
}

#[cfg(test)]
mod tests {
    use super::Truth::{No, Unknown, Yes};
    use super::*;

    #[test]
    fn the_unknown_gives_way_only_to_what_settles_the_question() {
        for (list, all, any) in [
            (vec![], Yes, No),
            (vec![Yes, Unknown], Unknown, Yes),
            (vec![Unknown, No], No, Unknown),
            (vec![Yes, Yes], Yes, Yes),
            (vec![No, No], No, No),
            (vec![Yes, Unknown, No], No, Yes),
        ] {
            assert_eq!(Truth::all(list.iter().copied()), all, "{list:?}");
            assert_eq!(Truth::any(list.iter().copied()), any, "{list:?}");
        }
    }
}
