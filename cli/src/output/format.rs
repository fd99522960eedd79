//! The value of `--format`: `json`, or a text with fields. Of Docker's templates (Go, `text/template`) only fields and
//! `json` are built; anything else is refused, not printed wrong.

use anyhow::{Context, bail};
use serde_json::Value;

/// A format, read.
#[derive(Debug, PartialEq, Eq)]
pub struct Format(Vec<Part>);

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// A field by its path, as text or as JSON.
    Field {
        path: Vec<String>,
        json: bool,
    },
}

impl Format {
    /// Reads a format.
    ///
    /// # Errors
    /// When it uses what is not built.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        if text == "json" {
            return Ok(Self(vec![Part::Field { path: Vec::new(), json: true }]));
        }
        if text.starts_with("table") {
            bail!("--format {text:?}: skep prints tables only in their usual form; write the fields without \"table\"");
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) =
                after.split_once("}}").with_context(|| format!("--format {text:?}: a {{{{ without }}}}"))?;
            parts.push(Part::Text(unescape(before)));
            parts.push(action_of(action.trim()).with_context(|| {
                format!(
                    "--format {text:?}: skep knows json, {{{{.Field}}}} and {{{{json .Field}}}}, not {{{{{action}}}}}"
                )
            })?);
            rest = after;
        }
        parts.push(Part::Text(unescape(rest)));
        parts.retain(|p| *p != Part::Text(String::new()));
        Ok(Self(parts))
    }

    /// The text for one object.
    ///
    /// # Errors
    /// A field that it does not have.
    pub fn render(&self, object: &Value) -> anyhow::Result<String> {
        let mut out = String::new();
        for part in &self.0 {
            let (path, json) = match part {
                Part::Text(text) => {
                    out.push_str(text);
                    continue;
                }
                Part::Field { path, json } => (path, json),
            };
            let mut value = object;
            for key in path {
                value = value
                    .get(key)
                    .with_context(|| format!("template parsing error: there is no field .{} here", path.join(".")))?;
            }
            match value {
                Value::String(text) if !json => out.push_str(text),
                // Go's words for what is not there.
                Value::Null if !json => out.push_str("<nil>"),
                Value::Array(_) | Value::Object(_) if !json => {
                    bail!(".{} is not one value: write {{{{json .{}}}}}", path.join("."), path.join("."))
                }
                other => out.push_str(&other.to_string()),
            }
        }
        Ok(out)
    }
}

/// `.A.B`, `json .A`, `.`.
fn action_of(action: &str) -> Option<Part> {
    let (json, path) = match action.strip_prefix("json ") {
        Some(path) => (true, path.trim()),
        None => (false, action),
    };
    let path = path.strip_prefix('.')?;
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let path: Vec<String> = path.split('.').filter(|_| !path.is_empty()).map(str::to_owned).collect();
    path.iter().all(|name| is_name(name)).then_some(Part::Field { path, json })
}

/// Backslashes as docker reads them in formats.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_printed_and_what_is_not_built_is_refused() {
        let object = json!({"Names": "web", "State": {"Pid": 7}, "Tags": ["a"]});
        let render = |format: &str| Format::parse(format).and_then(|f| f.render(&object));
        assert_eq!(render("{{.Names}}\\t{{ .State.Pid }}!").unwrap(), "web\t7!");
        assert_eq!(render("{{json .Tags}}").unwrap(), r#"["a"]"#);
        assert_eq!(render("json").unwrap(), object.to_string());
        assert_eq!(render("{{json .}}").unwrap(), object.to_string());
        for wrong in ["{{range .Tags}}{{.}}{{end}}", "{{.Nothing}}", "{{.Tags}}", "table {{.Names}}", "{{.Names"] {
            assert!(render(wrong).is_err(), "{wrong}");
        }
    }
}
