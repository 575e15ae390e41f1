//! `check_domain`, `start_domain`, `stop_domain`, `resume_domain`, `reset_domain`,
//! `delete_domain`.

use super::template::Template;
use crate::error::JobError;
use crate::id::{DomainId, Label};
use crate::queue::Priority;
use crate::task::object::Object;
use crate::task::params::{Home, Params, plain};
use crate::task::storage::Done;
use crate::task::value::Bounded;
use crate::task::{named, schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The state of a domain, in libvirt's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DomainState {
    /// It runs.
    Running,
    /// Its processors stand still.
    Paused,
    /// It's shutting down.
    Shutdown,
    /// It's off.
    Shutoff,
    /// It's off after a crash.
    Crashed,
    /// It sleeps.
    Pmsuspended,
    /// Its host is silent.
    Unknown,
}

impl DomainState {
    /// Whether a domain in this state has processes on its host, or may have.
    #[must_use]
    pub fn is_on(self) -> bool {
        match self {
            Self::Running | Self::Paused | Self::Shutdown => true,
            Self::Pmsuspended | Self::Unknown => true,
            Self::Shutoff | Self::Crashed => false,
        }
    }
}

/// How a domain's graphics are reached. Never with a password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Graphics {
    /// `vnc` or `spice`.
    #[serde(rename = "type")]
    pub kind: GraphicsKind,
    /// The address it listens on.
    pub host: String,
    /// The port without TLS.
    #[serde(default)]
    pub port: Option<u16>,
    /// The port with TLS.
    #[serde(default)]
    pub tls_port: Option<u16>,
}

/// A protocol of graphics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GraphicsKind {
    /// VNC.
    Vnc,
    /// SPICE.
    Spice,
}

/// What a domain is made from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Definition<'a> {
    /// libvirt's XML; disks and media named as volumes of their pool.
    Xml(&'a str),
    /// Our own short form.
    Template(&'a Template),
    /// As it was defined last.
    Last,
}

fn definition<'a>(xml: Option<&'a String>, template: Option<&'a Template>) -> Definition<'a> {
    match (xml, template) {
        (Some(xml), _) => Definition::Xml(xml),
        (None, Some(template)) => Definition::Template(template),
        (None, None) => Definition::Last,
    }
}

fn check_definition(xml: Option<&String>, template: Option<&Template>) -> Result<(), JobError> {
    if xml.is_some() && template.is_some() {
        return Err(JobError::invalid_params(
            "xml",
            "only one of xml and template may be given",
        ));
    }
    if xml.is_some_and(|xml| xml.trim().is_empty()) {
        return Err(JobError::invalid_params("xml", "must not be empty"));
    }
    template.map_or(Ok(()), Template::check)
}

fn objects(domain: &DomainId, template: Option<&Template>) -> Vec<Object> {
    let mut objects = vec![domain.into()];
    if let Some(template) = template {
        objects.extend(template.disks.iter().map(|disk| Object::from(&disk.disk)));
        objects.extend(template.media.iter().map(Object::from));
    }
    objects
}

/// Starts a domain paused, looks at it and takes it away: nothing stays defined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::definition)]
pub struct CheckDomain {
    /// The domain.
    pub domain: DomainId,
    /// libvirt's XML.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"\S"))]
    pub xml: Option<String>,
    /// Our own short form.
    #[serde(
        default,
        deserialize_with = "named::maybe",
        skip_serializing_if = "Option::is_none"
    )]
    pub template: Option<Template>,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckedDomain {
    /// Whether it would start.
    pub ok: bool,
    /// What to look at.
    pub warnings: Vec<String>,
}

impl CheckDomain {
    /// What the domain is made from.
    #[must_use]
    pub fn definition(&self) -> Definition<'_> {
        definition(self.xml.as_ref(), self.template.as_ref())
    }
}

impl Params for CheckDomain {
    type Fields = Self;
    type Output = CheckedDomain;
    const NAME: &'static str = "check_domain";

    fn check(fields: Self) -> Result<Self, JobError> {
        check_definition(fields.xml.as_ref(), fields.template.as_ref())?;
        Ok(fields)
    }

    fn home_priority(&self) -> Priority {
        Priority::Default
    }

    fn objects(&self) -> Vec<Object> {
        objects(&self.domain, self.template.as_ref())
    }
}

/// Starts a domain: from XML, from a template, or as it was defined last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::definition)]
pub struct StartDomain {
    /// The domain.
    pub domain: DomainId,
    /// libvirt's XML.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"\S"))]
    pub xml: Option<String>,
    /// Our own short form.
    #[serde(
        default,
        deserialize_with = "named::maybe",
        skip_serializing_if = "Option::is_none"
    )]
    pub template: Option<Template>,
    /// Whether its processors stand still at first.
    #[serde(default)]
    pub paused: bool,
}

/// A domain that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// The host it's on.
    pub hypervisor: Label,
    /// Its state.
    pub state: DomainState,
    /// How it's seen, if it has a screen.
    pub graphics: Option<Graphics>,
}

impl StartDomain {
    /// What the domain is made from.
    #[must_use]
    pub fn definition(&self) -> Definition<'_> {
        definition(self.xml.as_ref(), self.template.as_ref())
    }
}

impl Params for StartDomain {
    type Fields = Self;
    type Output = Started;
    const NAME: &'static str = "start_domain";

    fn check(fields: Self) -> Result<Self, JobError> {
        check_definition(fields.xml.as_ref(), fields.template.as_ref())?;
        Ok(fields)
    }

    fn home_priority(&self) -> Priority {
        Priority::Default
    }

    fn objects(&self) -> Vec<Object> {
        objects(&self.domain, self.template.as_ref())
    }
}

/// The longest that a guest is given to shut down, in seconds: a day.
pub const STOP_DEADLINE_S_MAX: u64 = 24 * 3_600;

/// How long a guest is given to shut down, in seconds.
pub type StopDeadline = Bounded<1, STOP_DEADLINE_S_MAX>;

const fn one_minute() -> StopDeadline {
    StopDeadline::nearest(60)
}

/// Stops a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StopDomain {
    /// The domain.
    pub domain: DomainId,
    /// How.
    #[serde(default)]
    pub mode: StopMode,
    /// How long the guest is given, in seconds.
    #[serde(default = "one_minute")]
    pub deadline_s: StopDeadline,
}

/// How a domain is stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// The guest is asked.
    #[default]
    Shutdown,
    /// As if the power failed.
    Destroy,
    /// The guest is asked; when its time is over, as if the power failed.
    ShutdownThenDestroy,
}

/// The state a domain is in now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InState {
    /// In libvirt's words.
    pub state: DomainState,
}

impl Params for StopDomain {
    type Fields = Self;
    type Output = InState;
    const NAME: &'static str = "stop_domain";
    const HOME: Home = Home::Host;

    fn check(fields: Self) -> Result<Self, JobError> {
        Ok(fields)
    }

    fn home_priority(&self) -> Priority {
        match self.mode {
            StopMode::Destroy => Priority::High,
            StopMode::Shutdown | StopMode::ShutdownThenDestroy => Priority::Default,
        }
    }

    fn objects(&self) -> Vec<Object> {
        vec![(&self.domain).into()]
    }
}

/// Lets a paused domain run on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeDomain {
    /// The domain.
    pub domain: DomainId,
}

/// Resets a domain, as its reset button would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetDomain {
    /// The domain.
    pub domain: DomainId,
}

/// Forgets a domain that doesn't run, with its snapshots' metadata and nvram; its disks stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteDomain {
    /// The domain.
    pub domain: DomainId,
}

plain!(ResumeDomain => InState, "resume_domain", Default, [domain], HOME: Home = Home::Host);
plain!(ResetDomain => InState, "reset_domain", High, [domain], HOME: Home = Home::Host);
plain!(DeleteDomain => Done, "delete_domain", Low, [domain]);
