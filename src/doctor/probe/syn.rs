//! Sends SYNs through the copy of this host, and reads their paths.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use super::pairs::{Pair, is_control_port};
use super::replica::Replica;
use super::{Kind, Probe, Probes, Step};
use crate::core::expectation::{Expectation, Mapping};
use crate::core::kernel::Firewall as _;
use crate::core::net::{Connection, Endpoint, Flow, Port};
use crate::core::policy::Policy;
use crate::core::time::Timestamp;
use crate::doctor::listeners::Listener;
use crate::doctor::ruleset::Ruleset;
use crate::netfilter::netlink::{Conntrack, TracedSyn, Tracer};

const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a SYN may take to the copy of this host.
const ARRIVAL: Duration = Duration::from_secs(2);
/// How long the next step of a SYN may take.
const SETTLED: Duration = Duration::from_millis(60);
const LIFETIME: Duration = Duration::from_secs(60);
/// The announced port of passive mode, and that of active mode.
const ANNOUNCED: [Port; 2] = [Port::new(47_321).expect("not zero"), Port::new(47_322).expect("not zero")];
const FTP_DATA: u16 = 20;

/// Sends the SYNs of a control connection, and if it passes, those of its data connections, for each pair.
pub(super) fn send_all(policy: &Policy, ruleset: &Ruleset, listeners: &[Listener], pairs: &[Pair]) -> Probes {
    let mut replica = match Replica::build(policy, ruleset) {
        Ok(replica) => replica,
        Err(why) => return Probes { failed: Some(why), ..Probes::default() },
    };
    let mut probes = Probes { left_out: replica.left_out.clone(), ..Probes::default() };
    let ports = policy.control_ports.as_slice();
    let listens = |port: &&Port| listeners.iter().any(|listener| listener.port == port.number());
    let port = ports.iter().find(|port| listens(port) && is_control_port(policy, port.number())).or(ports.first());
    let port = port.copied().unwrap_or(Port::FTP);
    for pair in pairs {
        if let Err(why) = replica.send(&mut probes.sent, *pair, port) {
            let why = format!("between {} and {}: {why}", pair.client, pair.server);
            probes.failed = probes.failed.or(Some(why));
        }
    }
    probes
}

impl Replica {
    fn send(&mut self, sent: &mut Vec<Probe>, Pair { client, server }: Pair, port: Port) -> Result<(), String> {
        let to = Endpoint::new(server, port);
        // Without an answer but RST, conntrack forgets the connection, and its addresses after NAT.
        let _listener = match self.end_towards(server)? {
            None => self.host.run(|| TcpListener::bind((server, port.number())))?.ok(),
            Some(_) => None,
        };
        let (control, socket) = self.send_one(Kind::Control, (client, 0), to)?;
        let is_dropped = control.steps.last().is_some_and(|step| step.is_drop);
        sent.push(control);
        if is_dropped {
            return Ok(());
        }
        let connection = self.connection(&socket, to)?;
        for (kind, announced) in [(Kind::Passive, ANNOUNCED[0]), (Kind::Active, ANNOUNCED[1])] {
            let expectation = expectation(kind, &connection, announced);
            let opened = self.firewall.open(&expectation, &connection);
            opened.map_err(|_| format!("the pinhole {expectation} cannot be opened in the copy of this host"))?;
            let source = if kind == Kind::Active { FTP_DATA } else { 0 };
            sent.push(self.send_one(kind, (expectation.from, source), expectation.to)?.0);
        }
        Ok(())
    }

    /// Sends a SYN from an address, here or outside.
    fn send_one(&self, kind: Kind, from: (IpAddr, u16), to: Endpoint) -> Result<(Probe, Socket), String> {
        let syns = [TracedSyn { source: from.0, destination: to.address, port: Some(to.port.number()) }];
        let mut tracer = self.host.run(|| Tracer::open(&syns, TIMEOUT))?.map_err(|error| error.to_string())?;
        let connect =
            |device: Option<&str>| connect(from.into(), SocketAddr::new(to.address, to.port.number()), device);
        let connected = match self.end_towards(from.0)? {
            None => self.host.run(|| connect(None))?,
            Some(end) => {
                let (length, nodad) = if from.0.is_ipv6() { (128, " nodad") } else { (32, "") };
                let address = format!("{}/{length} dev {end}", from.0);
                // Only for the time of the SYN: to an address that is outside, packets would go directly.
                self.outside.ip(&format!("address add {address} noprefixroute{nodad}\n"), None)?;
                let connected = self.outside.run(|| connect(Some(&end)))?;
                self.outside.ip(&format!("address delete {address}\n"), None)?;
                connected
            }
        };
        let socket = connected.map_err(|error| format!("a SYN cannot be sent from {} to {to}: {error}", from.0))?;
        let steps = tracer.first_settled(ARRIVAL, SETTLED).map_err(|error| error.to_string())?;
        if steps.is_empty() {
            return Err(format!("a SYN from {} to {to} did not come to the copy of this host", from.0));
        }
        let step = |step: &_| {
            let (chain, handle) = self.tables.original(step);
            Step { chain, handle, is_drop: step.is_drop }
        };
        Ok((Probe { kind, from: from.0, to, steps: steps.iter().map(step).collect() }, socket))
    }

    /// The control connection, with its addresses after NAT.
    fn connection(&self, socket: &Socket, to: Endpoint) -> Result<Connection, String> {
        let local = socket.local_addr().ok().and_then(|address| address.as_socket());
        let source = local.and_then(|local| Some(Endpoint::new(local.ip(), Port::new(local.port())?)));
        let source = source.ok_or("a socket of a probe has no address")?;
        let flow = Flow { source, destination: to };
        let find = || Conntrack::open(TIMEOUT).and_then(|mut conntrack| conntrack.find(&flow));
        let found = self.host.run(find)?.map_err(|error| error.to_string())?;
        Ok(found.map_or(Connection::direct(flow), |entry| entry.connection))
    }
}

/// A socket that is connecting.
fn connect(from: SocketAddr, to: SocketAddr, device: Option<&str>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind_device(device.map(str::as_bytes))?;
    socket.bind(&from.into())?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(socket),
    }
}

/// The data connection that would be announced, with the NAT that Pinhole would give it.
fn expectation(kind: Kind, connection: &Connection, port: Port) -> Expectation {
    let Connection { original, reply } = connection;
    let (client, dialled) = (original.source.address, original.destination.address);
    let (server, seen) = (reply.source.address, reply.destination.address);
    let (from, to, delivered, appears) =
        if kind == Kind::Active { (server, seen, client, dialled) } else { (client, dialled, server, seen) };
    let mapping = Mapping {
        to: (delivered != to).then(|| Endpoint::new(delivered, port)),
        from: (appears != from).then_some(appears),
    };
    Expectation { from, to: Endpoint::new(to, port), since: Timestamp::from_secs(0), lifetime: LIFETIME, mapping }
}
