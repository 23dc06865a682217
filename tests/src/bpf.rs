//! The system call `bpf(2)`, for programs of a few instructions: aya loads objects that a compiler made.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::Result;
use macvlan_agent::kernel::tracing_link::Target;

const PROG_LOAD: libc::c_int = 5;
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const LINK_CREATE: libc::c_int = 28;
const TRACING: u32 = 26;
const LICENSE: &[u8; 4] = b"GPL\0";

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    /// From `log_level` to `prog_name`.
    unused: [u64; 5],
    ifindex: u32,
    expected_attach_type: u32,
    /// From `prog_btf_fd` to `line_info`.
    unused_as_well: [u64; 4],
    line_count: u32,
    attach_btf_id: u32,
    attach_btf_object: u32,
    pad: u32,
}

/// The same for `BPF_RAW_TRACEPOINT_OPEN`.
#[repr(C)]
struct Open {
    name: u64,
    program: u32,
    pad: u32,
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
struct Attach {
    program: u32,
    index: u32,
    kind: u32,
    flags: u32,
}

/// One instruction (`struct bpf_insn`, as a little-endian machine has it): code, registers, offset, immediate.
pub(crate) const fn instruction(code: u8, [to, from]: [u8; 2], offset: i16, immediate: i32) -> u64 {
    let rest = (offset.cast_unsigned() as u64) << 16 | (immediate.cast_unsigned() as u64) << 32;
    code as u64 | (to as u64) << 8 | (from as u64) << 12 | rest
}

/// Loads a program of a type of `enum bpf_prog_type`.
pub(crate) fn load(kind: u32, instructions: &[u64]) -> Result<OwnedFd> {
    let mut attributes = Load {
        kind,
        count: u32::try_from(instructions.len())?,
        instructions: instructions.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        ..Load::default()
    };
    Ok(open(PROG_LOAD, &mut attributes)?)
}

/// Loads a program and attaches it to a function; `kind` is `BPF_TRACE_FENTRY` or `BPF_TRACE_FEXIT`. It stays for as long as
/// what is returned.
pub(crate) fn attach_to_function(target: &Target, kind: u32, instructions: &[u64]) -> Result<OwnedFd> {
    let (id, types) = target.number();
    let mut attributes = Load {
        kind: TRACING,
        count: u32::try_from(instructions.len())?,
        instructions: instructions.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        expected_attach_type: kind,
        attach_btf_id: id,
        attach_btf_object: types.map_or(Ok(0), |types| u32::try_from(types.as_raw_fd()))?,
        ..Load::default()
    };
    let program = open(PROG_LOAD, &mut attributes)?;
    let mut opened = Open {
        name: 0,
        program: number(&program)?,
        pad: 0,
    };
    Ok(open(RAW_TRACEPOINT_OPEN, &mut opened)?)
}

/// A descriptor as attributes have it.
pub(crate) fn number(descriptor: &OwnedFd) -> Result<u32> {
    Ok(u32::try_from(descriptor.as_raw_fd())?)
}

/// Attaches a program to an interface; `kind` is one of `enum bpf_attach_type`. It stays for as long as what is returned.
pub(crate) fn attach(program: &OwnedFd, index: u32, kind: u32, flags: u32) -> Result<OwnedFd> {
    let mut attributes = Attach {
        program: number(program)?,
        index,
        kind,
        flags,
    };
    Ok(open(LINK_CREATE, &mut attributes)?)
}

/// A command that returns a new descriptor.
fn open<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    let descriptor = call(command, attributes)?;
    // SAFETY: the call returned a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A command; some write into their attributes.
pub(crate) fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes are the first fields of the command's, in the kernel's layout, of the length that is said;
    // they and what they point to live during the call, and only the call has them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::Load;

    #[test]
    fn the_fields_are_where_the_kernel_has_them() {
        assert_eq!(std::mem::offset_of!(Load, expected_attach_type), 68);
        assert_eq!(std::mem::offset_of!(Load, attach_btf_id), 108);
    }
}
