//! A small tree of XML elements: read from text that isn't trusted, written back as text.

use std::fmt::{self, Write as _};
use virtbus_wire::{Code, JobError};

/// The most elements of a domain's XML.
const NODES_MAX: u32 = 4_096;
/// The deepest element.
const DEPTH_MAX: usize = 16;
/// The longest XML, in bytes.
pub(super) const BYTES_MAX: usize = 64 * 1024;

/// An element without a name space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) attributes: Vec<(String, String)>,
    pub(crate) children: Vec<Element>,
    /// The text in it, without what surrounds it; empty where there are children.
    pub(crate) text: String,
}

impl Element {
    /// An element with nothing in it.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// With an attribute.
    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.set(name, value);
        self
    }

    /// With an element in it.
    pub(crate) fn containing(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }

    /// With text in it.
    pub(crate) fn saying(mut self, text: impl ToString) -> Self {
        self.text = text.to_string();
        self
    }

    /// Sets an attribute.
    pub(crate) fn set(&mut self, name: &str, value: impl ToString) {
        self.unset(name);
        self.attributes.push((name.to_owned(), value.to_string()));
    }

    /// Takes an attribute away.
    pub(crate) fn unset(&mut self, name: &str) {
        self.attributes.retain(|(other, _)| other != name);
    }

    /// An attribute's value.
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        let mut all = self.attributes.iter();
        all.find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }

    /// The first element in it of this name.
    pub(crate) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// As [`Element::child`], to change it.
    pub(crate) fn child_mut(&mut self, name: &str) -> Option<&mut Self> {
        self.children.iter_mut().find(|child| child.name == name)
    }

    /// The elements in it of this name.
    pub(crate) fn children_of(&self, name: &str) -> impl Iterator<Item = &Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// Takes away the elements in it of this name.
    pub(crate) fn remove(&mut self, name: &str) {
        self.children.retain(|child| child.name != name);
    }

    /// Reads text from outside: well-formed, no name spaces, no document type, bounded.
    ///
    /// # Errors
    /// `domain.invalid_xml`, and `domain.forbidden_device` for elements of another name space,
    /// which are all options of a tool.
    pub(crate) fn read(xml: &str) -> Result<Self, JobError> {
        if xml.len() > BYTES_MAX {
            let message = format!("the XML is longer than {BYTES_MAX} bytes");
            return Err(JobError::new(Code::DomainInvalidXml, message));
        }
        let options = roxmltree::ParsingOptions {
            allow_dtd: false,
            nodes_limit: NODES_MAX,
            ..roxmltree::ParsingOptions::default()
        };
        let document = roxmltree::Document::parse_with_options(xml, options)
            .map_err(|error| invalid(&error.to_string()))?;
        read_node(document.root_element(), 0)
    }
}

fn invalid(why: &str) -> JobError {
    JobError::new(
        Code::DomainInvalidXml,
        format!("the XML can't be read: {why}"),
    )
}

fn read_node(node: roxmltree::Node<'_, '_>, depth: usize) -> Result<Element, JobError> {
    if depth > DEPTH_MAX {
        return Err(invalid("elements lie too deep in each other"));
    }
    let foreign = node.tag_name().namespace().is_some()
        || node
            .attributes()
            .any(|attribute| attribute.namespace().is_some());
    if foreign {
        let name = node.tag_name().name();
        let message = format!("the XML may not have elements of other name spaces: {name}");
        return Err(JobError::new(Code::DomainForbiddenDevice, message).with("element", name));
    }
    let mut element = Element::new(node.tag_name().name());
    for attribute in node.attributes() {
        element.set(attribute.name(), attribute.value());
    }
    let mut text = String::new();
    for child in node.children() {
        if child.is_element() {
            element.children.push(read_node(child, depth + 1)?);
        } else if child.is_text() {
            text.push_str(child.text().unwrap_or_default());
        } else if child.is_pi() {
            return Err(invalid("it has a processing instruction"));
        }
    }
    let text = text.trim();
    if !text.is_empty() && !element.children.is_empty() {
        return Err(invalid("there is text beside elements"));
    }
    text.clone_into(&mut element.text);
    Ok(element)
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}", self.name)?;
        for (name, value) in &self.attributes {
            write!(f, " {name}='")?;
            escape(f, value)?;
            f.write_char('\'')?;
        }
        if self.children.is_empty() && self.text.is_empty() {
            return f.write_str("/>");
        }
        f.write_char('>')?;
        escape(f, &self.text)?;
        for child in &self.children {
            write!(f, "{child}")?;
        }
        write!(f, "</{}>", self.name)
    }
}

fn escape(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for c in text.chars() {
        match c {
            '&' => f.write_str("&amp;")?,
            '<' => f.write_str("&lt;")?,
            '>' => f.write_str("&gt;")?,
            '\'' => f.write_str("&apos;")?,
            '"' => f.write_str("&quot;")?,
            '\n' | '\r' | '\t' => write!(f, "&#{};", u32::from(c))?,
            c => f.write_char(c)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let element = Element::new("a")
            .with("b", "x'\"<&>\n")
            .containing(Element::new("c").saying("d & <e>"));
        assert_eq!(Element::read(&element.to_string()).unwrap(), element);
    }

    #[test]
    fn deep_elements_are_refused() {
        let xml = format!("{}{}", "<a>".repeat(600), "</a>".repeat(600));
        assert_eq!(
            Element::read(&xml).unwrap_err().code,
            Code::DomainInvalidXml
        );
    }
}
