//! Every server with every client, in every mode, family and topology.
//!
//! A [`Setup`] is what cells share: a topology with a server. The caller chooses the firewall's rules: none, a filter,
//! a filter with a helper. So the same matrix serves as the baseline, the reference and the test. Other kinds of setups
//! run in the same way: see [`MatrixSetup`].

use super::choice::{Candidate, covering_choice};
use super::client::{ClientKind, Task, Visit};
use super::error::{Error, Result};
use super::pace::is_slow;
use super::server::{Server, ServerKind, ServerOptions};
use super::topology::{Family, Shape, Topology};
use pinhole::core::ftp::Mode;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The file that clients download. Its content looks like announcements, which Pinhole must ignore.
const FILE: (&str, &[u8]) = ("readme.txt", b"Files are data.\r\n227 Entering Passive Mode (10,21,1,1,0,22)\r\n");
/// The content that clients upload.
const UPLOAD: &[u8] = b"Upward.\r\nPORT 10,21,1,10,0,22\r\n229 Entering Extended Passive Mode (|||22|)\r\n";

/// Shared by a group of cells: where the firewall is, and a server on an address of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Setup {
    /// Where the firewall is.
    pub shape: Shape,
    /// Which server.
    pub server: ServerKind,
    /// The family of the addresses that clients connect to.
    pub family: Family,
}

/// One client in one mode, in a setup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    /// Where.
    pub setup: Setup,
    /// Which client.
    pub client: ClientKind,
    /// How data connections are announced.
    pub mode: Mode,
}

impl Setup {
    /// All setups of these shapes.
    pub fn all(shapes: &[Shape]) -> Vec<Self> {
        let mut setups = Vec::new();
        for &shape in shapes {
            for server in ServerKind::ALL {
                setups.extend(Family::ALL.map(|family| Self { shape, server, family }));
            }
        }
        setups
    }
}

/// A setup that can be set up, and whose cells then run one after the other.
pub trait MatrixSetup: Copy + Send + Sync {
    /// The setup, set up.
    type Running;
    /// What runs in it.
    type Cell: Send;
    /// Builds it and starts its server. Nothing is filtered yet.
    fn set_up(self) -> Result<Self::Running>;
    /// All of its cells.
    fn cells(self) -> Vec<Self::Cell>;
    /// The aspects of a cell. If only some cells run, they cover every aspect.
    fn aspects(cell: &Self::Cell) -> Vec<String>;
    /// Aspects that decide between otherwise equal cells.
    fn extras(cell: &Self::Cell) -> Vec<String>;
}

impl MatrixSetup for Setup {
    type Running = RunningSetup;
    type Cell = Cell;

    fn set_up(self) -> Result<RunningSetup> {
        let topology = Topology::new(self.shape)?;
        let address = topology.server.addresses.of(self.family);
        let server = self.server.start(&topology.server.namespace, &ServerOptions::on(address))?;
        place(&server)?;
        Ok(RunningSetup { setup: self, topology, server })
    }

    /// Each client in each mode that it supports.
    fn cells(self) -> Vec<Cell> {
        let each =
            |client: ClientKind| client.modes(self.family).iter().map(move |&mode| Cell { setup: self, client, mode });
        ClientKind::ALL.into_iter().flat_map(each).collect()
    }

    fn aspects(cell: &Cell) -> Vec<String> {
        let Cell { setup: Setup { shape, server, family }, client, mode } = cell;
        vec![
            format!("{shape} {family} {mode}"),
            format!("{shape} {server}"),
            format!("{shape} {client}"),
            format!("{server} {client}"),
            format!("{client} {mode}"),
        ]
    }

    /// With them, most pairs of anything come up.
    fn extras(cell: &Cell) -> Vec<String> {
        let Cell { setup: Setup { server, family, .. }, client, mode } = cell;
        vec![format!("{server} {family}"), format!("{server} {mode}"), format!("{client} {family}")]
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:11}  {}  {:9}", self.shape, self.family, self.server)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {:6}  {}", self.setup, self.client, self.mode)
    }
}

/// A setup that is set up.
#[derive(Debug)]
pub struct RunningSetup {
    /// Which.
    pub setup: Setup,
    /// Its namespaces and addresses.
    pub topology: Topology,
    /// The server, ready.
    pub server: Server,
}

impl RunningSetup {
    /// A client's visit, in this mode.
    pub fn visit(&self, mode: Mode, timeout: Duration) -> Visit<'_> {
        Visit {
            namespace: &self.topology.client.namespace,
            server: SocketAddr::new(self.topology.target.of(self.setup.family), 21),
            mode,
            announce: None,
            tls: None,
            timeout,
        }
    }

    /// A listing, a download and, if the client can, an upload, each compared with the expected content.
    pub fn transfer(&self, client: ClientKind, mode: Mode, timeout: Duration) -> Result<()> {
        transfer(&self.server, client, &self.visit(mode, timeout))
    }
}

/// A client lists, downloads and, if it can, uploads a file; each is compared with the expected content. The file must
/// have been [placed](place).
pub(crate) fn transfer(server: &Server, client: ClientKind, visit: &Visit<'_>) -> Result<()> {
    let stored = format!("upload-{client}-{}.txt", visit.mode);
    let mut tasks = vec![Task::List, Task::Download(FILE.0)];
    if client.uploads() {
        tasks.push(Task::Upload(&stored, UPLOAD));
    }
    let brought = client.visit(visit, &tasks)?;
    let listing = String::from_utf8_lossy(&brought[0]);
    if !listing.contains(FILE.0) {
        return Err(Error::Dialogue { expected: format!("a listing with {}", FILE.0), got: listing.into_owned() });
    }
    if brought[1] != FILE.1 {
        return Err(Error::Dialogue {
            expected: format!("{} as it is", FILE.0),
            got: String::from_utf8_lossy(&brought[1]).into_owned(),
        });
    }
    if client.uploads() {
        server.wait_for_content(&stored, UPLOAD, Duration::from_secs(5))?;
    }
    Ok(())
}

/// Puts the file onto a server that clients fetch.
pub(crate) fn place(server: &Server) -> Result<()> {
    server.place(FILE.0, FILE.1)
}

/// The result of a cell.
#[derive(Debug)]
pub struct Outcome<C = Cell> {
    /// Which.
    pub cell: C,
    /// How it went.
    pub result: Result<()>,
    /// How long it took.
    pub took: Duration,
}

/// Panics with the errors of all cells that failed.
pub fn assert_all_work<C: fmt::Display>(outcomes: &[Outcome<C>]) {
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|Outcome { cell, result, .. }| Some(format!("{cell}: {}", result.as_ref().err()?)))
        .collect();
    assert!(failed.is_empty(), "{} cells failed:\n{}", failed.len(), failed.join("\n\n"));
}

/// Setups with the cells that run in each: all, or on a slow machine enough to cover every aspect.
fn selected_cells<S: MatrixSetup>(setups: &[S], is_slow: bool) -> Vec<(S, Vec<S::Cell>)> {
    let mut all: Vec<_> = setups.iter().map(|setup| (*setup, setup.cells())).collect();
    if is_slow {
        let candidates = all.iter().enumerate().flat_map(|(group, (_, cells))| {
            cells.iter().map(move |cell| Candidate { group, aspects: S::aspects(cell), extras: S::extras(cell) })
        });
        let chosen = covering_choice(&candidates.collect::<Vec<_>>());
        let mut places = 0..;
        for (_, cells) in &mut all {
            cells.retain(|_| places.next().is_some_and(|place| chosen.contains(&place)));
        }
        all.retain(|(_, cells)| !cells.is_empty());
    }
    all
}

/// Runs the cells of `setups`, `at_once` setups at a time, and returns the results, in no fixed order. On a slow
/// machine it runs some of them.
///
/// `prepare` configures the topology's firewall once the server runs; its result is kept until the setup's last cell
/// has run. A setup that cannot be set up or prepared fails the whole run.
pub fn run_cells<S: MatrixSetup, G>(
    setups: &[S],
    at_once: usize,
    prepare: impl Fn(&S::Running) -> Result<G> + Sync,
    each: impl Fn(&S::Running, &S::Cell) -> Result<()> + Sync,
) -> Result<Vec<Outcome<S::Cell>>> {
    let left = Mutex::new(selected_cells(setups, is_slow()).into_iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let worker = || {
        let mut outcomes = Vec::new();
        while let Some((setup, cells)) = next() {
            let running = setup.set_up()?;
            let _kept = prepare(&running)?;
            for cell in cells {
                let begun = Instant::now();
                let result = each(&running, &cell);
                outcomes.push(Outcome { cell, result, took: begun.elapsed() });
            }
        }
        Ok(outcomes)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once.max(1)).map(|_| scope.spawn(worker)).collect();
        let mut outcomes = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(finished) => outcomes.extend(finished?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(outcomes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn sample_on_a_slow_machine_covers_every_aspect() {
        let setups = Setup::all(&Shape::ALL);
        let cells =
            |is_slow| selected_cells(&setups, is_slow).into_iter().flat_map(|(_, cells)| cells).collect::<Vec<_>>();
        let (all, some) = (cells(false), cells(true));
        assert_eq!(all.len(), 324);
        assert!(some.len() < 60, "{}", some.len());
        let assert_covered = |value: fn(&Cell) -> String| {
            let values = |cells: &[Cell]| cells.iter().map(value).collect::<BTreeSet<_>>();
            assert_eq!(values(&all), values(&some));
        };
        assert_covered(|cell| format!("{} {}", cell.setup.server, cell.client));
        assert_covered(|cell| format!("{} {} {}", cell.setup.shape, cell.setup.family, cell.mode));
    }
}
