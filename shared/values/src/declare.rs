//! Types as C declares them.

use canopy_chain::btf::{Btf, Type, kind};
use std::fmt::Write as _;

/// Longest declaration.
const LONGEST: usize = 2048;
/// Types within types that are written out.
const DEPTH: usize = 6;

/// The type in one line, the members of structs and enumerations written out.
pub(crate) fn declare(btf: &Btf<'_>, ty: u32) -> String {
    let mut text = declaration(btf, ty, "", DEPTH);
    if let Some((cut, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// `type name`, as it would stand in a struct.
fn declaration(btf: &Btf<'_>, ty: u32, name: &str, depth: usize) -> String {
    let with = |text: &str, name: &str| {
        if name.is_empty() { text.to_owned() } else { format!("{text} {name}") }
    };
    let (Some(of), Some(depth)) = (btf.get(ty), depth.checked_sub(1)) else {
        return with(if ty == 0 { "void" } else { "…" }, name);
    };
    let own = btf.string(of.name);
    match of.kind {
        kind::PTR => match btf.get(of.size_or_type).map(|to| to.kind) {
            Some(kind::FUNC_PROTO) => with("void", &format!("(*{name})()")),
            Some(kind::ARRAY) => declaration(btf, of.size_or_type, &format!("(*{name})"), depth),
            // What a pointer leads to is not in the map.
            _ => format!("{} *{name}", outline(btf, of.size_or_type)),
        },
        kind::ARRAY => declaration(btf, of.word(0), &format!("{name}[{}]", of.word(2)), depth),
        kind::CONST | kind::VOLATILE => {
            let (words, inner) = qualifiers(btf, ty);
            format!("{words}{}", declaration(btf, inner, name, depth))
        }
        kind::RESTRICT | kind::TYPE_TAG => declaration(btf, of.size_or_type, name, depth),
        kind::STRUCT | kind::UNION => with(&record(btf, of, depth), name),
        kind::ENUM | kind::ENUM64 => with(&enumeration(btf, of), name),
        kind::TYPEDEF if is_record(btf, ty) => {
            let body = btf.resolve(ty).map(|(_, target)| body(btf, target, depth));
            with(&format!("{own} {}", body.unwrap_or_default()), name)
        }
        _ => with(own, name),
    }
}

/// The qualifiers that a type begins with, as text, and what they qualify. There may be as many in a
/// row as the file holds, and they may be a circle: what is left of more than C allows is not followed.
fn qualifiers(btf: &Btf<'_>, mut ty: u32) -> (String, u32) {
    const MOST: usize = 4;
    let mut words = String::new();
    for _ in 0..MOST {
        match btf.get(ty) {
            Some(of) if of.kind == kind::CONST => words.push_str("const "),
            Some(of) if of.kind == kind::VOLATILE => words.push_str("volatile "),
            _ => break,
        }
        ty = btf.get(ty).map_or(0, |of| of.size_or_type);
    }
    (words, ty)
}

fn is_record(btf: &Btf<'_>, ty: u32) -> bool {
    btf.resolve(ty).is_some_and(|(_, of)| matches!(of.kind, kind::STRUCT | kind::UNION))
}

/// A type's name without what is in it.
fn outline(btf: &Btf<'_>, ty: u32) -> String {
    let Some(of) = btf.get(ty) else { return "void".to_owned() };
    let name = btf.string(of.name);
    match of.kind {
        kind::STRUCT => format!("struct {name}"),
        kind::UNION => format!("union {name}"),
        kind::ENUM | kind::ENUM64 => format!("enum {name}"),
        kind::CONST | kind::VOLATILE | kind::RESTRICT | kind::TYPE_TAG | kind::PTR
            if of.size_or_type != ty =>
        {
            // A qualifier, or a further star: "void" says as much.
            "void".to_owned()
        }
        _ => name.to_owned(),
    }
}

fn record(btf: &Btf<'_>, of: &Type<'_>, depth: usize) -> String {
    let word = if of.kind == kind::UNION { "union" } else { "struct" };
    let name = btf.string(of.name);
    let gap = if name.is_empty() { "" } else { " " };
    format!("{word}{gap}{name} {}", body(btf, of, depth))
}

fn body(btf: &Btf<'_>, of: &Type<'_>, depth: usize) -> String {
    let mut text = "{".to_owned();
    for i in 0..usize::from(of.vlen) {
        let member = declaration(btf, of.word(i * 3 + 1), btf.string(of.word(i * 3)), depth);
        let _ = write!(text, " {member}");
        let bits = if of.flag { of.word(i * 3 + 2) >> 24 } else { 0 };
        if bits > 0 {
            let _ = write!(text, " : {bits}");
        }
        text.push(';');
        if text.len() > LONGEST {
            text.push('…');
            return text;
        }
    }
    text + " }"
}

fn enumeration(btf: &Btf<'_>, of: &Type<'_>) -> String {
    let words = if of.kind == kind::ENUM64 { 3 } else { 2 };
    let names: Vec<&str> =
        (0..usize::from(of.vlen)).map(|i| btf.string(of.word(i * words))).collect();
    let name = btf.string(of.name);
    let gap = if name.is_empty() { "" } else { " " };
    format!("enum{gap}{name} {{ {} }}", names.join(", "))
}
