//! What holds for the whole tree, whatever the code does: which crates may come in and who may
//! use them ([`dependencies`]), how sources look ([`tidy`]), and that the files other tools read
//! are understood by them ([`compose`]).

mod compose;
mod dependencies;
mod tidy;

use std::path::PathBuf;

/// The root of the checkout.
fn root() -> PathBuf {
    let member = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    member
        .parent()
        .expect("the member lies below the root")
        .to_owned()
}
