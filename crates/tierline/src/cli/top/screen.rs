//! What was seen, on a terminal or as plain text. Knows no node and no clock.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Clear, Paragraph, Row, Table, TableState};

use super::seen::{CountRow, NodeRow, PlanRow, Seen};
use crate::cli::running::moment;
use crate::output::{self, CommandResult};

/// Below so many rows only one panel is shown.
const ROWS_MIN: u16 = 24;

const HELP: &str = "q, Esc      end
Tab, arrows other panel
up, down    other row
Enter       this panel alone, and back
?           this help";

/// A table with a name.
struct Panel {
    title: &'static str,
    head: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

/// The panels, in their order.
fn panels(seen: &Seen) -> [Panel; 4] {
    let mut nodes: Vec<Vec<String>> = seen.nodes.iter().map(NodeRow::cells).collect();
    if seen.left_out > 0 {
        nodes.push(vec![format!("and {} more", seen.left_out)]);
    }
    let time = |ms: u64| moment(ms).chars().skip(11).take(8).collect::<String>();
    let events = seen
        .events
        .iter()
        .map(|event| vec![time(event.time_ms), event.kind.clone(), tierline_daemon::words::shown(&event.text)]);
    [
        Panel { title: "nodes", head: &["name", "role", "parent", "state", "link up", "waiting", "busy"], rows: nodes },
        Panel {
            title: "plans",
            head: &["model", "plan", "predicted", "measured", "slowest", "leave early"],
            rows: seen.plans.iter().map(PlanRow::cells).collect(),
        },
        Panel {
            title: "answers",
            head: &["what", "of", "count", "share"],
            rows: seen.counts.iter().map(CountRow::cells).collect(),
        },
        Panel { title: "events", head: &["time", "kind", "what"], rows: events.collect() },
    ]
}

/// The node in one line.
fn headline(seen: &Seen) -> String {
    let memory = match seen.memory_max_bytes {
        0 => output::bytes(seen.memory_used_bytes),
        max => format!("{} of {}", output::bytes(seen.memory_used_bytes), output::bytes(max)),
    };
    format!(
        "{} ({}{})  up {}  waiting {}  running {}  busy {:.0} %  memory {memory}",
        seen.name,
        seen.role,
        if seen.draining { ", stopping" } else { "" },
        output::time(seen.uptime_ms as f64 / 1e3),
        seen.queued,
        seen.running,
        seen.utilisation * 100.0,
    )
}

/// Everything, without a terminal.
pub fn plain(seen: &Seen) -> String {
    let mut text = format!("{}\n", headline(seen));
    for panel in panels(seen) {
        text.push_str(&format!("\n{}\n", panel.title));
        // Only the newest: the rest is for `tierline logs`.
        let rows = &panel.rows[..panel.rows.len().min(if panel.title == "events" { 10 } else { usize::MAX })];
        if rows.is_empty() {
            text.push_str("none\n");
        } else {
            let full = rows.iter().map(|row| {
                let mut row = row.clone();
                row.resize(panel.head.len(), String::new());
                row
            });
            text.push_str(&output::table(panel.head, &full.collect::<Vec<_>>()));
        }
    }
    text
}

/// What is on the terminal.
pub struct Screen {
    seen: Seen,
    /// Why the last look failed.
    failure: Option<String>,
    /// The panel that keys are for.
    at: usize,
    /// The row in each.
    rows: [usize; 4],
    /// Whether the keys are explained.
    pub help: bool,
    /// Whether one panel has all the room.
    pub alone: bool,
}

impl Screen {
    pub fn new(seen: Seen) -> Self {
        Self { seen, failure: None, at: 0, rows: [0; 4], help: false, alone: false }
    }

    /// The node was looked at again.
    pub fn saw(&mut self, looked: CommandResult<Seen>) {
        match looked {
            Ok(seen) => (self.seen, self.failure) = (seen, None),
            Err(failure) => self.failure = Some(format!("{:#}", failure.error)),
        }
    }

    /// Goes to another panel.
    pub fn turn(&mut self, by: isize) {
        self.at = self.at.wrapping_add_signed(by + 4) % 4;
    }

    /// Goes to another row.
    pub fn go(&mut self, by: isize) {
        let last = panels(&self.seen)[self.at].rows.len().saturating_sub(1);
        self.rows[self.at] = self.rows[self.at].saturating_add_signed(by).min(last);
    }

    /// Closes what lies above the panels; false when nothing does.
    pub fn close(&mut self) -> bool {
        let open = self.help || self.alone;
        (self.help, self.alone) = (false, false);
        open
    }

    pub fn draw(&self, frame: &mut Frame) {
        let [head, body, foot] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(3), Constraint::Length(1)]).areas(frame.area());
        let line = match &self.failure {
            None => Line::styled(headline(&self.seen), Style::new().add_modifier(Modifier::BOLD)),
            Some(why) => Line::styled(format!("no answer: {why}"), Style::new().fg(Color::Red)),
        };
        frame.render_widget(line, head);
        frame.render_widget(Line::from("q end   Tab panel   up/down row   Enter alone   ? help"), foot);
        let panels = panels(&self.seen);
        if self.alone || body.height < ROWS_MIN {
            self.panel(frame, body, &panels[self.at], self.at);
        } else {
            // Short panels take what they need, events the rest.
            let tall = |panel: &Panel| Constraint::Length((panel.rows.len() as u16 + 3).clamp(4, body.height / 4));
            let areas: [Rect; 4] =
                Layout::vertical([tall(&panels[0]), tall(&panels[1]), tall(&panels[2]), Constraint::Min(4)])
                    .areas(body);
            for (at, (panel, area)) in panels.iter().zip(areas).enumerate() {
                self.panel(frame, area, panel, at);
            }
        }
        if self.help {
            let area = centred(frame.area(), 44, 7);
            frame.render_widget(Clear, area);
            frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title("keys")), area);
        }
    }

    fn panel(&self, frame: &mut Frame, area: Rect, panel: &Panel, at: usize) {
        let chosen = at == self.at;
        let border = if chosen { Style::new().fg(Color::Cyan) } else { Style::new() };
        let last = panel.head.len() - 1;
        // As wide as its cells, and the last one takes the rest.
        let wide = |column: usize| {
            let cells = panel.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            let most = cells.max().unwrap_or(0).max(panel.head[column].len()) as u16;
            if column == last { Constraint::Min(most.min(8)) } else { Constraint::Length(most.min(48)) }
        };
        let rows = panel.rows.iter().map(|row| {
            let style = if is_bad(panel.title, row) { Style::new().fg(Color::Red) } else { Style::new() };
            Row::new(row.clone()).style(style)
        });
        let table = Table::new(rows, (0..=last).map(wide))
            .header(Row::new(panel.head.to_vec()).style(Style::new().add_modifier(Modifier::DIM)))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
            .block(Block::bordered().title(panel.title).border_style(border));
        let row = self.rows[at].min(panel.rows.len().saturating_sub(1));
        let mut state = TableState::new().with_selected((chosen && !panel.rows.is_empty()).then_some(row));
        frame.render_stateful_widget(table, area, &mut state);
    }
}

/// Whether a row is of something that isn't as it should be.
fn is_bad(title: &str, row: &[String]) -> bool {
    let is = |at: usize, words: &[&str]| row.get(at).is_some_and(|cell| words.contains(&cell.as_str()));
    match title {
        "nodes" => is(3, &["lost", "cut off", "revoked"]),
        "answers" => is(0, &["degraded"]) || is(1, &["failed"]),
        "events" => is(1, &["degraded", "fault", "breach"]),
        _ => false,
    }
}

/// A place of that size in the middle, as far as there is room.
fn centred(area: Rect, width: u16, height: u16) -> Rect {
    let (width, height) = (width.min(area.width), height.min(area.height));
    Rect::new(area.x + (area.width - width) / 2, area.y + (area.height - height) / 2, width, height)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::seen::{EventRow, NodeRow};
    use super::*;

    fn seen() -> Seen {
        let node = |name: &str, role, parent: &str, up| NodeRow {
            name: name.into(),
            role,
            parent: parent.into(),
            state: if name == "cam-2" { "lost".into() } else { "connected".into() },
            up_bytes_per_s: up,
            rtt_ns: 20_000_000,
            queued: 0,
            utilisation: 0.25,
        };
        Seen {
            name: "edge-1".into(),
            role: "edge",
            version: "0.1.0".into(),
            uptime_ms: 61_000,
            draining: false,
            queued: 2,
            running: 1,
            utilisation: 0.5,
            memory_used_bytes: 1 << 20,
            memory_max_bytes: 1 << 30,
            nodes: vec![node("edge-1", "edge", "cloud", 12.5e6), node("cam-2", "end", "edge-1", 0.0)],
            left_out: 3,
            plans: vec![PlanRow {
                model: "digits".into(),
                placement: "segments 0..2 on edge-1, segments 2..5 on cloud".into(),
                predicted_ns: Some(4e6),
                measured_ns: None,
                slowest: "edge-1 -> cloud".into(),
                leave: vec![0.25],
            }],
            counts: vec![CountRow { what: "requests", of: "ok".into(), count: 4.0, share: 1.0 }],
            events: vec![EventRow { time_ms: 951_782_399_999, kind: "link".into(), text: "cam-2 is lost".into() }],
        }
    }

    fn drawn(screen: &Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned() + "\n").collect()
    }

    #[test]
    fn everything_is_on_a_large_screen_and_the_chosen_panel_on_a_small_one() {
        let mut screen = Screen::new(seen());
        let large = drawn(&screen, 110, 40);
        let all = ["edge-1 (edge)", "100.00 Mbit/s, 20 ms", "and 3 more", "segments 0..2", "25 %", "cam-2 is lost"];
        for words in all {
            assert!(large.contains(words), "`{words}` is missing:\n{large}");
        }
        let small = drawn(&screen, 60, 12);
        assert!(small.contains("lost") && !small.contains("digits"), "{small}");
        screen.turn(1);
        let small = drawn(&screen, 60, 12);
        assert!(small.contains("digits") && !small.contains("100.00 Mbit/s"), "{small}");
        screen.turn(-2);
        screen.go(5);
        assert!(drawn(&screen, 60, 12).contains("cam-2 is lost"));
        // No room at all is no fault.
        for (width, height) in [(1, 1), (5, 3), (20, 4)] {
            screen.help = true;
            drawn(&screen, width, height);
        }
    }

    #[test]
    fn keys_explain_themselves_and_a_failure_stays_in_sight() {
        let mut screen = Screen::new(seen());
        screen.help = true;
        assert!(drawn(&screen, 80, 30).contains("this help"));
        assert!(screen.close() && !screen.close());
        let failure = crate::output::CommandError::message(crate::output::ExitCode::Unreachable, "it is gone");
        screen.saw(Err(failure));
        let text = drawn(&screen, 80, 30);
        assert!(text.contains("no answer: it is gone") && text.contains("digits"), "{text}");
    }

    #[test]
    fn plain_text_has_every_panel() {
        let text = plain(&seen());
        for words in ["edge-1 (edge)", "\nnodes\n", "\nplans\n", "\nanswers\n", "\nevents\n", "23:59:59", "and 3 more"]
        {
            assert!(text.contains(words), "`{words}` is missing:\n{text}");
        }
    }
}
