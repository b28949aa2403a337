//! File systems on which processes cannot share a SQLite file.

use std::path::{Path, PathBuf};
use std::process::Command;

use hurdlr_oauth2::store::SqliteStore;
use tempfile::TempDir;

use crate::site::assert_final;

const INSTALL: &str = "bindfs is missing, so this test cannot run. Install it by `tests/install`, \
                       or: apt-get install --yes bindfs";

/// A folder that is shown a second time, by FUSE; until it is dropped.
struct Mirror {
    shown: PathBuf,
    _folder: TempDir,
}

impl Mirror {
    /// An error where the system lets nobody mount anything.
    fn mount() -> Result<Self, String> {
        let program = Path::new("/usr/bin/bindfs");
        assert!(program.exists(), "{INSTALL}");
        let folder = tempfile::tempdir().unwrap();
        let [kept, shown] = ["kept", "shown"].map(|name| folder.path().join(name));
        for path in [&kept, &shown] {
            std::fs::create_dir(path).unwrap();
        }
        let mounted = Command::new(program).arg(&kept).arg(&shown).output().unwrap();
        if mounted.status.success() {
            Ok(Self { shown, _folder: folder })
        } else {
            Err(String::from_utf8_lossy(&mounted.stderr).into_owned())
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let ended = Command::new("fusermount").args(["-u", "-z"]).arg(&self.shown).status();
        assert!(ended.is_ok_and(|status| status.success()), "fusermount");
    }
}

/// The file systems of NFS, SMB and 9p need a server that this test cannot bring; they are told by
/// the same number of statfs(2).
pub(crate) async fn fuse_is_refused() {
    let mirror = match Mirror::mount() {
        Ok(mirror) => mirror,
        Err(reason) => {
            return println!("LEFT OUT: fuse_is_refused, for nobody can mount: {reason}");
        }
    };
    let url = format!("sqlite://{}", mirror.shown.join("tokens.db").display());
    let error = SqliteStore::at(url).open_plaintext().await.unwrap_err();
    assert_final(&error, &[&["cannot be opened: it is on FUSE"]]);
}
