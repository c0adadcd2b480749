//! The stand-in for character sets where the feature `charset` is off: UTF-8.

#[derive(Clone, Copy, Debug)]
pub(crate) struct Charset;

impl Charset {
    pub(crate) const UTF_8: Charset = Charset;

    pub(crate) fn decode(self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}
