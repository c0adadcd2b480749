//! The public interface is what `tests/api.txt` records: what users rely on changes on purpose
//! only.
//!
//! It is read from rustdoc's JSON, whose form changes with the toolchain, and of all features, so
//! that the test says that it was skipped unless `MLLP_API_REQUIRED` is set. `MLLP_API_RECORD`
//! writes the record anew.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use public_api::Builder;

#[test]
fn the_interface_is_the_recorded_one() {
    let record_anew = env::var_os("MLLP_API_RECORD").is_some();
    if !record_anew && env::var_os("MLLP_API_REQUIRED").is_none() {
        return println!("skipped: the interface is compared where MLLP_API_REQUIRED is set");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    // Only rustdoc is told that it may do what is not stable, so that nothing is built anew for it.
    let documented = Command::new(env!("CARGO"))
        .args(["rustdoc", "--lib", "--all-features", "--target-dir"])
        .arg(target)
        .args(["--", "-Z", "unstable-options", "--output-format", "json"])
        .env("RUSTDOC", root.join("tests/api/rustdoc"))
        .env_remove("RUSTDOCFLAGS")
        .current_dir(root)
        .output()
        .unwrap();
    assert!(documented.status.success(), "{}", String::from_utf8_lossy(&documented.stderr));
    let interface = Builder::from_rustdoc_json(target.join("doc/mllp_client.json"))
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()
        .expect("this toolchain's rustdoc is not one that the crate `public-api` reads")
        .to_string();
    let record = root.join("tests/api.txt");
    if record_anew {
        fs::write(&record, &interface).unwrap();
    }
    let recorded = fs::read_to_string(&record).unwrap();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (new, old) = (lines(&interface), lines(&recorded));
    let only = |one: &BTreeSet<String>, other| one.difference(other).cloned().collect::<Vec<_>>();
    assert!(new == old, "not recorded: {:#?}\nno longer there: {:#?}", only(&new, &old), only(&old, &new));
}
