//! The types of an object's BTF section, read as far as the names of types and the order of the last ones go.
//! The format: `Documentation/bpf/btf.rst` of the kernel.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection};

const HEADER: usize = 24;
const TYPE: usize = 12;

/// Where a type refers to another one.
const REFERENCE: usize = 8;

/// One type, by where it stands in the section.
#[derive(Clone, Copy)]
struct Type {
    place: usize,
    kind: Kind,
}

/// The kinds that matter here, by their number in `include/uapi/linux/btf.h`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A structure, a union or an enumeration.
    Named,
    /// Declared, not defined.
    Forward,
    /// Refers to another type: a pointer, a `const`, a typedef.
    Derived,
    Other,
}

/// A BTF section taken apart.
struct Layout<'bytes> {
    bytes: &'bytes [u8],
    types: Vec<Type>,
    strings: usize,
}

impl<'bytes> Layout<'bytes> {
    fn read(bytes: &'bytes [u8]) -> Result<Self> {
        let start = word(bytes, 4)?;
        ensure!(start >= HEADER, "the BTF header is too short");
        let (mut place, end) = (start + word(bytes, 8)?, start + word(bytes, 8)? + word(bytes, 12)?);
        let mut types = Vec::new();
        while place < end {
            let info = word(bytes, place + 4)?;
            let (kind, trailer) = kind_and_trailer(info >> 24 & 0x1f, info & 0xffff);
            types.push(Type { place, kind });
            place += TYPE + trailer;
        }
        Ok(Self {
            bytes,
            types,
            strings: start + word(bytes, 16)?,
        })
    }

    fn name(&self, of: Type) -> Result<&'bytes [u8]> {
        let start = self.strings + word(self.bytes, of.place)?;
        let rest = self.bytes.get(start..).context("a type's name is outside the BTF")?;
        rest.split(|byte| *byte == 0).next().context("a type's name has no end")
    }
}

/// The names of the structures, unions and enumerations of a BTF section that stand in somebody's sources; the
/// others, of generic types, references and closures, are the compiler's.
pub(crate) fn type_names(btf: &[u8]) -> Result<Vec<String>> {
    let layout = Layout::read(btf)?;
    let defined = layout.types.iter().filter(|defined| defined.kind == Kind::Named);
    let names = defined
        .map(|defined| Ok(String::from_utf8_lossy(layout.name(*defined)?).into_owned()))
        .collect::<Result<Vec<_>>>()?;
    Ok(names
        .into_iter()
        .filter(|name| !name.is_empty() && !has_escape(name))
        .collect())
}

/// Whether a name has a character that BTF cannot have, such as `<` written as `_3C_`.
fn has_escape(name: &str) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(byte);
    name.as_bytes()
        .windows(4)
        .any(|four| four[0] == b'_' && four[1..3].iter().all(is_digit) && four[3] == b'_')
}

/// Puts the types that are only declared into the order of their names. LLVM adds them at the end of the types, and
/// their names at the end of the strings, in an order that differs from one run to the next.
pub(crate) fn order_forward_types(object: &mut [u8]) -> Result<()> {
    let range = {
        let file = object::File::parse(&*object).context("read the object")?;
        let section = file.section_by_name(".BTF").context("the object has no BTF")?;
        section.file_range().context("the BTF has no place")?
    };
    let (start, size) = (usize::try_from(range.0)?, usize::try_from(range.1)?);
    let btf = object.get_mut(start..start + size).context("the BTF ends early")?;
    let ordered = with_ordered_forward_types(btf)?;
    btf.copy_from_slice(&ordered);
    Ok(())
}

fn with_ordered_forward_types(btf: &[u8]) -> Result<Vec<u8>> {
    let layout = Layout::read(btf)?;
    let count = layout
        .types
        .iter()
        .rev()
        .take_while(|last| last.kind == Kind::Forward)
        .count();
    let first = layout.types.len() - count;
    let forward = &layout.types[first..];
    let mut order = (0..count).collect::<Vec<_>>();
    let names = forward
        .iter()
        .map(|declared| layout.name(*declared))
        .collect::<Result<Vec<_>>>()?;
    order.sort_by_key(|index| names[*index]);

    let mut ordered = btf.to_vec();
    let strings = names.iter().map(|name| name.len() + 1).sum::<usize>();
    let mut string = btf.len() - strings;
    ensure!(
        count == 0 || btf[string..].strip_suffix(b"\0") == Some(&names.join(&b'\0')[..]),
        "the names of the declared types are not the last strings of the BTF"
    );
    let mut renumbered = BTreeMap::new();
    for (to, from) in order.into_iter().enumerate() {
        // Numbers count from 1: 0 is void.
        renumbered.insert(first + from + 1, first + to + 1);
        let place = forward[to].place;
        ordered[place..place + TYPE].copy_from_slice(&btf[forward[from].place..][..TYPE]);
        put_word(&mut ordered, place, string - layout.strings)?;
        ordered[string..string + names[from].len()].copy_from_slice(names[from]);
        string += names[from].len();
        ordered[string] = 0;
        string += 1;
    }
    for derived in layout.types.iter().filter(|derived| derived.kind == Kind::Derived) {
        if let Some(number) = renumbered.get(&word(btf, derived.place + REFERENCE)?) {
            put_word(&mut ordered, derived.place + REFERENCE, *number)?;
        }
    }
    Ok(ordered)
}

/// What a kind is here, and how many bytes follow its types.
fn kind_and_trailer(kind: usize, members: usize) -> (Kind, usize) {
    match kind {
        2 | 8..=11 | 18 => (Kind::Derived, 0),
        4 | 5 | 19 => (Kind::Named, 12 * members),
        6 => (Kind::Named, 8 * members),
        7 => (Kind::Forward, 0),
        1 | 14 | 17 => (Kind::Other, 4),
        3 => (Kind::Other, 12),
        13 => (Kind::Other, 8 * members),
        15 => (Kind::Other, 12 * members),
        _ => (Kind::Other, 0),
    }
}

fn word(bytes: &[u8], place: usize) -> Result<usize> {
    let word = bytes.get(place..place + 4).context("the BTF ends early")?;
    Ok(usize::try_from(u32::from_le_bytes(word.try_into()?))?)
}

fn put_word(bytes: &mut [u8], place: usize, word: usize) -> Result<()> {
    bytes[place..place + 4].copy_from_slice(&u32::try_from(word)?.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A BTF section with two pointers to two declared types.
    fn section(names: [&str; 2], pointees: [u32; 2]) -> Vec<u8> {
        let strings = format!("\0{}\0{}\0", names[0], names[1]);
        let forward = |name: usize| [u32::try_from(name).unwrap(), 7 << 24, 0];
        let second = names[0].len() + 2;
        let types = [
            [0, 2 << 24, pointees[0]],
            [0, 2 << 24, pointees[1]],
            forward(1),
            forward(second),
        ]
        .concat();
        let length = u32::try_from(types.len() * 4).unwrap();
        let header = [0x1_eb9f, 24, 0, length, length, u32::try_from(strings.len()).unwrap()];
        let words = header.into_iter().chain(types).flat_map(u32::to_le_bytes);
        words.chain(strings.bytes()).collect()
    }

    #[test]
    fn declared_types_come_in_one_order() {
        let one = section(["bpf_flow_keys", "bpf_sock"], [3, 4]);
        let other = section(["bpf_sock", "bpf_flow_keys"], [4, 3]);
        assert_ne!(one, other);
        assert_eq!(with_ordered_forward_types(&other).unwrap(), one);
        assert_eq!(with_ordered_forward_types(&one).unwrap(), one);
    }

    #[test]
    fn names_that_the_compiler_made_are_told_apart() {
        assert!(has_escape("Array_3C_u64_3E_") && has_escape("_7B_closure_env_23_0_7D_"));
        assert!(!has_escape("__sk_buff") && !has_escape("COUNT_A_B"));
    }

    #[test]
    fn damaged_bytes_are_an_error() {
        assert!(type_names(&section(["a", "b"], [3, 4])[..40]).is_err());
        assert!(type_names(b"").is_err());
    }
}
