//! `tierline-dist [FOLDER]`: packs `$TIERLINE_BINARY`. `cargo xtask dist` builds it first.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tierline_dist::Package;

fn main() -> Result<()> {
    let variable = |name: &str| {
        std::env::var_os(name).map(PathBuf::from).with_context(|| format!("{name} is not set; run `cargo xtask dist`"))
    };
    let repository = variable("TIERLINE_REPOSITORY")?;
    let folder = std::env::args_os().nth(1).map_or_else(|| repository.join("dist-output"), PathBuf::from);
    let time = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    // As Debian's own tools are told.
    let told = |name: &str, else_: &str| std::env::var(name).unwrap_or_else(|_| else_.to_owned());
    let maintainer = format!("{} <{}>", told("DEBFULLNAME", "Tierline"), told("DEBEMAIL", "tierline@localhost"));
    let package = Package::of(&variable("TIERLINE_BINARY")?, &repository, time.unwrap_or(0), maintainer)?;
    for path in package.write(&folder)? {
        println!("{}", path.display());
    }
    Ok(())
}
