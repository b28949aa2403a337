//! The peers, one file each.

pub(crate) mod azure_identity;
pub(crate) mod expiring_cache;
pub(crate) mod gcp_auth;
pub(crate) mod google_cloud_auth;
pub(crate) mod hurdlr_oauth2;
pub(crate) mod oauth2_mutex;
pub(crate) mod yup_oauth2;

pub(crate) mod floor;
mod oauth2_login;
mod user_map;

use crate::Outcome;
use crate::peer::Peer;
use crate::site::Site;

/// Users of a library that keeps one user per object, each with a token from the endpoint.
async fn open_one_by_one<P: Peer>(site: &Site, users: usize) -> Outcome<user_map::UserMap<P>> {
    let mut all = Vec::with_capacity(users);
    for _ in 0..users {
        let user = P::open(site).await?;
        user.token().await.map_err(Into::into)?;
        all.push(user);
    }
    Ok(user_map::UserMap::new(all))
}
