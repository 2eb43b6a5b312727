//! Names for numbers: users and processes. They are shown to people, and only that.

use std::collections::HashMap;
use std::fs;

/// What can be printed of a name that somebody else has chosen: terminals obey some characters.
fn printable(name: &str) -> String {
    name.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The users of this computer.
#[derive(Debug, Default)]
pub(crate) struct Users(HashMap<u32, String>);

impl Users {
    /// Reads `/etc/passwd`; users that come from elsewhere stay numbers.
    pub(crate) fn read() -> Self {
        Self::parse(&fs::read_to_string("/etc/passwd").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let user = |line: &str| {
            let mut fields = line.split(':');
            let (name, uid) = (fields.next()?, fields.nth(1)?.parse().ok()?);
            Some((uid, printable(name)))
        };
        Self(text.lines().filter_map(user).collect())
    }

    /// The user's name, or number.
    pub(crate) fn name(&self, uid: u32) -> String {
        match self.0.get(&uid) {
            Some(name) => name.clone(),
            None if uid == usgx_machine::OTHERS => "others".to_owned(),
            None => uid.to_string(),
        }
    }
}

/// The name of a process, or nothing if it is not visible.
pub(crate) fn process(pid: u32) -> String {
    if pid == 0 {
        return String::new();
    }
    fs::read(format!("/proc/{pid}/comm"))
        .map(|name| printable(&String::from_utf8_lossy(&name)))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names_and_strangers_numbers() {
        let users = Users::parse("root:x:0:0::/:/bin/sh\nbroken\nal\x1bice:x:7:7:::\n");
        assert_eq!([users.name(0), users.name(7), users.name(8)], ["root", "al?ice", "8"]);
        assert_eq!(users.name(u32::MAX), "others");
    }

    #[test]
    fn processes_have_names_while_they_live() {
        assert!(!process(std::process::id()).is_empty());
        assert_eq!((process(0), process(u32::MAX)), (String::new(), String::new()));
    }
}
