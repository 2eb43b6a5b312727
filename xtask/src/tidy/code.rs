//! A Rust source without its comments and literals, so that rules can look for words in code alone.

/// Replaces comments and the contents of string and character literals by spaces; lines stay where they are.
pub(super) fn only(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = skipped(rest, out.chars().next_back());
        if length == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            let (hidden, after) = rest.split_at(length);
            out.extend(hidden.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = after;
        }
    }
    out
}

/// Bytes of the comment or literal at the start of `rest`; 0 if there is none.
fn skipped(rest: &str, before: Option<char>) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    let inside_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if !inside_word {
        // r"", r#""#, br"", cr#""#
        let prefix = rest.trim_start_matches(['b', 'c']);
        if let Some(raw) = prefix.strip_prefix('r').filter(|_| rest.len() - prefix.len() <= 1) {
            let hashes = raw.len() - raw.trim_start_matches('#').len();
            if let Some(body) = raw[hashes..].strip_prefix('"') {
                let end = format!("\"{}", "#".repeat(hashes));
                let start = rest.len() - body.len();
                return body.find(&end).map_or(rest.len(), |at| start + at + end.len());
            }
        }
    }
    match rest.as_bytes()[0] {
        b'"' => quoted(rest, '"'),
        b'\'' => character(rest),
        _ => 0,
    }
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        let tail = &rest.as_bytes()[at..];
        if tail.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if tail.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// A literal between quotes, with escapes.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// A character literal; 0 for a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => quoted(rest, '\''),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        only(text).split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn comments_are_hidden() {
        assert_eq!(words("a // unsafe\nb /* x /* y */ z */ c"), ["a", "b", "c"]);
        assert_eq!(words("//! docs\n/// more\nfn"), ["fn"]);
    }

    #[test]
    fn literals_are_hidden() {
        assert_eq!(words(r##"f("un\"safe") + r#"x"y"# + b"z" g"##).join(" "), "f( ) + + b g");
        assert_eq!(words("'\"' a '\\'' b"), ["a", "b"]);
    }

    #[test]
    fn lifetimes_and_names_are_code() {
        assert_eq!(words("&'a str"), ["&'a", "str"]);
        assert_eq!(words("for r in br"), ["for", "r", "in", "br"]);
    }

    #[test]
    fn lines_stay_where_they_are() {
        assert_eq!(only("a\n/* b\n c */\nd").lines().count(), 4);
    }
}
