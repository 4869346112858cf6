//! What an ELF binary is made for, and which libraries it asks the loader for.

use anyhow::{Context, Result, bail, ensure};

/// Processors that packages have names for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// 64-bit x86.
    X86,
    /// 64-bit Arm.
    Arm,
    /// 64-bit RISC-V.
    RiscV,
}

impl Machine {
    /// As Rust and most others call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::X86 => "x86_64",
            Self::Arm => "aarch64",
            Self::RiscV => "riscv64",
        }
    }

    /// As Debian calls it.
    #[must_use]
    pub fn debian(self) -> &'static str {
        match self {
            Self::X86 => "amd64",
            Self::Arm => "arm64",
            Self::RiscV => "riscv64",
        }
    }

    /// As container images call it (Go's `GOARCH`).
    #[must_use]
    pub fn oci(self) -> &'static str {
        self.debian()
    }
}

/// What matters of a binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// What it runs on.
    pub machine: Machine,
    /// The program that loads it, as in `/lib64/ld-linux-x86-64.so.2`; none
    /// where it is whole by itself.
    pub loader: Option<String>,
    /// Libraries, as in `libc.so.6`.
    pub needed: Vec<String>,
    /// The newest GNU C library that it asks for, as in `(2, 34)`.
    pub glibc: Option<(u32, u32)>,
}

const SEGMENT_LOAD: u64 = 1;
const SEGMENT_DYNAMIC: u64 = 2;
const SEGMENT_LOADER: u64 = 3;
const TAG_NEEDED: u64 = 1;
const TAG_STRINGS: u64 = 5;
const TAG_STRINGS_SIZE: u64 = 10;

impl Elf {
    /// Reads a little-endian 64-bit file (System V ABI, chapter 5).
    ///
    /// # Errors
    /// When it is no such file.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.starts_with(b"\x7fELF\x02\x01"), "no 64-bit ELF binary");
        let machine = match number(bytes, 18, 2)? {
            62 => Machine::X86,
            183 => Machine::Arm,
            243 => Machine::RiscV,
            other => bail!("made for machine {other}, which packages have no name for"),
        };
        let (table, size, count) = (number(bytes, 32, 8)?, number(bytes, 54, 2)?, number(bytes, 56, 2)?);
        let mut segments = Vec::new();
        for at in (0..count).map(|i| table.saturating_add(i * size)) {
            // Its kind, its place in the file and in memory, its length.
            segments.push([
                number(bytes, at, 4)?,
                number(bytes, at + 8, 8)?,
                number(bytes, at + 16, 8)?,
                number(bytes, at + 32, 8)?,
            ]);
        }
        let segment = |kind: u64| segments.iter().find(|s| s[0] == kind);
        let loader = segment(SEGMENT_LOADER).map(|s| text(bytes, s[1])).transpose()?;
        let Some(dynamic) = segment(SEGMENT_DYNAMIC) else {
            return Ok(Self { machine, loader, needed: Vec::new(), glibc: None });
        };
        let mut tags = Vec::new();
        for at in (dynamic[1]..dynamic[1].saturating_add(dynamic[3])).step_by(16) {
            tags.push((number(bytes, at, 8)?, number(bytes, at + 8, 8)?));
        }
        let tag = |wanted: u64| tags.iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value);
        let (Some(address), Some(length)) = (tag(TAG_STRINGS), tag(TAG_STRINGS_SIZE)) else {
            return Ok(Self { machine, loader, needed: Vec::new(), glibc: None });
        };
        let holds = |s: &&[u64; 4]| s[0] == SEGMENT_LOAD && (s[2]..s[2].saturating_add(s[3])).contains(&address);
        let holder = segments.iter().find(holds).context("its strings are in no segment")?;
        let strings = address - holder[2] + holder[1];
        let named = tags.iter().filter(|(tag, _)| *tag == TAG_NEEDED);
        let needed = named.map(|(_, at)| text(bytes, strings.saturating_add(*at))).collect::<Result<_>>()?;
        let all = slice(bytes, strings, length)?.split(|byte| *byte == 0);
        let versions = all.filter_map(|name| std::str::from_utf8(name).ok()?.strip_prefix("GLIBC_"));
        let parsed = versions.filter_map(|version| {
            let mut parts = version.split('.');
            Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
        });
        Ok(Self { machine, loader, needed, glibc: parsed.max() })
    }
}

fn slice(bytes: &[u8], at: u64, length: u64) -> Result<&[u8]> {
    let end = at.checked_add(length).context("cut short")?;
    bytes.get(usize::try_from(at)?..usize::try_from(end)?).context("cut short")
}

fn number(bytes: &[u8], at: u64, length: u64) -> Result<u64> {
    Ok(slice(bytes, at, length)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn text(bytes: &[u8], at: u64) -> Result<String> {
    let rest = bytes.get(usize::try_from(at)?..).context("cut short")?;
    Ok(String::from_utf8_lossy(rest.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_a_binary() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let elf = Elf::read(&bytes).unwrap();
        assert_eq!(elf.machine.name(), std::env::consts::ARCH);
        assert!(elf.needed.iter().any(|name| name == "libc.so.6"), "{elf:?}");
        assert!(elf.loader.as_ref().is_some_and(|loader| std::path::Path::new(loader).exists()), "{elf:?}");
        assert!(elf.glibc.is_some_and(|version| version > (2, 16)), "{elf:?}");
        for length in [0, 5, 64, 300, 4_096] {
            assert!(Elf::read(&bytes[..length]).is_err(), "cut short at {length}");
        }
    }
}
