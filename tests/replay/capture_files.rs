//! Capture files as a user of the library meets them: written, read up to the IP header, and damaged.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Read};
use std::path::PathBuf;
use std::time::Duration;

use etherparse::PacketBuilder;
use pinhole::core::time::Timestamp;
use pinhole::replay::pcap::error::CaptureError;
use pinhole::replay::pcap::file::FileReader;
use pinhole::replay::pcap::link::{LinkType, NotIp, network_layer};
use pinhole::replay::pcap::write::FileWriter;

type Outcome = Result<(), Box<dyn Error>>;

/// A folder that is gone at the end of its test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("pinhole-{test}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn file(&self) -> PathBuf {
        self.0.join("capture.pcap")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing depends on it, and a test that failed has more important things to say.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn frame(line: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 5], 64)
        .tcp(40000, 21, 1, 1000)
        .write(&mut frame, line)?;
    Ok(frame)
}

fn start() -> Timestamp {
    Timestamp::from_nanos(1_700_000_000_123_456_789)
}

/// Enough packets for many reads of the source.
fn write(path: &PathBuf, packets: u64) -> Outcome {
    let mut writer = FileWriter::new(BufWriter::new(File::create(path)?), LinkType::Ethernet)?;
    for number in 0..packets {
        writer.write(start() + Duration::from_nanos(number), &frame(format!("NOOP {number}\r\n").as_bytes())?)?;
    }
    writer.finish()?;
    Ok(())
}

#[test]
fn frames_are_read_up_to_their_ip_headers() -> Outcome {
    const PACKETS: u64 = 20_000;
    let folder = Folder::new("read-back")?;
    write(&folder.file(), PACKETS)?;

    let mut reader = FileReader::new(File::open(folder.file())?)?;
    let mut number = 0;
    while let Some(captured) = reader.next_frame()? {
        assert_eq!(captured.time, start() + Duration::from_nanos(number));
        assert_eq!(captured.original_len as usize, captured.data.len());
        let ip = network_layer(captured.link, captured.data)?;
        assert!(ip.ends_with(format!("NOOP {number}\r\n").as_bytes()));
        number += 1;
    }
    assert_eq!(number, PACKETS);
    assert_eq!(reader.consumed(), fs::metadata(folder.file())?.len());
    Ok(())
}

#[test]
fn truncated_file_is_read_up_to_the_cut() -> Outcome {
    let folder = Folder::new("cut")?;
    write(&folder.file(), 1000)?;
    let whole = fs::metadata(folder.file())?.len();
    File::options().write(true).open(folder.file())?.set_len(whole - 1)?;

    let mut reader = FileReader::new(File::open(folder.file())?)?;
    let mut packets = 0;
    let error = loop {
        match reader.next_frame() {
            Ok(Some(_)) => packets += 1,
            Ok(None) => return Err("the cut went unnoticed".into()),
            Err(error) => break error,
        }
    };
    assert_eq!(packets, 999);
    let CaptureError::CutOff { begin, end, .. } = error else { return Err(error.into()) };
    assert_eq!(end, whole - 1);
    assert_eq!(begin, reader.consumed());
    assert!(reader.next_frame()?.is_none());
    Ok(())
}

#[test]
fn pipe_is_read_like_a_file() -> Outcome {
    let folder = Folder::new("pipe")?;
    write(&folder.file(), 3000)?;
    let (receiver, sender) = std::io::pipe()?;
    let path = folder.file();
    let copier = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut file, mut sender) = (File::open(path)?, sender);
        std::io::copy(&mut file, &mut sender)?;
        Ok(())
    });
    let mut reader = FileReader::new(receiver)?;
    let mut packets = 0;
    while reader.next_frame()?.is_some() {
        packets += 1;
    }
    assert_eq!(packets, 3000);
    copier.join().map_err(|_| "the copier panicked")??;
    Ok(())
}

#[test]
fn file_of_another_format_is_explained() -> Outcome {
    for (content, expected) in [
        (&b""[..], "the file is empty"),
        (b"{\"event\": \"summary\"}\n", "not a capture file but JSON text"),
        (b"\x1f\x8b\x08\x00", "not a capture file but gzip data: decompress it first (gzip -dc FILE | …)"),
        (b"\xd4\xc3\xb2\xa1", "cut off at byte 4, in the middle of a file header that begins at byte 0"),
    ] {
        let error = FileReader::new(content).err().ok_or("it is no capture")?;
        assert_eq!(error.to_string(), expected);
    }
    let error = FileReader::new(File::open("/")?).err().ok_or("a folder is no capture")?;
    assert!(matches!(error, CaptureError::Io { offset: 0, .. }), "{error}");
    Ok(())
}

#[test]
fn non_ip_and_truncated_frames_are_distinguished() -> Outcome {
    let whole = frame(b"")?;
    assert!(network_layer(LinkType::Ethernet, &whole).is_ok());
    assert_eq!(network_layer(LinkType::Ethernet, &whole[..14]), Err(NotIp::Truncated));
    let arp = [&[0xff; 12][..], &[0x08, 0x06], &[0; 46]].concat();
    assert_eq!(network_layer(LinkType::Ethernet, &arp), Err(NotIp::OtherProtocol));
    Ok(())
}

#[test]
fn long_capture_is_read_as_a_stream() -> Outcome {
    // One packet of 60,000 bytes, fifty thousand times: three gigabytes, if they were kept.
    const PACKETS: usize = 50_000;
    struct Repeat {
        record: Vec<u8>,
        at: usize,
        left: usize,
    }
    impl Read for Repeat {
        fn read(&mut self, space: &mut [u8]) -> std::io::Result<usize> {
            if self.left == 0 {
                return Ok(0);
            }
            let now = space.len().min(self.record.len() - self.at);
            space[..now].copy_from_slice(&self.record[self.at..self.at + now]);
            self.at += now;
            if self.at == self.record.len() {
                (self.at, self.left) = (0, self.left - 1);
            }
            Ok(now)
        }
    }
    let mut writer = FileWriter::new(Vec::new(), LinkType::Ip)?;
    writer.write(start(), &[0x45; 60_000])?;
    let file = writer.finish()?;
    let (header, record) = file.split_at(24);
    let source = header.chain(Repeat { record: record.to_vec(), at: 0, left: PACKETS });
    let mut reader = FileReader::new(source)?;
    let mut packets = 0;
    while reader.next_frame()?.is_some() {
        packets += 1;
    }
    assert_eq!(packets, PACKETS);
    assert_eq!(reader.consumed(), (24 + record.len() * PACKETS) as u64);
    Ok(())
}
