//! Package files, made of the starter packages and of the test programs in `corpus/`.

use crate::{chain, package};
use canopy_api::{Digest, Hook};
use canopy_package::{
    Package,
    manifest::{Bind, ManifestMap, ManifestProgram, Parameter, ParameterType},
};
use canopy_test_support::{compile_with, repository};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A starter package.
///
/// # Panics
///
/// When it does not compile, as all here.
pub fn starter(name: &str) -> Package {
    let manifest = package::manifest(name).unwrap();
    let file = manifest.programs[0].object.clone();
    let object = package::object(name, &file).unwrap().to_vec();
    Package { manifest, objects: [(file, object)].into(), readme: None, license_text: None }
}

/// Version 0.2.0 of the firewall: other bytes of the same program.
pub fn newer_firewall() -> Package {
    let mut newer = starter("firewall");
    newer.manifest.version = "0.2.0".parse().unwrap();
    let build = tempfile::tempdir().unwrap();
    let object = build.path().join("newer.o");
    let source = repository().join("ebpf/packages/firewall/firewall.bpf.c");
    compile_with(&source, &object, &["-O1"]).unwrap();
    let bytes = fs::read(&object).unwrap();
    for old in newer.objects.values_mut() {
        assert_ne!(*old, bytes, "the same bytes as the version before");
        old.clone_from(&bytes);
    }
    newer
}

/// An XDP program of `corpus/`, named as its source, with maps that are kept over versions.
pub fn corpus(name: &str, keep: &[&str]) -> Package {
    let mut package = starter("firewall");
    let manifest = &mut package.manifest;
    manifest.name = name.replace('_', "-").parse().unwrap();
    manifest.config.clear();
    manifest.metrics.clear();
    manifest.maps = keep
        .iter()
        .map(|map| ManifestMap {
            name: (*map).to_owned(),
            carry_over: true,
            shared: None,
            max_entries: None,
        })
        .collect();
    let program = &mut manifest.programs[0];
    name.clone_into(&mut program.name);
    name.clone_into(&mut program.function);
    program.hooks = vec![Hook::Xdp];
    program.frags = false;
    package.objects = [(program.object.clone(), chain::object(name).to_vec())].into();
    package
}

/// Writes a package file into a directory, under its digest.
pub fn write(dir: &Path, package: &Package) -> PathBuf {
    let bytes = package.build().unwrap();
    let path = dir.join(format!("{}.cpkg", Digest::of(&bytes).hex()));
    fs::write(&path, bytes).unwrap();
    path
}

/// `port-dropper`: drops UDP to its `port`, on XDP and on TC.
pub fn port_dropper() -> Package {
    let mut package = corpus("drop_port", &[]);
    let manifest = &mut package.manifest;
    manifest.name = "port-dropper".parse().unwrap();
    manifest.config.push(Parameter {
        name: "port".to_owned(),
        kind: ParameterType::Port,
        description: "What is dropped".to_owned(),
        unit: None,
        default: None,
        min: None,
        max: None,
        bind: Bind::Global { global: "port".to_owned() },
    });
    let xdp = manifest.programs[0].clone();
    manifest.programs = [("xdp_drop_port", vec![Hook::Xdp]), ("tc_drop_port", TC.to_vec())]
        .map(|(name, hooks)| ManifestProgram {
            name: name.to_owned(),
            function: name.to_owned(),
            hooks,
            proceed_on: None,
            ..xdp.clone()
        })
        .to_vec();
    package
}

const TC: [Hook; 2] = [Hook::TcIngress, Hook::TcEgress];
