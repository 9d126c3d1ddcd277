//! Turns pcap and pcapng files, also compressed with gzip, into batches of frames, through the crate `pcap-parser`.
//!
//! Formats: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng; gzip: RFC 1952.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, LegacyPcapReader, PcapBlockOwned, PcapError, PcapNGReader};

use crate::time::Timestamp;
use crate::wire::{Frame, InterfaceId, LinkType};

/// Why a capture file could not be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused it.
    #[error("{path}: cannot be read: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing in it.
    #[error("{path}: the file is empty: a capture begins with a header even where no packet follows")]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// Something else.
    #[error(
        "{path}: neither pcap nor pcapng{compressed}: it begins with {found}; `tcpdump -w FILE` writes what is read here"
    )]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// ` behind gzip`, where it was compressed.
        compressed: &'static str,
        /// Its first octets.
        found: String,
    },
    /// A link type that is not understood.
    #[error(
        "{path}: link type {link_type} is not known here; known are Ethernet (1), raw IP (12, 14, 101, 228, 229), Linux cooked (113, 276) and loopback (0, 108)"
    )]
    LinkType {
        /// Which file.
        path: PathBuf,
        /// Its number at tcpdump.org/linktypes.html.
        link_type: i32,
    },
    /// The file ends inside a packet or block.
    #[error("{path}: cut off at octet {offset}, inside a packet: the {packets} packets before it were read")]
    Truncated {
        /// Which file.
        path: PathBuf,
        /// Where, in uncompressed octets.
        offset: u64,
        /// Packets read before.
        packets: u64,
    },
    /// A block contradicts the format.
    #[error("{path}: damaged at octet {offset}: {what}; the {packets} packets before it were read")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where, in uncompressed octets.
        offset: u64,
        /// Packets read before.
        packets: u64,
        /// What is wrong.
        what: String,
    },
}

/// An open capture file.
pub struct CaptureFile {
    path: PathBuf,
    reader: Box<dyn PcapReaderIterator>,
    /// Octets taken from the file on disk, and its size where known.
    consumed: Rc<Cell<u64>>,
    size: Option<u64>,
    sections: Sections,
    packets: u64,
    first_interface: u16,
    /// Packets of pcapng interfaces whose link type is not known.
    unsupported: u64,
    arena: Vec<u8>,
    batch: Vec<Pending>,
    failed: Option<FileError>,
}

/// A pcapng interface description.
#[derive(Clone, Copy, Debug)]
struct NgInterface {
    link: Option<LinkType>,
    units_per_second: u64,
    offset_seconds: i64,
}

/// A frame of the batch, its octets in the arena.
#[derive(Clone, Copy, Debug)]
struct Pending {
    at: Timestamp,
    wire_len: u32,
    interface: u16,
    link: LinkType,
    start: usize,
    end: usize,
}

/// Frames handed over together.
const BATCH: usize = 64;
const BUFFER: usize = 1 << 17;
/// Characters kept of an interface's name.
const MOST_NAME: usize = 255;
/// Octets kept of a frame: an IP packet of the greatest length behind what a link may put before it.
const MOST_KEPT: usize = 65_535 + 1024;
/// The largest packet or block that is read; tcpdump's own bound is 256 KiB a packet.
const MAX_BUFFER: usize = 32 << 20;

impl CaptureFile {
    /// Opens a file, `-` for standard input.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let io_error = |source| FileError::Io { path: path.to_owned(), source };
        let consumed = Rc::new(Cell::new(0));
        let (source, size): (Box<dyn Read>, _) = if path.as_os_str() == "-" {
            (Box::new(io::stdin()), None)
        } else {
            let file = File::open(path).map_err(io_error)?;
            let metadata = file.metadata().map_err(io_error)?;
            if metadata.is_dir() {
                return Err(io_error(io::Error::from(io::ErrorKind::IsADirectory)));
            }
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        };
        let counted = Counted { inner: source, consumed: Rc::clone(&consumed) };
        let mut source: Box<dyn Read> = Box::new(BufReader::with_capacity(BUFFER, counted));
        let mut head = head(&mut source, 4).map_err(io_error)?;
        if head.is_empty() {
            return Err(FileError::Empty { path: path.to_owned() });
        }
        let mut compressed = "";
        if head.starts_with(&[0x1f, 0x8b]) {
            compressed = " behind gzip";
            source = Box::new(MultiGzDecoder::new(Cursor::new(head).chain(source)));
            head = self::head(&mut source, 4).map_err(io_error)?;
            if head.is_empty() {
                return Err(FileError::Empty { path: path.to_owned() });
            }
        }
        // The whole first header at once, since the reader looks at what its first read brings.
        let mut rest = Vec::new();
        if let Err(error) = source.by_ref().take(4096).read_to_end(&mut rest) {
            // A gzip stream is cut off or damaged soon: what comes before that is read, then the reader meets it again.
            source = Box::new(Broken(error.kind()));
        }
        let foreign = || FileError::Foreign { path: path.to_owned(), compressed, found: excerpt(&head) };
        let first = *head.first_chunk::<4>().ok_or_else(foreign)?;
        let head_len = (head.len() + rest.len()) as u64;
        let source = Cursor::new([&head[..], &rest].concat()).chain(source);
        let open_error = |error: PcapError<&[u8]>| match error {
            PcapError::Incomplete(_) | PcapError::Eof | PcapError::UnexpectedEof => {
                FileError::Truncated { path: path.to_owned(), offset: head_len, packets: 0 }
            }
            _ => foreign(),
        };
        let reader: Box<dyn PcapReaderIterator> = match first {
            [0x0a, 0x0d, 0x0d, 0x0a] => Box::new(PcapNGReader::new(BUFFER, source).map_err(open_error)?),
            [0xa1, 0xb2, 0xc3, 0xd4]
            | [0xd4, 0xc3, 0xb2, 0xa1]
            | [0xa1, 0xb2, 0x3c, 0x4d]
            | [0x4d, 0x3c, 0xb2, 0xa1] => Box::new(LegacyPcapReader::new(BUFFER, source).map_err(open_error)?),
            _ => return Err(foreign()),
        };
        let name: Arc<str> = path.file_name().map_or_else(|| "-".into(), |name| name.to_string_lossy().into());
        Ok(Self {
            path: path.to_owned(),
            reader,
            consumed,
            size,
            sections: Sections {
                pcap: None,
                nanoseconds: first.contains(&0x3c),
                room: usize::from(u16::MAX),
                interfaces: Vec::new(),
                section: 0,
                names: vec![Arc::clone(&name)],
                file_name: name,
            },
            packets: 0,
            first_interface: 0,
            unsupported: 0,
            arena: Vec::with_capacity(BATCH * 2048),
            batch: Vec::with_capacity(BATCH),
            failed: None,
        })
    }

    /// Gives its interfaces numbers from `first` on and its packets numbers behind `packets`, for files read in sequence.
    pub fn continue_from(&mut self, first: usize, packets: u64) {
        self.sections.room = usize::from(u16::MAX).saturating_sub(first);
        self.first_interface = u16::try_from(first).unwrap_or(u16::MAX);
        self.packets = packets;
    }

    /// Names of its interfaces as far as read: those of pcapng, or the file's own.
    #[must_use]
    pub fn names(&self) -> &[Arc<str>] {
        &self.sections.names
    }

    /// Number of the latest packet.
    #[must_use]
    pub const fn packets(&self) -> u64 {
        self.packets
    }

    /// Packets that were left out since their pcapng interface has a link type that is not known.
    #[must_use]
    pub const fn unsupported(&self) -> u64 {
        self.unsupported
    }

    /// Octets read from the file on disk, and its size where known.
    #[must_use]
    pub fn progress(&self) -> (u64, Option<u64>) {
        (self.consumed.get(), self.size)
    }

    /// Hands over the next frames, with the names of the interfaces known by then; false at the end of the file.
    /// Frames before an error are handed over first.
    pub fn next_batch(&mut self, take: &mut dyn FnMut(&[Frame<'_>], &[Arc<str>])) -> Result<bool, FileError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.arena.clear();
        self.batch.clear();
        let first_number = self.packets + 1;
        while self.batch.len() < BATCH {
            match self.step() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if self.batch.is_empty() => return Err(error),
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        if self.batch.is_empty() {
            return Ok(false);
        }
        let frames: Vec<_> = self
            .batch
            .iter()
            .zip(first_number..)
            .map(|(pending, number)| Frame {
                at: pending.at,
                number,
                wire_len: pending.wire_len,
                interface: InterfaceId(pending.interface),
                link: pending.link,
                stripped_vlan: None,
                data: self.arena.get(pending.start..pending.end).unwrap_or_default(),
            })
            .collect();
        take(&frames, &self.sections.names);
        Ok(true)
    }

    /// Reads one block; false at the end.
    fn step(&mut self) -> Result<bool, FileError> {
        let (offset, packets) = (self.reader.consumed() as u64, self.packets);
        let path = &self.path;
        let damaged = |what: &str| FileError::Damaged { path: path.clone(), offset, packets, what: what.to_owned() };
        let truncated = || FileError::Truncated { path: path.clone(), offset, packets };
        loop {
            let exhausted = self.reader.data().is_empty() && self.reader.reader_exhausted();
            let need = match self.reader.next() {
                Ok((len, block)) => {
                    match self.sections.read(&block) {
                        Content::Packet(pending, data) => {
                            let start = self.arena.len();
                            self.arena.extend_from_slice(data.get(..MOST_KEPT).unwrap_or(data));
                            let interface = self.first_interface.saturating_add(pending.interface);
                            let wire_len = pending.wire_len.max(data.len() as u32);
                            self.batch.push(Pending { start, end: self.arena.len(), interface, wire_len, ..pending });
                            self.packets += 1;
                        }
                        Content::Unsupported => self.unsupported += 1,
                        Content::LinkType(link_type) => {
                            return Err(FileError::LinkType { path: path.clone(), link_type });
                        }
                        Content::Damaged(what) => return Err(damaged(what)),
                        Content::Other => {}
                    }
                    self.reader.consume(len);
                    return Ok(true);
                }
                Err(PcapError::Eof) => return Ok(false),
                Err(PcapError::UnexpectedEof) if exhausted => return Ok(false),
                Err(PcapError::UnexpectedEof) => return Err(truncated()),
                Err(PcapError::Incomplete(_)) => Need::More,
                Err(PcapError::BufferTooSmall) => Need::Space,
                Err(_) => return Err(damaged("a block that contradicts the format")),
            };
            if let Need::Space = need {
                let size = self.reader.data().len().max(BUFFER) * 2;
                if size > MAX_BUFFER {
                    return Err(damaged("a packet or block of more than 16 MiB"));
                }
                self.reader.grow(size);
            }
            if self.reader.refill().is_err() {
                return Err(damaged("the file or its gzip stream cannot be read any further"));
            }
        }
    }
}

/// What the reader lacks for the next block.
enum Need {
    More,
    Space,
}

/// What a block holds.
enum Content<'a> {
    Packet(Pending, &'a [u8]),
    /// A packet of an interface with an unknown link type.
    Unsupported,
    LinkType(i32),
    Damaged(&'static str),
    Other,
}

/// What earlier blocks said of later ones.
#[derive(Debug)]
struct Sections {
    /// pcap: the file's own link type and unit of time.
    pcap: Option<NgInterface>,
    nanoseconds: bool,
    /// Interfaces that there may be, those of files before not among them.
    room: usize,
    /// pcapng: the interfaces of all sections, and where the present section's begin.
    interfaces: Vec<NgInterface>,
    section: usize,
    names: Vec<Arc<str>>,
    file_name: Arc<str>,
}

impl Sections {
    fn read<'a>(&mut self, block: &'a PcapBlockOwned<'_>) -> Content<'a> {
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                let link = link_type(header.network.0 & 0xffff);
                let units_per_second = if self.nanoseconds { 1_000_000_000 } else { 1_000_000 };
                self.pcap = Some(NgInterface { link, units_per_second, offset_seconds: 0 });
                if link.is_none() { Content::LinkType(header.network.0 & 0xffff) } else { Content::Other }
            }
            PcapBlockOwned::Legacy(packet) => {
                let Some(NgInterface { link: Some(link), units_per_second, .. }) = self.pcap else {
                    return Content::Damaged("a packet before the header");
                };
                let fraction = u64::from(packet.ts_usec).saturating_mul(1_000_000_000 / units_per_second);
                let nanos = u64::from(packet.ts_sec).saturating_mul(1_000_000_000).saturating_add(fraction);
                Content::Packet(Pending::new(nanos, packet.origlen, 0, link), packet.data)
            }
            PcapBlockOwned::NG(block) => self.read_ng(block),
        }
    }

    fn read_ng<'a>(&mut self, block: &'a Block<'_>) -> Content<'a> {
        match block {
            Block::SectionHeader(_) => {
                self.section = self.interfaces.len();
                Content::Other
            }
            Block::InterfaceDescription(interface) => {
                if self.interfaces.len() >= self.room {
                    return Content::Damaged("more than 65,535 interfaces");
                }
                let name = match interface.if_name() {
                    Some(Ok(name)) if !name.is_empty() => name.chars().take(MOST_NAME).collect::<String>().into(),
                    _ => Arc::clone(&self.file_name),
                };
                if self.interfaces.is_empty() {
                    self.names.clear();
                }
                self.names.push(name);
                self.interfaces.push(NgInterface {
                    link: link_type(interface.linktype.0),
                    units_per_second: interface.ts_resolution().filter(|&units| units > 0).unwrap_or(1_000_000),
                    offset_seconds: interface.ts_offset(),
                });
                Content::Other
            }
            Block::EnhancedPacket(packet) => {
                let time = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                self.ng_packet(packet.if_id as usize, Some(time), packet.origlen, packet.packet_data())
            }
            // A simple packet has no time; the one of the packet before is the best guess.
            Block::SimplePacket(packet) => self.ng_packet(0, None, packet.origlen, packet.packet_data()),
            _ => Content::Other,
        }
    }

    fn ng_packet<'a>(&self, id: usize, time: Option<u64>, wire_len: u32, data: &'a [u8]) -> Content<'a> {
        let position = self.section + id;
        let Some(interface) = self.interfaces.get(position) else {
            return Content::Damaged("a packet of an interface that was not described");
        };
        let Some(link) = interface.link else { return Content::Unsupported };
        let nanos = time.map_or(0, |time| {
            let nanos = u128::from(time) * 1_000_000_000 / u128::from(interface.units_per_second);
            let nanos =
                i128::try_from(nanos).unwrap_or(i128::MAX) + i128::from(interface.offset_seconds) * 1_000_000_000;
            u64::try_from(nanos.max(0)).unwrap_or(u64::MAX)
        });
        let id = u16::try_from(position).unwrap_or(u16::MAX);
        Content::Packet(Pending::new(nanos, wire_len, id, link), data)
    }
}

impl Pending {
    const fn new(nanos: u64, wire_len: u32, interface: u16, link: LinkType) -> Self {
        Self { at: Timestamp::from_nanos(nanos), wire_len, interface, link, start: 0, end: 0 }
    }
}

/// tcpdump.org/linktypes.html; 12 and 14 are what some systems' raw IP was called.
const fn link_type(number: i32) -> Option<LinkType> {
    match number {
        0 | 108 => Some(LinkType::Loopback),
        1 => Some(LinkType::Ethernet),
        12 | 14 | 101 | 228 | 229 => Some(LinkType::RawIp),
        113 => Some(LinkType::LinuxSll),
        276 => Some(LinkType::LinuxSll2),
        _ => None,
    }
}

/// Up to `len` octets, fewer only at the end.
fn head(source: &mut dyn Read, len: u64) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    source.take(len).read_to_end(&mut octets)?;
    Ok(octets)
}

/// The first octets for a message, as text where they are.
fn excerpt(octets: &[u8]) -> String {
    let text = std::str::from_utf8(octets).ok().filter(|text| text.chars().all(|letter| !letter.is_control()));
    text.map_or_else(
        || octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(" "),
        |text| format!("\"{text}\""),
    )
}

/// What is left of a source that failed.
struct Broken(io::ErrorKind);

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(self.0.into())
    }
}

/// Counts what is read from the file on disk.
struct Counted<R> {
    inner: R,
    consumed: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.consumed.set(self.consumed.get() + len as u64);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const FRAME: [u8; 20] = [9; 20];

    fn pcap(big_endian: bool, nanos: bool, link: u32) -> Vec<u8> {
        let word = |word: u32| if big_endian { word.to_be_bytes() } else { word.to_le_bytes() };
        let magic = if nanos { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
        let version = if big_endian { [0, 2, 0, 4] } else { [2, 0, 4, 0] };
        let mut file = [word(magic), version, word(0), word(0), word(65535), word(link)].concat();
        for _ in 0..2 {
            file.extend([word(1_700_000_000), word(7), word(20), word(60)].concat());
            file.extend(FRAME);
        }
        file
    }

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let len = (12 + body.len()) as u32;
        [&kind.to_le_bytes()[..], &len.to_le_bytes(), body, &len.to_le_bytes()].concat()
    }

    fn pcapng() -> Vec<u8> {
        let section = block(0x0a0d_0d0a, &[0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
        // Ethernet, name "wan0", resolution 10^-9.
        let wan =
            block(1, &[1, 0, 0, 0, 0, 0, 4, 0, 2, 0, 4, 0, b'w', b'a', b'n', b'0', 9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        // IEEE 802.11, which is not known.
        let air = block(1, &[105, 0, 0, 0, 0, 0, 4, 0]);
        let packet = |interface: u32| {
            let time = 1_700_000_000_000_000_007_u64;
            let words = [interface, (time >> 32) as u32, time as u32, 20, 60].map(u32::to_le_bytes).concat();
            block(6, &[&words[..], &FRAME].concat())
        };
        [section, wan, air, packet(0), packet(1), packet(0)].concat()
    }

    fn read(octets: &[u8]) -> (Vec<(u64, u32, u16, LinkType, Vec<u8>)>, Option<FileError>, u64, Vec<Arc<str>>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(octets).unwrap();
        let mut frames = Vec::new();
        let mut capture = match CaptureFile::open(file.path()) {
            Ok(capture) => capture,
            Err(error) => return (frames, Some(error), 0, Vec::new()),
        };
        loop {
            let more = capture.next_batch(&mut |batch, _| {
                frames.extend(batch.iter().map(|frame| {
                    (frame.at.as_nanos(), frame.wire_len, frame.interface.0, frame.link, frame.data.to_vec())
                }));
            });
            match more {
                Ok(true) => {}
                Ok(false) => return (frames, None, capture.unsupported(), capture.names().to_vec()),
                Err(error) => return (frames, Some(error), capture.unsupported(), capture.names().to_vec()),
            }
        }
    }

    fn gzip(octets: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(octets).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn pcap_in_every_order_and_unit() {
        for big_endian in [false, true] {
            for nanos in [false, true] {
                let (frames, error, ..) = read(&pcap(big_endian, nanos, 1));
                let at = 1_700_000_000_000_000_000 + if nanos { 7 } else { 7000 };
                assert!(error.is_none(), "{error:?}");
                assert_eq!(frames, vec![(at, 60, 0, LinkType::Ethernet, FRAME.to_vec()); 2]);
            }
        }
    }

    #[test]
    fn pcapng_with_two_interfaces() {
        let (frames, error, unsupported, names) = read(&pcapng());
        assert!(error.is_none(), "{error:?}");
        assert_eq!(frames, vec![(1_700_000_000_000_000_007, 60, 0, LinkType::Ethernet, FRAME.to_vec()); 2]);
        assert_eq!(unsupported, 1);
        assert_eq!(&*names[0], "wan0");
    }

    #[test]
    fn gzip_gives_the_same() {
        for octets in [pcap(false, true, 1), pcapng()] {
            assert_eq!(read(&gzip(&octets)).0, read(&octets).0);
        }
    }

    #[test]
    fn cut_at_every_octet_gives_whole_packets_and_an_error() {
        for octets in [pcap(false, false, 101), pcapng()] {
            let whole = read(&octets).0;
            for len in 0..octets.len() {
                let (frames, error, ..) = read(&octets[..len]);
                assert!(frames.len() <= whole.len() && whole.starts_with(&frames), "{len}");
                assert!(frames.len() < whole.len(), "{len}");
                // A file may end between two blocks without anybody being able to tell.
                if let Some(error) = error {
                    let text = error.to_string();
                    assert!(
                        text.contains("cut off") || text.contains("empty") || text.contains("neither"),
                        "{len}: {text}"
                    );
                }
                let _ = read(&gzip(&octets)[..len.min(30)]);
            }
        }
    }

    #[test]
    fn a_gzip_stream_that_is_cut_off_gives_the_packets_before() {
        let octets = pcap(false, false, 1);
        let whole = read(&octets).0;
        // Stored as it is, so that a cut of the stream is one of the file.
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        encoder.write_all(&octets).unwrap();
        let stream = encoder.finish().unwrap();
        // Behind 10 octets of gzip's header and 5 of the block's: the file's header and one packet, half of the next.
        let (frames, error, ..) = read(&stream[..15 + 24 + 36 + 18]);
        assert_eq!(frames, whole[..1]);
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains("octet 60") && text.contains("the 1 packets before it were read"), "{text}");
    }

    #[test]
    fn one_octet_changes_never_panic() {
        for octets in [pcap(false, false, 1), pcapng()] {
            for position in 0..octets.len() {
                for change in [0x01, 0x80, 0xff] {
                    let mut changed = octets.clone();
                    changed[position] ^= change;
                    let _ = read(&changed);
                }
            }
        }
    }

    #[test]
    fn foreign_files_are_named_as_such() {
        let text = |octets: &[u8]| read(octets).1.map(|error| error.to_string()).unwrap_or_default();
        assert!(text(b"").contains("the file is empty"));
        assert!(text(b"hello, world").contains("it begins with \"hell\""), "{}", text(b"hello, world"));
        assert!(text(b"\x89PNG\r\n\x1a\n").contains("89 50 4e 47"));
        assert!(text(&gzip(b"hello")).contains("neither pcap nor pcapng behind gzip"));
        assert!(text(&gzip(b"")).contains("the file is empty"));
        assert!(text(&pcap(false, false, 105)).contains("link type 105"));
        assert!(
            text(&pcap(false, false, 1)[..30]).contains("cut off at octet 24"),
            "{}",
            text(&pcap(false, false, 1)[..30])
        );
    }

    #[test]
    fn a_missing_file_and_a_folder_are_errors() {
        let missing = CaptureFile::open(Path::new("/nonexistent/file.pcap")).err().unwrap().to_string();
        assert!(missing.contains("/nonexistent/file.pcap: cannot be read"), "{missing}");
        assert!(CaptureFile::open(Path::new("/tmp")).is_err());
    }
}
