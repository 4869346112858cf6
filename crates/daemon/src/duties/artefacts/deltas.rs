//! Models as what differs from models that are here: made where both are, and
//! applied where only the base is.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};

use tierline_proto::Digest;
use tierline_proto::limits::ARTEFACT_BYTES_MAX;
use tierline_proto::v1::{Code, Failure};
use tierline_update::delta::{self, DeltaError, Options};

use super::Artefacts;

/// zstd's level where zstd is the shortest: higher ones take many times as long
/// for a percent.
const LEVEL: i32 = 12;

fn failed(error: DeltaError) -> Failure {
    Failure::new(if error.is_verification() { Code::Corrupt } else { Code::Internal }, error.to_string())
}

impl Artefacts {
    /// Stores what makes one artefact of another; both are here. Gives its
    /// digest and length.
    ///
    /// # Errors
    /// When one isn't here, or the disk refuses.
    pub async fn make_delta(&self, base: Digest, result: Digest) -> Result<(Digest, u64), Failure> {
        let store = self.store.clone();
        let make = move || -> Result<(File, u64), Failure> {
            let (mut old, mut new) = (store.file(base)?, store.file(result)?);
            let file = store.unnamed()?;
            let options = Options { level: LEVEL, lossy: None };
            let mut out = BufWriter::new(&file);
            delta::make(&mut old, &mut new, &options, &mut out, &mut std::io::sink()).map_err(failed)?;
            out.flush().map_err(|e| store.refused(e))?;
            drop(out);
            // Nobody else should be the first to find out.
            delta::apply(&mut old, &mut BufReader::new(&file), &mut std::io::sink()).map_err(failed)?;
            let length = file.metadata().map_err(|e| store.refused(e))?.len();
            Ok((file, length))
        };
        let (mut file, length) = self.cx.tasks.blocking("delta making", make).await??;
        rewind(&mut file)?;
        Ok((self.put_file(&file).await?, length))
    }

    /// Makes an artefact of one that is here and a delta, which is fetched.
    ///
    /// # Errors
    /// When the delta can't be had, isn't of the two, or is broken; when there is
    /// no room: then nothing was written.
    pub async fn make_by_delta(&self, base: Digest, result: Digest, by: Digest) -> Result<(), Failure> {
        self.ensure(by).await?;
        let store = self.store.clone();
        let apply = move || -> Result<File, Failure> {
            let mut delta = delta::Delta::open(BufReader::new(store.file(by)?)).map_err(failed)?;
            let header = delta.header();
            if (header.base.0, header.result.0) != (base.0, result.0) || header.result_bytes > ARTEFACT_BYTES_MAX {
                let text = format!("delta {} is between other models", by.short());
                return Err(Failure::new(Code::Corrupt, text));
            }
            // What is made is copied into the store, so it takes room twice for a moment.
            if store.room() < header.result_bytes.saturating_mul(2) {
                let text = format!("no room for the {} bytes that delta {} makes", header.result_bytes, by.short());
                return Err(Failure::new(Code::StorageFull, text));
            }
            let file = store.unnamed()?;
            let mut out = BufWriter::with_capacity(1 << 20, &file);
            delta.apply(&mut BufReader::new(store.file(base)?), &mut out).map_err(failed)?;
            out.flush().map_err(|e| store.refused(e))?;
            drop(out);
            Ok(file)
        };
        let mut file = self.cx.tasks.blocking("delta applying", apply).await??;
        rewind(&mut file)?;
        let made = self.put_file(&file).await?;
        if made != result {
            self.remove(made).await?;
            return Err(Failure::new(Code::Corrupt, format!("delta {} makes another model", by.short())));
        }
        Ok(())
    }
}

fn rewind(file: &mut File) -> Result<(), Failure> {
    std::io::Seek::rewind(file).map_err(|e| Failure::new(Code::Internal, e.to_string()))
}
