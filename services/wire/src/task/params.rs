//! What the parameters of every task say about themselves, and how they are read.

use super::object::Object;
use crate::error::{Code, JobError};
use crate::json;
use crate::queue::Priority;
use schemars::JsonSchema;
use serde::{Deserializer, Serialize, de::DeserializeOwned};
use std::fmt;

/// Where a task runs when nothing else is said: what its queue is named after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// The pool of its disk; for a hypervisor class, the pool whose hosts may take it.
    Pool,
    /// The pair of two pools.
    Pair,
    /// The host on which the domain is.
    Host,
    /// The one queue `core`.
    Core,
}

/// The parameters of one task: a name, a shape on the wire, and rules between fields.
pub trait Params: Serialize + fmt::Debug + Clone + PartialEq {
    /// The shape on the wire. It's the type itself where no rule between fields shapes the type.
    type Fields: DeserializeOwned + JsonSchema;
    /// What the job's `result` holds when it succeeded.
    type Output: Serialize + DeserializeOwned + JsonSchema + fmt::Debug + PartialEq;

    /// The name that stands in `task`.
    const NAME: &'static str;
    /// Whether the task is long: such a one never takes a slot reserved for `high`.
    const LONG: bool = false;
    /// Whether only the system itself makes jobs of this task.
    const SYSTEM: bool = false;
    /// Where it runs when its publisher doesn't say.
    const HOME: Home = Home::Pool;

    /// The rules between fields.
    ///
    /// # Errors
    /// `job.invalid_params`, naming the field at fault.
    fn check(fields: Self::Fields) -> Result<Self, JobError>;

    /// The priority of the task's home queue.
    fn home_priority(&self) -> Priority;

    /// The disks, media and domains that the parameters name, the task's own target first.
    fn objects(&self) -> Vec<Object>;
}

/// Reads the parameters of one task: first every field by itself, then the rules between them.
pub(super) fn read<'de, P, D>(params: D) -> Result<P, JobError>
where
    P: Params,
    D: Deserializer<'de>,
    D::Error: fmt::Display,
{
    let fields = serde_path_to_error::deserialize(params).map_err(|error| {
        let path = error.path().to_string();
        let text = error.into_inner().to_string();
        let field = json::field(&path, &text);
        JobError::invalid_params(field.as_deref().unwrap_or("params"), text)
    })?;
    P::check(fields)
}

/// That no task of the class has this name.
pub(super) fn unknown_task(class: &str, name: &str) -> JobError {
    const SHOWN_CHARS_MAX: usize = 64;
    let shown: String = name.chars().take(SHOWN_CHARS_MAX).collect();
    JobError::new(
        Code::JobUnknownTask,
        format!("no task of class {class} is named {shown:?}"),
    )
    .with("task", shown)
}

/// The parameters as they stand in a record.
pub(super) fn written<P: Params>(params: &P) -> serde_json::Value {
    serde_json::to_value(params).unwrap_or_default()
}

/// `Params` of a task whose fields need no rules between them:
/// `plain!(Resize => Resized, "resize", Default, [disk])`, where `[…]` are the fields that name
/// objects, and constants may follow.
macro_rules! plain {
    ($name:ident => $output:ty, $text:literal, $priority:ident, [$($field:ident),*]
        $(, $constant:ident: $kind:ty = $value:expr)*) => {
        impl $crate::task::params::Params for $name {
            type Fields = Self;
            type Output = $output;
            const NAME: &'static str = $text;
            $(const $constant: $kind = $value;)*

            fn check(fields: Self) -> Result<Self, $crate::error::JobError> {
                Ok(fields)
            }

            fn home_priority(&self) -> $crate::queue::Priority {
                $crate::queue::Priority::$priority
            }

            fn objects(&self) -> Vec<$crate::task::object::Object> {
                vec![$((&self.$field).into()),*]
            }
        }
    };
}
pub(super) use plain;
