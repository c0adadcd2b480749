//! The files of an outbox: the database, and those beside it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::failure::{full, read_only};
use crate::outbox::OutboxError;

/// What a file is known by, whatever it is called, as long as it is there. `None` where the system
/// does not tell.
pub(super) type FileId = Option<(u64, u64)>;

/// The file that has this path now.
///
/// # Errors
///
/// If there is none.
pub(super) fn id_at(path: &Path) -> io::Result<FileId> {
    fs::metadata(path).map(|metadata| id(&metadata))
}

#[cfg(unix)]
pub(super) fn id(metadata: &fs::Metadata) -> FileId {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
pub(super) fn id(_: &fs::Metadata) -> FileId {
    None
}

/// The path of a file beside the database.
pub(super) fn companion(database: &Path, ending: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

/// Makes the database's file if it is not there, for its owner alone: SQLite gives its other files
/// the same rights. One that is there is not opened: closing it again would end the locks that
/// SQLite has on it in this process.
pub(super) fn create(path: &Path) -> io::Result<()> {
    match private(OpenOptions::new().write(true).create_new(true)).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        created => created.map(drop),
    }
}

/// Opens a file beside the database. One that is made belongs to whom the database belongs, as
/// far as this process may give it away, so that an administrator who looks in leaves nothing
/// behind that the program cannot use.
pub(super) fn open_beside(database: &Path, path: &Path, options: impl Fn(&mut OpenOptions)) -> io::Result<File> {
    let mut opening = OpenOptions::new();
    options(private(&mut opening));
    let file = opening.open(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (owner, own) = (fs::metadata(database)?, file.metadata()?);
        if (owner.uid(), owner.gid()) != (own.uid(), own.gid()) {
            // Who may not, leaves it as it is.
            let _ = std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()));
        }
    }
    #[cfg(not(unix))]
    let _ = database;
    Ok(file)
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

#[expect(clippy::incompatible_msrv, reason = "rusqlite takes a later version of Rust than this")]
pub(super) fn try_lock(file: &File) -> Result<(), TryLockError> {
    file.try_lock()
}

#[expect(clippy::incompatible_msrv, reason = "rusqlite takes a later version of Rust than this")]
pub(super) fn unlock(file: &File) -> io::Result<()> {
    file.unlock()
}

#[cfg(unix)]
pub(super) fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, bytes, at)
}

#[cfg(unix)]
pub(super) fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::write_at(file, bytes, at)
}

#[cfg(windows)]
pub(super) fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, bytes, at)
}

#[cfg(windows)]
pub(super) fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_write(file, bytes, at)
}

/// The outbox's error for a file that the system does not let it use.
pub(super) fn unusable(path: &str, error: io::Error) -> OutboxError {
    let what = match error.kind() {
        io::ErrorKind::StorageFull => return OutboxError::Full { what: full(path), source: Some(error.into()) },
        io::ErrorKind::NotFound => format!("the directory of {path} is not there"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => read_only(path),
        _ => format!("{path} cannot be used"),
    };
    OutboxError::Storage { what, source: Some(error.into()) }
}
