//! A cursor over the bytes of one request.

use zerocopy::FromBytes;

/// What can be wrong, in words.
pub(super) type Reason = &'static str;

const CUT_SHORT: Reason = "the arguments are cut short";

/// The unread rest of a request. `fixed` is there only before the first struct of a split message.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    fixed: Option<&'a [u8]>,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { fixed: None, rest: message }
    }

    pub(super) fn split(fixed: &'a [u8], payload: &'a [u8]) -> Self {
        Self { fixed: Some(fixed), rest: payload }
    }

    /// Bytes left before the end, those of the fixed part included.
    pub(super) fn available(&self) -> usize {
        self.fixed.map_or(0, <[u8]>::len) + self.rest.len()
    }

    /// The next struct. It is copied, so that the buffer needs no alignment.
    pub(super) fn fixed<T: FromBytes>(&mut self) -> Result<T, Reason> {
        if let Some(fixed) = self.fixed.take() {
            return T::read_from_prefix(fixed).map(|(value, _)| value).map_err(|_| CUT_SHORT);
        }
        let (value, rest) = T::read_from_prefix(self.rest).map_err(|_| CUT_SHORT)?;
        self.rest = rest;
        Ok(value)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Reason> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or("the data are cut short")?;
        self.rest = rest;
        Ok(head)
    }

    /// Takes `len` bytes from the end.
    pub(super) fn take_end(&mut self, len: usize) -> Result<&'a [u8], Reason> {
        let at = self.rest.len().checked_sub(len).ok_or("the extensions are longer than the message")?;
        let (rest, end) = self.rest.split_at(at);
        self.rest = rest;
        Ok(end)
    }

    /// The next string, without the NUL that ends it; never empty.
    pub(super) fn string(&mut self) -> Result<&'a [u8], Reason> {
        let len = self.rest.iter().position(|&b| b == 0).ok_or("a string has no end")?;
        let text = self.bytes(len)?;
        self.bytes(1)?;
        if text.is_empty() { Err("a string is empty") } else { Ok(text) }
    }

    /// The next string, which must be fit as a name in a directory.
    pub(super) fn name(&mut self) -> Result<&'a [u8], Reason> {
        let name = self.string()?;
        if name.contains(&b'/') { Err("a name holds a slash") } else { Ok(name) }
    }
}
