//! Benchmarks beside their peers in the same run: `cargo xtask bench NAME`.

mod overhead;
mod planner;

use anyhow::bail;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let json = words.iter().any(|word| word == "--json");
    let names: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.starts_with("--")).collect();
    match names[..] {
        ["overhead"] => print(&overhead::run()?, json),
        ["planner"] => print(&planner::run()?, json),
        _ => bail!("name a benchmark: overhead or planner; add --json for numbers"),
    }
}

fn print(report: &(impl serde::Serialize + std::fmt::Display), json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        println!("{report}");
    }
    Ok(())
}
