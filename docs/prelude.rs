// What the examples of the manager's documentation begin with, hidden from their readers.
// Included by `include!`, so that each example shows its own lines only.

use hurdlr_oauth2::store::MemoryStore;
use hurdlr_oauth2::testing::FakeHurdlr;
#[allow(unused_imports, reason = "not every example needs all of them")]
use hurdlr_oauth2::{ApiVersion, Hurdlr, TokenManager, UserId};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Runs an example with a manager of the latest API version, on the embedded provider.
fn example(run: impl AsyncFnOnce(FakeHurdlr, TokenManager) -> Outcome) -> Outcome {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let fake = FakeHurdlr::start().await?;
        let hurdlr = Hurdlr::builder(fake.client_id(), fake.client_secret())
            .environment(fake.base_url())
            .authorize_url(fake.authorize_url())
            .redirect_uri("https://app.example.com/callback")
            .api_version(ApiVersion::V6)
            .build()?;
        let manager = TokenManager::builder(hurdlr, MemoryStore::new()).build()?;
        run(fake, manager).await
    })
}
