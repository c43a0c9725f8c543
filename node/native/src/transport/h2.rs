//! A safe wrapper of nghttp2's server session.
//!
//! nghttp2 is a pure protocol machine: bytes in ([`Session::receive`]), bytes out ([`Session::pull`]), and callbacks in
//! between. This module is the only one that touches its C interface. What it promises to the rest of the crate:
//!
//! * A [`Handler`] is reachable from C only while `receive` or `pull` runs: its address is set as the session's user data
//!   at the start of either and cleared at the end, so no callback can see a handler that has gone.
//! * Callbacks get an [`Ops`], which can submit frames but can neither feed, drain nor free the session; those are what
//!   nghttp2 forbids inside a callback.
//! * Streams carry a `usize` key of the handler's choice (stored as the stream's user data), so no map is needed to find
//!   a call again.
//! * A panic in a handler aborts the process (unwinding through C is not allowed, and `extern "C"` turns it into an
//!   abort). For a consensus node, stopping is right when its transport has a bug.
//!
//! Why nghttp2: see docs/decisions/0001-http2-library.md.

pub mod hpack;

use libnghttp2_sys as ng;
use std::ffi::c_int;
use std::os::raw::c_void;
use std::ptr;
use std::sync::Arc;

/// HTTP/2 error codes (RFC 9113, section 7) that we send or look at.
pub mod code {
    pub const NO_ERROR: u32 = 0;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

const FRAME_DATA: u8 = 0;
const FRAME_HEADERS: u8 = 1;
const FRAME_PING: u8 = 6;
const FLAG_END_STREAM: u8 = 1;
const FLAG_ACK: u8 = 1;
/// `NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE`: the strings are static.
const NV_NO_COPY: u8 = 2 | 4;
const SETTINGS_MAX_CONCURRENT_STREAMS: i32 = 3;
const SETTINGS_INITIAL_WINDOW_SIZE: i32 = 4;
const SETTINGS_MAX_HEADER_LIST_SIZE: i32 = 6;

/// Window for what a client may send on one stream before an update; a bound on bytes in flight, not on memory.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same for a whole connection.
const CONNECTION_WINDOW_BYTES: i32 = 1 << 24;
/// A client may reset this many streams in a burst, and this many per second, before it gets GOAWAY (CVE-2023-44487).
const RESET_BURST: u64 = 10_000;
const RESETS_PER_SECOND: u64 = 1_000;
/// Most header fields that one submission carries.
const MAX_SUBMITTED_HEADERS: usize = 32;

/// The session cannot go on; the connection must be closed (after what is pending was written, if that is possible).
#[derive(Debug)]
pub struct SessionError(#[allow(dead_code)] pub c_int);

/// A header field to send: static (not copied by nghttp2) or borrowed for the time of the call.
#[derive(Clone, Copy)]
pub struct Header<'a> {
    name: &'a [u8],
    value: &'a [u8],
    flags: u8,
}

impl<'a> Header<'a> {
    pub const fn fixed(name: &'static [u8], value: &'static [u8]) -> Header<'static> {
        Header {
            name,
            value,
            flags: NV_NO_COPY,
        }
    }
    pub fn copied(name: &'a [u8], value: &'a [u8]) -> Self {
        Header {
            name,
            value,
            flags: 0,
        }
    }
    fn raw(&self) -> ng::nghttp2_nv {
        ng::nghttp2_nv {
            // nghttp2 does not write through these; the C struct has no const.
            name: self.name.as_ptr().cast_mut(),
            value: self.value.as_ptr().cast_mut(),
            namelen: self.name.len(),
            valuelen: self.value.len(),
            flags: self.flags,
        }
    }
}

/// Where a body source puts its bytes: nghttp2's frame buffer.
pub struct Sink {
    at: *mut u8,
    left: usize,
    written: usize,
}

impl Sink {
    /// Copies as much of `bytes` as there is room for; returns how much that was.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.left);
        // SAFETY: `at` is writable for `left` bytes (nghttp2's buffer, for the time of the callback in which the sink
        // lives) and cannot overlap with what the caller owns.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.at, n);
            self.at = self.at.add(n);
        }
        self.left -= n;
        self.written += n;
        n
    }
}

/// What a body source has to say, after it has filled the [`Sink`].
pub enum Body {
    /// More will follow.
    More,
    /// Nothing was written; [`Ops::resume`] will be called.
    Later,
    /// That ends the stream.
    End,
    /// Now come the trailers, which were submitted within the call.
    Trailers,
}

/// Who is told of what a client sends. `key` is what `begin_stream` returned.
pub trait Handler {
    /// A new stream; None refuses it.
    fn begin_stream(&mut self, ops: &mut Ops, stream_id: i32) -> Option<usize>;
    fn header(&mut self, key: usize, name: &[u8], value: &[u8]);
    fn headers_complete(&mut self, ops: &mut Ops, key: usize, end_stream: bool);
    fn data(&mut self, ops: &mut Ops, key: usize, chunk: &[u8]);
    fn end_stream(&mut self, ops: &mut Ops, key: usize);
    fn ping(&mut self, ops: &mut Ops);
    fn ping_ack(&mut self, ops: &mut Ops);
    /// Gives the next bytes of the body of stream `key`.
    fn body(&mut self, ops: &mut Ops, key: usize, sink: &mut Sink) -> Body;
    /// The stream is over, whoever ended it; the key is not used again.
    fn closed(&mut self, key: usize, error_code: u32);
}

/// Callbacks and options, made once and shared by all sessions.
pub struct Template {
    callbacks: *mut ng::nghttp2_session_callbacks,
    option: *mut ng::nghttp2_option,
    settings: [ng::nghttp2_settings_entry; 3],
}

impl Template {
    pub fn new(max_concurrent_streams: u32, max_header_bytes: u32) -> Arc<Self> {
        let mut callbacks = ptr::null_mut();
        let mut option = ptr::null_mut();
        // SAFETY: both constructors write a valid pointer or fail for lack of memory (checked); the setters only store
        // function pointers and numbers in what was just made.
        unsafe {
            assert_eq!(
                ng::nghttp2_session_callbacks_new(&mut callbacks),
                0,
                "out of memory"
            );
            assert_eq!(ng::nghttp2_option_new(&mut option), 0, "out of memory");
            ng::nghttp2_session_callbacks_set_on_begin_headers_callback(
                callbacks,
                Some(on_begin_headers),
            );
            ng::nghttp2_session_callbacks_set_on_header_callback(callbacks, Some(on_header));
            ng::nghttp2_session_callbacks_set_on_frame_recv_callback(
                callbacks,
                Some(on_frame_recv),
            );
            ng::nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
                callbacks,
                Some(on_data_chunk),
            );
            ng::nghttp2_session_callbacks_set_on_stream_close_callback(
                callbacks,
                Some(on_stream_close),
            );
            ng::nghttp2_session_callbacks_set_on_frame_send_callback(
                callbacks,
                Some(on_frame_send),
            );
            ng::nghttp2_option_set_no_closed_streams(option, 1);
            ng::nghttp2_option_set_stream_reset_rate_limit(option, RESET_BURST, RESETS_PER_SECOND);
        }
        let entry = |settings_id, value| ng::nghttp2_settings_entry { settings_id, value };
        Arc::new(Template {
            callbacks,
            option,
            settings: [
                entry(SETTINGS_MAX_CONCURRENT_STREAMS, max_concurrent_streams),
                entry(SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES),
                entry(SETTINGS_MAX_HEADER_LIST_SIZE, max_header_bytes),
            ],
        })
    }
}

// SAFETY: nothing writes to callbacks and options once `new` has returned, and nghttp2 only copies from them.
unsafe impl Send for Template {}
// SAFETY: as above.
unsafe impl Sync for Template {}

impl Drop for Template {
    fn drop(&mut self) {
        // SAFETY: made by the matching constructors, freed once; sessions copied what they need.
        unsafe {
            ng::nghttp2_session_callbacks_del(self.callbacks);
            ng::nghttp2_option_del(self.option);
        }
    }
}

/// Submits frames on a session. Usable inside callbacks. Nothing is sent before [`Session::pull`].
pub struct Ops {
    raw: *mut ng::nghttp2_session,
}

impl Ops {
    /// Response headers; with a body that [`Handler::body`] gives, or (`has_body` false) ending the stream.
    pub fn respond(&mut self, stream_id: i32, key: usize, headers: &[Header<'_>], has_body: bool) {
        let (nv, n) = raw_headers(headers);
        let provider = ng::nghttp2_data_provider2 {
            source: ng::nghttp2_data_source { ptr: tag(key) },
            read_callback: Some(on_body),
        };
        let provider_ptr = if has_body {
            &provider as *const _
        } else {
            ptr::null()
        };
        // SAFETY: the session lives as long as self; nghttp2 copies the array and the provider before it returns, and
        // the strings too unless they are static.
        unsafe { ng::nghttp2_submit_response2(self.raw, stream_id, nv.as_ptr(), n, provider_ptr) };
    }

    /// Trailers; only from within [`Handler::body`], which then returns [`Body::Trailers`].
    pub fn trailers(&mut self, stream_id: i32, headers: &[Header<'_>]) {
        let (nv, n) = raw_headers(headers);
        // SAFETY: as in `respond`.
        unsafe { ng::nghttp2_submit_trailer(self.raw, stream_id, nv.as_ptr(), n) };
    }

    /// Ask [`Handler::body`] again after [`Body::Later`].
    pub fn resume(&mut self, stream_id: i32) {
        // SAFETY: an unknown stream is reported as an error, which means that it has gone: nothing to resume.
        unsafe { ng::nghttp2_session_resume_data(self.raw, stream_id) };
    }

    pub fn reset(&mut self, stream_id: i32, error_code: u32) {
        // SAFETY: queues a frame; unknown streams are ignored.
        unsafe { ng::nghttp2_submit_rst_stream(self.raw, 0, stream_id, error_code) };
    }

    /// GOAWAY that still lets streams in; followed by a PING, whose answer says that the client has seen it.
    pub fn shutdown_notice(&mut self) {
        // SAFETY: queues frames; a null payload means eight zero bytes.
        unsafe {
            ng::nghttp2_submit_shutdown_notice(self.raw);
            ng::nghttp2_submit_ping(self.raw, 0, ptr::null());
        }
    }

    /// GOAWAY that refuses streams newer than the last one seen.
    pub fn goaway(&mut self, error_code: u32, debug: &'static [u8]) {
        // SAFETY: the debug data is copied by nghttp2.
        unsafe {
            let last = ng::nghttp2_session_get_last_proc_stream_id(self.raw);
            ng::nghttp2_submit_goaway(self.raw, 0, last, error_code, debug.as_ptr(), debug.len());
        }
    }

    fn key(&mut self, stream_id: i32) -> Option<usize> {
        // SAFETY: looks the stream up; null when it has gone or carries no key.
        untag(unsafe { ng::nghttp2_session_get_stream_user_data(self.raw, stream_id) })
    }
}

/// One HTTP/2 connection, server side.
pub struct Session {
    ops: Ops,
    _template: Arc<Template>,
}

// SAFETY: nghttp2 has no state outside of the session (no globals, no thread-locals), the pointer is owned by this value
// alone, and all access is by `&mut self` (or plain getters): it may go to another thread between two calls.
unsafe impl Send for Session {}

impl Session {
    pub fn server(template: &Arc<Template>) -> Session {
        let mut raw = ptr::null_mut();
        // SAFETY: callbacks and option are valid (the template lives); user data is null until receive or pull; the
        // settings array is copied.
        unsafe {
            let rc = ng::nghttp2_session_server_new2(
                &mut raw,
                template.callbacks,
                ptr::null_mut(),
                template.option,
            );
            assert_eq!(rc, 0, "out of memory");
            ng::nghttp2_submit_settings(
                raw,
                0,
                template.settings.as_ptr(),
                template.settings.len(),
            );
            ng::nghttp2_session_set_local_window_size(raw, 0, 0, CONNECTION_WINDOW_BYTES);
        }
        Session {
            ops: Ops { raw },
            _template: template.clone(),
        }
    }

    pub fn ops(&mut self) -> &mut Ops {
        &mut self.ops
    }

    /// Feeds bytes from the client.
    pub fn receive(&mut self, bytes: &[u8], handler: &mut dyn Handler) -> Result<(), SessionError> {
        let mut handler: &mut dyn Handler = handler;
        // SAFETY: the user data points to a live local for exactly the time of mem_recv2 (callbacks read it as what it
        // is, a `*mut &mut dyn Handler`) and is cleared after; mem_recv2 reads `bytes.len()` bytes and keeps no pointer.
        let n = unsafe {
            ng::nghttp2_session_set_user_data(self.ops.raw, (&raw mut handler).cast::<c_void>());
            let n = ng::nghttp2_session_mem_recv2(self.ops.raw, bytes.as_ptr(), bytes.len());
            ng::nghttp2_session_set_user_data(self.ops.raw, ptr::null_mut());
            n
        };
        if n < 0 {
            Err(SessionError(n as c_int))
        } else {
            Ok(())
        }
    }

    /// The next bytes to send, or None when there are none now.
    pub fn pull(&mut self, handler: &mut dyn Handler) -> Result<Option<&[u8]>, SessionError> {
        let mut handler: &mut dyn Handler = handler;
        let mut data = ptr::null();
        // SAFETY: as in `receive`; mem_send2 sets `data` to n bytes that stay valid until the session is used again,
        // which the borrow of self expresses.
        unsafe {
            ng::nghttp2_session_set_user_data(self.ops.raw, (&raw mut handler).cast::<c_void>());
            let n = ng::nghttp2_session_mem_send2(self.ops.raw, &mut data);
            ng::nghttp2_session_set_user_data(self.ops.raw, ptr::null_mut());
            match n {
                0 => Ok(None),
                n if n > 0 => Ok(Some(std::slice::from_raw_parts(data, n as usize))),
                n => Err(SessionError(n as c_int)),
            }
        }
    }

    /// Whether the session neither expects nor has to send anything: the connection can be closed.
    pub fn finished(&self) -> bool {
        // SAFETY: plain getters.
        unsafe {
            ng::nghttp2_session_want_read(self.ops.raw) == 0
                && ng::nghttp2_session_want_write(self.ops.raw) == 0
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: made by server_new2, freed once, never inside a callback (Ops cannot drop a Session). Deleting calls
        // back nothing that needs the (null) user data: on_stream_close is not invoked by nghttp2_session_del.
        unsafe { ng::nghttp2_session_del(self.ops.raw) };
    }
}

/// Keys travel as pointers, off by one so that null means none.
fn tag(key: usize) -> *mut c_void {
    (key + 1) as *mut c_void
}

fn untag(p: *mut c_void) -> Option<usize> {
    (p as usize).checked_sub(1)
}

fn raw_headers(headers: &[Header<'_>]) -> ([ng::nghttp2_nv; MAX_SUBMITTED_HEADERS], usize) {
    const EMPTY: ng::nghttp2_nv = ng::nghttp2_nv {
        name: ptr::null_mut(),
        value: ptr::null_mut(),
        namelen: 0,
        valuelen: 0,
        flags: 0,
    };
    let mut nv = [EMPTY; MAX_SUBMITTED_HEADERS];
    let n = headers.len().min(MAX_SUBMITTED_HEADERS);
    for (slot, header) in nv.iter_mut().zip(headers) {
        *slot = header.raw();
    }
    (nv, n)
}

/// # Safety
/// `user` must be what `receive` or `pull` set (or null), which holds inside a callback.
unsafe fn handler<'a>(user: *mut c_void) -> Option<&'a mut dyn Handler> {
    user.cast::<&mut dyn Handler>().as_mut().map(|h| &mut **h)
}

// The callbacks. Each is called by nghttp2 from within mem_recv2 or mem_send2, with the session that was passed there, a
// frame that is valid for the time of the call, and the user data that `receive` or `pull` set: that is what makes the
// dereferences below sound.

unsafe extern "C" fn on_begin_headers(
    raw: *mut ng::nghttp2_session,
    frame: *const ng::nghttp2_frame,
    user: *mut c_void,
) -> c_int {
    let head = (*frame).hd;
    if head.type_ != FRAME_HEADERS || (*frame).headers.cat != ng::NGHTTP2_HCAT_REQUEST {
        return 0;
    }
    let Some(handler) = handler(user) else {
        return ng::NGHTTP2_ERR_CALLBACK_FAILURE;
    };
    match handler.begin_stream(&mut Ops { raw }, head.stream_id) {
        Some(key) => {
            ng::nghttp2_session_set_stream_user_data(raw, head.stream_id, tag(key));
            0
        }
        None => {
            ng::nghttp2_submit_rst_stream(raw, 0, head.stream_id, code::REFUSED_STREAM);
            ng::NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
        }
    }
}

unsafe extern "C" fn on_header(
    raw: *mut ng::nghttp2_session,
    frame: *const ng::nghttp2_frame,
    name: *const u8,
    name_len: usize,
    value: *const u8,
    value_len: usize,
    _flags: u8,
    user: *mut c_void,
) -> c_int {
    let head = (*frame).hd;
    if head.type_ != FRAME_HEADERS || (*frame).headers.cat != ng::NGHTTP2_HCAT_REQUEST {
        return 0; // trailers of a request: gRPC has none
    }
    if let (Some(handler), Some(key)) = (handler(user), Ops { raw }.key(head.stream_id)) {
        let name = std::slice::from_raw_parts(name, name_len);
        let value = std::slice::from_raw_parts(value, value_len);
        handler.header(key, name, value);
    }
    0
}

unsafe extern "C" fn on_frame_recv(
    raw: *mut ng::nghttp2_session,
    frame: *const ng::nghttp2_frame,
    user: *mut c_void,
) -> c_int {
    let Some(handler) = handler(user) else {
        return ng::NGHTTP2_ERR_CALLBACK_FAILURE;
    };
    let head = (*frame).hd;
    let end_stream = head.flags & FLAG_END_STREAM != 0;
    let mut ops = Ops { raw };
    match head.type_ {
        FRAME_HEADERS => {
            if let Some(key) = ops.key(head.stream_id) {
                if (*frame).headers.cat == ng::NGHTTP2_HCAT_REQUEST {
                    handler.headers_complete(&mut ops, key, end_stream);
                }
                if end_stream {
                    handler.end_stream(&mut ops, key);
                }
            }
        }
        FRAME_DATA if end_stream => {
            if let Some(key) = ops.key(head.stream_id) {
                handler.end_stream(&mut ops, key);
            }
        }
        FRAME_PING if head.flags & FLAG_ACK != 0 => handler.ping_ack(&mut ops),
        FRAME_PING => handler.ping(&mut ops),
        _ => {}
    }
    0
}

unsafe extern "C" fn on_data_chunk(
    raw: *mut ng::nghttp2_session,
    _flags: u8,
    stream_id: i32,
    data: *const u8,
    len: usize,
    user: *mut c_void,
) -> c_int {
    let mut ops = Ops { raw };
    if let (Some(handler), Some(key)) = (handler(user), ops.key(stream_id)) {
        handler.data(&mut ops, key, std::slice::from_raw_parts(data, len));
    }
    0
}

unsafe extern "C" fn on_stream_close(
    raw: *mut ng::nghttp2_session,
    stream_id: i32,
    error_code: u32,
    user: *mut c_void,
) -> c_int {
    if let (Some(handler), Some(key)) = (handler(user), Ops { raw }.key(stream_id)) {
        handler.closed(key, error_code);
    }
    0
}

/// A response that ends before its request: tell the client to stop sending (RFC 9113, section 8.1).
unsafe extern "C" fn on_frame_send(
    raw: *mut ng::nghttp2_session,
    frame: *const ng::nghttp2_frame,
    _user: *mut c_void,
) -> c_int {
    let head = (*frame).hd;
    if (head.type_ == FRAME_HEADERS || head.type_ == FRAME_DATA)
        && head.flags & FLAG_END_STREAM != 0
        && ng::nghttp2_session_get_stream_remote_close(raw, head.stream_id) == 0
    {
        ng::nghttp2_submit_rst_stream(raw, 0, head.stream_id, code::NO_ERROR);
    }
    0
}

unsafe extern "C" fn on_body(
    raw: *mut ng::nghttp2_session,
    _stream_id: i32,
    buf: *mut u8,
    len: usize,
    data_flags: *mut u32,
    source: *mut ng::nghttp2_data_source,
    user: *mut c_void,
) -> ng::nghttp2_ssize {
    let (Some(handler), Some(key)) = (handler(user), untag((*source).ptr)) else {
        return ng::NGHTTP2_ERR_CALLBACK_FAILURE as ng::nghttp2_ssize;
    };
    let mut sink = Sink {
        at: buf,
        left: len,
        written: 0,
    };
    let verdict = handler.body(&mut Ops { raw }, key, &mut sink);
    match verdict {
        Body::More => {}
        Body::Later => return ng::NGHTTP2_ERR_DEFERRED as ng::nghttp2_ssize,
        Body::End => *data_flags |= ng::NGHTTP2_DATA_FLAG_EOF,
        Body::Trailers => {
            *data_flags |= ng::NGHTTP2_DATA_FLAG_EOF | ng::NGHTTP2_DATA_FLAG_NO_END_STREAM
        }
    }
    sink.written as ng::nghttp2_ssize
}

#[cfg(test)]
mod tests;
