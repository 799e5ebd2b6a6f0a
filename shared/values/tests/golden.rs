//! Values of every kind of type, by the BTF that clang writes.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use canopy_test_support::compile;
use canopy_values::{Codec, MapTypes, ObjectTypes};
use serde_json::{Value, json};
use std::{path::Path, sync::LazyLock};

static TYPES: LazyLock<ObjectTypes> = LazyLock::new(|| {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects/values.bpf.c");
    let dir = tempfile();
    let object = dir.join("values.o");
    compile(&source, &object).unwrap();
    let types = ObjectTypes::read(&std::fs::read(&object).unwrap()).unwrap();
    std::fs::remove_dir_all(dir).unwrap();
    types
});

fn tempfile() -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("canopy-values-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Bytes at offsets; zeros between.
fn laid_out(size: usize, parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (at, part) in parts {
        bytes[*at..*at + part.len()].copy_from_slice(part);
    }
    bytes
}

/// Both ways: the bytes mean this, and this means the bytes.
fn means(map: &str, bytes: &[u8], json: &Value) {
    let codec = TYPES.codec();
    let ty = TYPES.map(map).value;
    assert!(ty.is_some(), "{map} has no type");
    assert_eq!(codec.decode(ty, bytes), *json, "{map}");
    assert_eq!(codec.encode(ty, bytes.len(), json, "value").unwrap(), bytes, "{map}");
}

#[test]
fn numbers_of_every_width_names_and_characters() {
    let bytes = laid_out(
        112,
        &[
            (0, &[200]),
            (1, &[0x80]),
            (2, &65535_u16.to_ne_bytes()),
            (4, &(-2_i16).to_ne_bytes()),
            (8, &u32::MAX.to_ne_bytes()),
            (12, &i32::MIN.to_ne_bytes()),
            (16, &u64::MAX.to_ne_bytes()),
            (24, &i64::MIN.to_ne_bytes()),
            (32, &u128::MAX.to_ne_bytes()),
            (48, &(-7_i128).to_ne_bytes()),
            (64, &[1]),
            (65, &[7]),
            (66, b"k"),
            (67, &[0xf9]),
            (68, &5_u32.to_ne_bytes()),
            (72, &77_u32.to_ne_bytes()),
            (76, &[200]),
            (80, &0xffff_0000_u64.to_ne_bytes()),
            (88, &3_u32.to_ne_bytes()),
            (96, &0xffff_8880_dead_beef_u64.to_ne_bytes()),
        ],
    );
    means(
        "scalars",
        &bytes,
        &json!({
            "u8": 200, "s8": -128, "u16": 65535, "s16": -2, "u32": u32::MAX, "s32": i32::MIN,
            "u64": u64::MAX, "s64": i64::MIN,
            "u128": "340282366920938463463374607431768211455", "s128": -7,
            "yes": true, "odd": 7, "letter": "k", "bell": -7,
            "colour": "GREEN", "unknown": 77, "small": "HIGH", "wide": 0xffff_0000_u64,
            "hidden": 3, "pointer": "0xffff8880deadbeef",
        }),
    );
}

#[test]
fn network_order_reads_as_the_host_does() {
    let bytes = laid_out(
        24,
        &[
            (0, &[0, 80]),
            (4, &[198, 51, 100, 7]),
            (8, &[0, 0, 0, 0, 0, 0, 1, 0]),
            (16, &[0x01, 0xbb, 0x1f, 0x90]),
        ],
    );
    let address = (198_u32 << 24) + (51 << 16) + (100 << 8) + 7;
    let json = json!({ "port": 80, "address": address, "both": 256, "list": [443, 8080] });
    means("networks", &bytes, &json);
    let codec = TYPES.codec();
    let MapTypes { key, .. } = TYPES.map("networks");
    assert_eq!(codec.decode(key, &[0, 80]), json!(80));
    assert_eq!(codec.encode(key, 2, &json!("0x1f90"), "key").unwrap(), [0x1f, 0x90]);
}

#[test]
fn characters_are_text_where_they_are_text() {
    let bytes = laid_out(
        25,
        &[(0, "grün".as_bytes()), (8, b"full"), (12, b"a\0b\0"), (19, &[2, 0, 94, 16, 0, 1])],
    );
    means(
        "texts",
        &bytes,
        &json!({ "name": "grün", "full": "full", "not_text": ["a", 0, "b", 0], "empty": "",
                 "mac": [2, 0, 94, 16, 0, 1] }),
    );
    let codec = TYPES.codec();
    let key = TYPES.map("texts").key;
    assert_eq!(codec.encode(key, 8, &json!("eth0"), "key").unwrap(), b"eth0\0\0\0\0");
    assert_eq!(codec.decode(key, b"eth0\0\0\0\x01"), json!(["e", "t", "h", "0", 0, 0, 0, 1]));
    let long = codec.encode(key, 8, &json!("interface"), "key").unwrap_err();
    assert_eq!(long.to_string(), "key: the text has 9 bytes, more than 8 (shorten it)");
}

#[test]
fn bit_fields_lie_where_the_compiler_puts_them() {
    // From the lowest bit: 3, 5, then 1, 4, 40.
    let raw = 5_u64 | 0b10001 << 3 | 1 << 8 | 6 << 9 | 0xab_cdef_0123 << 13;
    let bytes = laid_out(16, &[(0, &raw.to_ne_bytes()), (8, &9_u32.to_ne_bytes())]);
    means(
        "bits",
        &bytes,
        &json!({ "three": 5, "signed_five": -15, "flag": true, "colour": "BLUE",
                 "wide": 0xab_cdef_0123_u64, "after": 9 }),
    );
    let codec = TYPES.codec();
    let mut value = codec.decode(TYPES.map("bits").value, &bytes);
    value["signed_five"] = json!(16);
    value["three"] = json!(8);
    let wrong = codec.encode(TYPES.map("bits").value, 16, &value, "value").unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "value.three: 8 is out of range (write a number of 0 to 7)\n\
         value.signed_five: 16 is out of range (write a number of -16 to 15)"
    );
}

#[test]
fn structs_in_structs_unions_and_arrays_of_arrays() {
    let mut parts: Vec<(usize, Vec<u8>)> =
        (0..6).map(|i: u8| (usize::from(i) * 4, i32::from(i).to_ne_bytes().to_vec())).collect();
    parts.push((24, 9_u16.to_ne_bytes().to_vec()));
    parts.push((28, vec![1, 2, 3, 4]));
    parts.push((32, 0x0000_0002_0000_0001_u64.to_ne_bytes().to_vec()));
    parts.push((40, vec![0, 53]));
    let parts: Vec<(usize, &[u8])> =
        parts.iter().map(|(at, part)| (*at, part.as_slice())).collect();
    let bytes = laid_out(64, &parts);
    let json = json!({
        "matrix": [[0, 1, 2], [3, 4, 5]],
        "inner": 9, "word": 0x0403_0201, "bytes": [1, 2, 3, 4],
        "view": { "number": 0x2_0000_0001_u64, "halves": { "low": 1, "high": 2 } },
        "net": { "port": 53, "address": 0, "both": 0, "list": [0, 0] },
    });
    means("nests", &bytes, &json);

    // One view of a union is enough; two that disagree are a mistake.
    let codec = TYPES.codec();
    let ty = TYPES.map("nests").value;
    let mut one = json.clone();
    one.as_object_mut().unwrap().remove("word");
    one["view"] = json!({ "halves": { "low": 1, "high": 2 } });
    assert_eq!(codec.encode(ty, 64, &one, "value").unwrap(), bytes);
    let mut two = json.clone();
    two["view"]["number"] = json!(7);
    let wrong = codec.encode(ty, 64, &two, "value").unwrap_err().to_string();
    assert!(wrong.contains("value.view.halves.low: it says something else"), "{wrong}");
    one.as_object_mut().unwrap().remove("bytes");
    let none = codec.encode(ty, 64, &one, "value").unwrap_err();
    assert_eq!(
        none.to_string(),
        "value: no member of the union is given (give one of word, bytes)"
    );
}

#[test]
fn floats() {
    let bytes = laid_out(16, &[(0, &0.1_f32.to_ne_bytes()), (8, &f64::NEG_INFINITY.to_ne_bytes())]);
    means("fractions", &bytes, &json!({ "narrow": 0.1, "wide": "-inf" }));
    let bytes = laid_out(16, &[(0, &f32::NAN.to_ne_bytes()), (8, &1e300_f64.to_ne_bytes())]);
    means("fractions", &bytes, &json!({ "narrow": "nan", "wide": 1e300 }));
    let codec = TYPES.codec();
    let ty = TYPES.map("fractions").value;
    let wrong = codec.encode(ty, 16, &json!({ "narrow": 1e300, "wide": 1 }), "value").unwrap_err();
    assert_eq!(wrong.0[0].path, "value.narrow");
}

#[test]
fn what_is_the_kernels_is_shown_and_never_written() {
    let codec = TYPES.codec();
    let ty = TYPES.map("locked").value;
    let declared = codec.declare(ty.unwrap());
    assert!(declared.starts_with("struct kernels { struct bpf_spin_lock {"), "{declared}");
    let size = 24;
    let bytes = laid_out(size, &[(0, &[0xff; 4]), (4, &3_u32.to_ne_bytes()), (8, &[0xff; 16])]);
    let told = codec.decode(ty, &bytes);
    assert_eq!(told, json!({ "lock": "(bpf_spin_lock)", "count": 3, "timer": "(bpf_timer)" }));
    let written = laid_out(size, &[(4, &3_u32.to_ne_bytes())]);
    assert_eq!(codec.encode(ty, size, &told, "value").unwrap(), written);
    assert_eq!(codec.encode(ty, size, &json!({ "count": 3 }), "value").unwrap(), written);
    let wrong =
        codec.encode(ty, size, &json!({ "count": 3, "timer": [0, 0] }), "value").unwrap_err();
    assert_eq!(wrong.to_string(), "value.timer: a bpf_timer belongs to the kernel (leave it out)");
}

#[test]
fn a_trie_the_kernel_keeps_without_types_has_the_objects() {
    let codec = TYPES.codec();
    let MapTypes { key, value } = TYPES.map("trie");
    let bytes = laid_out(8, &[(0, &24_u32.to_ne_bytes()), (4, &[198, 51, 100, 0])]);
    let json = json!({ "prefixlen": 24, "address": [198, 51, 100, 0] });
    assert_eq!(codec.decode(key, &bytes), json);
    assert_eq!(codec.encode(key, 8, &json, "key").unwrap(), bytes);
    assert_eq!(
        codec.declare(key.unwrap()),
        "struct trie_key { __u32 prefixlen; __u8 address[4]; }"
    );
    assert_eq!(codec.declare(value.unwrap()), "__u64");
}

#[test]
fn without_types_everything_is_hexadecimal() {
    let codec = TYPES.codec();
    assert_eq!(TYPES.map("untyped"), MapTypes::default());
    assert_eq!(codec.decode(None, &[0xde, 0xad]), json!("dead"));
    assert_eq!(codec.encode(None, 2, &json!("de:ad"), "key").unwrap(), [0xde, 0xad]);
    for wrong in [json!("dea"), json!("deadbeef"), json!(57005), json!("zz")] {
        let error = codec.encode(None, 2, &wrong, "key").unwrap_err().to_string();
        assert!(error.contains("is not 2 bytes in hexadecimal text"), "{error}");
    }
    // A type that does not fit the bytes is no type.
    let key = TYPES.map("trie").key;
    assert_eq!(codec.decode(key, &[1, 2]), json!("0102"));
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let codec = TYPES.codec();
    let ty = TYPES.map("networks").value;
    let value = json!({ "port": 65536, "adress": 1, "both": "x", "list": [1, 2, 3] });
    let wrong = codec.encode(ty, 24, &value, "entries[2].value").unwrap_err();
    let mut told: Vec<String> = wrong.0.iter().map(ToString::to_string).collect();
    told.sort();
    assert_eq!(
        told,
        [
            "entries[2].value.adress: network has no field \"adress\" (it has port, address, both, \
             list)",
            "entries[2].value.both: \"x\" is not a whole number (write a number of 0 to \
             18446744073709551615)",
            "entries[2].value.list: it has 3 items, not 2 (write a list of 2 items)",
            "entries[2].value.port: 65536 is out of range (write a number of 0 to 65535)",
            "entries[2].value: \"address\" is missing (give every field: read the entry, change \
             it, write it)",
        ]
    );
    let colour = codec.encode(TYPES.map("bits").value, 16, &json!({ "colour": "PURPLE" }), "v");
    let colour = colour.unwrap_err().to_string();
    assert!(colour.contains("(write one of RED, GREEN, BLUE, or a number)"), "{colour}");
}

#[test]
fn sums_of_what_can_be_summed() {
    let codec = TYPES.codec();
    let u64s = [u64::MAX.to_ne_bytes(), 2_u64.to_ne_bytes()];
    assert_eq!(codec.sum(TYPES.map("trie").value, &u64s), Some(json!("18446744073709551617")));
    let fields = |three: u64, five: u64| {
        let raw = three | five << 3 | 1 << 8 | 6 << 9;
        laid_out(16, &[(0, &raw.to_ne_bytes()), (8, &9_u32.to_ne_bytes())])
    };
    let sum = codec.sum(TYPES.map("bits").value, &[fields(5, 0b11111), fields(7, 0b00011)]);
    // Names and truths are not added up.
    assert_eq!(sum, Some(json!({ "three": 12, "signed_five": 2, "wide": 0, "after": 18 })));
    let nested = codec.sum(TYPES.map("nests").value, &[vec![1; 64], vec![1; 64]]).unwrap();
    assert_eq!(nested["matrix"][1][2], json!(0x0202_0202));
    assert_eq!(nested["view"], Value::Null, "which member of a union counts is not known");
    assert_eq!(Codec::default().sum(None, &[[1_u8]]), None);
}

#[test]
fn types_are_found_by_name() {
    let codec = TYPES.codec();
    let declared = |name: &str| TYPES.named(name).map(|ty| codec.declare(ty));
    assert_eq!(declared("struct floats").unwrap(), "struct floats { float narrow; double wide; }");
    assert_eq!(declared("floats"), declared("struct floats"));
    assert!(declared("matrix_t").is_some() && declared("enum colour").is_some());
    // A map's variable is no type, nor is nothing.
    for name in ["union floats", "trie", ".maps", "", "struct ", "nothing"] {
        assert_eq!(declared(name), None, "{name}");
    }
    assert!(TYPES.names().iter().any(|name| name == "trie_key"));
}

#[test]
fn variables_of_data_sections_are_named() {
    let codec = TYPES.codec();
    let variable = |section: &str, name: &str| {
        let all = TYPES.variables(section);
        let found = all.iter().find(|variable| variable.name == name);
        found.unwrap_or_else(|| panic!("{section} has {all:?}")).clone()
    };
    let limit = variable(".rodata", "limit");
    assert_eq!(
        (limit.size, codec.declare(limit.ty.unwrap())),
        (2, "const volatile __u16".to_owned())
    );
    let direction = variable(".data", "direction");
    assert_eq!(codec.decode(direction.ty, &1_u32.to_ne_bytes()), json!("PLUS"));
    assert_eq!(codec.decode(direction.ty, &u32::MAX.to_ne_bytes()), json!("MINUS"));
    assert_eq!(codec.encode(direction.ty, 4, &json!("MINUS"), "").unwrap(), u32::MAX.to_ne_bytes());
    let ready = variable(".data", "ready");
    assert_eq!(codec.decode(ready.ty, &[1]), json!(true));
    assert_ne!(ready.offset, direction.offset);
    assert_eq!(variable(".bss", "counted").size, 8);
    assert_eq!(variable(".data.custom", "elsewhere").size, 24);
    assert_eq!(TYPES.section_of("counted"), Some(".bss"));
    assert_eq!(TYPES.section_of("nothing"), None);
}
