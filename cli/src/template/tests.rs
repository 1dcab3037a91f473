//! Templates that people use, and templates that are none.

use serde_json::{Value, json};

use super::{Template, TemplateError};

fn value() -> Value {
    json!({
        "Id": "abcdef", "Name": "/web", "Size": 5, "Empty": "", "None": null,
        "State": { "Status": "running", "Running": true, "Pid": 42 },
        "Config": { "Env": ["A=1", "B=2"], "Labels": { "tier": "front", "a.b": "c" } },
        "NetworkSettings": { "Networks": { "back": { "IPAddress": "10.0.0.2" }, "front": { "IPAddress": "10.0.1.2" } },
            "Ports": { "80/tcp": [{ "HostPort": "8080" }] } },
        "Labels": "tier=front,x=y",
    })
}

fn render(template: &str) -> Result<String, TemplateError> {
    Template::parse(template)?.render(&value())
}

#[test]
fn what_people_use() {
    for (template, expected) in [
        ("{{.Name}}", "/web"),
        ("{{ .State.Status }}:{{.Size}}", "running:5"),
        ("{{json .State}}", r#"{"Pid":42,"Running":true,"Status":"running"}"#),
        ("{{.State.Pid | json}}", "42"),
        ("{{range .Config.Env}}{{println .}}{{end}}", "A=1\nB=2\n"),
        ("{{range $i, $e := .Config.Env}}{{$i}}={{$e}};{{end}}", "0=A=1;1=B=2;"),
        (
            "{{range $k, $v := .NetworkSettings.Networks}}{{$k}}:{{$v.IPAddress}} {{end}}",
            "back:10.0.0.2 front:10.0.1.2 ",
        ),
        ("{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", "10.0.0.2 10.0.1.2 "),
        (r#"{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}"#, "8080"),
        (r#"{{index .Config.Labels "a.b"}}"#, "c"),
        (r#"{{.Label "x"}}{{.Label "none"}}"#, "y"),
        (r#"{{.Config.Label "tier"}}"#, "front"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ("{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}", "none"),
        (
            r#"{{if eq .State.Status "exited"}}a{{else if eq .State.Status "paused" "running"}}b{{else}}c{{end}}"#,
            "b",
        ),
        ("{{with .Config}}{{len .Env}}{{$.Size}}{{end}}", "25"),
        (r#"{{join .Config.Env ", "}}"#, "A=1, B=2"),
        (r#"{{split "a,b" ","}} {{upper "x"}} {{.Name | lower | title}}"#, "[a b] X /Web"),
        (r#"{{truncate .Id 3}} {{pad "x" 1 2}}|{{slice .Id 1 3}}"#, "abc  x  |bc"),
        (r#"{{printf "%s-%5d-%-4v|%q %%" .Id .Size true "a"}}"#, r#"abcdef-    5-true|"a" %"#),
        ("{{.Config.Labels}} {{.Config.Env}} {{.None}}", "map[a.b:c tier:front] [A=1 B=2] <no value>"),
        ("a {{- /* said to nobody */ -}} b", "ab"),
        ("a {{- .Size -}} b", "a5b"),
        (r#"{{"}}"}}{{`\n`}}{{"\t"}}"#, "}}\\n\t"),
        ("{{$x := .Size}}{{if true}}{{$x = 7}}{{end}}{{$x}}", "7"),
        ("{{and .Size .Empty}}|{{or .Empty .Size}}|{{not .Empty}}|{{and true 1 2}}", "|5|true|2"),
        ("{{lt 1 2}} {{ge 1 2}} {{gt 2 1}} {{ne 1 1.0}} {{le \"a\" \"b\"}}", "true false true false true"),
        ("{{range .Config.Env}}{{if eq . \"B=2\"}}{{break}}{{end}}{{.}}{{end}}", "A=1"),
        ("{{range .Nothing}}x{{else}}nothing{{end}}", "nothing"),
        ("no actions }}", "no actions }}"),
    ] {
        assert_eq!(render(template).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn what_is_no_template_or_does_not_fit() {
    for template in [
        "{{",
        "{{}}",
        "{{.Name",
        "{{if .Name}}",
        "{{end}}",
        "{{else}}",
        "{{.Name}",
        "{{nothing .}}",
        "{{define \"x\"}}",
        "{{(.Name}}",
        "{{.Name)}}",
        "{{\"a}}",
        "{{`a}}",
        "{{| .Name}}",
        "{{.Name |}}",
        "{{\"\\x\"}}",
        "{{1.2.3}}",
        "{{#}}",
        "{{if .Name}}{{else}}{{else}}{{end}}",
        "{{range $x .Name}}{{end}}",
        "{{:= 1}}",
    ] {
        assert!(
            matches!(render(template), Err(TemplateError::Syntax(_) | TemplateError::Value(_))),
            "{template}"
        );
    }
    for template in [
        "{{.Nope}}",
        "{{.Name.Nope}}",
        "{{$x}}",
        "{{$x = 1}}",
        "{{len 5}}",
        "{{index .Config.Env 9}}",
        "{{upper 5}}",
        "{{lt 1 \"a\"}}",
        "{{range .Name}}{{end}}",
        "{{.Name 5}}",
        "{{printf \"%s\"}}",
        "{{printf \"%z\" 1}}",
        "{{json}}",
        "{{slice .Id 5 2}}",
        "{{ge 1}}",
    ] {
        assert!(render(template).is_err(), "{template}");
    }
}

#[test]
fn bounds_hold() {
    let deep = format!("{}{}", "{{if .Size}}".repeat(40), "{{end}}".repeat(40));
    assert!(matches!(render(&deep), Err(TemplateError::Bounds(_))));
    let deep = format!("{{{{{}1{}}}}}", "(".repeat(40), ")".repeat(40));
    assert!(matches!(render(&deep), Err(TemplateError::Bounds(_))));
    assert!(matches!(render(&"x".repeat(super::MAX_TEMPLATE + 1)), Err(TemplateError::Bounds(_))));
    assert!(matches!(render("{{pad \"x\" 99999999 1}}"), Err(TemplateError::Bounds(_))));
    let list = Value::Array(vec![Value::from(1); 1000]);
    let nested = Template::parse("{{range .}}{{range $}}{{range $}}{{end}}{{end}}{{end}}").unwrap();
    assert!(matches!(nested.render(&list), Err(TemplateError::Bounds(_))));
}
