//! The user's terminal.

use std::os::fd::{AsFd, AsRawFd};

/// Its width in columns. `None` if the descriptor is not a terminal.
pub fn width(terminal: impl AsFd) -> Option<u16> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request writes the structure, which lives until the call returns.
    unsafe { ioctls::size(terminal.as_fd().as_raw_fd(), &raw mut size) }.ok()?;
    Some(size.ws_col)
}

mod ioctls {
    nix::ioctl_read_bad!(size, libc::TIOCGWINSZ, libc::winsize);
}
