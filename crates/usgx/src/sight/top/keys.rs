//! Keys of `usgx top`, and what they do to the model. What reaches out of it is an [`Act`].

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::model::{Model, Sort};

/// What a key asks for that the model cannot do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Act {
    /// Nothing.
    None,
    /// End.
    Quit,
    /// Read at once.
    Refresh,
    /// Take hold of the process that [`Model::doomed`] names.
    Aim,
    /// Ask it to end.
    Terminate,
    /// End it.
    Kill,
    /// Let go of it.
    Spare,
}

/// The keys, for the help.
pub(super) const HELP: [(&str, &str); 12] = [
    ("Up Down PgUp PgDn", "choose an enclave"),
    ("Left Right", "order by the column beside"),
    ("f", "order by fault rate"),
    ("r", "order by reclaim rate"),
    ("m", "order by pages in the EPC"),
    ("e", "order by evicted pages"),
    ("p u s", "order by process, user, size"),
    ("i", "turn the order round"),
    ("k F9", "end the process of the chosen enclave, after a question"),
    ("Space", "pause"),
    ("h ?", "this help"),
    ("q Esc Ctrl-C", "leave"),
];

/// Obeys a key.
pub(super) fn press(model: &mut Model, key: KeyEvent) -> Act {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c') => Act::Quit,
            KeyCode::Char('l') => Act::Refresh,
            _ => Act::None,
        };
    }
    model.message = None;
    if model.doomed.is_some() {
        // Nothing but a clear yes ends a process.
        return match key.code {
            KeyCode::Char('y') => Act::Terminate,
            KeyCode::Char('K') => Act::Kill,
            _ => Act::Spare,
        };
    }
    if std::mem::take(&mut model.help) {
        return Act::None;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc | KeyCode::F(10) => return Act::Quit,
        KeyCode::Char('h' | '?') | KeyCode::F(1) => model.help = true,
        KeyCode::Up => model.choose_beside(-1),
        KeyCode::Down => model.choose_beside(1),
        KeyCode::PageUp => model.choose_beside(-10),
        KeyCode::PageDown => model.choose_beside(10),
        KeyCode::Home => model.choose_beside(isize::MIN),
        KeyCode::End => model.choose_beside(isize::MAX),
        KeyCode::Left => model.sort_beside(-1),
        KeyCode::Right => model.sort_beside(1),
        KeyCode::Char('i') => model.reverse(),
        KeyCode::Char(' ') => model.paused = !model.paused,
        KeyCode::Char('k') | KeyCode::F(9) => {
            model.doomed = model.doom();
            if model.doomed.is_some() {
                return Act::Aim;
            }
            model.message = Some("there is no process to end".into());
        }
        KeyCode::Char(letter) => {
            let sort = match letter {
                'f' => Sort::Faults,
                'r' => Sort::Reclaims,
                'm' => Sort::Resident,
                'e' => Sort::Evicted,
                'p' => Sort::Pid,
                'u' => Sort::User,
                's' => Sort::Size,
                _ => return Act::None,
            };
            model.sort_by(sort);
        }
        _ => {}
    }
    Act::None
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::model;
    use super::*;

    fn type_in(model: &mut Model, code: KeyCode) -> Act {
        press(model, KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn a_process_is_ended_only_after_a_clear_yes() {
        let mut model = model();
        for code in [KeyCode::Enter, KeyCode::Esc, KeyCode::Char('n'), KeyCode::Char('k'), KeyCode::Char('q')]
        {
            assert_eq!(type_in(&mut model, KeyCode::Char('k')), Act::Aim);
            assert_eq!(type_in(&mut model, code), Act::Spare, "{code:?}");
            model.doomed = None;
        }
        type_in(&mut model, KeyCode::F(9));
        assert_eq!(type_in(&mut model, KeyCode::Char('y')), Act::Terminate);
        assert_eq!(type_in(&mut model, KeyCode::Char('K')), Act::Kill);
    }

    #[test]
    fn keys_order_choose_and_leave() {
        let mut model = model();
        type_in(&mut model, KeyCode::Char('r'));
        assert_eq!(model.sort, Sort::Reclaims);
        type_in(&mut model, KeyCode::End);
        assert_eq!(model.chosen_place(), Some(2));
        type_in(&mut model, KeyCode::Home);
        assert_eq!(model.chosen_place(), Some(0));
        type_in(&mut model, KeyCode::Char('?'));
        assert!(model.help);
        assert_eq!(type_in(&mut model, KeyCode::Char('q')), Act::None, "that leaves the help");
        assert_eq!(type_in(&mut model, KeyCode::Char('q')), Act::Quit);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(press(&mut model, interrupt), Act::Quit);
    }
}
