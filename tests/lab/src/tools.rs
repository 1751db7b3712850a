//! Where the programs of the lab come from.
//!
//! Debian's FTP servers exclude each other as packages, so they are unpacked into a cache folder and run from there,
//! each below `CACHE/NAME/`; Python packages are in the environment `CACHE/venv`. The cache is the one that
//! `pcaps/record` fills and uses. A program that is not in it is taken from the machine.

use super::error::{Error, Result};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The variable that names the cache.
const CACHE_VARIABLE: &str = "PINHOLE_LAB_CACHE";
/// Where it is if the variable is not set, in Pinhole's source folder.
const CACHE_FOLDER: &str = "target/pcaps-cache";
/// The remedy for a missing program.
const REMEDY: &str = "run `tests/setup test` in Pinhole's source folder, or install it";

/// The cache folder, whether or not it exists.
pub fn cache() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("this crate is in tests/lab");
    let cache = env::var_os(CACHE_VARIABLE).map_or_else(|| source.join(CACHE_FOLDER), PathBuf::from);
    // Programs are started in other folders than ours. Without a folder of our own the path stays as it is.
    std::path::absolute(&cache).unwrap_or(cache)
}

/// A program that is installed, or unpacked in the cache with libraries of its own.
#[derive(Clone, Debug)]
pub struct Tool {
    /// The program.
    pub program: PathBuf,
    /// The value of `LD_LIBRARY_PATH` with which it runs; none if it is installed.
    pub libraries: Option<String>,
    /// The folder that it was unpacked to; none if it is installed.
    pub root: Option<PathBuf>,
}

/// Finds a program, in the cache first. `path` is where its package has it, for example `usr/sbin/vsftpd`.
pub fn find(package: &str, path: &str) -> Result<Tool> {
    let root = cache().join(package);
    if let Ok(program) = root.join(path).canonicalize() {
        let folders = ["lib", "usr/lib"].iter().filter_map(|lib| fs::read_dir(root.join(lib)).ok()).flatten().flatten();
        let libraries: Vec<String> = folders
            .map(|entry| entry.path())
            .filter(|path| path.to_string_lossy().ends_with("-linux-gnu"))
            .filter_map(|path| Some(path.canonicalize().ok()?.to_string_lossy().into_owned()))
            .collect();
        return Ok(Tool { program, libraries: Some(libraries.join(":")), root: Some(root) });
    }
    let name = Path::new(path).file_name().unwrap_or_default();
    Ok(Tool { program: on_path(Path::new(name))?, libraries: None, root: None })
}

/// The command that runs a program of the cache with the loader and the libraries that it was built for, not this machine's.
/// `path` is where its package has it.
pub fn with_own_loader(package: &str, path: &str) -> Result<Vec<String>> {
    let Tool { program, libraries, root } = find(package, path)?;
    let (Some(libraries), Some(root)) = (libraries, root) else { return Err(missing(package)) };
    let loader = fs::read_dir(root.join("usr/lib64"))
        .ok()
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux")))
        .and_then(|path| path.canonicalize().ok())
        .ok_or_else(|| missing(&format!("the loader of {package}")))?;
    let [loader, program] = [loader, program].map(|path| path.display().to_string());
    Ok(vec![loader, "--library-path".to_owned(), libraries, program])
}

/// Finds an installed program by its name, also in root's folders if PATH lacks them.
pub(crate) fn on_path(name: &Path) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .ok_or_else(|| missing(&name.to_string_lossy()))
}

/// Python with pyftpdlib.
pub(crate) fn python_with_pyftpdlib() -> Result<PathBuf> {
    let venv = cache().join("venv");
    // Not made canonical: by the name it was called with, Python knows which packages are its own.
    let python = venv.join("bin/python");
    if venv.join("complete").exists() && python.exists() { Ok(python) } else { Err(missing("pyftpdlib")) }
}

/// Python: the one of the cache, which starts faster than a version manager's, or the machine's.
pub fn python() -> Result<PathBuf> {
    python_with_pyftpdlib().or_else(|_| on_path(Path::new("python3")))
}

fn missing(program: &str) -> Error {
    Error::Missing { program: program.to_owned(), cache: cache().display().to_string(), remedy: REMEDY.to_owned() }
}
