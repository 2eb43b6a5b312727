//! `cargo xtask picture`: a terminal's contents as a picture, for documents.
//!
//! ```console
//! $ tmux capture-pane -e -p | cargo xtask picture > docs/top.svg
//! ```
//!
//! Reads text with the escape sequences for colours that tmux prints, and writes an SVG that needs no font but some
//! monospaced one: every run of characters says where it is and how wide.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};

use anyhow::Result;

/// A character's place, in the picture's units.
const WIDTH: usize = 9;
const HEIGHT: usize = 18;
/// Around everything.
const MARGIN: usize = 12;
/// Colours without a number.
const FOREGROUND: &str = "#d0d0d0";
const BACKGROUND: &str = "#15181c";
/// The sixteen colours that have names.
const NAMED: [&str; 16] = [
    "#15181c", "#e0555a", "#5fb865", "#d9a441", "#5b8fe0", "#b678d6", "#4fb5c4", "#d0d0d0", "#7a828c",
    "#ff7379", "#83d789", "#f4c76b", "#86b0f5", "#d49cf0", "#7fd6e3", "#ffffff",
];

/// Turns standard input into a picture on standard output.
#[derive(clap::Args)]
pub(crate) struct Picture {}

impl Picture {
    pub(crate) fn run(self) -> Result<()> {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        Ok(std::io::stdout().write_all(draw(&text).as_bytes())?)
    }
}

/// How characters look.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Look {
    front: Option<String>,
    back: Option<String>,
    bold: bool,
    underlined: bool,
    reversed: bool,
}

impl Look {
    /// Obeys one escape sequence's numbers.
    fn obey(&mut self, sequence: &str) {
        let mut numbers = sequence.split([';', ':']).map(|number| number.parse().unwrap_or(0_usize));
        while let Some(number) = numbers.next() {
            match number {
                0 => *self = Self::default(),
                1 => self.bold = true,
                4 => self.underlined = true,
                7 => self.reversed = true,
                22 => self.bold = false,
                24 => self.underlined = false,
                27 => self.reversed = false,
                30..=37 => self.front = Some(NAMED[number - 30].to_owned()),
                40..=47 => self.back = Some(NAMED[number - 40].to_owned()),
                90..=97 => self.front = Some(NAMED[number - 82].to_owned()),
                100..=107 => self.back = Some(NAMED[number - 92].to_owned()),
                38 => self.front = colour(&mut numbers),
                48 => self.back = colour(&mut numbers),
                39 => self.front = None,
                49 => self.back = None,
                _ => {}
            }
        }
    }

    /// Colours of the characters and behind them.
    fn colours(&self) -> (&str, Option<&str>) {
        let (front, back) = (self.front.as_deref(), self.back.as_deref());
        if self.reversed {
            (back.unwrap_or(BACKGROUND), Some(front.unwrap_or(FOREGROUND)))
        } else {
            (front.unwrap_or(FOREGROUND), back)
        }
    }
}

/// A colour by its number among 256, or by its parts.
fn colour(numbers: &mut impl Iterator<Item = usize>) -> Option<String> {
    let (red, green, blue) = match numbers.next()? {
        2 => (numbers.next()?, numbers.next()?, numbers.next()?),
        5 => match numbers.next()? {
            number @ 0..=15 => return Some(NAMED[number].to_owned()),
            number @ 16..=231 => {
                let level = |digit: usize| if digit == 0 { 0 } else { 55 + 40 * digit };
                let cube = number - 16;
                (level(cube / 36), level(cube / 6 % 6), level(cube % 6))
            }
            number => [8 + 10 * (number.min(255) - 232); 3].into(),
        },
        _ => return None,
    };
    Some(format!("#{red:02x}{green:02x}{blue:02x}"))
}

/// Runs of characters that look alike.
fn runs(line: &str, look: &mut Look) -> Vec<(Look, String)> {
    let mut runs: Vec<(Look, String)> = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        if let Some(sequence) = rest.strip_prefix("\x1b[") {
            let end =
                sequence.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(sequence.len().saturating_sub(1));
            if sequence[end..].starts_with('m') {
                look.obey(&sequence[..end]);
            }
            rest = sequence.get(end + 1..).unwrap_or_default();
            continue;
        }
        match runs.last_mut() {
            Some((last, text)) if last == look => text.push(first),
            _ => runs.push((look.clone(), first.to_string())),
        }
        rest = &rest[first.len_utf8()..];
    }
    runs
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The picture.
fn draw(text: &str) -> String {
    let mut look = Look::default();
    let lines: Vec<_> = text.trim_end().lines().map(|line| runs(line, &mut look)).collect();
    let length =
        |runs: &Vec<(Look, String)>| runs.iter().map(|(_, text)| text.chars().count()).sum::<usize>();
    let columns = lines.iter().map(length).max().unwrap_or(0);
    let (width, height) = (columns * WIDTH + 2 * MARGIN, lines.len() * HEIGHT + 2 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         font-family=\"DejaVu Sans Mono,Menlo,Consolas,monospace\" font-size=\"15\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n"
    );
    for (row, runs) in lines.iter().enumerate() {
        let (top, mut column) = (MARGIN + row * HEIGHT, 0);
        for (look, text) in runs {
            let count = text.chars().count();
            let (x, length) = (MARGIN + column * WIDTH, count * WIDTH);
            column += count;
            let (front, back) = look.colours();
            // Writing to a string cannot fail.
            if let Some(back) = back {
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{top}\" width=\"{length}\" height=\"{HEIGHT}\" fill=\"{back}\"/>"
                );
            }
            if text.trim().is_empty() {
                continue;
            }
            let bold = if look.bold { " font-weight=\"bold\"" } else { "" };
            let line = if look.underlined { " text-decoration=\"underline\"" } else { "" };
            let _ = writeln!(
                svg,
                "<text x=\"{x}\" y=\"{}\" textLength=\"{length}\" lengthAdjust=\"spacingAndGlyphs\" \
                 xml:space=\"preserve\" fill=\"{front}\"{bold}{line}>{}</text>",
                top + 14,
                escape(text)
            );
        }
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_places_are_kept() {
        let svg = draw("ab\x1b[1;31mred\x1b[0m\n\x1b[7m<&>\x1b[27m \x1b[38;5;16;48;5;231mx");
        assert!(svg.contains("<text x=\"30\" y=\"26\" textLength=\"27\""), "{svg}");
        assert!(svg.contains("fill=\"#e0555a\" font-weight=\"bold\">red</text>"), "{svg}");
        assert!(svg.contains("&lt;&amp;&gt;") && svg.contains("fill=\"#ffffff\"/>"), "{svg}");
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn broken_sequences_are_survived() {
        for text in ["\x1b", "\x1b[", "\x1b[38", "\x1b[38;5m", "\x1b[999;x", "\x1b[2Jx"] {
            assert!(draw(text).ends_with("</svg>\n"));
        }
    }
}
