//! Records the packets of both ends of a connection, and checks that they are valid TCP.
//!
//! It records the packets of some namespaces, in and out, and what conntrack counts as invalid in others. It
//! knows nothing of FTP or of rewriting. It parses packets with its own code, not Pinhole's, so that a bug of Pinhole
//! cannot hide behind the same bug here. Turn the offloads off first: otherwise packets leave their sender with
//! incomplete checksums.

mod recorder;
mod streams;

use super::error::{Context, Result};
use super::namespace::Namespace;
use pinhole::replay::pcap::link::LinkType;
use pinhole::replay::pcap::write::FileWriter;
use recorder::Recorder;
use std::fmt;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

pub use recorder::Packet;
pub use streams::{Fault, faults};

/// A running recording. Dropping it ends it.
#[derive(Debug)]
pub struct PacketRecorder {
    recorders: Vec<(String, Recorder)>,
    gateways: Vec<(Namespace, u64)>,
}

impl PacketRecorder {
    /// Begins to record at `ends`, each with a name for people, and to count at `gateways`.
    pub fn start(ends: &[(&str, &Namespace)], gateways: &[&Namespace]) -> Result<Self> {
        let record = |&(name, namespace): &(&str, &Namespace)| Ok((name.to_owned(), Recorder::start(namespace)?));
        let count = |&gateway: &&Namespace| Ok((gateway.clone(), gateway.invalid_packets()?));
        Ok(Self {
            recorders: ends.iter().map(record).collect::<Result<_>>()?,
            gateways: gateways.iter().map(count).collect::<Result<_>>()?,
        })
    }

    /// Ends the recording, and returns what was found in it.
    pub fn end(self) -> Result<RecordedPackets> {
        let mut invalid = Vec::new();
        let ends: Vec<_> = self.recorders.into_iter().map(|(name, recorder)| (name, recorder.end())).collect();
        for (gateway, before) in self.gateways {
            let count = gateway.invalid_packets()? - before;
            if count > 0 {
                invalid.push((gateway.name().to_owned(), count));
            }
        }
        Ok(RecordedPackets { ends, invalid })
    }
}

/// The result of a recording.
#[derive(Debug)]
pub struct RecordedPackets {
    /// The name of each end, and its packets in order.
    pub ends: Vec<(String, Vec<Packet>)>,
    /// The gateways whose connection tracking found packets invalid, and how many.
    pub invalid: Vec<(String, u64)>,
}

impl RecordedPackets {
    /// All that is not as it should be, a line each; empty if all is well.
    pub fn problems(&self) -> Vec<String> {
        let told = |(name, packets): &(String, Vec<Packet>)| {
            let name = name.clone();
            faults(packets).into_iter().map(move |fault| format!("at the {name}: {fault}"))
        };
        let invalid = |(gateway, count): &(String, u64)| format!("{count} packets were invalid to {gateway}");
        self.ends.iter().flat_map(told).chain(self.invalid.iter().map(invalid)).collect()
    }

    /// Writes a capture file for each end, `NAME-END.pcap` in `folder`.
    pub fn write(&self, folder: &Path, name: &str) -> Result<()> {
        for (end, packets) in &self.ends {
            let path = folder.join(format!("{name}-{end}.pcap"));
            let write = || {
                let mut file = FileWriter::new(BufWriter::new(File::create(&path)?), LinkType::Ip)?;
                packets.iter().try_for_each(|packet| file.write(packet.time, &packet.bytes))?;
                file.finish().map(drop)
            };
            write().doing(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

impl fmt::Display for RecordedPackets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems().join("\n"))
    }
}
