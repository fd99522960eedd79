use proptest::prelude::*;

use super::task::{TaskContext, expand};
use super::*;
use crate::model::ContainerSpec;

fn context() -> TaskContext {
    TaskContext {
        service_id: "sid".into(),
        service_name: "web".into(),
        service_labels: [("tier".to_owned(), "front".to_owned()), ("a.b".to_owned(), "c".to_owned())].into(),
        node_id: "nid".into(),
        hostname: "n1".into(),
        architecture: "x86_64".into(),
        os: "linux".into(),
        task_id: "tid".into(),
        task_name: "web.3.tid".into(),
        slot: "3".into(),
        address: "10.0.1.5".into(),
        node_address: "192.0.2.1".into(),
    }
}

/// A container with one variable, one secret and one config.
struct Known;

impl Functions for Known {
    fn env(&self, name: &str) -> Result<String, String> {
        Ok(if name == "PORT" { "80".into() } else { String::new() })
    }
    fn secret(&self, target: &str) -> Result<String, String> {
        if target == "key" { Ok("hush".into()) } else { Err(format!("secret target {target} not found")) }
    }
    fn config(&self, target: &str) -> Result<String, String> {
        if target == "/c" { Ok("open".into()) } else { Err(format!("config target {target} not found")) }
    }
}

fn expanded(text: &str) -> Result<String, String> {
    let template = parse(text).map_err(|error| error.to_string())?;
    template.expand(&context().root(), &Known, 1000).map_err(|error| error.to_string())
}

/// Each expected text is what Go's `text/template` gives.
#[test]
fn what_is_known_expands_as_in_go() {
    let rows = [
        ("plain } text {", "plain } text {"),
        ("{{.Service.Name}}-{{.Task.Slot}}@{{.Node.Hostname}}", "web-3@n1"),
        ("{{ .Service.ID }} {{.Node.ID}} {{.Task.ID}} {{.Task.Name}}", "sid nid tid web.3.tid"),
        ("{{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}", "linux/x86_64"),
        ("{{.Service.Labels}}", "map[a.b:c tier:front]"),
        ("{{.Service.Labels.tier}}", "front"),
        ("{{index .Service.Labels \"a.b\"}}[{{index .Service.Labels \"none\"}}]", "c[]"),
        ("{{env \"PORT\"}} {{secret \"key\"}} {{config `/c`}} {{env \"NONE\"}}.", "80 hush open ."),
        ("{{env \"PORT\" | printf \"port=%s\"}}", "port=80"),
        ("{{printf \"%q %v %d%%\" .Node.ID .Task.Slot 7}}", "\"nid\" 3 7%"),
        ("{{join \".\" .Service.Name (printf \"x%s\" .Task.Slot)}}", "web.x3"),
        ("a \n {{- .Task.Slot -}} \n b", "a3b"),
        ("a{{/* nothing */}}b {{- /* trimmed */ -}} c", "abc"),
        ("{{if eq .Node.Hostname \"n1\"}}yes{{else}}no{{end}}", "yes"),
        ("{{if ne .Task.Slot \"3\"}}a{{else if .Service.Labels}}b{{else}}c{{end}}", "b"),
        ("{{if and .Service.Name (not (env \"NONE\"))}}{{len .Service.Name}}{{end}}", "3"),
        ("{{or (env \"NONE\") \"default\"}} {{print 1 2 \"x\" true}}", "default 1 2xtrue"),
        ("{{\"\\u00e9\\t\\\"\"}}", "é\t\""),
    ];
    for (template, text) in rows {
        assert_eq!(expanded(template).as_deref(), Ok(text), "{template}");
    }
}

#[test]
fn what_is_not_known_is_named_with_its_place() {
    let rows = [
        ("ab{{range .Service.Labels}}{{end}}", "range is not supported at offset 2 of the template"),
        ("{{with .Node}}{{end}}", "with is not supported at offset 0 of the template"),
        ("{{$x := 1}}", "variables ($) are not supported at offset 2 of the template"),
        ("{{.Service.Nam}}", ".Service.Nam names no field \"Nam\" at offset 2 of the template"),
        ("{{.Service.Labels.none}}", ".Service.Labels.none names no field \"none\" at offset 2 of the template"),
        ("{{ fly 1 }}", "function \"fly\" is not defined at offset 3 of the template"),
        ("{{.Service", "an action that is not closed by }} at offset 0 of the template"),
        ("{{if .Service}}x", "an if without end at offset 0 of the template"),
        ("x{{end}}", "an unexpected end at offset 1 of the template"),
        ("{{}}", "a missing value at offset 0 of the template"),
        ("{{.Service}}", "a whole object where one of its fields is needed at offset 2 of the template"),
        ("{{secret \"no\"}}", "secret: secret target no not found at offset 2 of the template"),
        ("{{\"a\\z\"}}", "\\z is no escape in a string at offset 4 of the template"),
        ("{{1.5}}", "\"1.5\" is no whole number at offset 2 of the template"),
        ("{{printf \"%x\" 1}}", "printf: %x is not supported at offset 2 of the template"),
        ("{{eq 1 \"1\"}}", "eq: the arguments are of different kinds at offset 2 of the template"),
    ];
    for (template, text) in rows {
        assert_eq!(expanded(template), Err(text.to_owned()), "{template}");
    }
}

#[test]
fn output_and_nesting_are_bounded() {
    let deep = format!("{{{{{}1{}}}}}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(expanded(&deep).unwrap_err().contains("more than 64 parentheses"));
    let ifs = format!("{}{}", "{{if 1}}".repeat(10_000), "{{end}}".repeat(10_000));
    assert!(expanded(&ifs).unwrap_err().contains("more than 64 ifs"));
    assert!(expanded(&"x".repeat(1001)).unwrap_err().contains("more than 1000 bytes"));
    let doubled = "{{printf \"%s%s%s\" (printf \"%s%s\" .Task.Name .Task.Name) .Task.Name .Task.Name}}".repeat(100);
    assert!(expanded(&doubled).unwrap_err().contains("more than 1000 bytes"));
}

#[test]
fn fields_of_a_container_are_expanded_and_the_rest_is_left_alone() {
    let container = ContainerSpec {
        hostname: "{{.Service.Name}}-{{.Task.Slot}}".into(),
        env: vec!["SLOT={{.Task.Slot}}".into(), "PLAIN=1".into()],
        args: vec!["{{.Task.Slot}}".into()],
        ..ContainerSpec::default()
    };
    let got = expand(&container, &context()).unwrap();
    assert_eq!((got.hostname.as_str(), &got.env[..]), ("web-3", &["SLOT=3".to_owned(), "PLAIN=1".into()][..]));
    assert_eq!(got.args, container.args);
    let wrong = ContainerSpec { env: vec!["A={{secret \"s\"}}".into()], ..container };
    assert_eq!(
        expand(&wrong, &context()).unwrap_err().to_string(),
        "expanding env failed: secret: secret can be used in templates of secrets and configs only at offset 4 of the template \"A={{secret \\\"s\\\"}}\""
    );
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in ".{0,60}") {
        let _ = expanded(&text);
    }

    #[test]
    fn arbitrary_actions_never_panic_and_stay_in_bounds(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "{{", "}}", "{{-", "-}}", " ", ".", ".Service", ".Labels", "if ", "else ", "end", "(", ")", "|", "\"a\"", "`b`",
                "index ", "printf ", "\"%s\"", "env ", "secret ", "1", "-", "/*", "*/", "\\", "é", "\n", "eq ", "$", "true",
            ]),
            0..40,
        )
    ) {
        if let Ok(text) = expanded(&parts.concat()) {
            prop_assert!(text.len() <= 1000);
        }
    }

    #[test]
    fn text_without_actions_is_its_own_expansion(text in "[^{]{0,60}") {
        prop_assert_eq!(expanded(&text), Ok(text));
    }
}
