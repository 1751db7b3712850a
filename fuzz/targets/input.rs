//! A fuzzer's input, consumed from its beginning.

/// The rest of the input. Zeros follow its end.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let number = usize::from(self.byte()) << 8 | usize::from(self.byte());
        number % limit.max(1)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let Self(rest) = self;
        let (bytes, behind) = rest.split_at(count.min(rest.len()));
        *rest = behind;
        bytes
    }

    /// One of these texts, or a few bytes as they are.
    pub(crate) fn text(&mut self, texts: &[&'a str]) -> &'a [u8] {
        let choice = usize::from(self.byte());
        match texts.get(choice) {
            Some(text) => text.as_bytes(),
            None => self.bytes(choice % 32),
        }
    }
}
