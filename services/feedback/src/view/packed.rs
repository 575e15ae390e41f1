//! Rows as they are kept. A million jobs may wait, and each looks nearly like the next.

use std::{cell::RefCell, io, sync::LazyLock};
use virtbus_wire::{
    BootId, Envelope, JobId, Record, StateName, Timestamp,
    row::{Row, RowWaiting},
    state::Phase,
};
use zstd::{
    bulk::{Compressor, Decompressor},
    dict::{DecoderDictionary, EncoderDictionary},
};

/// The fastest: what counts is that the dictionary has nearly all there is.
const LEVEL: i32 = 1;

/// What rows have in common, the commonest last. It only has to be the same for the life of the
/// process.
static COMMON: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let rows = examples().unwrap_or_default();
    rows.concat().into_bytes()
});
static PACK: LazyLock<EncoderDictionary<'static>> =
    LazyLock::new(|| EncoderDictionary::copy(&COMMON, LEVEL));
static UNPACK: LazyLock<DecoderDictionary<'static>> =
    LazyLock::new(|| DecoderDictionary::copy(&COMMON));

thread_local! {
    /// Of some hundred KiB, and as slow to make as many rows are to pack.
    static PACKER: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static UNPACKER: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// A row as JSON, made once for all who get it.
#[derive(Debug)]
pub(crate) struct Packed {
    bytes: Box<[u8]>,
    json_bytes: u32,
}

impl Packed {
    /// # Errors
    /// When the row has no form in JSON, or there's no memory.
    pub(crate) fn new(row: &Row) -> io::Result<Self> {
        let json = serde_json::to_vec(row)?;
        let json_bytes = u32::try_from(json.len()).map_err(io::Error::other)?;
        let bytes = PACKER.with_borrow_mut(|packer| {
            let packer = match packer {
                Some(packer) => packer,
                None => packer.insert(Compressor::with_prepared_dictionary(&PACK)?),
            };
            packer.compress(&json)
        })?;
        let bytes = bytes.into_boxed_slice();
        Ok(Self { bytes, json_bytes })
    }

    /// The JSON.
    pub(crate) fn json(&self) -> String {
        let json = UNPACKER.with_borrow_mut(|unpacker| {
            let unpacker = match unpacker {
                Some(unpacker) => unpacker,
                None => unpacker.insert(Decompressor::with_prepared_dictionary(&UNPACK)?),
            };
            unpacker.decompress(&self.bytes, self.json_bytes())
        });
        let json = json.and_then(|json| String::from_utf8(json).map_err(io::Error::other));
        json.expect("what was packed here can be unpacked")
    }

    /// The length of the JSON, in bytes.
    pub(crate) fn json_bytes(&self) -> usize {
        self.json_bytes as usize
    }
}

/// Rows of jobs that wait, run and are over, and one that nobody has seen yet.
fn examples() -> io::Result<[String; 4]> {
    let body = br#"{"task":"create_disk","params":{"disk":"d"},"user":"u","tenant":"t"}"#;
    let job = Envelope::decode(body).map_err(io::Error::other)?;
    let queue = "storage.default.default".to_owned();
    let now = Timestamp::now();
    let record = Record::new(JobId::new(), job, queue.into(), now);
    let queued = Row::new(&record, 1);
    let running = Row {
        state: StateName::Running,
        worker: "storage-1".parse().ok(),
        boot: Some(BootId::nil()),
        phase: Some(Phase::Work),
        started_at: Some(now),
        ..queued.clone()
    };
    let over = Row {
        state: StateName::Succeeded,
        phase: None,
        finished_at: Some(now),
        cancelable: false,
        ..running.clone()
    };
    let waiting = Row {
        state: StateName::Waiting,
        waiting: Some(RowWaiting {
            on: "lock".to_owned(),
            since: now,
            detail: serde_json::from_str(r#"{"resource":"disk.d","holder":"j"}"#)?,
        }),
        ..queued.clone()
    };
    let json = |row: &Row| serde_json::to_string(row);
    Ok([
        json(&over)?,
        json(&running)?,
        json(&waiting)?,
        json(&queued)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(id: &str, reason: &str) -> Row {
        let body = serde_json::json!({
            "task": "convert",
            "params": {"disk": "d7", "target": "d8", "format": "qcow2"},
            "user": "alice",
            "tenant": "acme",
            "reason": reason,
        });
        let job = Envelope::decode(body.to_string().as_bytes()).unwrap();
        let queue = "storage.gold.low".to_owned();
        let record = Record::new(id.parse().unwrap(), job, queue.into(), Timestamp::now());
        Row::new(&record, 815)
    }

    #[test]
    fn a_waiting_job_takes_a_fraction_of_its_json() {
        let row = row(JobId::new().as_ref(), "");
        let packed = Packed::new(&row).unwrap();
        let (kept, json) = (packed.bytes.len(), packed.json_bytes());
        assert!(kept * 4 < json, "{kept} of {json}");
    }

    proptest! {
        #[test]
        fn what_was_packed_comes_out_as_it_was(reason in "(\\PC|disk|null){0,400}") {
            let row = row("j1", &reason);
            let packed = Packed::new(&row).unwrap();
            prop_assert_eq!(packed.json(), serde_json::to_string(&row).unwrap());
        }
    }
}
