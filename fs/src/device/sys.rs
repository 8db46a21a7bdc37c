//! The few system calls that neither std nor nix wraps, as safe functions.
#![expect(unsafe_code, reason = "system calls without a safe wrapper")]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// What direct I/O on a file asks of buffers and offsets, both in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DirectAlignment {
    /// Alignment of buffers in memory.
    pub(crate) memory: u64,
    /// Alignment of offsets and lengths.
    pub(crate) offset: u64,
}

/// The alignment that `statx` reports for direct I/O on `file`; `None` where the kernel or the
/// filesystem does not say, or says that direct I/O is not possible.
pub(crate) fn direct_alignment(file: &File) -> io::Result<Option<DirectAlignment>> {
    // SAFETY: `statx` is plain integers, for which all zeros is a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the path is an empty C string and `stat` is writable.
    let rc = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut stat,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let (memory, offset) = (stat.stx_dio_mem_align, stat.stx_dio_offset_align);
    let known = stat.stx_mask & libc::STATX_DIOALIGN != 0;
    if !known || !memory.is_power_of_two() || !offset.is_power_of_two() {
        return Ok(None);
    }
    Ok(Some(DirectAlignment {
        memory: u64::from(memory),
        offset: u64::from(offset),
    }))
}

/// Reads the extended attribute `name` of `file` into `value` and returns its length.
pub(crate) fn get_xattr(file: &File, name: &CStr, value: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `value` is writable for the length given; `name` is a C string.
    let len = unsafe {
        libc::fgetxattr(
            file.as_raw_fd(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

/// Sets the extended attribute `name` of `file`.
pub(crate) fn set_xattr(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: `value` is readable for the length given; `name` is a C string.
    let rc = unsafe {
        libc::fsetxattr(
            file.as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The kernel's own generation number of an inode, 0 where the filesystem has none.
pub(crate) fn inode_version(file: &File) -> u32 {
    const FS_IOC_GETVERSION: libc::Ioctl = 0x8008_7601;
    // The request's size says `long`, but every filesystem writes an `int`.
    let mut version = [0u32; 2];
    // SAFETY: the buffer is writable for the eight bytes that the request may write.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETVERSION, version.as_mut_ptr()) };
    if rc == 0 { version[0] } else { 0 }
}

/// Size and logical block of a block device, in bytes.
pub(crate) fn block_device_size(file: &File) -> io::Result<(u64, u64)> {
    const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;
    const BLKSSZGET: libc::Ioctl = 0x1268;
    let mut size = 0u64;
    let mut block: libc::c_int = 0;
    // SAFETY: each request writes one value of the type that is passed.
    let rc = unsafe {
        match libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut size) {
            0 => libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut block),
            failed => failed,
        }
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let block = u64::try_from(block).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((size, block))
}

/// Tells a block device that a range holds nothing of value.
pub(crate) fn block_device_discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    const BLKDISCARD: libc::Ioctl = 0x1277;
    let range = [offset, len];
    // SAFETY: the request reads two values of eight bytes.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes the exclusive advisory lock (flock) of `file`; false where another open file has it. It
/// ends with [`unlock`], or when nobody has this open file any more.
pub(crate) fn try_lock_exclusive(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open; no memory is passed.
    let rc = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if rc == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EWOULDBLOCK) {
        return Ok(false);
    }
    Err(error)
}

/// Gives up the lock of `file`, also where others have the same open file.
pub(super) fn unlock(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open; no memory is passed.
    let rc = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
