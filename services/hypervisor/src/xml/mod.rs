//! XML of domains. What comes from outside is read by our own parser and held against a list of
//! what is allowed; everything else is refused. What goes to libvirt is written by us.
//!
//! ```text
//! message: xml ──────read──►┐
//! message: template ─build─►├─► Blueprint ──portable──► the record: disks named as volumes
//! record:  xml ──────read──►┘        └──────for_host──► libvirt: disks as files
//! ```

mod blueprint;
mod devices;
mod host_form;
mod passthrough;
mod policy;
mod rules;
mod template;
mod tree;

pub(crate) use blueprint::{Blueprint, Volume, has_state_on_host};
pub(crate) use host_form::{Accelerator, ChainFile, HostFacts};
pub(crate) use policy::Policy;
pub(crate) use tree::Element;

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod tests;
