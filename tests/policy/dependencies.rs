//! Licences, sources, duplicates and layers, read from the graph that cargo resolved.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};
use spdx::{Expression, LicenseReq, ParseMode};

/// The platform whose graph is judged; the machines virtbus is made for.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Every licence that a dependency may come under.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Zlib",
];

/// Crates under another licence, each with its own: libvirt's bindings, weak copyleft, used by
/// the hypervisor service alone.
const EXCEPTIONS: &[(&str, &str)] = &[("virt", "LGPL-2.1"), ("virt-sys", "LGPL-2.1")];

/// Who may use whom in the workspace. A service never uses another one; `tests` speaks to the
/// programs as any client would, and shares nothing with them but the words; the simulation is
/// made of them.
const LAYERS: &[(&str, &[&str])] = &[
    ("virtbus-wire", &[]),
    ("virtbus-bus", &["virtbus-wire"]),
    ("virtbus-daemon", &["virtbus-bus", "virtbus-wire"]),
    (
        "virtbus-worker",
        &["virtbus-bus", "virtbus-daemon", "virtbus-wire"],
    ),
    ("virtbus-cli", SERVICE),
    ("virtbus-core", SERVICE),
    ("virtbus-feedback", SERVICE),
    ("virtbus-hypervisor", WITH_IMAGES),
    ("virtbus-inspector", &["virtbus-wire"]),
    ("virtbus-storage", WITH_IMAGES),
    ("virtbus-tests", &["virtbus-wire", TESTBED]),
    (
        "virtbus-sim",
        &[
            "virtbus-bus",
            "virtbus-core",
            "virtbus-daemon",
            TESTBED,
            "virtbus-wire",
            "virtbus-worker",
        ],
    ),
    (TESTBED, &[]),
];
/// What the tests of all members share.
const TESTBED: &str = "virtbus-testbed";
const SERVICE: &[&str] = &[
    "virtbus-bus",
    "virtbus-daemon",
    "virtbus-wire",
    "virtbus-worker",
];
/// A service that lets tools or guests at images.
const WITH_IMAGES: &[&str] = &[
    "virtbus-bus",
    "virtbus-daemon",
    "virtbus-inspector",
    "virtbus-wire",
    "virtbus-worker",
];

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(super::root().join("Cargo.toml"))
        .other_options(["--locked", "--filter-platform", PLATFORM].map(String::from))
        .exec()
        .expect("cargo metadata reads the workspace")
}

/// The packages of the resolved graph; `Metadata::packages` also holds those of other platforms.
fn resolved(metadata: &Metadata) -> Vec<&Package> {
    let graph = metadata.resolve.as_ref().expect("cargo metadata resolves");
    graph.nodes.iter().map(|node| &metadata[&node.id]).collect()
}

fn package<'a>(metadata: &'a Metadata, name: &str) -> &'a Package {
    let found = metadata
        .packages
        .iter()
        .find(|package| package.name == name);
    found.unwrap_or_else(|| panic!("no package {name}"))
}

/// Everything `start` links in the end, without what only its tests or build scripts use.
fn linked<'a>(metadata: &'a Metadata, start: &'a PackageId) -> BTreeSet<&'a str> {
    let graph = metadata.resolve.as_ref().expect("cargo metadata resolves");
    let mut seen = BTreeSet::from([start]);
    let mut open = vec![start];
    while let Some(id) = open.pop() {
        let node = graph
            .nodes
            .iter()
            .find(|node| node.id == *id)
            .expect("a node per package");
        for dependency in &node.deps {
            let links = dependency
                .dep_kinds
                .iter()
                .any(|k| k.kind == DependencyKind::Normal);
            if links && seen.insert(&dependency.pkg) {
                open.push(&dependency.pkg);
            }
        }
    }
    seen.into_iter()
        .map(|id| metadata[id].name.as_str())
        .collect()
}

/// An addition such as `WITH LLVM-exception` only permits more, but no dependency needs one.
fn is_licence(requirement: &LicenseReq, name: &str) -> bool {
    requirement.addition.is_none()
        && requirement
            .license
            .id()
            .is_some_and(|id| id.name.trim_end_matches("-only") == name)
}

/// True when `package` can be used under one of `licences`, or under the one it is excepted for.
fn licence_holds(package: &Package, licences: &[&str]) -> bool {
    let text = package.license.as_deref().unwrap_or_default();
    let Ok(expression) = Expression::parse_mode(text, ParseMode::LAX) else {
        return false;
    };
    let excepted = EXCEPTIONS
        .iter()
        .filter(|(name, _)| package.name == name)
        .map(|(_, l)| l);
    let allowed: Vec<&str> = licences.iter().chain(excepted).copied().collect();
    expression.evaluate(|wanted| allowed.iter().any(|name| is_licence(wanted, name)))
}

#[test]
fn every_licence_is_on_the_list() {
    let metadata = metadata();
    let wrong: Vec<_> = resolved(&metadata)
        .into_iter()
        .filter(|package| !licence_holds(package, LICENCES))
        .map(|package| {
            format!(
                "{} {}: {:?}",
                package.name, package.version, package.license
            )
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "licences not on the list:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn no_licence_is_on_the_list_without_need() {
    let metadata = metadata();
    let packages = resolved(&metadata);
    for spare in LICENCES {
        let rest: Vec<&str> = LICENCES
            .iter()
            .filter(|name| name != &spare)
            .copied()
            .collect();
        let needed = packages
            .iter()
            .any(|package| !licence_holds(package, &rest));
        assert!(needed, "no dependency needs {spare}: take it from the list");
    }
}

#[test]
fn every_crate_comes_from_the_registry_or_the_workspace() {
    let metadata = metadata();
    for package in resolved(&metadata) {
        match &package.source {
            Some(source) => assert!(
                source.is_crates_io(),
                "{} comes from {source}",
                package.name
            ),
            None => assert!(
                metadata.workspace_members.contains(&package.id),
                "{} lies outside of the workspace",
                package.name
            ),
        }
    }
}

#[test]
fn duplicates_are_those_of_the_committed_list() {
    let metadata = metadata();
    let mut versions: BTreeMap<&str, BTreeSet<_>> = BTreeMap::new();
    for package in resolved(&metadata) {
        versions
            .entry(&package.name)
            .or_default()
            .insert(&package.version);
    }
    let mut found = String::new();
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        let list: Vec<_> = versions
            .iter()
            .map(|version| format!("{}.{}", version.major, version.minor))
            .collect();
        found.push_str(&format!("{name} {}\n", list.join(" ")));
    }
    let committed = include_str!("duplicates.txt");
    assert_eq!(
        found, committed,
        "crates that are in the tree more than once changed. If it can't be avoided, \
         tests/policy/duplicates.txt becomes:\n{found}"
    );
}

/// Asked of `cargo tree`: the metadata also name crates that only a weak feature mentions.
#[test]
fn one_crypto_library_is_built() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(super::root())
        .args(["tree", "--workspace", "--locked", "--target", PLATFORM])
        .args(["--edges", "all", "--prefix", "none", "--format", "{p}"])
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let tree = String::from_utf8_lossy(&output.stdout);
    let names: BTreeSet<&str> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(names.contains("aws-lc-rs"), "TLS and tokens use aws-lc-rs");
    assert!(
        !names.contains("ring"),
        "a second crypto library: some crate's defaults are on"
    );
}

#[test]
fn virt_sys_is_the_release_that_does_not_pin_libc() {
    assert_eq!(
        package(&metadata(), "virt-sys").version.to_string(),
        "0.3.1"
    );
}

#[test]
fn only_the_hypervisor_service_uses_libvirt() {
    let metadata = metadata();
    for member in metadata.workspace_packages() {
        let links = linked(&metadata, &member.id)
            .iter()
            .any(|name| name.starts_with("virt-sys"));
        assert_eq!(
            links,
            member.name == "virtbus-hypervisor",
            "{} and libvirt",
            member.name
        );
    }
    let default = metadata.workspace_default_packages();
    assert!(
        default
            .iter()
            .all(|member| member.name != "virtbus-hypervisor"),
        "a plain cargo build works without libvirt"
    );
}

#[test]
fn members_use_only_the_layers_below() {
    let metadata = metadata();
    let members: BTreeSet<&str> = metadata
        .workspace_packages()
        .iter()
        .map(|member| member.name.as_str())
        .collect();
    let known: BTreeSet<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
    assert_eq!(members, known, "every member has its place in the layers");
    for (name, below) in LAYERS {
        for dependency in &package(&metadata, name).dependencies {
            let used = dependency.name.as_str();
            let for_tests = dependency.kind == DependencyKind::Development && used == TESTBED;
            assert!(
                !members.contains(used) || below.contains(&used) || for_tests,
                "{name} may not use {used}"
            );
        }
    }
}

#[test]
fn the_words_need_no_runtime_and_no_client() {
    let metadata = metadata();
    let linked = linked(&metadata, &package(&metadata, "virtbus-wire").id);
    for name in ["tokio", "async-nats"] {
        assert!(!linked.contains(name), "virtbus-wire links {name}");
    }
}
