//! `tierline top`: a node and what it sees of its site, live in the terminal.
//!
//! [`seen`] asks the node, [`screen`] draws what it said; here keys and time
//! come together.

mod screen;
mod seen;

use std::io::IsTerminal;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

use self::screen::Screen;
use self::seen::{Seen, look};
use super::infer::parse_time;
use super::{Global, block_on, client};
use crate::output::{CommandError, CommandResult, ExitCode};

/// Keys that nobody acted on yet.
const KEYS_MAX: usize = 32;

/// Between two looks at whether the screen is still wanted.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// Looks under way, or done and not drawn yet.
const LOOKS_MAX: usize = 1;

#[derive(Debug, clap::Args)]
pub struct Top {
    /// Print what there is now, and end
    #[arg(long)]
    once: bool,
    /// Time between two looks, as in `2 s`
    #[arg(long, default_value = "2 s", value_parser = parse_time, value_name = "TIME")]
    every: Duration,
    /// The node: https://host:port or unix:PATH; without it, this device's
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

/// Shows a node until `q`.
pub fn top(global: &Global, args: &Top) -> CommandResult {
    if args.once || global.json {
        return block_on(async {
            let mut node = client::connect(global, args.endpoint.as_deref()).await?;
            global.output().data(&look(&mut node).await?, screen::plain)
        });
    }
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(CommandError::message(ExitCode::Usage, "`tierline top` draws on a terminal, and this is none")
            .hint("`tierline top --once` prints what there is now; with --json, for programs"));
    }
    block_on(async {
        // Before the screen is taken: what is wrong is said where it stays.
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        let seen = look(&mut node).await?;
        let (mut looks, mut keys) = (looks(global, args, node), keys());
        let mut terminal = ratatui::try_init()?;
        let shown = show(&mut terminal, Screen::new(seen), &mut looks, &mut keys).await;
        ratatui::restore();
        shown
    })
}

/// Draws, and does what keys say.
async fn show(
    terminal: &mut ratatui::DefaultTerminal,
    mut screen: Screen,
    looks: &mut mpsc::Receiver<CommandResult<Seen>>,
    keys: &mut mpsc::Receiver<Event>,
) -> CommandResult {
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        tokio::select! {
            Some(looked) = looks.recv() => screen.saw(looked),
            key = keys.recv() => match key {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if !pressed(&mut screen, key) {
                        return Ok(());
                    }
                }
                Some(_) => {}
                None => return Ok(()),
            },
        }
    }
}

/// Does what a key says; whether to go on.
fn pressed(screen: &mut Screen, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('q') => return false,
        KeyCode::Esc if !screen.close() => return false,
        KeyCode::Char('?' | 'h') => screen.help = !screen.help,
        KeyCode::Tab | KeyCode::Right => screen.turn(1),
        KeyCode::BackTab | KeyCode::Left => screen.turn(-1),
        KeyCode::Down | KeyCode::Char('j') => screen.go(1),
        KeyCode::Up | KeyCode::Char('k') => screen.go(-1),
        KeyCode::PageDown => screen.go(10),
        KeyCode::PageUp => screen.go(-10),
        KeyCode::Enter => screen.alone = !screen.alone,
        _ => {}
    }
    true
}

/// What the node says, again and again; connects anew where it was lost.
fn looks(
    global: &Global,
    args: &Top,
    mut node: tierline_proto::v1::local_client::LocalClient<tonic::transport::Channel>,
) -> mpsc::Receiver<CommandResult<Seen>> {
    let (send, receive) = mpsc::channel(LOOKS_MAX);
    let (global, endpoint, every) = (global.clone(), args.endpoint.clone(), args.every);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            let looked = look(&mut node).await;
            if looked.is_err()
                && let Ok(anew) = client::connect(&global, endpoint.as_deref()).await
            {
                node = anew;
            }
            if send.send(looked).await.is_err() {
                return;
            }
        }
    });
    receive
}

/// Keys as they are pressed, until nobody wants them.
fn keys() -> mpsc::Receiver<Event> {
    let (send, receive) = mpsc::channel(KEYS_MAX);
    tokio::task::spawn_blocking(move || {
        while !send.is_closed() {
            match event::poll(KEY_WAIT) {
                Ok(false) => {}
                Ok(true) => {
                    let Ok(event) = event::read() else { return };
                    if send.blocking_send(event).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    });
    receive
}
