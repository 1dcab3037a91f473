//! A tree with a value becomes text.

use serde_json::Value;

use super::functions::{self, display, truthy};
use super::parse::{Node, Operand, Pipe, Root};
use super::{MAX_OUTPUT, MAX_STEPS, TemplateError};

/// What an expression comes to.
#[derive(Debug, Clone)]
enum Found {
    Value(Value),
    /// There is no such field. A condition takes it for nothing; printing it is an error.
    Missing(String),
}

impl Found {
    fn or_nothing(self) -> Value {
        match self {
            Self::Value(value) => value,
            Self::Missing(_) => Value::Null,
        }
    }
}

/// What a node wants to happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Continue,
    Break,
}

struct Evaluation<'a> {
    whole: &'a Value,
    output: String,
    steps: usize,
    variables: Vec<(String, Value)>,
}

/// Fills a template in.
pub fn render(nodes: &[Node], value: &Value) -> Result<String, TemplateError> {
    let mut evaluation = Evaluation { whole: value, output: String::new(), steps: 0, variables: Vec::new() };
    evaluation.nodes(nodes, value)?;
    Ok(evaluation.output)
}

fn wrong(why: impl Into<String>) -> TemplateError {
    TemplateError::Value(why.into())
}

impl Evaluation<'_> {
    fn step(&mut self) -> Result<(), TemplateError> {
        self.steps += 1;
        if self.steps > MAX_STEPS { Err(TemplateError::Bounds("four million steps")) } else { Ok(()) }
    }

    fn print(&mut self, text: &str) -> Result<(), TemplateError> {
        if self.output.len().saturating_add(text.len()) > MAX_OUTPUT {
            return Err(TemplateError::Bounds("64 MiB of output"));
        }
        self.output.push_str(text);
        Ok(())
    }

    /// A block: its variables end with it.
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, TemplateError> {
        let before = self.variables.len();
        let mut flow = Flow::On;
        for node in nodes {
            flow = self.node(node, dot)?;
            if flow != Flow::On {
                break;
            }
        }
        self.variables.truncate(before);
        Ok(flow)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, TemplateError> {
        self.step()?;
        match node {
            Node::Text(text) => self.print(text)?,
            Node::Print(pipe) => match self.pipe(pipe, dot)? {
                Found::Value(value) => self.print(&display(&value))?,
                Found::Missing(name) => return Err(wrong(format!("there is no field {name}"))),
            },
            Node::Set { name, new, value } => {
                let value = self.pipe(value, dot)?.or_nothing();
                let known = self.variables.iter_mut().rev().find(|(known, _)| known == name);
                match (known, new) {
                    (_, true) => self.variables.push((name.clone(), value)),
                    (Some((_, place)), false) => *place = value,
                    (None, false) => return Err(wrong(format!("there is no variable ${name}"))),
                }
            }
            Node::If { condition, about, then, otherwise } => {
                let value = self.pipe(condition, dot)?.or_nothing();
                return match (truthy(&value), about) {
                    (true, true) => self.nodes(then, &value),
                    (true, false) => self.nodes(then, dot),
                    (false, _) => self.nodes(otherwise, dot),
                };
            }
            Node::Range { names, over, body, otherwise } => {
                return self.range(names, over, body, otherwise, dot);
            }
            Node::Leave { all: true } => return Ok(Flow::Break),
            Node::Leave { all: false } => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn range(
        &mut self,
        names: &[String],
        over: &Pipe,
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<Flow, TemplateError> {
        let elements: Vec<(Value, Value)> = match self.pipe(over, dot)?.or_nothing() {
            Value::Array(list) => list.into_iter().enumerate().map(|(i, v)| (i.into(), v)).collect(),
            Value::Object(map) => map.into_iter().map(|(name, v)| (name.into(), v)).collect(),
            Value::Null => Vec::new(),
            other => {
                return Err(wrong(format!("range goes over lists and maps, not over {}", display(&other))));
            }
        };
        if elements.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (index, element) in elements {
            self.step()?;
            let before = self.variables.len();
            match names {
                [index_name, name] => {
                    self.variables.push((index_name.clone(), index));
                    self.variables.push((name.clone(), element.clone()));
                }
                [name] => self.variables.push((name.clone(), element.clone())),
                _ => {}
            }
            let flow = self.nodes(body, &element)?;
            self.variables.truncate(before);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Result<Found, TemplateError> {
        let mut last = None;
        for command in &pipe.0 {
            self.step()?;
            let mut arguments = Vec::new();
            for argument in &command.arguments {
                arguments.push(self.argument(argument, dot)?);
            }
            arguments.extend(last.take().map(Found::or_nothing));
            last = Some(match (&command.head.root, arguments.is_empty()) {
                (Root::Function(name), _) => {
                    let value = functions::call(name, &arguments)?;
                    fields(value, &command.head.fields)
                }
                (_, true) => self.operand(&command.head, dot)?,
                (_, false) => Found::Value(self.method(&command.head, &arguments, dot)?),
            });
        }
        last.ok_or_else(|| wrong("there is nothing to print"))
    }

    /// A function's argument. A field that is missing is nothing.
    fn argument(&mut self, operand: &Operand, dot: &Value) -> Result<Value, TemplateError> {
        if let Root::Function(name) = &operand.root {
            return functions::call(name, &[]);
        }
        Ok(self.operand(operand, dot)?.or_nothing())
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Found, TemplateError> {
        let root = match &operand.root {
            Root::Dot => dot.clone(),
            Root::Variable(name) if name.is_empty() => self.whole.clone(),
            Root::Variable(name) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                known.ok_or_else(|| wrong(format!("there is no variable ${name}")))?.1.clone()
            }
            Root::Literal(value) => value.clone(),
            Root::Function(name) => functions::call(name, &[])?,
            Root::Pipe(pipe) => self.pipe(pipe, dot)?.or_nothing(),
        };
        Ok(fields(root, &operand.fields))
    }

    /// The one method that values have: `.Label "name"`.
    fn method(&mut self, head: &Operand, arguments: &[Value], dot: &Value) -> Result<Value, TemplateError> {
        let (name, before) = head.fields.split_last().ok_or_else(|| wrong("a value takes no arguments"))?;
        let ("Label", [Value::String(label)]) = (name.as_str(), arguments) else {
            return Err(wrong(format!(".{name} takes no arguments")));
        };
        let owner = Operand { root: head.root.clone(), fields: before.to_vec() };
        let owner = self.operand(&owner, dot)?.or_nothing();
        Ok(functions::label(&owner["Labels"], label))
    }
}

fn fields(root: Value, names: &[String]) -> Found {
    let mut value = root;
    for name in names {
        value = match value {
            Value::Object(mut map) => match map.remove(name) {
                Some(value) => value,
                None => return Found::Missing(name.clone()),
            },
            _ => return Found::Missing(name.clone()),
        };
    }
    Found::Value(value)
}
