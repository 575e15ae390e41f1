//! Formats of images and the options of qcow2.

use super::schema;
use super::value::ClusterSize;
use crate::error::JobError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! formats {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$about])* $variant,)+ }

        impl $name {
            /// The name, which is also the ending of the file.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

formats!(
    /// What a new disk can be.
    #[derive(Default)]
    DiskFormat {
        /// Grows as it's written, has snapshots and backing.
        #[default]
        Qcow2 = "qcow2",
        /// The bytes themselves.
        Raw = "raw",
    }
);

formats!(
    /// What a disk's file can be.
    ImageFormat {
        /// QEMU's own.
        Qcow2 = "qcow2",
        /// The bytes themselves.
        Raw = "raw",
        /// VMware's.
        Vmdk = "vmdk",
        /// VirtualBox's.
        Vdi = "vdi",
        /// Hyper-V's.
        Vhdx = "vhdx",
        /// Virtual PC's.
        Vpc = "vpc",
    }
);

formats!(
    /// What a medium's file can be.
    MediaFormat {
        /// A CD or DVD.
        Iso = "iso",
        /// The bytes themselves, such as a floppy.
        Raw = "raw",
    }
);

formats!(
    /// What a transferred file can be: a disk's or a medium's.
    FileFormat {
        /// QEMU's own.
        Qcow2 = "qcow2",
        /// The bytes themselves.
        Raw = "raw",
        /// VMware's.
        Vmdk = "vmdk",
        /// VirtualBox's.
        Vdi = "vdi",
        /// Hyper-V's.
        Vhdx = "vhdx",
        /// Virtual PC's.
        Vpc = "vpc",
        /// A CD or DVD.
        Iso = "iso",
    }
);

impl FileFormat {
    /// As a disk's format; a disk is no CD.
    #[must_use]
    pub fn of_disk(self) -> Option<ImageFormat> {
        match self {
            Self::Qcow2 => Some(ImageFormat::Qcow2),
            Self::Raw => Some(ImageFormat::Raw),
            Self::Vmdk => Some(ImageFormat::Vmdk),
            Self::Vdi => Some(ImageFormat::Vdi),
            Self::Vhdx => Some(ImageFormat::Vhdx),
            Self::Vpc => Some(ImageFormat::Vpc),
            Self::Iso => None,
        }
    }

    /// As a medium's format.
    #[must_use]
    pub fn of_media(self) -> Option<MediaFormat> {
        match self {
            Self::Iso => Some(MediaFormat::Iso),
            Self::Raw => Some(MediaFormat::Raw),
            Self::Qcow2 | Self::Vmdk | Self::Vdi | Self::Vhdx | Self::Vpc => None,
        }
    }
}

impl From<DiskFormat> for ImageFormat {
    fn from(format: DiskFormat) -> Self {
        match format {
            DiskFormat::Qcow2 => Self::Qcow2,
            DiskFormat::Raw => Self::Raw,
        }
    }
}

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    /// Not at all.
    #[default]
    None,
    /// Read by everything.
    Zlib,
    /// Faster; qcow2 only, QEMU 5.1 and later.
    Zstd,
}

/// The kinds of vmdk that are one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Subformat {
    /// Grows as it's written.
    MonolithicSparse,
    /// Compressed, for transport.
    StreamOptimized,
}

/// The version of qcow2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Compat {
    /// Version 2, for very old readers.
    #[serde(rename = "0.10")]
    V2,
    /// Version 3.
    #[serde(rename = "1.1")]
    V3,
}

/// Options of a new qcow2 file. What's left out is as the pool has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::qcow2)]
pub struct Qcow2Options {
    /// The unit of allocation, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<ClusterSize>,
    /// Whether clusters are allocated in 32 parts; needs clusters of 16 KiB or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extended_l2: Option<bool>,
    /// Whether reference counts may be written late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lazy_refcounts: Option<bool>,
    /// The version of the format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compat: Option<Compat>,
}

impl Qcow2Options {
    /// The rules between the options; `field` is where they stand.
    ///
    /// # Errors
    /// `job.invalid_params`, naming the option.
    pub fn check(&self, field: &str) -> Result<(), JobError> {
        let extended = self.extended_l2 == Some(true);
        let small = |size: ClusterSize| size.bytes() < ClusterSize::EXTENDED_L2_MIN;
        if extended && self.cluster_size.is_some_and(small) {
            return Err(JobError::invalid_params(
                &format!("{field}.extended_l2"),
                "needs clusters of 16 KiB or more",
            ));
        }
        let of_v3 = [
            ("extended_l2", extended),
            ("lazy_refcounts", self.lazy_refcounts == Some(true)),
        ];
        match of_v3.iter().find(|(_, asked)| *asked) {
            Some((option, _)) if self.compat == Some(Compat::V2) => Err(JobError::invalid_params(
                &format!("{field}.{option}"),
                "needs compat 1.1",
            )),
            _ => Ok(()),
        }
    }
}

/// The rules between a format and the options that only some formats have.
pub(super) fn check_options(
    format: ImageFormat,
    compress: Compress,
    subformat: Option<Subformat>,
    qcow2: Option<&Qcow2Options>,
) -> Result<(), JobError> {
    let compresses = match compress {
        Compress::None => true,
        Compress::Zlib => matches!(format, ImageFormat::Qcow2 | ImageFormat::Vmdk),
        Compress::Zstd => format == ImageFormat::Qcow2,
    };
    if !compresses {
        let message = format!("{format} can't be compressed that way");
        return Err(JobError::invalid_params("compress", message));
    }
    if subformat.is_some() && format != ImageFormat::Vmdk {
        return Err(JobError::invalid_params("subformat", "is only for vmdk"));
    }
    let Some(options) = qcow2 else { return Ok(()) };
    if format != ImageFormat::Qcow2 {
        return Err(JobError::invalid_params(
            "qcow2",
            "is only for format qcow2",
        ));
    }
    if compress == Compress::Zstd && options.compat == Some(Compat::V2) {
        return Err(JobError::invalid_params(
            "compress",
            "zstd needs compat 1.1",
        ));
    }
    options.check("qcow2")
}
