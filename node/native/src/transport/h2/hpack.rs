//! A safe wrapper of nghttp2's HPACK decoder, for a client that frames HTTP/2 itself.

use libnghttp2_sys as ng;
use std::ffi::c_int;
use std::ptr;

/// The decoding half of one connection; blocks must be given in the order in which they arrived.
pub struct Inflater {
    raw: *mut ng::nghttp2_hd_inflater,
}

/// A block that cannot be decoded: the connection is of no more use.
#[derive(Debug, PartialEq, Eq)]
pub struct BadBlock;

impl Inflater {
    pub fn new() -> Self {
        let mut raw = ptr::null_mut();
        // SAFETY: writes one pointer, to a local.
        let result = unsafe { ng::nghttp2_hd_inflate_new(&mut raw) };
        assert!(result == 0 && !raw.is_null(), "out of memory");
        Inflater { raw }
    }

    /// Decodes a whole header block; `field` is given each name and value.
    pub fn block(
        &mut self,
        mut block: &[u8],
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), BadBlock> {
        loop {
            let mut nv = ng::nghttp2_nv {
                name: ptr::null_mut(),
                value: ptr::null_mut(),
                namelen: 0,
                valuelen: 0,
                flags: 0,
            };
            let mut flags: c_int = 0;
            // SAFETY: the inflater lives as long as self; the block is readable for its length; nv and flags are locals.
            let taken = unsafe {
                ng::nghttp2_hd_inflate_hd3(
                    self.raw,
                    &mut nv,
                    &mut flags,
                    block.as_ptr(),
                    block.len(),
                    1,
                )
            };
            block = usize::try_from(taken)
                .ok()
                .and_then(|taken| block.get(taken..))
                .ok_or(BadBlock)?;
            if flags & ng::NGHTTP2_HD_INFLATE_EMIT as c_int != 0 {
                // SAFETY: with EMIT both strings are valid until the next call on this inflater; `field` cannot make one
                // because self is borrowed, and gets them only for the time of its call. Their pointers are never null.
                let (name, value) = unsafe {
                    (
                        std::slice::from_raw_parts(nv.name, nv.namelen),
                        std::slice::from_raw_parts(nv.value, nv.valuelen),
                    )
                };
                field(name, value);
            }
            if flags & ng::NGHTTP2_HD_INFLATE_FINAL as c_int != 0 {
                // SAFETY: the inflater lives as long as self.
                unsafe { ng::nghttp2_hd_inflate_end_headers(self.raw) };
                return Ok(());
            }
            if flags & ng::NGHTTP2_HD_INFLATE_EMIT as c_int == 0 && block.is_empty() {
                return Err(BadBlock); // ends within a field
            }
        }
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        // SAFETY: made by nghttp2_hd_inflate_new, freed once.
        unsafe { ng::nghttp2_hd_inflate_del(self.raw) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(inflater: &mut Inflater, block: &[u8]) -> Result<Vec<(String, String)>, BadBlock> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        inflater.block(block, |name, value| fields.push((text(name), text(value))))?;
        Ok(fields)
    }

    #[test]
    fn a_field_enters_the_table_and_is_found_again() {
        let mut inflater = Inflater::new();
        let mut first = vec![0x88, 0x40, 11];
        first.extend_from_slice(b"grpc-status\x010");
        let want = vec![
            (":status".to_owned(), "200".to_owned()),
            ("grpc-status".to_owned(), "0".to_owned()),
        ];
        assert_eq!(decode(&mut inflater, &first).unwrap(), want);
        assert_eq!(decode(&mut inflater, &[0x88, 0xbe]).unwrap(), want);
    }

    #[test]
    fn a_damaged_block_is_an_error() {
        assert_eq!(decode(&mut Inflater::new(), &[0xff]), Err(BadBlock));
        assert_eq!(decode(&mut Inflater::new(), &[0xbe]), Err(BadBlock));
        assert_eq!(
            decode(&mut Inflater::new(), &[0x40, 11, b'g']),
            Err(BadBlock)
        );
    }
}
