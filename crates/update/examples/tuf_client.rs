//! A client of The Update Framework on the command line, as its conformance
//! suite drives clients: what a shell around [`Client`] looks like.
//!
//! ```text
//! tuf_client --metadata-dir DIR init ROOT
//! tuf_client --metadata-dir DIR --metadata-url URL refresh
//! tuf_client --metadata-dir DIR --metadata-url URL --target-name NAME --target-base-url URL --target-dir DIR download
//! ```
//!
//! Plain HTTP only. Exits with 0 when everything was verified, with 1 otherwise.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tierline_update::trust::{Answer, Change, Client, TargetCheck, TargetName, UnixTime};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A server that says nothing for so long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The whole of an answer's head.
const HEAD_BYTES_MAX: usize = 16 << 10;

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let mut options = BTreeMap::new();
    let mut words = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.strip_prefix("--") {
            Some(name) => drop(options.insert(name.to_owned(), args.next().ok_or("an option without a value")?)),
            None => words.push(arg),
        }
    }
    let option = |name: &str| options.get(name).cloned().ok_or_else(|| format!("--{name} is missing"));
    let kept = PathBuf::from(option("metadata-dir")?);
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["init", root] => {
            let bytes = fs::read(root)?;
            Client::new(&bytes)?;
            fs::create_dir_all(&kept)?;
            fs::write(kept.join("anchor"), &bytes)?;
            fs::write(kept.join("root.json"), &bytes)?;
            Ok(())
        }
        ["refresh"] => refresh(&kept, &option("metadata-url")?).map(drop),
        ["download"] => {
            let mut client = refresh(&kept, &option("metadata-url")?)?;
            let name = TargetName::new(&option("target-name")?)?;
            let mut searched = client.search(&name).map_err(Into::into);
            if searched.is_ok() {
                searched = go_on(&mut client, &option("metadata-url")?);
            }
            keep(&kept, &mut client)?;
            searched?;
            download(&client, &option("target-base-url")?, Path::new(&option("target-dir")?))
        }
        _ => Err("usage: [OPTIONS] init ROOT | refresh | download".into()),
    }
}

fn refresh(kept: &Path, url: &str) -> Outcome<Client> {
    let anchor = fs::read(kept.join("anchor"))?;
    let mut client = Client::new(&anchor)?.with_kept(read(kept)?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    client.begin(UnixTime(now));
    let outcome = go_on(&mut client, url);
    // What was believed before something was refused is kept.
    keep(kept, &mut client)?;
    outcome.map(|()| client)
}

/// Fetches until nothing is wanted.
fn go_on(client: &mut Client, url: &str) -> Outcome<()> {
    while let Some(fetch) = client.next() {
        let mut bytes = Vec::new();
        let there = get(&format!("{}/{}", url.trim_end_matches('/'), fetch.name), |part| {
            bytes.extend_from_slice(part);
            // One byte more than is allowed shows that there is too much.
            Ok(bytes.len() as u64 <= fetch.bytes_max)
        })?;
        client.feed(if there { Answer::Bytes(&bytes) } else { Answer::Missing })?;
    }
    Ok(())
}

fn download(client: &Client, url: &str, folder: &Path) -> Outcome<()> {
    let found = client.found().ok_or("nothing was found")?;
    fs::create_dir_all(folder)?;
    // One name in one folder, whatever the target's is: slashes and what has a meaning for file systems is encoded.
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~');
    let encode = |byte: u8| if safe(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") };
    let path = folder.join(found.name.as_str().bytes().map(encode).collect::<String>());
    let name = found.name.as_str();
    if let Ok(there) = fs::read(&path) {
        let mut check = TargetCheck::new(name, &found.target);
        if check.update(&there).and_then(|()| check.finish()).is_ok() {
            return Ok(());
        }
    }
    let mut check = TargetCheck::new(name, &found.target);
    let mut bytes = Vec::new();
    let mut refused = Ok(());
    let there = get(&format!("{}/{}", url.trim_end_matches('/'), escape(&found.file)), |part| {
        bytes.extend_from_slice(part);
        refused = check.update(part);
        Ok(refused.is_ok())
    })?;
    refused?;
    if !there {
        return Err(format!("{name} isn't there").into());
    }
    check.finish()?;
    write(&path, &bytes)
}

/// A path for a request line.
fn escape(path: &str) -> String {
    let safe = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'%');
    path.bytes().map(|byte| if safe(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn read(kept: &Path) -> Outcome<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for folder in ["", "root_history/"] {
        let Ok(entries) = fs::read_dir(kept.join(folder)) else { continue };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let name = entry.file_name().into_string().map_err(|_| "a file's name is no text")?;
                files.push((format!("{folder}{name}"), fs::read(entry.path())?));
            }
        }
    }
    Ok(files)
}

fn keep(kept: &Path, client: &mut Client) -> Outcome<()> {
    for change in client.changes() {
        match change {
            Change::Store(file, bytes) => write(&kept.join(file), &bytes)?,
            Change::Remove(file) => fs::remove_file(kept.join(file))?,
        }
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Outcome<()> {
    fs::create_dir_all(path.parent().ok_or("no folder")?)?;
    let beside = path.with_extension("part");
    fs::write(&beside, bytes)?;
    fs::rename(&beside, path)?;
    Ok(())
}

/// Fetches a file; false: it isn't there. The receiver says whether it wants more.
fn get(url: &str, mut receive: impl FnMut(&[u8]) -> Outcome<bool>) -> Outcome<bool> {
    let rest = url.strip_prefix("http://").ok_or("only http:// is spoken")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.write_all(format!("GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let (mut buffer, mut head) = ([0; 8 << 10], Vec::new());
    let body = loop {
        let count = stream.read(&mut buffer)?;
        head.extend_from_slice(&buffer[..count]);
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break head.split_off(end + 4);
        }
        if count == 0 || head.len() > HEAD_BYTES_MAX {
            return Err("no answer of HTTP".into());
        }
    };
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    match head.split(' ').nth(1) {
        Some("200") => {}
        Some("403" | "404") => return Ok(false),
        other => return Err(format!("the server answers {}", other.unwrap_or("nothing")).into()),
    }
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")).map(|text| text.trim().parse::<u64>());
    let (mut received, mut wanted) = (body.len() as u64, receive(&body)?);
    while wanted {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        received += count as u64;
        wanted = receive(&buffer[..count])?;
    }
    if let Some(Ok(length)) = length.filter(|_| wanted)
        && received != length
    {
        return Err(format!("{received} bytes of {length} came").into());
    }
    Ok(true)
}
