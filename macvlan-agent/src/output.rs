//! Standard output: a reader that went away is no error.

use std::io::{self, Write as _};

/// Writes text.
pub fn text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Writes a line.
pub fn line(line: &str) -> io::Result<()> {
    text(&format!("{line}\n"))
}

/// A name with its control characters made visible: it goes to a terminal.
#[must_use]
pub fn visible(name: &str) -> String {
    name.chars()
        .flat_map(|character| {
            let plain = !character.is_control() && !turns_direction(character);
            let escaped = (!plain).then(|| character.escape_unicode());
            plain
                .then_some(character)
                .into_iter()
                .chain(escaped.into_iter().flatten())
        })
        .collect()
}

/// Characters that turn the direction of what follows.
#[must_use]
pub fn turns_direction(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_command_a_terminal() {
        assert_eq!(visible("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(visible("x\u{202e}y"), "x\\u{202e}y");
        assert_eq!(visible("ümläut"), "ümläut");
    }
}
