//! Tasks: what a job asks for.
//!
//! A message is decoded in two stages: the envelope first, with `params` as any JSON, then
//! the parameters by the task's name and class, so that a refusal can name the field whatever the
//! order of keys. Each task has one type for its parameters ([`Params`]) and one for its result.

pub mod core;
pub mod hypervisor;
pub mod image;
mod limits;
mod named;
pub mod object;
mod params;
mod ping;
mod schema;
pub mod storage;
pub mod value;

pub use limits::Silence;
pub use object::{InvalidObject, Object, Target};
pub use params::{Home, Params};
pub use ping::{PING_SLEEP_MS_MAX, Ping, Pong};

use crate::envelope::PARAMS_BYTES_MAX;
use crate::error::JobError;
use crate::queue::{Class, Priority};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserializer;
use serde_json::{Map, Value};
use std::fmt;

/// Where the schemas of shared types are collected.
struct Schemas<'a> {
    read: &'a mut SchemaGenerator,
    written: &'a mut SchemaGenerator,
}

impl Schemas<'_> {
    fn of<P: Params>(&mut self) -> (Schema, Schema) {
        (
            P::Fields::json_schema(self.read),
            P::Output::json_schema(self.written),
        )
    }
}

/// One task with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// Of class `storage`.
    Storage(StorageTask),
    /// Of class `hypervisor`.
    Hypervisor(HypervisorTask),
    /// Of class `core`.
    Core(CoreTask),
}

macro_rules! tasks_of_class {
    ($(#[$doc:meta])* $name:ident of $class:ident in $module:ident { $($task:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $name {
            $(
                #[doc = concat!("See [`", stringify!($module), "::", stringify!($task), "`].")]
                $task($module::$task),
            )+
        }

        impl $name {
            /// The names of all tasks of the class.
            pub const NAMES: &'static [&'static str] =
                &[$(<$module::$task as Params>::NAME),+];

            fn read<'de, D>(name: &str, params: D) -> Result<Self, JobError>
            where
                D: Deserializer<'de>,
                D::Error: fmt::Display,
            {
                match name {
                    $(<$module::$task as Params>::NAME => params::read(params).map(Self::$task),)+
                    _ => Err(params::unknown_task(Class::$class.as_str(), name)),
                }
            }

            fn schemas(name: &str, mut schemas: Schemas<'_>) -> Option<(Schema, Schema)> {
                match name {
                    $(<$module::$task as Params>::NAME => Some(schemas.of::<$module::$task>()),)+
                    _ => None,
                }
            }

            fn is_systems_own(name: &str) -> bool {
                match name {
                    $(<$module::$task as Params>::NAME => <$module::$task as Params>::SYSTEM,)+
                    _ => false,
                }
            }

            /// The name that stands in `task`.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Self::$task(_) => <$module::$task as Params>::NAME,)+ }
            }

            fn is_long(&self) -> bool {
                match self { $(Self::$task(_) => <$module::$task as Params>::LONG,)+ }
            }

            fn is_system(&self) -> bool {
                match self { $(Self::$task(_) => <$module::$task as Params>::SYSTEM,)+ }
            }

            fn home(&self) -> Home {
                match self { $(Self::$task(_) => <$module::$task as Params>::HOME,)+ }
            }

            fn home_priority(&self) -> Priority {
                match self { $(Self::$task(params) => params.home_priority(),)+ }
            }

            fn objects(&self) -> Vec<Object> {
                match self { $(Self::$task(params) => params.objects(),)+ }
            }

            fn params(&self) -> Value {
                match self { $(Self::$task(params) => params::written(params),)+ }
            }
        }

        $(impl From<$module::$task> for $name {
            fn from(params: $module::$task) -> Self {
                Self::$task(params)
            }
        })+

        impl From<$name> for Task {
            fn from(task: $name) -> Self {
                Self::$class(task)
            }
        }
    };
}

tasks_of_class!(
    /// A task of class `storage`.
    StorageTask of Storage in storage {
        Ping,
        CreateDisk,
        CreateSnapshot,
        RevertSnapshot,
        DeleteSnapshot,
        Resize,
        Convert,
        Commit,
        Rebase,
        Sparsify,
        ArchiveDisk,
        UnarchiveDisk,
        DeleteDisk,
        RestoreDisk,
        DeleteMedia,
        AdoptDisk,
        AdoptMedia,
        CheckDisk,
        MoveDisk,
        Upload,
        FinishUpload,
        Download,
        ImportUrl,
    }
);

tasks_of_class!(
    /// A task of class `hypervisor`.
    HypervisorTask of Hypervisor in hypervisor {
        Ping,
        CheckDomain,
        StartDomain,
        StopDomain,
        ResumeDomain,
        ResetDomain,
        CreateSnapshot,
        RevertSnapshot,
        DeleteSnapshot,
        Resize,
        Commit,
        DeleteDomain,
    }
);

tasks_of_class!(
    /// A task of class `core`.
    CoreTask of Core in core {
        Ping,
        Feedback,
    }
);

macro_rules! each_class {
    ($task:expr, $params:ident => $value:expr) => {
        match $task {
            Task::Storage($params) => $value,
            Task::Hypervisor($params) => $value,
            Task::Core($params) => $value,
        }
    };
}

impl Task {
    /// Reads the task of a published message. Without `params` (null) they are empty.
    ///
    /// # Errors
    /// `job.unknown_task` when the class has no task of this name, or only the system makes jobs
    /// of it; `job.invalid_params`, naming the field, when the parameters can't be accepted or are
    /// more than [`PARAMS_BYTES_MAX`].
    pub fn decode(class: Class, name: &str, params: &Value) -> Result<Self, JobError> {
        let is_systems_own = match class {
            Class::Storage => StorageTask::is_systems_own(name),
            Class::Hypervisor => HypervisorTask::is_systems_own(name),
            Class::Core => CoreTask::is_systems_own(name),
        };
        if is_systems_own {
            return Err(params::unknown_task(class.as_str(), name));
        }
        let empty = Value::Object(Map::new());
        let params = if params.is_null() { &empty } else { params };
        if Self::names(class).contains(&name) {
            // serde would take an array for a struct.
            if !params.is_object() {
                return Err(JobError::invalid_params("params", "must be an object"));
            }
            if params.to_string().len() > PARAMS_BYTES_MAX {
                let message = format!("must be at most {PARAMS_BYTES_MAX} bytes");
                return Err(JobError::invalid_params("params", message));
            }
        }
        Self::read(class, name, params)
    }

    /// Reads the task of a record: also one that only the system makes.
    ///
    /// # Errors
    /// As for [`Task::decode`]; it's then a record of another version, or a damaged one.
    pub fn restore(class: Class, name: &str, params: &Value) -> Result<Self, JobError> {
        Self::read(class, name, params)
    }

    fn read<'de, D>(class: Class, name: &str, params: D) -> Result<Self, JobError>
    where
        D: Deserializer<'de>,
        D::Error: fmt::Display,
    {
        match class {
            Class::Storage => StorageTask::read(name, params).map(Self::Storage),
            Class::Hypervisor => HypervisorTask::read(name, params).map(Self::Hypervisor),
            Class::Core => CoreTask::read(name, params).map(Self::Core),
        }
    }

    /// The names of all tasks of a class.
    #[must_use]
    pub fn names(class: Class) -> &'static [&'static str] {
        match class {
            Class::Storage => StorageTask::NAMES,
            Class::Hypervisor => HypervisorTask::NAMES,
            Class::Core => CoreTask::NAMES,
        }
    }

    /// The JSON Schemas of a task's parameters, as they are read, and of its result, as it is
    /// written; none when the class has no such task.
    #[must_use]
    pub fn schemas(
        class: Class,
        name: &str,
        read: &mut SchemaGenerator,
        written: &mut SchemaGenerator,
    ) -> Option<(Schema, Schema)> {
        let schemas = Schemas { read, written };
        match class {
            Class::Storage => StorageTask::schemas(name, schemas),
            Class::Hypervisor => HypervisorTask::schemas(name, schemas),
            Class::Core => CoreTask::schemas(name, schemas),
        }
    }

    /// Which services can run it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Storage(_) => Class::Storage,
            Self::Hypervisor(_) => Class::Hypervisor,
            Self::Core(_) => Class::Core,
        }
    }

    /// The name that stands in `task`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        each_class!(self, task => task.name())
    }

    /// The parameters as they stand in a record: what was left out has its default.
    #[must_use]
    pub fn params(&self) -> Value {
        each_class!(self, task => task.params())
    }

    /// The disks, media and domains that the parameters name, the task's own target first.
    #[must_use]
    pub fn objects(&self) -> Vec<Object> {
        each_class!(self, task => task.objects())
    }

    /// What its queue is named after when nothing else is said.
    #[must_use]
    pub fn home(&self) -> Home {
        each_class!(self, task => task.home())
    }

    /// The priority it has when nothing else is said.
    #[must_use]
    pub fn home_priority(&self) -> Priority {
        each_class!(self, task => task.home_priority())
    }

    /// Whether it's long: such a one never takes a slot reserved for `high`.
    #[must_use]
    pub fn is_long(&self) -> bool {
        each_class!(self, task => task.is_long())
    }

    /// Whether only the system itself makes jobs of it.
    #[must_use]
    pub fn is_system(&self) -> bool {
        each_class!(self, task => task.is_system())
    }
}
