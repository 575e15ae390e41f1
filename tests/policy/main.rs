//! What holds for the whole tree, whatever the code does: which crates may come in and who may
//! use them ([`dependencies`]), how sources look ([`tidy`]), and that the files other tools read
//! are understood by them
//! ([`compose`], [`asyncapi`]).

mod asyncapi;
mod compose;
mod dependencies;
mod tidy;

use std::path::PathBuf;

/// The root of the checkout: cargo names the member it tests. Asked at run time, so that a
/// `target` folder copied from another checkout doesn't judge that one.
fn root() -> PathBuf {
    let member = std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo");
    PathBuf::from(member)
        .parent()
        .expect("the member lies below the root")
        .to_owned()
}
