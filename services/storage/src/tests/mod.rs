//! The tasks against a real nats-server and a real qemu-img, on images of a few MiB.

mod convert;
mod crashes;
mod create_disk;
mod delete_disk;
mod fences;
mod ping;
mod resize;
mod site;
mod sweep;
