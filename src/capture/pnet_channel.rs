//! Turns interfaces into one worker's [`Source`] by `pnet`'s channel: portable, two system calls a frame.
//!
//! What it cannot do, and the ring can: count what the kernel dropped; put back a VLAN tag that the kernel took out;
//! filter in the kernel; share frames between workers; tell the two copies of a loopback frame apart; give the
//! kernel's own time (frames carry the time at which they were read).

use std::io;
use std::time::{Duration, Instant};

use pnet::datalink::{self, Channel, DataLinkReceiver, DataLinkSender};
use tracing::{info, warn};

use super::clock::{clock, now};
use super::live::{NicDrops, link_layer};
use super::{BATCH, CaptureCounters, CaptureError, Link, LinkLayer, LiveSettings, Source};
use crate::time::Timestamp;
use crate::wire::{Frame, InterfaceId};

/// Opens the fallback on every interface. Filters and several workers are settings that it cannot follow, and refuses.
pub fn open_pnet(settings: &LiveSettings) -> Result<Box<dyn Source>, CaptureError> {
    let refuse = |text: &str| Err(CaptureError::Setting(text.to_owned()));
    if !settings.filter.is_empty() {
        return refuse("capture.filter needs capture.backend = \"ring\": pnet's channel has no filter");
    }
    if settings.workers > 1 {
        return refuse("capture.workers above 1 needs capture.backend = \"ring\": pnet's channel feeds one worker");
    }
    let open = |(id, name): (usize, &String)| {
        let interface = InterfaceId(id as u16);
        let link = link_layer(name)?;
        let channel = match channel(name, settings) {
            Err(CaptureError::Down(_)) => {
                warn!(interface = name, "interface is down: waiting for it to come up");
                None
            }
            result => Some(result?),
        };
        if name == "lo" {
            warn!("pnet's channel sees every frame on the loopback twice; the ring sees it once");
        }
        let mut nic = NicDrops::default();
        nic.start(name);
        Ok(Port {
            name: name.clone(),
            interface,
            link,
            channel,
            failure: None,
            tried: now(),
            nic,
            counters: CaptureCounters::default(),
        })
    };
    let ports = settings.interfaces.iter().enumerate().map(open).collect::<Result<Vec<_>, _>>()?;
    let buffer = Vec::with_capacity(BATCH * settings.snap_length.min(2048) as usize);
    Ok(Box::new(PnetSource { settings: settings.clone(), ports, received: 0, buffer, entries: Vec::new() }))
}

/// The largest frame the kernel hands over (BIG TCP aside, which it would cut and hide that it did).
const READ_OCTETS: usize = 65_536 + 64;
/// How often an interface that is gone or down is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// For so long at most, frames are taken at the end.
const LAST_FRAMES: Duration = Duration::from_secs(1);
/// Pause between two looks at silent interfaces; `pnet` offers no common wait.
const PAUSE: Duration = Duration::from_millis(1);

struct Ends {
    receiver: Box<dyn DataLinkReceiver>,
    /// Unused, but closing it would close the receiver's socket on some systems.
    _sender: Box<dyn DataLinkSender>,
}

struct Port {
    name: String,
    interface: InterfaceId,
    link: LinkLayer,
    channel: Option<Ends>,
    /// Why the channel is to be closed, once what it still holds is read.
    failure: Option<io::Error>,
    tried: Instant,
    nic: NicDrops,
    /// The kernel's drops are not known.
    counters: CaptureCounters,
}

impl Port {
    /// Looks every second whether the interface is there and up.
    fn look_for(&mut self, settings: &LiveSettings) {
        if now().duration_since(self.tried) < LOOK_AGAIN {
            return;
        }
        self.tried = now();
        if let Ok(channel) = channel(&self.name, settings) {
            self.channel = Some(channel);
            self.nic.start(&self.name);
            info!(interface = self.name, "interface is back");
        }
    }

    fn close(&mut self, error: &io::Error) {
        warn!(interface = self.name, %error, "interface is gone or down: looking for it every second");
        self.channel = None;
        self.tried = now();
        self.nic.stop();
    }
}

struct PnetSource {
    settings: LiveSettings,
    ports: Vec<Port>,
    received: u64,
    buffer: Vec<u8>,
    /// Time, octets on the wire and end in `buffer` of each frame of a batch.
    entries: Vec<(Timestamp, u32, usize)>,
}

fn channel(name: &str, settings: &LiveSettings) -> Result<Ends, CaptureError> {
    let interfaces = datalink::interfaces();
    let interface = interfaces
        .iter()
        .find(|interface| interface.name == name)
        .ok_or_else(|| CaptureError::NoInterface(name.to_owned()))?;
    if !interface.is_up() {
        return Err(CaptureError::Down(name.to_owned()));
    }
    let config = datalink::Config {
        read_buffer_size: READ_OCTETS,
        read_timeout: Some(Duration::ZERO),
        promiscuous: settings.promiscuous,
        ..datalink::Config::default()
    };
    match datalink::channel(interface, config) {
        Ok(Channel::Ethernet(sender, receiver)) => Ok(Ends { receiver, _sender: sender }),
        Ok(_) => Err(CaptureError::Setting(format!("interface `{name}`: pnet offers no frames here"))),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(CaptureError::Permission),
        Err(source) => {
            Err(CaptureError::System { interface: name.to_owned(), what: "cannot open pnet's channel", source })
        }
    }
}

impl PnetSource {
    fn pass(&mut self, take: &mut dyn FnMut(&[Frame<'_>])) -> usize {
        let mut total = 0;
        let snap = self.settings.snap_length as usize;
        for port in &mut self.ports {
            let Some(channel) = &mut port.channel else {
                port.look_for(&self.settings);
                continue;
            };
            self.buffer.clear();
            self.entries.clear();
            while self.entries.len() < BATCH {
                match channel.receiver.next() {
                    Ok(data) => {
                        self.buffer.extend(data.iter().take(snap));
                        self.entries.push((clock(), data.len() as u32, self.buffer.len()));
                    }
                    Err(error) if is_quiet(&error) || port.failure.is_some() => {
                        // An interface that goes says so before the frames that it had.
                        if let Some(failure) = port.failure.take() {
                            port.close(&failure);
                        }
                        break;
                    }
                    Err(error) => port.failure = Some(error),
                }
            }
            let empty = Frame {
                at: Timestamp::ZERO,
                number: 0,
                wire_len: 0,
                interface: port.interface,
                link: port.link.link_type(),
                stripped_vlan: None,
                data: &[],
            };
            let mut batch = [empty; BATCH];
            let mut start = 0;
            for (slot, &(at, wire_len, end)) in batch.iter_mut().zip(&self.entries) {
                self.received += 1;
                port.counters.received += 1;
                port.counters.octets += u64::from(wire_len);
                let data = self.buffer.get(start..end).unwrap_or_default();
                *slot = Frame { at, number: self.received, wire_len, data, ..empty };
                start = end;
            }
            if let Some(frames @ [_, ..]) = batch.get(..self.entries.len()) {
                take(frames);
                total += frames.len();
            }
        }
        total
    }
}

fn is_quiet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl Source for PnetSource {
    fn poll(&mut self, timeout: Duration, take: &mut dyn FnMut(&[Frame<'_>])) -> io::Result<usize> {
        let started = now();
        loop {
            let taken = self.pass(take);
            if taken > 0 || now().duration_since(started) >= timeout {
                return Ok(taken);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn finish(&mut self, take: &mut dyn FnMut(&[Frame<'_>])) -> io::Result<usize> {
        // Nothing can be kept from coming in: a busy link would go on for ever.
        let started = now();
        let mut total = 0;
        loop {
            let taken = self.pass(take);
            total += taken;
            if taken == 0 || now().duration_since(started) >= LAST_FRAMES {
                return Ok(total);
            }
        }
    }

    fn interfaces(&mut self) -> Vec<(CaptureCounters, Link)> {
        let count = |port: &mut Port| {
            let mut counters = port.counters;
            port.nic.add_to(&port.name, &mut counters);
            // Which of the two it is, pnet does not tell.
            (counters, if port.channel.is_some() { Link::Up } else { Link::Down })
        };
        self.ports.iter_mut().map(count).collect()
    }
}
