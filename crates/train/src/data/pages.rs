//! What of a Parquet file may go to the decoder.
//!
//! The decoder takes for granted what writers keep to, and panics where a
//! damaged file doesn't. All of that is looked at here, first.

use std::path::Path;
use std::sync::Arc;

use parquet::basic::{ConvertedType, Encoding, Repetition, Type as Physical};
use parquet::column::page::Page;
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::FileReader;
use parquet::schema::types::{Type, TypePtr};

use super::error::DataError;

/// The schema of the columns that are `used`, once their pages are known to be
/// sound; the file has `length` bytes.
pub(super) fn checked(path: &Path, length: u64, file: &dyn FileReader, used: &[bool]) -> Result<Type, DataError> {
    let broken = |e: ParquetError| super::parquet::format_error(path, &e);
    let damaged = |what: &str| super::parquet::format_error(path, &format!("{what}; fetch it again"));
    let root = file.metadata().file_metadata().schema();
    let fields: Vec<TypePtr> =
        root.get_fields().iter().zip(used).filter(|(_, used)| **used).map(|(field, _)| Arc::clone(field)).collect();
    if let Some(field) = fields.iter().find(|field| !is_read(field)) {
        let what = format!(
            "column `{}` is neither a number, a text, a list of numbers nor bytes of pictures; drop it",
            field.name()
        );
        return Err(super::parquet::format_error(path, &what));
    }
    for group in 0..file.num_row_groups() {
        for column in file.metadata().row_group(group).columns() {
            if end(column).is_none_or(|end| end > length) {
                return Err(damaged("a column lies outside the file"));
            }
        }
        let row_group = file.get_row_group(group).map_err(broken)?;
        for (index, column) in file.metadata().row_group(group).columns().iter().enumerate() {
            let name = column.column_path().parts().first();
            if !fields.iter().any(|field| Some(field.name()) == name.map(String::as_str)) {
                continue;
            }
            // Decompressed twice, here and to be decoded: what lies in a page
            // shows only when it is open.
            let mut pages = row_group.get_column_page_reader(index).map_err(broken)?;
            let (mut has_dictionary, mut values) = (false, 0);
            while let Some(page) = pages.get_next_page().map_err(broken)? {
                is_sound(&page, column, has_dictionary).map_err(damaged)?;
                match page {
                    Page::DictionaryPage { .. } => has_dictionary = true,
                    _ => values += i64::from(page.num_values()),
                }
            }
            if values != column.num_values() {
                return Err(damaged("a column holds other than the values it declares"));
            }
        }
    }
    Type::group_type_builder(root.name()).with_fields(fields).build().map_err(broken)
}

/// Where a column ends; `None` when it lies before the file's start.
fn end(column: &ColumnChunkMetaData) -> Option<u64> {
    let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
    let places = [start, column.data_page_offset(), column.compressed_size(), column.uncompressed_size()];
    if places.iter().any(|place| *place < 0) {
        return None;
    }
    start.checked_add(column.compressed_size()).map(i64::unsigned_abs)
}

fn is_sound(page: &Page, column: &ColumnChunkMetaData, has_dictionary: bool) -> Result<(), &'static str> {
    let plain = match page.encoding() {
        Encoding::PLAIN => true,
        // Of a dictionary, the old name of plain.
        Encoding::PLAIN_DICTIONARY if matches!(page, Page::DictionaryPage { .. }) => true,
        Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY if has_dictionary => false,
        Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY => {
            return Err("a page refers to a dictionary that isn't there");
        }
        Encoding::RLE => false,
        _ => return Err("a page has an encoding that isn't read; write it with plain or dictionary encoding"),
    };
    if plain && column.column_type() == Physical::BYTE_ARRAY {
        let whole = texts(page, column).is_some_and(|(values, count)| holds(values, count));
        return whole.then_some(()).ok_or("a page ends within its texts or bytes");
    }
    Ok(())
}

/// The values of a page of texts or bytes, and how many there are to be.
fn texts<'p>(page: &'p Page, column: &ColumnChunkMetaData) -> Option<(&'p [u8], usize)> {
    let (repeats, defines) = (column.column_descr().max_rep_level(), column.column_descr().max_def_level());
    let count = page.num_values() as usize;
    let (levels, values) = match page {
        Page::DictionaryPage { buf, .. } => return Some((buf, count)),
        Page::DataPage { buf, def_level_encoding, rep_level_encoding, .. } => {
            let mut rest: &[u8] = buf;
            if repeats > 0 {
                rest = (*rep_level_encoding == Encoding::RLE).then(|| prefixed(rest))??.1;
            }
            match defines {
                0 => return Some((rest, count)),
                _ => (*def_level_encoding == Encoding::RLE).then(|| prefixed(rest))??,
            }
        }
        Page::DataPageV2 { buf, rep_levels_byte_len, def_levels_byte_len, .. } => {
            let rest = buf.get(*rep_levels_byte_len as usize..)?;
            rest.split_at_checked(*def_levels_byte_len as usize)?
        }
    };
    Some((values, if defines == 0 { count } else { defined(levels, defines as u16, count)? }))
}

/// What a length of four bytes stands before, and the rest.
fn prefixed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// Whether `count` values, each after its length, are there.
fn holds(mut bytes: &[u8], count: usize) -> bool {
    for _ in 0..count {
        let Some((_, rest)) = prefixed(bytes) else { return false };
        bytes = rest;
    }
    true
}

/// How many of `count` levels are `max`: values that aren't null. Levels come
/// in runs of one, and in groups of eight packed into bits.
fn defined(mut bytes: &[u8], max: u16, count: usize) -> Option<usize> {
    let width = (u16::BITS - max.leading_zeros()) as usize;
    let (mut seen, mut defined) = (0, 0);
    while seen < count {
        let (mut header, mut shift) = (0u64, 0);
        loop {
            let (byte, rest) = bytes.split_first().filter(|_| shift < 64)?;
            (header, bytes) = (header | u64::from(byte & 0x7f) << shift, rest);
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let (length, left) = ((header >> 1) as usize, count - seen);
        if header & 1 == 0 {
            let (value, rest) = bytes.split_at_checked(width.div_ceil(8))?;
            let value = value.iter().rev().fold(0u16, |all, byte| all << 8 | u16::from(*byte));
            let run = length.min(left);
            (seen, defined, bytes) = (seen + run, defined + if value == max { run } else { 0 }, rest);
        } else {
            let (packed, rest) = bytes.split_at_checked(length.checked_mul(width)?)?;
            let bit = |at: usize| u16::from(packed[at / 8] >> (at % 8) & 1);
            let run = length.checked_mul(8)?.min(left);
            let value = |index: usize| (0..width).fold(0, |all, b| all | bit(index * width + b) << b);
            (seen, defined, bytes) = (seen + run, defined + (0..run).filter(|i| value(*i) == max).count(), rest);
        }
    }
    Some(defined)
}

/// Whether examples can be made of a column, or labels.
fn is_read(field: &Type) -> bool {
    let info = field.get_basic_info();
    if !info.has_repetition() || info.repetition() == Repetition::REPEATED {
        return false;
    }
    if field.is_primitive() {
        return true;
    }
    let fields = field.get_fields();
    let plain = |field: &TypePtr| {
        let info = field.get_basic_info();
        field.is_primitive() && info.has_repetition() && info.repetition() != Repetition::REPEATED
    };
    match (info.converted_type(), fields) {
        // A list, with an element in a group of its own or without.
        (ConvertedType::LIST, [repeated]) => {
            let info = repeated.get_basic_info();
            let repeats = info.has_repetition() && info.repetition() == Repetition::REPEATED;
            repeats && (repeated.is_primitive() || matches!(repeated.get_fields(), [element] if plain(element)))
        }
        (ConvertedType::NONE, fields) => !fields.is_empty() && fields.iter().all(plain),
        _ => false,
    }
}
