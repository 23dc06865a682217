//! Where the running kernel keeps a field: a reader of BTF, the kernel's own description of its types.
//!
//! Only what is asked of it: structures, unions, the members of the unnamed ones inside them, the values of
//! enumerations, and which functions there are. The format is that of `include/uapi/linux/btf.h`.

use std::{fs, io, path::Path};

/// Where Linux has the description of its own types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why a field's place is not known.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error("cannot read the kernel's type information {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes are not BTF, or end too early.
    #[error("the kernel's type information is damaged at byte {at}")]
    Damaged {
        /// Where.
        at: usize,
    },
    /// No such structure.
    #[error("this kernel has no struct {0}")]
    NoStruct(String),
    /// No such member.
    #[error("this kernel's struct {0} has no member {1}")]
    NoMember(String, String),
}

const KIND_STRUCT: usize = 4;
const KIND_UNION: usize = 5;
const KIND_ENUM: usize = 6;
const KIND_FUNCTION: usize = 12;
/// Typedef, volatile, const, restrict, and the two kinds of tags.
const MODIFIERS: [usize; 6] = [8, 9, 10, 11, 17, 18];
const HEADER: usize = 24;

/// BTF in memory.
pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    types: Vec<usize>,
    /// Those that are looked for by name, among the types.
    named: Vec<usize>,
}

impl Btf {
    /// Reads the BTF in `path`, usually [`VMLINUX`].
    pub fn read(path: &Path) -> Result<Self, BtfError> {
        let bytes = fs::read(path).map_err(|source| BtfError::Read {
            path: path.display().to_string(),
            source,
        })?;
        Self::parse(bytes)
    }

    /// Reads BTF from its bytes.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        if bytes.get(..2) != Some(&[0x9f, 0xeb]) {
            return Err(BtfError::Damaged { at: 0 });
        }
        let header = word(&bytes, 4)?;
        let types_start = header + word(&bytes, 8)?;
        let types_end = types_start + word(&bytes, 12)?;
        let strings = header + word(&bytes, 16)?;
        if header < HEADER || strings > bytes.len() || types_end > bytes.len() {
            return Err(BtfError::Damaged { at: 4 });
        }
        // Type 0 is void and has no record.
        let (mut types, mut named) = (vec![0], Vec::new());
        let mut at = types_start;
        while at < types_end {
            let info = word(&bytes, at + 4)?;
            if matches!(kind(info), KIND_STRUCT | KIND_ENUM | KIND_FUNCTION) && word(&bytes, at)? != 0 {
                named.push(types.len());
            }
            types.push(at);
            at += 12 + extra(info).ok_or(BtfError::Damaged { at })?;
        }
        Ok(Self {
            bytes,
            strings,
            types,
            named,
        })
    }

    /// The offset of `path` in `structure`, in bits: `&["ns", "inum"]` in `net`. Unnamed members are looked through.
    pub fn bits(&self, structure: &str, path: &[&str]) -> Result<usize, BtfError> {
        let mut current = self.structure(structure)?;
        let mut bits = 0;
        for name in path {
            let (offset, member) = self
                .member(current, name)?
                .ok_or_else(|| BtfError::NoMember(structure.to_owned(), path.join(".")))?;
            bits += offset;
            current = member;
        }
        Ok(bits)
    }

    /// The same in whole bytes.
    pub fn bytes(&self, structure: &str, path: &[&str]) -> Result<u32, BtfError> {
        let bits = self.bits(structure, path)?;
        u32::try_from(bits / 8).map_err(|_| BtfError::Damaged { at: 0 })
    }

    /// The values of an enumeration; none where this kernel does not have it.
    pub fn values(&self, enumeration: &str) -> Result<Vec<(String, u32)>, BtfError> {
        let Some(id) = self.find(KIND_ENUM, enumeration)? else {
            return Ok(Vec::new());
        };
        let at = self.types.get(id).copied().unwrap_or(0);
        let count = word(&self.bytes, at + 4)? & 0xffff;
        let value = |index: usize| {
            let member = at + 12 + index * 8;
            let name = String::from_utf8_lossy(self.name(word(&self.bytes, member)?)).into_owned();
            let number = u32::try_from(word(&self.bytes, member + 4)?).map_err(|_| BtfError::Damaged { at: member })?;
            Ok((name, number))
        };
        (0..count).map(value).collect()
    }

    /// The number of a structure.
    pub fn structure_number(&self, name: &str) -> Result<u32, BtfError> {
        let id = self.structure(name)?;
        u32::try_from(id).map_err(|_| BtfError::Damaged { at: 0 })
    }

    /// The number of a function, where it is described here.
    pub fn function(&self, name: &str) -> Result<Option<u32>, BtfError> {
        Ok(self.find(KIND_FUNCTION, name)?.and_then(|id| u32::try_from(id).ok()))
    }

    /// The number of a function of a module, whose types go on where the kernel's own (these) end, and so do its
    /// strings.
    pub fn function_of_module(&self, module: Vec<u8>, name: &str) -> Result<Option<u32>, BtfError> {
        let length = word(&self.bytes, 20)?;
        let module = Self::parse(module)?;
        for (index, &at) in module.types.iter().enumerate().skip(1) {
            if kind(word(&module.bytes, at + 4)?) != KIND_FUNCTION {
                continue;
            }
            let offset = word(&module.bytes, at)?;
            let text = if offset < length {
                self.name(offset)
            } else {
                module.name(offset - length)
            };
            if text == name.as_bytes() {
                return Ok(u32::try_from(self.types.len() + index - 1).ok());
            }
        }
        Ok(None)
    }

    fn structure(&self, name: &str) -> Result<usize, BtfError> {
        self.find(KIND_STRUCT, name)?
            .ok_or_else(|| BtfError::NoStruct(name.to_owned()))
    }

    fn find(&self, wanted: usize, name: &str) -> Result<Option<usize>, BtfError> {
        for &id in &self.named {
            let at = self.types.get(id).copied().unwrap_or(0);
            if kind(word(&self.bytes, at + 4)?) == wanted && self.is_called(word(&self.bytes, at)?, name) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Offset in bits and type of a member, also of one in an unnamed structure or union.
    fn member(&self, id: usize, name: &str) -> Result<Option<(usize, usize)>, BtfError> {
        let Some(at) = self.composite(id)? else { return Ok(None) };
        let info = word(&self.bytes, at + 4)?;
        let bit_fields = info >> 31 == 1;
        for index in 0..info & 0xffff {
            let member = at + 12 + index * 12;
            let text = self.name(word(&self.bytes, member)?);
            let inner = word(&self.bytes, member + 4)?;
            let mut offset = word(&self.bytes, member + 8)?;
            if bit_fields {
                offset &= 0x00ff_ffff;
            }
            if text == name.as_bytes() {
                return Ok(Some((offset, inner)));
            }
            if text.is_empty()
                && let Some((deeper, found)) = self.member(inner, name)?
            {
                return Ok(Some((offset + deeper, found)));
            }
        }
        Ok(None)
    }

    /// The record of the structure or union that a type is once its names and qualifiers are taken off.
    fn composite(&self, mut id: usize) -> Result<Option<usize>, BtfError> {
        for _ in 0..32 {
            let Some(&at) = self.types.get(id).filter(|&&at| at != 0) else {
                return Ok(None);
            };
            let kind = kind(word(&self.bytes, at + 4)?);
            if kind == KIND_STRUCT || kind == KIND_UNION {
                return Ok(Some(at));
            }
            if !MODIFIERS.contains(&kind) {
                return Ok(None);
            }
            id = word(&self.bytes, at + 8)?;
        }
        Ok(None)
    }

    /// Whether that name stands there, without looking for its end.
    fn is_called(&self, offset: usize, name: &str) -> bool {
        let text = self.bytes.get(self.strings + offset..).unwrap_or_default();
        let rest = text.strip_prefix(name.as_bytes());
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }

    fn name(&self, offset: usize) -> &[u8] {
        let start = self.bytes.get(self.strings + offset..).unwrap_or_default();
        start.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}

fn kind(info: usize) -> usize {
    info >> 24 & 0x1f
}

/// Bytes behind the record's first twelve.
fn extra(info: usize) -> Option<usize> {
    let members = info & 0xffff;
    Some(match kind(info) {
        2 | 7..=12 | 16 | 18 => 0,
        1 | 14 | 17 => 4,
        3 => 12,
        6 | 13 => members * 8,
        4 | 5 | 15 | 19 => members * 12,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Result<usize, BtfError> {
    let four: [u8; 4] = bytes
        .get(at..at + 4)
        .and_then(|slice| slice.try_into().ok())
        .ok_or(BtfError::Damaged { at })?;
    usize::try_from(u32::from_le_bytes(four)).map_err(|_| BtfError::Damaged { at })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF with `struct outer { int pad; struct { int first; struct inner named; }; }`, `struct inner { int x, y; }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0pad\0first\0named\0inner\0x\0y\0";
        let name = |text: &str| {
            let needle = format!("\0{text}\0");
            let place = strings
                .windows(needle.len())
                .position(|window| window == needle.as_bytes());
            u32::try_from(place.expect("a name of the sample") + 1).expect("small")
        };
        let mut types: Vec<u32> = Vec::new();
        // 1: int
        types.extend([name("int"), 1 << 24, 4, 32]);
        // 2: struct inner { x at 0, y at 32 bits }
        types.extend([name("inner"), 4 << 24 | 2, 8, name("x"), 1, 0, name("y"), 1, 32]);
        // 3: the unnamed structure
        types.extend([0, 4 << 24 | 2, 12, name("first"), 1, 0, name("named"), 5, 32]);
        // 4: struct outer, with the flag of bit fields
        types.extend([
            name("outer"),
            1 << 31 | 4 << 24 | 2,
            16,
            name("pad"),
            1,
            3 << 24,
            0,
            3,
            32,
        ]);
        // 5: const struct inner
        types.extend([0, 10 << 24, 2]);
        // 6: enum { x = 7, y = 9 }, named inner as well; 7: a function named int
        types.extend([name("inner"), 6 << 24 | 2, 4, name("x"), 7, name("y"), 9]);
        types.extend([name("int"), 12 << 24, 1]);
        let body: Vec<u8> = types.iter().flat_map(|word| word.to_le_bytes()).collect();
        let length = u32::try_from(body.len()).expect("small");
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, length, length, u32::try_from(strings.len()).expect("small")] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(body);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_are_found_through_unnamed_structures_and_qualifiers() {
        let btf = Btf::parse(sample()).expect("the sample is whole");
        assert_eq!(btf.bytes("outer", &["pad"]).expect("there"), 0);
        assert_eq!(btf.bytes("outer", &["first"]).expect("there"), 4);
        assert_eq!(btf.bytes("outer", &["named", "y"]).expect("there"), 12);
    }

    #[test]
    fn values_and_functions_are_found_by_name() {
        let btf = Btf::parse(sample()).expect("the sample is whole");
        let values = btf.values("inner").expect("whole");
        assert_eq!(values, [("x".to_owned(), 7), ("y".to_owned(), 9)]);
        assert!(
            btf.values("outer").expect("whole").is_empty(),
            "a structure is no enumeration"
        );
        assert_eq!(btf.function("int").expect("whole"), Some(7));
        assert_eq!(btf.function("outer").expect("whole"), None);
    }

    #[test]
    fn types_of_a_module_go_on_where_the_kernels_end() {
        let btf = Btf::parse(sample()).expect("the sample is whole");
        let length = u32::try_from(word(&btf.bytes, 20).expect("whole")).expect("small");
        let mut module = vec![0x9f, 0xeb, 1, 0];
        // Two functions: the name of one is the kernel's string at 1 ("int"), the other's is the module's own.
        for word in [24, 0, 24, 24, 6, 1, 12 << 24, 1, length + 1, 12 << 24, 1] {
            module.extend(word.to_le_bytes());
        }
        module.extend(b"\0mine\0");
        let find = |name: &str| btf.function_of_module(module.clone(), name).expect("whole");
        assert_eq!((find("int"), find("mine"), find("outer")), (Some(8), Some(9), None));
    }

    #[test]
    fn what_is_missing_is_named() {
        let btf = Btf::parse(sample()).expect("the sample is whole");
        assert_eq!(
            btf.bytes("none", &["x"]).expect_err("absent").to_string(),
            "this kernel has no struct none"
        );
        let error = btf.bytes("outer", &["named", "z"]).expect_err("absent").to_string();
        assert_eq!(error, "this kernel's struct outer has no member named.z");
    }

    #[test]
    fn damaged_bytes_are_an_error_and_not_a_panic() {
        assert!(Btf::parse(vec![1, 2, 3]).is_err());
        let whole = sample();
        for length in 0..whole.len() {
            if let Ok(btf) = Btf::parse(whole.get(..length).unwrap_or_default().to_vec()) {
                let _ = btf.bytes("outer", &["named", "y"]);
            }
        }
    }
}
