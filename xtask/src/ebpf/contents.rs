//! What an object contains apart from its instructions: programs, maps, and the names of its BTF types. Objects of
//! two compilers are compared by it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};

use super::btf;

/// The section of what several programs call: how much stands there is up to the compiler.
const SHARED: &str = ".text";

/// A program may be this much longer or shorter from another compiler: one part in four.
const TOLERANCE: u64 = 4;

/// The comparable parts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Section and name of each program, and its size in bytes.
    programs: BTreeMap<String, u64>,
    /// Map and its definition.
    maps: BTreeMap<String, Vec<u8>>,
    /// Structures, unions and enumerations.
    types: BTreeSet<String>,
}

impl Contents {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        let file = object::File::parse(bytes).context("read the object")?;
        let mut contents = Self::default();
        let sections = file.sections().filter(|section| section.kind() == SectionKind::Text);
        for section in sections.filter(|section| section.name() != Ok(SHARED)) {
            let inside = |symbol: &object::Symbol<'_, '_>| symbol.section_index() == Some(section.index());
            for symbol in file.symbols().filter(|symbol| inside(symbol) && symbol.size() > 0) {
                let name = format!("{}/{}", section.name()?, symbol.name()?);
                contents.programs.insert(name, symbol.size());
            }
        }
        if let Some(maps) = file.section_by_name("maps").or_else(|| file.section_by_name(".maps")) {
            let data = maps.data()?;
            for symbol in file
                .symbols()
                .filter(|symbol| symbol.section_index() == Some(maps.index()) && symbol.size() > 0)
            {
                let start = usize::try_from(symbol.address())?;
                let definition = data
                    .get(start..start + usize::try_from(symbol.size())?)
                    .context("a map's definition")?;
                contents.maps.insert(symbol.name()?.to_owned(), definition.to_owned());
            }
        }
        let types = file.section_by_name(".BTF").context("the object has no BTF")?;
        contents.types = btf::type_names(types.data()?)?.into_iter().collect();
        ensure!(!contents.programs.is_empty(), "the object has no program");
        Ok(contents)
    }

    /// Each difference in a sentence.
    pub(crate) fn differences(&self, fresh: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (section, size) in &self.programs {
            match fresh.programs.get(section) {
                Some(other) if size.abs_diff(*other) <= size / TOLERANCE => {}
                Some(other) => found.push(format!("program {section} has {other} bytes, committed {size}")),
                None => found.push(format!("program {section} is committed only")),
            }
        }
        let unknown = fresh
            .programs
            .keys()
            .filter(|section| !self.programs.contains_key(*section));
        found.extend(unknown.map(|section| format!("program {section} is not committed")));
        let maps = self.maps.keys().chain(fresh.maps.keys()).collect::<BTreeSet<_>>();
        let differing = maps
            .into_iter()
            .filter(|name| self.maps.get(*name) != fresh.maps.get(*name));
        found.extend(differing.map(|name| format!("map {name} is defined otherwise")));
        found.extend(
            self.types
                .symmetric_difference(&fresh.types)
                .map(|name| format!("type {name} is in one only")),
        );
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(size: u64, map: &[u8]) -> Contents {
        Contents {
            programs: BTreeMap::from([("classifier".to_owned(), size)]),
            maps: BTreeMap::from([("COUNTS".to_owned(), map.to_owned())]),
            types: BTreeSet::from(["Count".to_owned()]),
        }
    }

    #[test]
    fn another_compiler_may_make_a_program_a_little_longer() {
        assert!(contents(1000, b"1").differences(&contents(1200, b"1")).is_empty());
        assert_eq!(contents(1000, b"1").differences(&contents(1300, b"1")).len(), 1);
    }

    #[test]
    fn a_map_must_be_defined_the_same() {
        assert_eq!(
            contents(1, b"1").differences(&contents(1, b"2")),
            ["map COUNTS is defined otherwise"]
        );
    }

    #[test]
    fn the_committed_object_can_be_read() {
        let object = include_bytes!("../../../macvlan-agent/bpf/macvlan-agent.x86_64.bpfel.o");
        let contents = Contents::read(object).unwrap();
        assert!(contents.programs.len() >= 2 && !contents.maps.is_empty() && !contents.types.is_empty());
    }
}
