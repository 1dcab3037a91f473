//! Text and the tokens between `{{` and `}}`.

use super::TemplateError;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// What is printed as it is.
    Text(String),
    /// What stands between braces.
    Action(Vec<Token>),
}

/// A word of an action.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// `.` alone.
    Dot,
    /// `.Name`. `true`: it follows what is before it without a space.
    Field(String, bool),
    /// `$name`; the empty name is the whole value.
    Variable(String),
    /// A name of a function or a keyword.
    Name(String),
    /// A text in quotes.
    Text(String),
    /// A number.
    Number(serde_json::Number),
    /// `(`, `)`, `|`, `,`, `=`.
    Sign(char),
    /// `:=`.
    Declare,
}

/// Cuts a template into pieces.
pub fn lex(template: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = template;
    let mut trim = false;
    while let Some((text, after)) = rest.split_once("{{") {
        let (action, trim_before) = match after.strip_prefix('-') {
            Some(inner) if inner.starts_with(char::is_whitespace) => (inner, true),
            _ => (after, false),
        };
        let end = end_of(action).ok_or_else(|| TemplateError::Syntax("{{ without }}".to_owned()))?;
        let inner = action.get(..end).unwrap_or_default();
        rest = action.get(end + 2..).unwrap_or_default();
        let mut text = if trim { text.trim_start() } else { text };
        if trim_before {
            text = text.trim_end();
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text.to_owned()));
        }
        let (inner, trim_after) = match inner.strip_suffix('-') {
            Some(before) if before.ends_with(char::is_whitespace) => (before, true),
            _ => (inner, false),
        };
        trim = trim_after;
        let inner = inner.trim();
        let comment = inner.starts_with("/*") && inner.ends_with("*/");
        if !comment {
            pieces.push(Piece::Action(tokens(inner)?));
        }
    }
    let text = if trim { rest.trim_start() } else { rest };
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
    Ok(pieces)
}

/// Where the `}}` is that ends an action: not one within quotes.
fn end_of(action: &str) -> Option<usize> {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in action.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(q) if q == c => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if action.get(at..).is_some_and(|rest| rest.starts_with("}}")) => return Some(at),
            None => {}
        }
    }
    None
}

fn tokens(action: &str) -> Result<Vec<Token>, TemplateError> {
    let mut tokens = Vec::new();
    let mut rest = action;
    let mut joined = false;
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        let token;
        (token, rest) = match c {
            _ if c.is_whitespace() => {
                (joined, rest) = (false, after);
                continue;
            }
            '.' => match word(after) {
                ("", _) => (Token::Dot, after),
                (name, after) => (Token::Field(name.to_owned(), joined), after),
            },
            '$' => {
                let (name, after) = word(after);
                (Token::Variable(name.to_owned()), after)
            }
            '"' => quoted(after)?,
            '`' => {
                let (text, after) = after
                    .split_once('`')
                    .ok_or_else(|| TemplateError::Syntax("a quote is not closed".into()))?;
                (Token::Text(text.to_owned()), after)
            }
            ':' if after.starts_with('=') => (Token::Declare, after.get(1..).unwrap_or_default()),
            '(' | ')' | '|' | ',' | '=' => (Token::Sign(c), after),
            '0'..='9' | '-' | '+' => number(rest)?,
            _ => match word(rest) {
                ("", _) => return Err(TemplateError::Syntax(format!("unexpected {c:?}"))),
                (name, after) => (Token::Name(name.to_owned()), after),
            },
        };
        joined = true;
        tokens.push(token);
    }
    Ok(tokens)
}

/// The letters, digits and underscores that a text begins with, and the rest.
fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    text.split_at(end)
}

fn number(text: &str) -> Result<(Token, &str), TemplateError> {
    let signed = text.strip_prefix('+').unwrap_or(text);
    let end = signed.find(|c: char| !matches!(c, '0'..='9' | '.' | '-' | 'e' | 'E')).unwrap_or(signed.len());
    let (digits, rest) = signed.split_at(end);
    let number = serde_json::from_str(digits)
        .map_err(|_| TemplateError::Syntax(format!("{digits:?} is not a number")))?;
    Ok((Token::Number(number), rest))
}

/// A text up to its closing quote.
fn quoted(text: &str) -> Result<(Token, &str), TemplateError> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Ok((Token::Text(value), text.get(at + 1..).unwrap_or_default())),
            '\\' => value.push(match characters.next() {
                Some((_, 'n')) => '\n',
                Some((_, 't')) => '\t',
                Some((_, 'r')) => '\r',
                Some((_, c @ ('"' | '\\' | '\''))) => c,
                other => {
                    let what = other.map_or_else(String::new, |(_, c)| c.to_string());
                    return Err(TemplateError::Syntax(format!("\\{what} means nothing")));
                }
            }),
            other => value.push(other),
        }
    }
    Err(TemplateError::Syntax("a quote is not closed".into()))
}
