//! The tasks of class `storage`: parameters and results.

pub mod archive;
pub mod disk;
pub mod image;
pub mod snapshot;
pub mod transfer;

pub use super::ping::{Ping, Pong};
pub use archive::{
    AdoptDisk, AdoptMedia, Adopted, ArchiveDisk, Archived, MoveDisk, Moved, UnarchiveDisk,
    Unarchived,
};
pub use disk::{
    CreateDisk, Created, DeleteDisk, DeleteMedia, DeleteMode, Freed, Preallocation, Resize,
    Resized, RestoreDisk, Restored,
};
pub use image::{
    CheckDisk, Checked, Commit, Committed, Convert, Converted, Rebase, Rebased, Repair, Sparsified,
    Sparsify,
};
pub use snapshot::{CreateSnapshot, DeleteSnapshot, Done, NewSnapshot, RevertSnapshot};
pub use transfer::{Download, Downloadable, FinishUpload, ImportUrl, Imported, Upload, Uploadable};
