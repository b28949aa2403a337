//! The work that a peer can do, and the list of all peers.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use crate::Outcome;
use crate::endpoint::{Account, HOUR, Script};
use crate::site::Site;

/// One user's tokens in the hands of a library. Each implementation does what the library's own
/// documentation recommends, and nothing of ours stands between it and a read.
pub(crate) trait Peer: Clone + Send + Sync + 'static {
    /// The name in figures.
    const NAME: &'static str;
    /// How many seconds before the end of a token's life the library refreshes it.
    const MARGIN: u64;
    /// The number of users whose memory is measured: fewer than a million where each user costs the
    /// library a request or a client of its own.
    const USERS: usize;

    type Token: Token;
    type Error: Into<Box<dyn Error + Send + Sync>> + Send;
    type Users: Users;

    /// Takes over a user whose refresh token or credentials are known, and whose access token is
    /// not in memory.
    fn open(site: &Site) -> impl Future<Output = Outcome<Self>> + Send;

    /// The user's access token, in the form that the library hands it out.
    fn token(&self) -> impl Future<Output = Result<Self::Token, Self::Error>> + Send;

    /// Another user without a token in memory, in the same object where one object can hold
    /// several users' tokens.
    fn another(&self, site: &Site) -> impl Future<Output = Outcome<Self>> + Send {
        let _ = self;
        Self::open(site)
    }

    /// A user whose token in memory is over.
    fn expired(account: &Account) -> impl Future<Output = Outcome<Self>> + Send {
        with_life(account, 0)
    }

    /// A user whose token in memory lives, and is to be refreshed within seconds.
    fn due(account: &Account) -> impl Future<Output = Outcome<Self>> + Send {
        with_life(account, Self::MARGIN + 1)
    }

    /// A user in storage that processes can share.
    fn open_shared(site: &Site) -> impl Future<Output = Outcome<Self>> + Send {
        Self::open(site)
    }

    /// Makes `users` users with living tokens in memory, all of one account.
    fn many(site: &Site, users: usize) -> impl Future<Output = Outcome<Self::Users>> + Send;

    /// `Debug` of all that an app holds, `None` where the library has no `Debug`.
    fn debug(&self, token: Option<&Self::Token>) -> Option<String>;

    /// Why the library has no answer to a kind of work.
    fn lacks(work: Work) -> Option<&'static str> {
        let _ = work;
        None
    }
}

async fn with_life<P: Peer>(account: &Account, life: u64) -> Outcome<P> {
    account.set(Script { life, ..HOUR }).await?;
    let peer = P::open(&account.site).await?;
    peer.token().await.map_err(Into::into)?;
    Ok(peer)
}

/// A kind of work that some peers have no answer to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    RotationByCallers,
    RotationByProcesses,
}

/// An access token as a library hands it out.
pub(crate) trait Token: Send + 'static {
    fn secret(&self) -> &str;
}

/// Many users, found by id.
pub(crate) trait Users: Send + Sync + 'static {
    type Id: Send + Sync + 'static;

    fn id(n: usize) -> Self::Id;

    /// Reads these users' tokens in turn, so often in all, and tells how long that took.
    fn read(&self, ids: &[Self::Id], reads: u32) -> impl Future<Output = Outcome<Duration>> + Send;
}

/// An id as long as a UUID.
pub(crate) fn id(n: usize) -> String {
    format!("{n:08x}-0000-4000-8000-{n:012x}")
}

/// Does the same for each peer, in the order of the tables.
#[macro_export]
macro_rules! each_peer {
    ($peer:ident => $body:expr) => {{
        use $crate::peers::*;
        let mut all = Vec::new();
        {
            type $peer = hurdlr_oauth2::HurdlrOauth2;
            all.push($body);
        }
        {
            type $peer = oauth2_mutex::Oauth2Mutex;
            all.push($body);
        }
        {
            type $peer = expiring_cache::ExpiringCache;
            all.push($body);
        }
        {
            type $peer = google_cloud_auth::GoogleCloudAuth;
            all.push($body);
        }
        {
            type $peer = azure_identity::AzureIdentity;
            all.push($body);
        }
        {
            type $peer = yup_oauth2::YupOauth2;
            all.push($body);
        }
        {
            type $peer = gcp_auth::GcpAuth;
            all.push($body);
        }
        all
    }};
}
