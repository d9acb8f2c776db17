//! Associated data and key-derivation labels with an injective encoding: no two lists of fields give the same bytes.

/// `u8 length of label ‖ label`, then for each field `u32 length ‖ bytes` (docs/format.md, section 2).
#[derive(Debug, Clone)]
pub struct Aad(Vec<u8>);

impl Aad {
    /// Starts with a label of at most 255 bytes, a constant of the program.
    #[must_use]
    pub fn new(label: &'static str) -> Self {
        debug_assert!(u8::try_from(label.len()).is_ok());
        let mut bytes = Vec::with_capacity(128);
        bytes.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(label.as_bytes());
        Self(bytes)
    }

    /// Adds a field. Fields are shorter than 4 GiB: what is longer would be cut to nothing and so verify nowhere.
    #[must_use]
    pub fn bytes(mut self, field: &[u8]) -> Self {
        let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(field);
        self
    }

    #[must_use]
    pub fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    #[must_use]
    pub fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    #[must_use]
    pub fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_run_into_one_another() {
        let split = Aad::new("x").bytes(b"ab").bytes(b"c");
        let other = Aad::new("x").bytes(b"a").bytes(b"bc");
        assert_ne!(split.as_bytes(), other.as_bytes());
        assert_ne!(Aad::new("xa").as_bytes(), Aad::new("x").bytes(b"a").as_bytes());
    }

    #[test]
    fn bytes_are_those_of_the_format() {
        assert_eq!(Aad::new("ab").u8(7).u32(1).as_bytes(), b"\x02ab\x01\0\0\0\x07\x04\0\0\0\x01\0\0\0");
    }
}
