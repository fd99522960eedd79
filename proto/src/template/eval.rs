//! From a tree to text.

use super::parse::{Call, Function, Node, Operand, Pipeline};
use super::{TemplateError, Value};

/// Functions that reach outside the template. Errors are for people.
pub trait Functions {
    /// A variable of the container; empty when it is not set.
    ///
    /// # Errors
    /// When variables cannot be asked for here.
    fn env(&self, name: &str) -> Result<String, String>;
    /// The content of the secret that the container has under that target.
    ///
    /// # Errors
    /// When there is none.
    fn secret(&self, target: &str) -> Result<String, String>;
    /// The content of the config that the container has under that target.
    ///
    /// # Errors
    /// When there is none.
    fn config(&self, target: &str) -> Result<String, String>;
}

/// None of them: for templates outside secrets and configs.
#[derive(Debug, Clone, Copy)]
pub struct NoFunctions;

fn only_in_files(name: &str) -> Result<String, String> {
    Err(format!("{name} can be used in templates of secrets and configs only"))
}

impl Functions for NoFunctions {
    fn env(&self, _name: &str) -> Result<String, String> {
        only_in_files("env")
    }
    fn secret(&self, _target: &str) -> Result<String, String> {
        only_in_files("secret")
    }
    fn config(&self, _target: &str) -> Result<String, String> {
        only_in_files("config")
    }
}

/// Expands a tree.
pub fn expand(nodes: &[Node], root: &Value, functions: &dyn Functions, most: usize) -> Result<String, TemplateError> {
    let mut expansion = Expansion { root, functions, most, out: String::new() };
    expansion.nodes(nodes)?;
    Ok(expansion.out)
}

struct Expansion<'a> {
    root: &'a Value,
    functions: &'a dyn Functions,
    most: usize,
    out: String,
}

impl Expansion<'_> {
    fn nodes(&mut self, nodes: &[Node]) -> Result<(), TemplateError> {
        for node in nodes {
            match node {
                Node::Text(text) => self.push(0, text)?,
                Node::Print(pipeline) => {
                    let value = self.pipeline(pipeline)?;
                    self.push(pipeline.at, &shown(pipeline.at, &value)?)?;
                }
                Node::If(branches, otherwise) => {
                    let mut body = otherwise;
                    for (condition, branch) in branches {
                        if self.pipeline(condition)?.is_true() {
                            body = branch;
                            break;
                        }
                    }
                    self.nodes(body)?;
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, at: usize, text: &str) -> Result<(), TemplateError> {
        self.fits(at, self.out.len() + text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    fn fits(&self, at: usize, len: usize) -> Result<(), TemplateError> {
        let too_long = || TemplateError::new(at, format!("more than {} bytes of output", self.most));
        if len > self.most { Err(too_long()) } else { Ok(()) }
    }

    fn pipeline(&self, pipeline: &Pipeline) -> Result<Value, TemplateError> {
        let mut last = None;
        for call in &pipeline.calls {
            last = Some(self.call(call, last)?);
        }
        last.ok_or_else(|| TemplateError::new(pipeline.at, "a missing value"))
    }

    fn call(&self, call: &Call, last: Option<Value>) -> Result<Value, TemplateError> {
        let arguments = call.arguments.iter().map(|operand| self.operand(operand));
        let mut arguments = arguments.collect::<Result<Vec<Value>, _>>()?;
        arguments.extend(last);
        let Some(function) = call.function else {
            return arguments.pop().ok_or_else(|| TemplateError::new(call.at, "a missing value"));
        };
        let value = apply(function, &arguments, self.functions)
            .map_err(|what| TemplateError::new(call.at, format!("{}: {what}", function.name())))?;
        if let Value::Text(text) = &value {
            self.fits(call.at, text.len())?;
        }
        Ok(value)
    }

    fn operand(&self, operand: &Operand) -> Result<Value, TemplateError> {
        match operand {
            Operand::Field(at, path) => field(self.root, *at, path),
            Operand::Text(text) => Ok(Value::Text(text.clone())),
            Operand::Number(number) => Ok(Value::Number(*number)),
            Operand::Bool(is_true) => Ok(Value::Bool(*is_true)),
            Operand::Nested(pipeline) => self.pipeline(pipeline),
        }
    }
}

fn shown(at: usize, value: &Value) -> Result<String, TemplateError> {
    value.shown().ok_or_else(|| TemplateError::new(at, "a whole object where one of its fields is needed"))
}

fn field(root: &Value, at: usize, path: &[String]) -> Result<Value, TemplateError> {
    let mut value = root.clone();
    for name in path {
        value = match &value {
            Value::Record(fields) => fields.get(name.as_str()).cloned(),
            Value::Labels(labels) => labels.get(name).cloned().map(Value::Text),
            Value::Text(_) | Value::Number(_) | Value::Bool(_) => None,
        }
        .ok_or_else(|| TemplateError::new(at, format!(".{} names no field {name:?}", path.join("."))))?;
    }
    Ok(value)
}

fn apply(function: Function, arguments: &[Value], functions: &dyn Functions) -> Result<Value, String> {
    let text = |at: usize| match arguments.get(at) {
        Some(Value::Text(text)) => Ok(text.as_str()),
        _ => Err(format!("argument {} must be text", at + 1)),
    };
    let one = |count: usize| match arguments.len() {
        given if given == count => Ok(()),
        given => Err(format!("wants {count} argument{}, not {given}", if count == 1 { "" } else { "s" })),
    };
    let first = || arguments.first().ok_or_else(|| "wants an argument".to_owned());
    Ok(match function {
        Function::Index => match (first()?, arguments.len()) {
            // As in Go: a label that is not there is empty.
            (Value::Labels(labels), 2) => Value::Text(labels.get(text(1)?).cloned().unwrap_or_default()),
            _ => return Err("wants labels and one key".into()),
        },
        Function::Join => {
            let parts = (1..arguments.len()).map(text).collect::<Result<Vec<_>, _>>()?;
            Value::Text(parts.join(text(0)?))
        }
        Function::Print => Value::Text(print(arguments)?),
        Function::Printf => Value::Text(printf(text(0)?, &arguments[1..])?),
        Function::Eq | Function::Ne => {
            let (first, rest) = arguments.split_first().ok_or("wants two arguments")?;
            if rest.is_empty() || (function == Function::Ne && rest.len() > 1) {
                return Err("wants two arguments".into());
            }
            if rest.iter().any(|other| std::mem::discriminant(other) != std::mem::discriminant(first)) {
                return Err("the arguments are of different kinds".into());
            }
            Value::Bool(rest.contains(first) == (function == Function::Eq))
        }
        Function::Not => {
            one(1)?;
            Value::Bool(!first()?.is_true())
        }
        Function::And => {
            arguments.iter().find(|a| !a.is_true()).or(arguments.last()).ok_or("wants an argument")?.clone()
        }
        Function::Or => arguments.iter().find(|a| a.is_true()).or(arguments.last()).ok_or("wants an argument")?.clone(),
        Function::Len => {
            one(1)?;
            let len = match first()? {
                Value::Text(text) => text.len(),
                Value::Labels(labels) => labels.len(),
                Value::Number(_) | Value::Bool(_) | Value::Record(_) => return Err("wants text or labels".into()),
            };
            Value::Number(i64::try_from(len).unwrap_or(i64::MAX))
        }
        Function::Env => one(1).and_then(|()| functions.env(text(0)?)).map(Value::Text)?,
        Function::Secret => one(1).and_then(|()| functions.secret(text(0)?)).map(Value::Text)?,
        Function::Config => one(1).and_then(|()| functions.config(text(0)?)).map(Value::Text)?,
    })
}

/// A space stands between two values of which neither is text (Go: `fmt.Sprint`).
fn print(arguments: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    for (at, value) in arguments.iter().enumerate() {
        let is_text = |value: &Value| matches!(value, Value::Text(_));
        if at > 0 && !is_text(value) && !is_text(&arguments[at - 1]) {
            out.push(' ');
        }
        out.push_str(&value.shown().ok_or("a whole object cannot be printed")?);
    }
    Ok(out)
}

fn printf(format: &str, arguments: &[Value]) -> Result<String, String> {
    let (mut out, mut next, mut chars) = (String::new(), arguments.iter(), format.chars());
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let verb = chars.next().ok_or("the format ends after %")?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let value = next.next().ok_or_else(|| format!("%{verb} has no argument"))?;
        match (verb, value) {
            ('v', value) => out.push_str(&value.shown().ok_or("a whole object cannot be printed")?),
            ('s', Value::Text(text)) => out.push_str(text),
            ('q', Value::Text(text)) => out.push_str(&format!("{text:?}")),
            ('d', Value::Number(number)) => out.push_str(&number.to_string()),
            ('t', Value::Bool(is_true)) => out.push_str(&is_true.to_string()),
            ('s' | 'q' | 'd' | 't', _) => return Err(format!("the argument of %{verb} is of another kind")),
            _ => return Err(format!("%{verb} is not supported")),
        }
    }
    if next.next().is_some() {
        return Err("there are more arguments than the format uses".into());
    }
    Ok(out)
}
