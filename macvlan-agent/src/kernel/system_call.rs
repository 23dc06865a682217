//! The system call `bpf`, for what aya has no words for.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
};

/// The system call, on a part of `union bpf_attr`.
pub(super) fn call<T>(command: i64, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: the attributes are a whole, initialised part of `union bpf_attr` of the size given; every address in them
    // points to memory that its owner in the calling function keeps until the call is over.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The same for those that give a descriptor.
pub(super) fn descriptor(command: i64, attributes: &mut impl Sized) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(call(command, attributes)?).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just given this descriptor to us, and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
