//! What Python prints: `str()`, `repr()` and `json.dumps()` of a template value.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};

/// Values can refer to each other only as a tree, but a template can make it deep.
const MAX_DEPTH: usize = 200;

fn failed(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// The formatter behind `{{ value }}`: `str(value)`.
pub fn write_str(out: &mut Output, _: &State, value: &Value) -> Result<(), Error> {
    let written = match value.as_str() {
        Some(text) => out.write_str(text),
        None => out.write_str(&to_str(value.clone())?),
    };
    written.map_err(|_| failed("cannot write the output"))
}

/// The filter `string`.
pub fn to_str(value: Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_string());
    }
    if value.is_undefined() {
        return Ok(String::new());
    }
    let mut text = String::new();
    repr(&value, &mut text, 0)?;
    Ok(text)
}

/// The filter `trim`, which some templates also apply to lists of content parts.
pub fn trim(value: Value, characters: Option<String>) -> Result<String, Error> {
    let text = to_str(value)?;
    Ok(match characters {
        Some(set) => text.trim_matches(|c| set.contains(c)).to_string(),
        None => text.trim().to_string(),
    })
}

fn repr(value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(failed("a printed value is nested too deeply"));
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(value, out, ["nan", "inf", "-inf"]),
        ValueKind::String => quoted_repr(value.as_str().unwrap_or(""), out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&item, out, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&key, out, depth + 1)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, out, depth + 1)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// `repr()` of a str: double quotes only around a text with single but no double ones.
fn quoted_repr(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) || c == '\u{ad}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Integers as they are; floats as `repr(float)`: shortest digits, an exponent from 1e16 on and
/// below 1e-4.
fn number(value: &Value, out: &mut String, [nan, inf, minus_inf]: [&str; 3]) {
    if value.is_integer() {
        let _ = write!(out, "{value}");
        return;
    }
    let x = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    if !x.is_finite() {
        out.push_str(if x.is_nan() { nan } else if x > 0.0 { inf } else { minus_inf });
        return;
    }
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        let _ = write!(out, "{x:?}");
        return;
    }
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    let _ = write!(out, "{digits}e{sign}{:02}", exponent.abs());
}

struct JsonStyle {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sorted: bool,
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`:
/// unlike Jinja's own it does not escape HTML, and it keeps the keys' order.
pub fn to_json(value: Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let argument = |position: usize, name: &str| -> Result<Value, Error> {
        let named: Option<Value> = kwargs.get(name)?;
        Ok(named.or_else(|| args.get(position).cloned()).unwrap_or(Value::from(())))
    };
    let indent = argument(1, "indent")?;
    let indent = match indent.kind() {
        ValueKind::None | ValueKind::Undefined => None,
        ValueKind::String => Some(indent.to_string()),
        _ => Some(" ".repeat(indent.as_usize().unwrap_or(0).min(64))),
    };
    let separators = argument(2, "separators")?;
    let (item, key) = if separators.is_none() || separators.is_undefined() {
        (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string())
    } else {
        let part = |i: usize| separators.get_item(&Value::from(i)).map(|v| v.to_string());
        (part(0)?, part(1)?)
    };
    let style = JsonStyle {
        ascii: argument(0, "ensure_ascii")?.is_true(),
        indent,
        item,
        key,
        sorted: argument(3, "sort_keys")?.is_true(),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    json(&value, &style, &mut out, 0)?;
    Ok(Value::from_safe_string(out))
}

fn json(value: &Value, style: &JsonStyle, out: &mut String, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(failed("tojson: the value is nested too deeply"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => number(value, out, ["NaN", "Infinity", "-Infinity"]),
        ValueKind::String => quoted_json(value.as_str().unwrap_or(""), style.ascii, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            json_items(['[', ']'], items.len(), style, out, depth, |i, out| {
                json(&items[i], style, out, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sorted {
                keys.sort();
            }
            json_items(['{', '}'], keys.len(), style, out, depth, |i, out| {
                quoted_json(&json_key(&keys[i])?, style.ascii, out);
                out.push_str(&style.key);
                json(&value.get_item(&keys[i])?, style, out, depth + 1)
            })?;
        }
        kind => return Err(failed(format!("tojson: a value of type {kind} has no JSON form"))),
    }
    Ok(())
}

/// The brackets, separators and line breaks around `count` items.
fn json_items(
    [open, close]: [char; 2],
    count: usize,
    style: &JsonStyle,
    out: &mut String,
    depth: usize,
    mut write_item: impl FnMut(usize, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let line_break = |out: &mut String, level: usize| {
        if let (Some(indent), true) = (&style.indent, count > 0) {
            out.push('\n');
            out.push_str(&indent.repeat(level));
        }
    };
    out.push(open);
    for i in 0..count {
        out.push_str(if i > 0 { &style.item } else { "" });
        line_break(out, depth + 1);
        write_item(i, out)?;
    }
    line_break(out, depth);
    out.push(close);
    Ok(())
}

/// JSON keys are strings: Python writes `1`, `true` and `null` as such.
fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or("").to_string()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => {
            let mut text = String::new();
            number(key, &mut text, ["NaN", "Infinity", "-Infinity"]);
            Ok(text)
        }
        kind => Err(failed(format!("tojson: a key of type {kind}"))),
    }
}

fn quoted_json(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (ascii && (c as u32) > 0x7e) => {
                let mut units = [0u16; 2];
                for unit in c.encode_utf16(&mut units) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
