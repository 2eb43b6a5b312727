//! Drawing `usgx top`: bars of the EPC, rates with their history, and a table of enclaves.
//!
//! 80 by 24 is enough for everything; what a wider terminal has room for is in [`columns`].

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row as TableRow, Sparkline, Table, TableState};
use usgx_machine::NodeInfo;

use super::super::stats::time;
use super::keys::HELP;
use super::model::{Doomed, Model, Row, Sort};
use crate::size::Size;

const PAGE_SIZE: u64 = 4096;
/// Most nodes that have a bar of their own.
const MAX_BARS: usize = 8;
/// Lines of the histories, titles included.
const HISTORY: u16 = 4;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let bars = model.stats.nodes.len().clamp(1, MAX_BARS);
    let bars = u16::try_from(bars).unwrap_or(1);
    let [title, epc, rates, history, table, bottom] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(bars),
        Constraint::Length(2),
        Constraint::Length(HISTORY),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_title(frame, title, model);
    draw_bars(frame, epc, model);
    draw_rates(frame, rates, model);
    draw_history(frame, history, model);
    draw_table(frame, table, model);
    draw_bottom(frame, bottom, model);
    if model.help {
        draw_help(frame);
    }
    if let Some(doomed) = &model.doomed {
        draw_question(frame, doomed);
    }
}

/// Hours, minutes and seconds.
fn clock(seconds: u64) -> String {
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// A number in few characters.
fn short(number: f64) -> String {
    match number {
        n if n < 0.05 => "0".into(),
        n if n < 9.95 => format!("{n:.1}"),
        n if n < 99_999.5 => format!("{n:.0}"),
        n if n < 9_999_500.0 => format!("{:.0}k", n / 1e3),
        n => format!("{:.0}M", n / 1e6),
    }
}

/// A size in few characters: `1.5M`.
fn short_size(bytes: u64) -> String {
    Size(bytes).to_string().replace(" bytes", "").replace("iB", "").replace(' ', "")
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let stats = &model.stats;
    let left = format!(
        "{}, up {}, {} enclaves, {} processes",
        stats.profile,
        clock(stats.uptime_seconds),
        stats.enclaves,
        stats.clients.len()
    );
    let mut line = vec!["usgx top ".bold().cyan(), Span::raw(left)];
    if model.paused {
        line.push(" paused ".black().on_yellow());
    }
    frame.render_widget(Paragraph::new(Line::from(line)), area);
}

/// A bar of `width` characters, `parts` of which are filled, each in its colour.
fn bar(width: u16, whole: u64, parts: &[(u64, Color)]) -> Vec<Span<'static>> {
    let width = u64::from(width);
    let mut spans = Vec::new();
    let (mut sum, mut drawn) = (0, 0);
    for (amount, colour) in parts {
        sum += amount;
        let end = (sum.min(whole) * width).checked_div(whole).unwrap_or(0);
        spans.push(Span::styled("|".repeat((end - drawn) as usize), Style::new().fg(*colour)));
        drawn = end;
    }
    spans.push(Span::raw(" ".repeat((width - drawn) as usize)));
    spans
}

fn draw_bars(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let stats = &model.stats;
    let mut lines = Vec::new();
    if stats.nodes.len() <= 1 {
        let va = stats.va_pages * PAGE_SIZE;
        let whole = NodeInfo {
            sgx_total_bytes: stats.epc_total_pages * PAGE_SIZE,
            usgx_free_bytes: stats.epc_free_pages * PAGE_SIZE,
            ..NodeInfo::default()
        };
        lines.push(bar_line(area.width, "EPC", &whole, va));
    } else {
        for node in stats.nodes.iter().take(MAX_BARS) {
            lines.push(bar_line(area.width, &format!("node {}", node.node), node, 0));
        }
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// One bar: pages of enclaves, then version arrays, where these are known.
fn bar_line(width: u16, name: &str, node: &NodeInfo, va: u64) -> Line<'static> {
    let total = node.sgx_total_bytes;
    let used = total.saturating_sub(node.usgx_free_bytes);
    let numbers = format!("{:>7}/{}", short_size(used), short_size(total));
    // The name, two brackets and the numbers.
    let room = width.saturating_sub(7 + 2 + numbers.len() as u16);
    let share = used as f64 / (total.max(1)) as f64;
    let colour = if share > 0.95 {
        Color::Red
    } else if share > 0.8 {
        Color::Yellow
    } else {
        Color::Green
    };
    let mut spans = vec![Span::styled(format!("{name:<7}"), Style::new().fg(Color::Cyan)), "[".bold()];
    spans.extend(bar(room, total, &[(used.saturating_sub(va), colour), (va, Color::Blue)]));
    spans.extend([Span::raw(numbers), "]".bold()]);
    Line::from(spans)
}

fn draw_rates(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let (rates, stats) = (&model.rates, &model.stats);
    let pair = |name: &'static str, value: String| [name.dark_gray(), value.bold(), Span::raw("  ")];
    let first: Vec<Span<'_>> = [
        pair("evicted ", short_size(stats.usgx_swapped_bytes)),
        pair("faults/s ", short(rates.faults)),
        pair("loads/s ", short(rates.loads)),
        pair("EWB/s ", short(rates.evictions)),
        pair("passes/s ", short(rates.passes)),
    ]
    .concat();
    let second: Vec<Span<'_>> = [
        pair("fault 50% ", time(stats.latencies.fault.quantile(0.5))),
        pair("99% ", time(stats.latencies.fault.quantile(0.99))),
        pair("pass 50% ", time(stats.latencies.reclaim.quantile(0.5))),
        pair("kicks/s ", short(rates.kicks)),
        pair("waits/s ", short(rates.waits)),
    ]
    .concat();
    frame.render_widget(Paragraph::new(vec![Line::from(first), Line::from(second)]), area);
}

fn draw_history(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let [left, _, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(2), Constraint::Fill(1)]).areas(area);
    for (area, name, history, colour) in [
        (left, "faults/s", &model.faults, Color::Yellow),
        (right, "reclaimed/s", &model.evictions, Color::Magenta),
    ] {
        let most = history.iter().copied().max().unwrap_or(0);
        let [title, graph] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
        let title_line =
            Line::from(vec![name.dark_gray(), Span::raw(format!(", at most {}", short(most as f64)))]);
        frame.render_widget(Paragraph::new(title_line), title);
        let skipped = history.len().saturating_sub(usize::from(graph.width));
        let shown: Vec<u64> = history.iter().skip(skipped).copied().collect();
        // At the right end, where the newest is; the graph starts at its left.
        let indent = graph.width.saturating_sub(u16::try_from(shown.len()).unwrap_or(u16::MAX));
        let graph = Rect { x: graph.x + indent, width: graph.width - indent, ..graph };
        frame.render_widget(
            Sparkline::default().data(shown).max(most.max(1)).style(Style::new().fg(colour)),
            graph,
        );
    }
}

/// A column: its name, what it sorts by, its width, and its contents.
struct Column {
    name: &'static str,
    sort: Option<Sort>,
    width: Constraint,
    right: bool,
    cell: fn(&Row) -> String,
}

const fn column(name: &'static str, sort: Option<Sort>, width: u16, cell: fn(&Row) -> String) -> Column {
    Column { name, sort, width: Constraint::Length(width), right: true, cell }
}

/// The columns that a terminal of `width` has room for.
fn columns(width: u16) -> Vec<Column> {
    let mut columns = vec![
        column("ENCL", Some(Sort::Enclave), 5, |row| row.info.id.to_string()),
        column("PID", Some(Sort::Pid), 7, |row| row.info.pid.to_string()),
        Column { right: false, ..column("USER", Some(Sort::User), 8, |row| row.user.clone()) },
        column("SIZE", Some(Sort::Size), 7, |row| short_size(row.info.size)),
        column("IN EPC", Some(Sort::Resident), 7, |row| short_size(row.info.resident_pages * PAGE_SIZE)),
        column("EVICTED", Some(Sort::Evicted), 7, |row| short_size(row.info.evicted_pages * PAGE_SIZE)),
        column("FAULT/s", Some(Sort::Faults), 7, |row| short(row.rates.faults)),
        column("RECL/s", Some(Sort::Reclaims), 7, |row| short(row.rates.evictions)),
    ];
    if width >= 110 {
        columns.push(column("LOAD/s", None, 7, |row| short(row.rates.loads)));
        columns.push(column("KICK/s", None, 7, |row| short(row.rates.kicks)));
        columns.push(column("99% FAULT", None, 9, |row| time(row.info.fault_latency.quantile(0.99))));
    }
    if width >= 150 {
        columns.push(column("AGE", None, 9, |row| clock(row.info.age_seconds)));
        columns.push(column("FAULTS", None, 12, |row| short(row.info.counters.epc_faults as f64)));
        columns.push(column("EVICTIONS", None, 12, |row| short(row.info.counters.evictions as f64)));
        columns.push(Column { right: false, ..column("RESIDENT", None, 22, resident_bar) });
    }
    columns.push(Column {
        name: "COMMAND",
        sort: Some(Sort::Command),
        width: Constraint::Fill(1),
        right: false,
        cell: |row| row.command.clone(),
    });
    columns
}

/// How much of an enclave is in the EPC, in 20 characters.
fn resident_bar(row: &Row) -> String {
    let whole = row.info.pages.max(1);
    let full = (row.info.resident_pages.min(whole) * 20 / whole) as usize;
    format!("[{}{}]", "|".repeat(full), " ".repeat(20 - full))
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let columns = columns(area.width);
    let align = |column: &Column| if column.right { Alignment::Right } else { Alignment::Left };
    let header = columns.iter().map(|column| {
        let sorted = column.sort == Some(model.sort);
        let style = if sorted {
            Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
        } else {
            Style::new()
        };
        Cell::from(Line::styled(column.name, style).alignment(align(column)))
    });
    let header = TableRow::new(header).style(Style::new().fg(Color::Black).bg(Color::Green));
    let rows = model.rows.iter().map(|row| {
        let cells =
            columns.iter().map(|column| Cell::from(Line::raw((column.cell)(row)).alignment(align(column))));
        let style = if row.info.initialized { Style::new() } else { Style::new().fg(Color::DarkGray) };
        TableRow::new(cells).style(style)
    });
    let table = Table::new(rows, columns.iter().map(|column| column.width))
        .header(header)
        .column_spacing(1)
        .row_highlight_style(Style::new().fg(Color::Black).bg(Color::Cyan));
    let mut state = TableState::default().with_selected(model.chosen_place());
    frame.render_stateful_widget(table, area, &mut state);
    if model.rows.is_empty() && area.height > 2 {
        let text =
            Paragraph::new("no enclaves; usgx run --machine SOCKET -- PROGRAM brings some".dark_gray());
        frame.render_widget(text, Rect { y: area.y + 1, height: 1, ..area });
    }
}

fn draw_bottom(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let line = match &model.message {
        Some(message) => Line::from(message.clone()).red(),
        None => {
            let keys = [
                ("f", "aults"),
                ("r", "eclaims"),
                ("m", "em"),
                ("e", "victed"),
                ("<>", "order"),
                ("i", "nvert"),
                ("k", "ill"),
                ("h", "elp"),
                ("q", "uit"),
            ];
            let spans =
                keys.iter().flat_map(|(key, rest)| [key.bold().cyan(), Span::raw(*rest), Span::raw("  ")]);
            Line::from(spans.collect::<Vec<_>>())
        }
    };
    frame.render_widget(Paragraph::new(line), area);
}

/// A box in the middle, at most as large as the terminal.
fn popup(frame: &mut Frame<'_>, title: &'static str, lines: Vec<Line<'static>>, colour: Color) {
    let area = frame.area();
    let longest = lines.iter().map(Line::width).max().unwrap_or(0);
    let width = u16::try_from(longest + 4).unwrap_or(u16::MAX).min(area.width);
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX).min(area.height);
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    let block = Block::bordered().title(title).border_style(Style::new().fg(colour));
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(block), place);
}

fn draw_help(frame: &mut Frame<'_>) {
    let line = |(key, meaning): (&'static str, &'static str)| {
        Line::from(vec![Span::raw(" "), format!("{key:<19}").bold().cyan(), Span::raw(meaning)])
    };
    popup(frame, " Keys ", HELP.into_iter().map(line).collect(), Color::Cyan);
}

fn draw_question(frame: &mut Frame<'_>, doomed: &Doomed) {
    let Doomed { pid, user, command } = doomed;
    let lines = vec![
        Line::raw(format!(" Process {pid} ({command}) of {user} and its enclaves.")),
        Line::raw(""),
        Line::from(vec![" y".bold().red(), Span::raw("  ask it to end (SIGTERM)")]),
        Line::from(vec![" K".bold().red(), Span::raw("  end it (SIGKILL)")]),
        Line::raw(" any other key: let it live"),
    ];
    popup(frame, " End this process? ", lines, Color::Red);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::tests::model;
    use super::*;

    fn render(model: &Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("it is memory");
        terminal.draw(|frame| draw(frame, model)).expect("it is memory");
        let buffer = terminal.backend().buffer().clone();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(line).collect()
    }

    #[track_caller]
    fn find<'a>(lines: &'a [String], text: &str) -> &'a str {
        lines.iter().find(|line| line.contains(text)).unwrap_or_else(|| panic!("{text}: {lines:#?}"))
    }

    #[test]
    fn a_small_terminal_shows_everything_that_matters() {
        let lines = render(&model(), 80, 24);
        assert!(find(&lines, "usgx top").contains("ice-lake-sp, up 0:01:01, 3 enclaves"));
        for node in ["node 0", "node 1"] {
            let line = find(&lines, node);
            assert!(line.contains("24M/32M]"), "{line}");
            assert!(line.contains("||||||||||") && line.ends_with(']'), "{line}");
        }
        assert!(find(&lines, "faults/s").contains("1000"));
        let header = find(&lines, "COMMAND");
        for name in ["ENCL", "PID", "USER", "SIZE", "IN EPC", "EVICTED", "FAULT/s", "RECL/s"] {
            assert!(header.contains(name), "{header}");
        }
        assert!(!header.contains("LOAD/s"));
        let row = find(&lines, "4001");
        for text in ["user1001", "128M", "2.3M", "1.6M", "300", "10", "prog4001"] {
            assert!(row.contains(text), "{text}: {row}");
        }
        assert!(find(&lines, "uit").contains("ill"));
    }

    #[test]
    fn a_large_terminal_shows_more() {
        let lines = render(&model(), 200, 50);
        let header = find(&lines, "COMMAND");
        for name in ["LOAD/s", "KICK/s", "99% FAULT", "AGE", "FAULTS", "EVICTIONS", "RESIDENT"] {
            assert!(header.contains(name), "{header}");
        }
        assert!(find(&lines, "4002").contains("[||||||||||||        ]"), "{lines:#?}");
    }

    #[test]
    fn the_enclave_with_most_faults_comes_first() {
        let lines = render(&model(), 80, 24);
        let place = |pid: &str| lines.iter().position(|line| line.contains(pid));
        assert!(place("4001") < place("4002") && place("4002") < place("4003"));
    }

    #[test]
    fn questions_and_help_are_on_top() {
        let mut model = model();
        model.doomed = model.doom();
        let lines = render(&model, 80, 24);
        assert!(find(&lines, "Process 4001").contains("(prog4001) of user1001"));
        find(&lines, "SIGTERM");
        model.doomed = None;
        model.help = true;
        find(&render(&model, 80, 24), "order by reclaim rate");
    }

    #[test]
    fn no_terminal_is_too_small_and_no_machine_too_empty() {
        let mut full = model();
        full.help = true;
        full.doomed = full.doom();
        for (width, height) in [(1, 1), (5, 3), (20, 10), (79, 23), (300, 5), (400, 100)] {
            render(&full, width, height);
            render(&Model::default(), width, height);
        }
        find(&render(&Model::default(), 80, 24), "no enclaves");
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.26, 9.94, 9.96, 12345.6, 123_456.0, 12_345_678.0].map(short);
        assert_eq!(shown, ["0", "0.3", "9.9", "10", "12346", "123k", "12M"]);
        assert_eq!([0, 4096, 3 << 19].map(short_size), ["0", "4K", "1.5M"]);
        assert_eq!(clock(3_725), "1:02:05");
        assert_eq!(time(Some(Duration::from_micros(3))), "3.0 us");
    }
}
