//! From tokens to a tree.

use serde_json::Value;

use super::lex::{Piece, Token};
use super::{MAX_DEPTH, TemplateError};

/// A part of a template.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// Printed as it is.
    Text(String),
    /// Printed.
    Print(Pipe),
    /// `$name := pipe` or `$name = pipe`.
    Set { name: String, new: bool, value: Pipe },
    /// `if`, or `with`, where the value is what the block is about.
    If { condition: Pipe, about: bool, then: Vec<Node>, otherwise: Vec<Node> },
    /// `range`: index and element may have names.
    Range { names: Vec<String>, over: Pipe, body: Vec<Node>, otherwise: Vec<Node> },
    /// `break` and `continue`.
    Leave { all: bool },
}

/// Commands, each of which gets the value of the one before as its last argument.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipe(pub Vec<Command>);

/// A function, or a value, with arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    pub head: Operand,
    pub arguments: Vec<Operand>,
}

/// A value, and the fields of it that are meant.
#[derive(Debug, Clone, PartialEq)]
pub struct Operand {
    pub root: Root,
    pub fields: Vec<String>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Root {
    /// What the block is about.
    Dot,
    /// A variable.
    Variable(String),
    /// Written in the template.
    Literal(Value),
    /// A function.
    Function(String),
    /// In parentheses.
    Pipe(Pipe),
}

/// Reads the pieces of a template.
pub fn parse(pieces: Vec<Piece>) -> Result<Vec<Node>, TemplateError> {
    let mut pieces = pieces.into_iter();
    match block(&mut pieces, 0)? {
        (nodes, None) => Ok(nodes),
        (_, Some(end)) => Err(syntax(format!("{{{{{}}}}} without a beginning", end.word()))),
    }
}

/// What ends a block.
enum End {
    End,
    Else(Vec<Token>),
}

impl End {
    fn word(&self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Else(_) => "else",
        }
    }
}

fn syntax(why: impl Into<String>) -> TemplateError {
    TemplateError::Syntax(why.into())
}

type Pieces = std::vec::IntoIter<Piece>;

fn block(pieces: &mut Pieces, depth: usize) -> Result<(Vec<Node>, Option<End>), TemplateError> {
    if depth > MAX_DEPTH {
        return Err(TemplateError::Bounds("32 blocks in one another"));
    }
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let tokens = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(tokens) => tokens,
        };
        let (keyword, rest) = match tokens.split_first() {
            Some((Token::Name(name), rest)) => (name.as_str(), rest),
            Some(_) => ("", tokens.as_slice()),
            None => return Err(syntax("there is nothing between {{ and }}")),
        };
        match keyword {
            "end" if rest.is_empty() => return Ok((nodes, Some(End::End))),
            "else" => return Ok((nodes, Some(End::Else(rest.to_vec())))),
            "if" => nodes.push(conditional(rest, false, pieces, depth)?),
            "with" => nodes.push(conditional(rest, true, pieces, depth)?),
            "range" => nodes.push(range(rest, pieces, depth)?),
            "break" if rest.is_empty() => nodes.push(Node::Leave { all: true }),
            "continue" if rest.is_empty() => nodes.push(Node::Leave { all: false }),
            "define" | "template" | "block" => {
                return Err(syntax(format!("{keyword} is not supported")));
            }
            _ => nodes.push(statement(&tokens)?),
        }
    }
    Ok((nodes, None))
}

fn conditional(
    tokens: &[Token],
    about: bool,
    pieces: &mut Pieces,
    depth: usize,
) -> Result<Node, TemplateError> {
    let condition = pipe(tokens)?;
    let (then, end) = block(pieces, depth + 1)?;
    let otherwise = alternative(end, pieces, depth)?;
    Ok(Node::If { condition, about, then, otherwise })
}

/// What follows `else`, up to its end.
fn alternative(end: Option<End>, pieces: &mut Pieces, depth: usize) -> Result<Vec<Node>, TemplateError> {
    match end {
        None => Err(syntax("a block has no {{end}}")),
        Some(End::End) => Ok(Vec::new()),
        Some(End::Else(words)) => match words.split_first() {
            None => match block(pieces, depth + 1)? {
                (nodes, Some(End::End)) => Ok(nodes),
                _ => Err(syntax("{{else}} has no {{end}}")),
            },
            // One `end` ends the whole chain.
            Some((Token::Name(word), rest)) if word == "if" => {
                conditional(rest, false, pieces, depth + 1).map(|n| vec![n])
            }
            Some((Token::Name(word), rest)) if word == "with" => {
                conditional(rest, true, pieces, depth + 1).map(|n| vec![n])
            }
            Some(_) => Err(syntax("after else comes if, with, or nothing")),
        },
    }
}

fn range(tokens: &[Token], pieces: &mut Pieces, depth: usize) -> Result<Node, TemplateError> {
    let (names, over) = match tokens {
        [Token::Variable(v), Token::Declare, rest @ ..] => (vec![v.clone()], rest),
        [Token::Variable(i), Token::Sign(','), Token::Variable(v), Token::Declare, rest @ ..] => {
            (vec![i.clone(), v.clone()], rest)
        }
        all => (Vec::new(), all),
    };
    let over = pipe(over)?;
    let (body, end) = block(pieces, depth + 1)?;
    let otherwise = alternative(end, pieces, depth)?;
    Ok(Node::Range { names, over, body, otherwise })
}

fn statement(tokens: &[Token]) -> Result<Node, TemplateError> {
    match tokens {
        [Token::Variable(name), Token::Declare, value @ ..] => {
            Ok(Node::Set { name: name.clone(), new: true, value: pipe(value)? })
        }
        [Token::Variable(name), Token::Sign('='), value @ ..] => {
            Ok(Node::Set { name: name.clone(), new: false, value: pipe(value)? })
        }
        all => Ok(Node::Print(pipe(all)?)),
    }
}

fn pipe(tokens: &[Token]) -> Result<Pipe, TemplateError> {
    let mut rest = tokens;
    let pipe = commands(&mut rest, 0)?;
    match rest.first() {
        None => Ok(pipe),
        Some(_) => Err(syntax("a parenthesis is not opened")),
    }
}

fn commands(rest: &mut &[Token], depth: usize) -> Result<Pipe, TemplateError> {
    if depth > MAX_DEPTH {
        return Err(TemplateError::Bounds("32 parentheses in one another"));
    }
    let mut commands = Vec::new();
    loop {
        let mut operands = Vec::new();
        while let Some(operand) = operand(rest, depth)? {
            operands.push(operand);
        }
        let mut operands = operands.into_iter();
        let head = operands.next().ok_or_else(|| syntax("a value or a function is missing"))?;
        commands.push(Command { head, arguments: operands.collect() });
        match rest.split_first() {
            Some((Token::Sign('|'), after)) => *rest = after,
            _ => return Ok(Pipe(commands)),
        }
    }
}

fn operand(rest: &mut &[Token], depth: usize) -> Result<Option<Operand>, TemplateError> {
    let Some((token, after)) = rest.split_first() else { return Ok(None) };
    let mut fields = Vec::new();
    let root = match token {
        Token::Sign(')' | '|') => return Ok(None),
        Token::Dot => Root::Dot,
        Token::Field(name, _) => {
            fields.push(name.clone());
            Root::Dot
        }
        Token::Variable(name) => Root::Variable(name.clone()),
        Token::Text(text) => Root::Literal(Value::String(text.clone())),
        Token::Number(number) => Root::Literal(Value::Number(number.clone())),
        Token::Name(name) => match name.as_str() {
            "true" => Root::Literal(Value::Bool(true)),
            "false" => Root::Literal(Value::Bool(false)),
            "nil" => Root::Literal(Value::Null),
            _ => Root::Function(name.clone()),
        },
        Token::Sign('(') => {
            *rest = after;
            let inner = commands(rest, depth + 1)?;
            match rest.split_first() {
                Some((Token::Sign(')'), after)) => {
                    *rest = after;
                    return Ok(Some(Operand { root: Root::Pipe(inner), fields: chain(rest) }));
                }
                _ => return Err(syntax("a parenthesis is not closed")),
            }
        }
        Token::Sign(sign) => return Err(syntax(format!("unexpected {sign:?}"))),
        Token::Declare => return Err(syntax("unexpected :=")),
    };
    *rest = after;
    fields.extend(chain(rest));
    Ok(Some(Operand { root, fields }))
}

/// The fields that follow without a space.
fn chain(rest: &mut &[Token]) -> Vec<String> {
    let mut fields = Vec::new();
    while let Some((Token::Field(name, true), after)) = rest.split_first() {
        fields.push(name.clone());
        *rest = after;
    }
    fields
}
