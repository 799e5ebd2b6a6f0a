//! What the composer is given: each member's code, relocated and known to load alone.

use crate::insn::{Insn, PSEUDO_MAP_VALUE};
use canopy_api::{ProgramName, VerdictSet};
use std::{collections::BTreeMap, sync::Arc};

/// One program with the functions it calls.
#[derive(Clone, Debug, Default)]
pub struct Code {
    /// The entry function's instructions, then those of the others; calls between them resolved.
    pub instructions: Vec<Insn>,
    /// The functions in the order in which they lie, the entry first.
    pub functions: Vec<Function>,
    /// Source lines by instruction, rising.
    pub lines: Vec<Line>,
    /// The object's `.BTF`, unchanged.
    pub btf: Option<Arc<[u8]>>,
    /// Every load of a map, rising. Two-slot loads whose immediates the loader fills in.
    pub maps: Vec<MapLoad>,
    /// Instructions whose immediate is the number of a type in [`Self::btf`], rising.
    pub type_ids: Vec<usize>,
    /// Instructions that stand for something this kernel lacks, and what that is: the verifier refuses
    /// them where they can be reached.
    pub missing: BTreeMap<usize, String>,
    /// Every call of a kernel function, rising.
    pub kernel_calls: Vec<KernelCall>,
}

/// A call of a kernel function (kfunc).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelCall {
    /// The instruction.
    pub at: usize,
    /// The function's name, as the object says it.
    pub name: String,
    /// Declared `__weak`: it may be missing in the kernel.
    pub weak: bool,
}

impl KernelCall {
    /// The kernel's name of the function: what follows `___` tells declarations of one function apart.
    pub fn kernel_name(&self) -> &str {
        match self.name.split_once("___") {
            Some((name, _)) if !name.is_empty() => name,
            _ => &self.name,
        }
    }
}

/// One function of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name in the object.
    pub name: String,
    /// Its first instruction.
    pub start: usize,
    /// Its `FUNC` type in the object's BTF.
    pub btf: Option<u32>,
}

/// One source line, its strings by offset in the object's BTF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The first instruction of the line.
    pub at: usize,
    /// The file's name.
    pub file: u32,
    /// The line's text.
    pub text: u32,
    /// Line number << 10 | column.
    pub position: u32,
}

/// A 64-bit load of a map, or of a place in its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLoad {
    /// The first of the two slots.
    pub at: usize,
    /// Which of the member's maps.
    pub map: usize,
}

/// A map as the composer sees it.
#[derive(Clone, Debug)]
pub struct Map {
    /// Its name, for messages.
    pub name: String,
    /// The same number for the same map, throughout the chain.
    pub identity: u64,
    /// The contents, when it is a frozen read-only data section that may be laid beside others in
    /// one map.
    pub constant: Option<Arc<[u8]>>,
}

/// One member of a chain to be composed.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name in the chain.
    pub name: ProgramName,
    /// Its code.
    pub code: Code,
    /// The maps its loads refer to.
    pub maps: Vec<Map>,
    /// Verdicts after which the chain goes on.
    pub proceed_on: VerdictSet,
    /// The object's licence string.
    pub licence: String,
    /// Whether it calls something that only GPL-compatible programs may.
    pub needs_gpl: bool,
    /// Whether it handles multi-buffer packets.
    pub frags: bool,
    /// Stack each function uses, bytes, in the order of the functions, as the verifier says; empty
    /// when it does not say.
    pub stack: Vec<u32>,
    /// Instructions the verifier walked when it was loaded alone.
    pub verified_instructions: u32,
    /// Tail calls a packet can take in it at most; 0 without any, the kernel's limit if unknown.
    pub tail_calls: u32,
}

impl Code {
    /// The function an instruction belongs to.
    fn function_at(&self, insn: usize) -> usize {
        self.functions.partition_point(|function| function.start <= insn).saturating_sub(1)
    }

    /// For each function the functions it calls or passes as callbacks.
    fn callees(&self) -> Vec<Vec<usize>> {
        let mut callees = vec![Vec::new(); self.functions.len()];
        for (at, insn) in self.instructions.iter().enumerate() {
            if !insn.is_local_call() && !insn.is_local_function() {
                continue;
            }
            let target = usize::try_from(insn.imm)
                .ok()
                .and_then(|distance| at.checked_add(distance)?.checked_add(1))
                .or_else(|| (at + 1).checked_sub(insn.imm.unsigned_abs() as usize));
            if let (Some(target), Some(list)) = (target, callees.get_mut(self.function_at(at))) {
                list.push(self.function_at(target));
            }
        }
        callees
    }

    /// The deepest path of calls from the entry: the sum of `cost` along it.
    fn deepest(&self, cost: impl Fn(usize) -> u32) -> u32 {
        fn walk(
            function: usize,
            callees: &[Vec<usize>],
            cost: &impl Fn(usize) -> u32,
            known: &mut [Option<u32>],
            depth: usize,
        ) -> u32 {
            if let Some(known) = known.get(function).copied().flatten() {
                return known;
            }
            // Deeper than the kernel allows, or recursion: the number is over every limit anyway.
            if depth > 16 {
                return u32::MAX / 2;
            }
            let deepest = callees
                .get(function)
                .into_iter()
                .flatten()
                .map(|callee| walk(*callee, callees, cost, known, depth + 1))
                .max()
                .unwrap_or(0);
            let sum = cost(function).saturating_add(deepest);
            if let Some(entry) = known.get_mut(function) {
                *entry = Some(sum);
            }
            sum
        }
        let callees = self.callees();
        walk(0, &callees, &cost, &mut vec![None; callees.len()], 0)
    }

    /// Call frames of the deepest path, the entry's included.
    pub fn frames(&self) -> u32 {
        self.deepest(|_| 1)
    }

    /// Stack of the deepest path, bytes, rounded up a frame as the verifier does
    /// (`round_up_stack_depth` with a JIT).
    pub fn stack(&self, of_function: &[u32]) -> u32 {
        self.deepest(|function| {
            of_function.get(function).copied().unwrap_or(0).max(1).next_multiple_of(16)
        })
    }

    /// The function that calls this kernel function, if one does: its name.
    pub fn caller_of(&self, kernel_function: &str) -> Option<&str> {
        let call = self.kernel_calls.iter().find(|call| call.kernel_name() == kernel_function)?;
        self.functions.get(self.function_at(call.at)).map(|function| function.name.as_str())
    }

    /// Whether it calls `bpf_tail_call`.
    pub fn makes_tail_calls(&self) -> bool {
        self.instructions.iter().any(|insn| insn.is_tail_call())
    }
}

impl Member {
    /// The maps that are loaded by its code, each once.
    pub(crate) fn used_maps(&self) -> impl Iterator<Item = &Map> {
        let mut used: Vec<usize> = self.code.maps.iter().map(|load| load.map).collect();
        used.sort_unstable();
        used.dedup();
        used.into_iter().filter_map(|map| self.maps.get(map))
    }

    /// Whether every load of this map takes a place in its value, so that it can be moved.
    pub(crate) fn only_values(&self, map: usize) -> bool {
        self.code.maps.iter().filter(|load| load.map == map).all(|load| {
            self.code.instructions.get(load.at).is_some_and(|insn| insn.src == PSEUDO_MAP_VALUE)
        })
    }
}
