//! The file, its directory and its file system.

use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;

use sqlx::sqlite::SqliteConnectOptions;

use crate::error::Error;

/// Makes the file that a URL names, unless it is there, and refuses one that others may open or
/// that processes cannot share.
pub(super) fn prepare(url: &str, group_access: bool) -> Result<SqliteConnectOptions, Error> {
    let (options, creates) = options(url)?;
    let path = options.get_filename();
    make(path, creates, if group_access { 0o770 } else { 0o700 }).map_err(|source| {
        let error = Error::store(format!("{} cannot be opened: {source}", path.display()));
        error.not_temporary().caused_by(source)
    })?;
    Ok(options)
}

/// The URL's options, and whether the file may be made.
fn options(url: &str) -> Result<(SqliteConnectOptions, bool), Error> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    if query == "mode=memory" || url.contains(":memory:") {
        return Err(Error::config(
            "the store's URL is of a database in memory, which no other process can share: use \
             MemoryStore",
        ));
    }
    // Other parameters change how the file is locked, or that it can be written.
    let creates = match query {
        "" | "mode=rwc" => Some(true),
        "mode=rw" => Some(false),
        _ => None,
    };
    // A URL with `user:password@host` is another database's, and would make a folder of that name.
    let place = url.strip_prefix("sqlite:").filter(|place| {
        !place.starts_with("//") || place.starts_with("///") || !place.contains('@')
    });
    SqliteConnectOptions::from_str(url)
        .ok()
        .filter(|options| place.is_some() && options.get_filename() != Path::new(""))
        .zip(creates)
        .ok_or_else(|| {
            // Not quoted: it may be the URL of another database, with a password in it.
            Error::config(
                "the store's URL has the form sqlite:///var/lib/app/tokens.db, with no parameter \
                 but mode=rwc or mode=rw",
            )
        })
}

/// Makes the directory with mode `allowed`, and the file for those whom this allows, before SQLite
/// would for all.
#[cfg_attr(not(unix), expect(unused_variables, reason = "no file has a mode"))]
fn make(path: &Path, create: bool, allowed: u32) -> io::Result<()> {
    if create {
        if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
            let mut making = fs::DirBuilder::new();
            making.recursive(true);
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut making, allowed);
            making.create(folder)?;
        }
        let mut making = fs::OpenOptions::new();
        making.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut making, allowed & 0o666);
        match making.open(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    #[cfg(unix)]
    refuse_open(path, allowed)?;
    #[cfg(target_os = "linux")]
    refuse_network(path)?;
    Ok(())
}

/// A file that is there already may be open to others, and a file system may keep no modes.
#[cfg(unix)]
fn refuse_open(path: &Path, allowed: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    const FOR_ALL_TO_WRITE: u32 = 0o002;
    const STICKY: u32 = 0o1000;
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        let mode = match fs::metadata(&file) {
            Ok(about) => about.permissions().mode(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if mode & 0o077 & !allowed != 0 {
            return Err(io::Error::other(format!(
                "others than its owner may open {} (mode {:o}), which holds tokens: chmod 600, on \
                 a file system that keeps modes, or allow_group_access() if only its group may",
                Path::new(&file).display(),
                mode & 0o777
            )));
        }
    }
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let mode = fs::metadata(folder.unwrap_or(Path::new(".")))?.permissions().mode();
    if mode & FOR_ALL_TO_WRITE != 0 && mode & STICKY == 0 {
        return Err(io::Error::other(format!(
            "everybody may put another file in its place, since its directory has mode {:o}: \
             chmod 700",
            mode & 0o7777
        )));
    }
    Ok(())
}

/// SQLite: "WAL does not work over a network filesystem" (<https://sqlite.org/wal.html>). It does
/// not notice, but for the database that is damaged in the end.
#[cfg(target_os = "linux")]
fn refuse_network(path: &Path) -> io::Result<()> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a 32-bit magic")]
    let magic = rustix::fs::statfs(path)?.f_type as u32;
    match shared_file_system(magic) {
        Some(name) => Err(io::Error::other(format!(
            "it is on {name}, where processes cannot share it safely: use a local disk, or \
             PostgreSQL"
        ))),
        None => Ok(()),
    }
}

/// Names a file system that other machines may share, by the magic of statfs(2).
#[cfg(target_os = "linux")]
fn shared_file_system(magic: u32) -> Option<&'static str> {
    match magic {
        0x6969 => Some("NFS, a network file system"),
        0xFF53_4D42 | 0x517B | 0xFE53_4D42 => Some("SMB, a network file system"),
        0x0102_1997 => Some("9p, a folder shared with a virtual machine"),
        0x6573_5546 => Some("FUSE (virtiofs, sshfs or another file system in user space)"),
        _ => None,
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    /// No test can mount most of these, so this one has the magics of Linux's `magic.h`.
    #[test]
    fn shared_file_systems_are_told_by_magic() {
        for (magic, name) in [
            (0x6969, "NFS"),
            (0xFF53_4D42, "SMB"),
            (0x517B, "SMB"),
            (0xFE53_4D42, "SMB"),
            (0x0102_1997, "9p"),
            (0x6573_5546, "FUSE"),
        ] {
            let found = shared_file_system(magic).unwrap_or_default();
            assert!(found.starts_with(name), "{magic:x} is {name}, and not {found:?}");
        }
        // ext4, XFS, Btrfs, tmpfs and overlayfs.
        for magic in [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x794C_7630] {
            assert_eq!(shared_file_system(magic), None, "{magic:x}");
        }
    }
}
