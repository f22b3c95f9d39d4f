//! What the compiler and the disassembler say of a kernel.

use std::collections::BTreeMap;

/// What a kernel costs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Of a thread.
    pub registers: u32,
    /// Bytes written to memory because registers didn't suffice.
    pub spill_stores: u32,
    /// Bytes read back.
    pub spill_loads: u32,
    /// Whether the compiler had to wait after each matrix instruction.
    pub serialised: bool,
}

/// Reads a compiler's log; nothing if it doesn't say all of it.
pub fn usage(log: &str) -> Option<Usage> {
    let before = |what: &str| {
        let at = log.find(what)?;
        log[..at].split_whitespace().next_back()?.parse().ok()
    };
    Some(Usage {
        registers: before(" registers")?,
        spill_stores: before(" bytes spill stores")?,
        spill_loads: before(" bytes spill loads")?,
        serialised: log.contains("wgmma.mma_async instructions are serialized"),
    })
}

/// How often each instruction stands in a disassembly: `QGMMA` for `QGMMA.64x128x32.F32.E4M3.E4M3`.
pub fn instructions(disassembly: &str) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for line in disassembly.lines() {
        let Some((_, code)) = line.trim_start().strip_prefix("/*").and_then(|rest| rest.split_once("*/"))
        else {
            continue;
        };
        let name = code.split_whitespace().find(|word| !word.starts_with('@') && *word != "{");
        let name = name.and_then(|word| word.split(['.', ';']).next()).unwrap_or_default();
        if name.starts_with(|first: char| first.is_ascii_uppercase()) {
            *found.entry(name.to_owned()).or_insert(0) += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_and_spills_are_read() {
        let log = "ptxas info    : Compiling entry function 'gemm' for 'sm_90a'\n\
                   ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
                   ptxas info    : Used 168 registers, used 16 barriers\n";
        let expected = Usage { registers: 168, spill_stores: 4, spill_loads: 12, serialised: false };
        assert_eq!(usage(log), Some(expected));
        assert_eq!(usage("nothing"), None);
    }

    #[test]
    fn instructions_are_counted_by_name() {
        let text = "        /*0000*/                   LDC R1, c[0x0][0x28] ;\n\
                    \t.text.gemm:\n\
                    \t/*0010*/              @!P0 QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR4], R24 ;\n\
                    \t/*0020*/                   QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR4], R24 ;\n\
                    \t/*0030*/              {    UTMALDG.2D [UR8], [UR4] ;\n";
        let found = instructions(text);
        let expected =
            [("LDC", 1), ("QGMMA", 2), ("UTMALDG", 1)].map(|(name, count)| (name.to_owned(), count));
        assert_eq!(found, expected.into_iter().collect());
    }
}
