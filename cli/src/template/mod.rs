//! Templates as `--format` takes them: the part of Go's template language that people use with Docker's command line.
//!
//! There are fields (`.State.Status`), variables, pipes, `if`, `range`, `with`, comparisons, and the functions of
//! [`functions`]. Everything is in bounds: [`MAX_TEMPLATE`], [`MAX_DEPTH`], [`MAX_OUTPUT`] and [`MAX_STEPS`].
//!
//! The parts, lowest first: `lex` (tokens), `parse` (a tree), `functions`, `evaluate` (the tree with a value).

mod evaluate;
mod functions;
mod lex;
mod parse;
#[cfg(test)]
mod tests;

use serde_json::Value;

use parse::Node;

/// Longest template in bytes.
pub const MAX_TEMPLATE: usize = 64 << 10;
/// Deepest nesting of blocks and parentheses.
pub const MAX_DEPTH: usize = 32;
/// Most bytes that one value may be rendered to.
pub const MAX_OUTPUT: usize = 64 << 20;
/// Most nodes that may be evaluated for one value.
pub const MAX_STEPS: usize = 4 << 20;

/// Why a template is none, or cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is not understood.
    #[error("{0}")]
    Syntax(String),
    /// The value has no such field, or a function does not take it.
    #[error("{0}")]
    Value(String),
    /// It does too much.
    #[error("the template goes beyond {0}")]
    Bounds(&'static str),
}

/// A template.
#[derive(Debug, Clone)]
pub struct Template(Vec<Node>);

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > MAX_TEMPLATE {
            return Err(TemplateError::Bounds("64 KiB"));
        }
        parse::parse(lex::lex(text)?).map(Self)
    }

    /// Fills it in.
    ///
    /// # Errors
    /// The value does not fit, or the result is too large.
    pub fn render(&self, value: &Value) -> Result<String, TemplateError> {
        evaluate::render(&self.0, value)
    }
}
