//! The tasks against a real nats-server and a real qemu-img, on images of a few MiB.

mod adopt;
mod archive;
mod attacks;
mod cage;
mod care;
mod chains;
mod check_disk;
mod claims;
mod convert;
mod crashes;
mod create_disk;
mod cuts;
mod delete_disk;
mod delete_media;
mod fences;
mod killed;
mod leftover;
mod moments;
mod move_disk;
mod ping;
mod resize;
mod restore_disk;
mod site;
mod snapshots;
mod sparsify;
mod sweep;
