//! What is kept of a tool's output: never more than a fixed amount, however much it prints.

use std::{collections::VecDeque, fmt};

/// Bytes kept from the start of stderr: the first complaint is mostly the cause.
pub(super) const HEAD_BYTES: usize = 8 * 1024;
/// Bytes kept from the end of stderr: the last words are mostly the outcome.
pub(super) const TAIL_BYTES: usize = 24 * 1024;
/// The longest record handed to a callback; the rest of a longer one is left out.
pub(super) const RECORD_BYTES_MAX: usize = 4 * 1024;

/// The beginning and the end of a text of any length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excerpt {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    left_out: u64,
}

impl Excerpt {
    /// Takes more of the text.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD_BYTES - self.head.len()));
        self.head.extend_from_slice(head);
        let (gone, kept) = rest.split_at(rest.len().saturating_sub(TAIL_BYTES));
        let surplus = (self.tail.len() + kept.len()).saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
        self.tail.extend(kept);
        self.left_out += (gone.len() + surplus) as u64;
    }

    /// Bytes left out between beginning and end.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// True if there was no text.
    pub fn is_empty(&self) -> bool {
        self.head.is_empty()
    }
}

/// The text, with a note where something was left out. Bytes that aren't UTF-8 are replaced.
impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        if self.left_out == 0 {
            // Together: the border may lie within a character.
            let all = [self.head.as_slice(), &tail].concat();
            return f.write_str(&String::from_utf8_lossy(&all));
        }
        f.write_str(&String::from_utf8_lossy(&self.head))?;
        write!(f, "\n[{} bytes left out]\n", self.left_out)?;
        f.write_str(&String::from_utf8_lossy(&tail))
    }
}

/// Cuts a stream into records at `\r` and `\n`. Empty records are dropped.
#[derive(Debug, Default)]
pub(super) struct Records {
    record: Vec<u8>,
}

impl Records {
    /// Takes more of the stream and hands out each record that it completes.
    pub(super) fn push(&mut self, bytes: &[u8], mut hand_out: impl FnMut(&str)) {
        let mut parts = bytes.split(|byte| matches!(byte, b'\r' | b'\n'));
        // The first part goes on with the record begun before, each other one begins its own.
        self.extend(parts.next().unwrap_or_default());
        for part in parts {
            self.finish(&mut hand_out);
            self.extend(part);
        }
    }

    /// Hands out what came after the last separator.
    pub(super) fn finish(&mut self, mut hand_out: impl FnMut(&str)) {
        if !self.record.is_empty() {
            // Taken out first: the callback may panic, and the record must not come again.
            let record = std::mem::take(&mut self.record);
            hand_out(&String::from_utf8_lossy(&record));
        }
    }

    fn extend(&mut self, part: &[u8]) {
        let room = RECORD_BYTES_MAX - self.record.len();
        self.record.extend_from_slice(&part[..part.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records(chunks: &[&[u8]]) -> Vec<String> {
        let mut seen = Vec::new();
        let mut records = Records::default();
        for chunk in chunks {
            records.push(chunk, |record| seen.push(record.to_owned()));
        }
        records.finish(|record| seen.push(record.to_owned()));
        seen
    }

    #[test]
    fn records_end_at_either_separator_and_across_chunks() {
        assert_eq!(records(&[b"a\rb", b"c\n\r\nd"]), ["a", "bc", "d"]);
    }

    #[test]
    fn a_record_without_end_is_cut() {
        let seen = records(&[&[b'x'; 100_000], b"\nshort"]);
        assert_eq!(
            seen.iter().map(String::len).collect::<Vec<_>>(),
            [RECORD_BYTES_MAX, 5]
        );
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(text in prop::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'a'), Just(b'b')], 0..200), at in 0usize..200,
        ) {
            let (one, two) = text.split_at(at.min(text.len()));
            prop_assert_eq!(records(&[one, two]), records(&[&text]));
        }

        #[test]
        fn an_excerpt_is_bounded_and_keeps_both_ends(
            chunks in prop::collection::vec((any::<u8>(), 1usize..40_000), 0..8),
        ) {
            let mut excerpt = Excerpt::default();
            let mut all = Vec::new();
            for (byte, length) in chunks {
                let chunk = vec![byte; length];
                excerpt.push(&chunk);
                all.extend(chunk);
            }
            prop_assert!(excerpt.head.len() <= HEAD_BYTES && excerpt.tail.len() <= TAIL_BYTES);
            prop_assert!(all.starts_with(&excerpt.head));
            let tail: Vec<u8> = excerpt.tail.iter().copied().collect();
            prop_assert!(all.ends_with(&tail));
            let kept = excerpt.head.len() + excerpt.tail.len();
            prop_assert_eq!(kept as u64 + excerpt.left_out(), all.len() as u64);
        }
    }

    #[test]
    fn an_excerpt_says_what_it_left_out() {
        let mut excerpt = Excerpt::default();
        excerpt.push(b"first ");
        excerpt.push(&[b'.'; HEAD_BYTES + TAIL_BYTES]);
        excerpt.push(b" last");
        let text = excerpt.to_string();
        assert!(text.starts_with("first ") && text.ends_with(" last"));
        assert!(
            text.contains("[11 bytes left out]"),
            "{}",
            excerpt.left_out()
        );
    }
}
