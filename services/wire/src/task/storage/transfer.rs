//! `upload`, `finish_upload`, `download`, `import_url`: bytes from and to the outside.

use crate::error::JobError;
use crate::id::{DiskId, JobId, MediaId};
use crate::queue::Priority;
use crate::size::Size;
use crate::task::image::{Compress, DiskFormat, FileFormat, Subformat, check_options};
use crate::task::object::{Object, Target};
use crate::task::params::{Params, plain};
use crate::task::schema;
use crate::task::value::{Bounded, DownloadName, Sha256, SourceUrl};
use crate::time::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest a transfer's URL may be valid, in seconds: a week.
pub const EXPIRES_IN_S_MAX: u64 = 7 * 24 * 3_600;

/// How long a transfer's URL is valid, in seconds: for an upload since the last byte received.
pub type ExpiresIn = Bounded<1, EXPIRES_IN_S_MAX>;

const fn one_hour() -> ExpiresIn {
    ExpiresIn::nearest(3_600)
}

/// Makes a URL that takes the bytes of a new disk or medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Upload {
    /// What it becomes.
    #[serde(flatten)]
    pub target: Target,
    /// The format of the bytes.
    pub format: FileFormat,
    /// What a disk is converted to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convert_to: Option<DiskFormat>,
    /// How many bytes will come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// How many bytes may come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_max: Option<Size>,
    /// The hash that the bytes must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// How long the URL is valid since the last byte received.
    pub expires_in_s: ExpiresIn,
}

/// Makes a URL that takes the bytes of a new disk or medium.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "Upload")]
#[schemars(transform = schema::upload)]
pub struct UploadFields {
    /// The new disk; this or `media`.
    disk: Option<DiskId>,
    /// The new medium; this or `disk`.
    media: Option<MediaId>,
    /// The format of the bytes: any but iso for a disk, iso or raw for a medium.
    format: FileFormat,
    /// What a disk is converted to.
    convert_to: Option<DiskFormat>,
    /// How many bytes will come.
    size: Option<Size>,
    /// How many bytes may come.
    size_max: Option<Size>,
    /// The hash that the bytes must have.
    sha256: Option<Sha256>,
    /// How long the URL is valid, in seconds since the last byte received.
    #[serde(default = "one_hour")]
    expires_in_s: ExpiresIn,
}

/// A URL that takes bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Uploadable {
    /// Who has it may write. Shown to its owner only.
    pub url: String,
    /// When it ends if no byte comes.
    pub expires_at: Timestamp,
}

/// Exactly one of a disk and a medium.
fn target(disk: Option<DiskId>, media: Option<MediaId>) -> Result<Target, JobError> {
    match (disk, media) {
        (Some(id), None) => Ok(Target::Disk(id)),
        (None, Some(id)) => Ok(Target::Media(id)),
        (Some(_), Some(_)) | (None, None) => Err(JobError::invalid_params(
            "disk",
            "exactly one of disk and media is required",
        )),
    }
}

/// That the bytes can be what they shall become.
fn check_format(
    target: &Target,
    format: FileFormat,
    convert_to: Option<DiskFormat>,
) -> Result<(), JobError> {
    match target {
        Target::Disk(_) if format.of_disk().is_none() => {
            Err(JobError::invalid_params("format", "a disk is no iso"))
        }
        Target::Media(_) if format.of_media().is_none() => Err(JobError::invalid_params(
            "format",
            "a medium must be iso or raw",
        )),
        Target::Media(_) if convert_to.is_some() => {
            Err(JobError::invalid_params("convert_to", "is only for disks"))
        }
        Target::Disk(_) | Target::Media(_) => Ok(()),
    }
}

impl Params for Upload {
    type Fields = UploadFields;
    type Output = Uploadable;
    const NAME: &'static str = "upload";

    fn check(fields: UploadFields) -> Result<Self, JobError> {
        let target = target(fields.disk, fields.media)?;
        check_format(&target, fields.format, fields.convert_to)?;
        if let (Some(size), Some(max)) = (fields.size, fields.size_max)
            && size > max
        {
            return Err(JobError::invalid_params("size", "is above size_max"));
        }
        Ok(Self {
            target,
            format: fields.format,
            convert_to: fields.convert_to,
            size: fields.size,
            size_max: fields.size_max,
            sha256: fields.sha256,
            expires_in_s: fields.expires_in_s,
        })
    }

    fn home_priority(&self) -> Priority {
        Priority::High
    }

    fn objects(&self) -> Vec<Object> {
        vec![(&self.target).into()]
    }
}

/// Inspects, converts and registers what was uploaded. Made by the system with each upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FinishUpload {
    /// The job that made the URL.
    pub upload: JobId,
    /// What the bytes become.
    pub target: Target,
    /// Their format.
    pub format: FileFormat,
    /// What a disk is converted to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convert_to: Option<DiskFormat>,
    /// The hash that the bytes must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
}

/// A file that came from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Imported {
    /// What a guest sees, in bytes.
    pub virtual_size: u64,
    /// What the file takes, in bytes.
    pub actual_size: u64,
    /// The hash of the bytes that came.
    pub sha256: Sha256,
}

plain!(FinishUpload => Imported, "finish_upload", Default, [target], SYSTEM: bool = true);

/// Makes a URL that gives the bytes of a disk or medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Download {
    /// What is read.
    #[serde(flatten)]
    pub target: Target,
    /// The format of the bytes; that of the source when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<FileFormat>,
    /// The kind of vmdk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subformat: Option<Subformat>,
    /// How a disk is compressed.
    pub compress: Compress,
    /// What a browser saves it as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<DownloadName>,
    /// How long the URL is valid.
    pub expires_in_s: ExpiresIn,
}

/// Makes a URL that gives the bytes of a disk or medium.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "Download")]
#[schemars(transform = schema::download)]
pub struct DownloadFields {
    /// The disk; this or `media`.
    disk: Option<DiskId>,
    /// The medium; this or `disk`.
    media: Option<MediaId>,
    /// The format of the bytes; that of the source when left out.
    format: Option<FileFormat>,
    /// The kind of vmdk.
    subformat: Option<Subformat>,
    /// How a disk is compressed; needs `format`.
    #[serde(default)]
    compress: Compress,
    /// What a browser saves it as.
    filename: Option<DownloadName>,
    /// How long the URL is valid, in seconds.
    #[serde(default = "one_hour")]
    expires_in_s: ExpiresIn,
}

/// A URL that gives bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Downloadable {
    /// Who has it may read. Shown to its owner only.
    pub url: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// How many bytes it gives.
    pub size: u64,
    /// Their hash.
    pub sha256: Sha256,
}

impl Params for Download {
    type Fields = DownloadFields;
    type Output = Downloadable;
    const NAME: &'static str = "download";

    fn check(fields: DownloadFields) -> Result<Self, JobError> {
        let target = target(fields.disk, fields.media)?;
        if let Some(format) = fields.format {
            check_format(&target, format, None)?;
        }
        match fields.format.and_then(FileFormat::of_disk) {
            Some(format) => check_options(format, fields.compress, fields.subformat, None)?,
            None => check_unconverted(fields.compress, fields.subformat)?,
        }
        Ok(Self {
            target,
            format: fields.format,
            subformat: fields.subformat,
            compress: fields.compress,
            filename: fields.filename,
            expires_in_s: fields.expires_in_s,
        })
    }

    fn home_priority(&self) -> Priority {
        Priority::Default
    }

    fn objects(&self) -> Vec<Object> {
        vec![(&self.target).into()]
    }
}

/// That nothing is asked that only a conversion can give.
fn check_unconverted(compress: Compress, subformat: Option<Subformat>) -> Result<(), JobError> {
    if compress != Compress::None {
        return Err(JobError::invalid_params(
            "compress",
            "needs a format that can be compressed",
        ));
    }
    if subformat.is_some() {
        return Err(JobError::invalid_params(
            "subformat",
            "is only for format vmdk",
        ));
    }
    Ok(())
}

/// Fetches a new disk or medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImportUrl {
    /// What it becomes.
    #[serde(flatten)]
    pub target: Target,
    /// Where it comes from.
    pub url: SourceUrl,
    /// The format of the bytes.
    pub format: FileFormat,
    /// What a disk is converted to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convert_to: Option<DiskFormat>,
    /// The hash that the bytes must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// How many bytes may come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_max: Option<Size>,
}

/// Fetches a new disk or medium.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "ImportUrl")]
#[schemars(transform = schema::upload)]
pub struct ImportUrlFields {
    /// The new disk; this or `media`.
    disk: Option<DiskId>,
    /// The new medium; this or `disk`.
    media: Option<MediaId>,
    /// Where it comes from.
    url: SourceUrl,
    /// The format of the bytes: any but iso for a disk, iso or raw for a medium.
    format: FileFormat,
    /// What a disk is converted to.
    convert_to: Option<DiskFormat>,
    /// The hash that the bytes must have.
    sha256: Option<Sha256>,
    /// How many bytes may come.
    size_max: Option<Size>,
}

impl Params for ImportUrl {
    type Fields = ImportUrlFields;
    type Output = Imported;
    const NAME: &'static str = "import_url";
    const LONG: bool = true;

    fn check(fields: ImportUrlFields) -> Result<Self, JobError> {
        let target = target(fields.disk, fields.media)?;
        check_format(&target, fields.format, fields.convert_to)?;
        Ok(Self {
            target,
            url: fields.url,
            format: fields.format,
            convert_to: fields.convert_to,
            sha256: fields.sha256,
            size_max: fields.size_max,
        })
    }

    fn home_priority(&self) -> Priority {
        Priority::Low
    }

    fn objects(&self) -> Vec<Object> {
        vec![(&self.target).into()]
    }
}
