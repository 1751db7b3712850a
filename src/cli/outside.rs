//! The file into which a replay writes the packets as they are on the outside of the NAT.

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::replay::Outside;
use crate::replay::pcap::file::Frame;
use crate::replay::pcap::link::LinkType;
use crate::replay::pcap::write::FileWriter;

/// A capture that is being written. The first error is kept until `finish`.
pub(super) struct OutsideFile {
    path: PathBuf,
    state: State,
}

enum State {
    /// The link type is that of the first packet.
    Empty(File),
    Open(FileWriter<BufWriter<File>>, LinkType),
    Failed(anyhow::Error),
}

/// Whether two paths name the same existing file.
pub(super) fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

impl OutsideFile {
    /// Creates the file, or truncates it.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), state: State::Empty(file) })
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed(_))
    }

    /// Flushes the file, or returns the first error.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        let finish = |writer: FileWriter<BufWriter<File>>| writer.finish().map(drop);
        match self.state {
            // A capture may have no packets.
            State::Empty(file) => FileWriter::new(BufWriter::new(file), LinkType::Ethernet).and_then(finish),
            State::Open(writer, _) => finish(writer),
            State::Failed(error) => return Err(error),
        }
        .with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn write(&mut self, frame: &Frame<'_>) -> anyhow::Result<()> {
        if let State::Empty(file) = &self.state {
            let writer = FileWriter::new(BufWriter::with_capacity(1 << 16, file.try_clone()?), frame.link)?;
            self.state = State::Open(writer, frame.link);
        }
        let State::Open(writer, link) = &mut self.state else { return Ok(()) };
        if *link != frame.link {
            bail!("the captures have different link types ({link:?}, {:?}), and a pcap file holds one", frame.link);
        }
        Ok(writer.write_cut(frame.time, frame.data, frame.original_len)?)
    }
}

impl Outside for OutsideFile {
    fn frame(&mut self, frame: &Frame<'_>) {
        if let Err(error) = self.write(frame) {
            self.state = State::Failed(error.context(format!("cannot write {}", self.path.display())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hard_link_is_the_same_file() {
        let folder = std::env::temp_dir().join(format!("pinhole-outside-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder can be made");
        let (one, other) = (folder.join("one"), folder.join("other"));
        fs::write(&one, b"").and_then(|()| fs::hard_link(&one, &other)).expect("a file can be made");
        assert!(is_same_file(&one, &other) && is_same_file(&one, &folder.join(".").join("one")));
        assert!(!is_same_file(&one, &folder) && !is_same_file(&one, &folder.join("none")));
        let _ = fs::remove_dir_all(&folder);
    }
}
