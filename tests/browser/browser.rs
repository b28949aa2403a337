//! A real browser: Debian's chromium, driven by its chromedriver.

#![allow(clippy::unwrap_used, reason = "a failed expectation is the failure of the test")]
#![allow(clippy::expect_used, reason = "a failed expectation is the failure of the test")]

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, panic};

use fantoccini::elements::Element;
use fantoccini::key::Key;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

const INSTALL: &str = "chromedriver is missing, so this test cannot run. Install it by \
                       `tests/install`, or: apt-get install --yes chromium chromium-driver";

/// How long a page may take to come, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a window is to look.
#[derive(Clone, Copy)]
pub(crate) enum Look {
    Desktop,
    DarkDesktop,
    Phone,
    DarkPhone,
}

#[derive(Clone)]
pub(crate) struct Browser {
    client: Client,
    /// Screenshots are named by it.
    name: &'static str,
}

/// Ends with the test.
struct Driver {
    process: Child,
    port: u16,
    profile: TempDir,
}

impl Driver {
    fn start() -> Self {
        // Of two that choose a free port at the same time one may find it taken, and ends.
        let started = std::iter::repeat_with(Self::try_start).take(3).flatten().next();
        started.expect("chromedriver says its port")
    }

    fn try_start() -> Option<Self> {
        let process = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut process = process.expect(INSTALL);
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = lines.map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once("successfully on port ")?;
            port.trim_end_matches('.').parse().ok()
        });
        let Some(port) = port else {
            process.wait().unwrap();
            return None;
        };
        Some(Self { process, port, profile: tempfile::tempdir().unwrap() })
    }

    async fn open(&self, look: Look) -> Client {
        let profile = format!("--user-data-dir={}", self.profile.path().display());
        let scheme = u8::from(!matches!(look, Look::DarkDesktop | Look::DarkPhone)); // 0 is dark
        let scheme = format!("--blink-settings=preferredColorScheme={scheme}");
        let mut options = json!({ "args": [
            profile, scheme, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--disable-dev-shm-usage", "--window-size=1100,1100",
            "--ignore-certificate-errors",
        ] });
        if matches!(look, Look::Phone | Look::DarkPhone) {
            options["mobileEmulation"] =
                json!({ "deviceMetrics": { "width": 360, "height": 1200, "pixelRatio": 2.0 } });
        }
        let Value::Object(capabilities) = json!({ "goog:chromeOptions": options }) else {
            unreachable!("an object was written");
        };
        ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{}", self.port))
            .await
            .expect("chromium starts; if it is missing: apt-get install --yes chromium")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Browser {
    /// Lets a person use a fresh browser, and closes it however that ends.
    pub(crate) async fn used_by<F>(name: &'static str, look: Look, person: impl FnOnce(Self) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let driver = Driver::start();
        let client = driver.open(look).await;
        let outcome = tokio::spawn(person(Self { client: client.clone(), name })).await;
        if outcome.is_err() {
            let screenshot = client.screenshot().await.unwrap_or_default();
            let _ = fs::write(folder().join(format!("{name}-failed.png")), screenshot);
        }
        let _ = client.close().await;
        if let Err(failure) = outcome {
            panic::resume_unwind(failure.into_panic());
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) async fn goes_to(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    /// Waits for the page with this heading, which must be as every page is to be; takes a picture.
    pub(crate) async fn sees(&self, heading: &str, picture: &str) {
        let sought = format!("//h1[normalize-space()=\"{heading}\"]");
        let begun = Instant::now();
        loop {
            // A look waits for a page that loads, so one that outlasts the time is not yet the
            // last.
            let is_last = begun.elapsed() > PATIENCE;
            // While one page takes the place of another, a look can fail in more ways than by
            // finding nothing: the driver then speaks of nodes that are in no document.
            let Err(error) = self.client.find(Locator::XPath(&sought)).await else { break };
            if is_last {
                let url = self.client.current_url().await.unwrap();
                panic!("no {heading:?} at {}: {error}\n{}", url.path(), self.text().await);
            }
            sleep(Duration::from_millis(25)).await;
        }
        self.takes_picture(picture).await;
        self.assert_is_accessible(heading).await;
    }

    async fn takes_picture(&self, name: &str) {
        let file = format!("{}-{name}.png", self.name).to_lowercase().replace(' ', "-");
        fs::write(folder().join(file), self.client.screenshot().await.unwrap()).unwrap();
    }

    pub(crate) async fn text(&self) -> String {
        self.client.find(Locator::Css("body")).await.unwrap().text().await.unwrap()
    }

    /// The value of one of the page's facts.
    pub(crate) async fn fact(&self, name: &str) -> String {
        let value = format!("//dt[.=\"{name}\"]/following-sibling::dd");
        self.client.find(Locator::XPath(&value)).await.unwrap().text().await.unwrap()
    }

    async fn named(&self, name: &str) -> Element {
        let path = format!("//*[self::a or self::button][normalize-space()=\"{name}\"]");
        self.client.find(Locator::XPath(&path)).await.unwrap()
    }

    /// Clicks on what leads to another page.
    pub(crate) async fn clicks(&self, name: &str) {
        let clicked = self.named(name).await;
        clicked.click().await.unwrap();
        leaves_the_page_of(&clicked).await;
    }

    /// Goes by the tabulator key to what leads to another page, and presses Enter.
    pub(crate) async fn reaches_by_keyboard(&self, name: &str) {
        for _ in 0..12 {
            self.press(Key::Tab).await;
            let focused = self
                .client
                .execute(
                    "const it = document.activeElement; \
                     return [it.textContent.trim(), it.matches(':focus-visible') && \
                     getComputedStyle(it).outlineStyle === 'solid']",
                    vec![],
                )
                .await
                .unwrap();
            assert_eq!(focused[1], true, "the focus of {} can be seen", focused[0]);
            if focused[0] == name {
                self.takes_picture(&format!("focus on {name}")).await;
                let pressed = self.press(Key::Enter).await;
                return leaves_the_page_of(&pressed).await;
            }
        }
        panic!("{name} cannot be reached by keyboard");
    }

    async fn press(&self, key: Key) -> Element {
        let focused = self.client.active_element().await.unwrap();
        focused.send_keys(&String::from(char::from(key))).await.unwrap();
        focused
    }

    /// What is true of every page: it fits, it has a language and one heading, what can be used has
    /// a name and is large enough for a finger, and what is written can be read.
    async fn assert_is_accessible(&self, page: &str) {
        let wrong = self.client.execute(include_str!("accessible.js"), vec![]).await.unwrap();
        assert_eq!(wrong, json!([]), "on the page {page:?}");
    }
}

/// Waits until the page is gone that this is of: the next one may have the same heading.
async fn leaves_the_page_of(element: &Element) {
    let begun = Instant::now();
    while element.tag_name().await.is_ok() {
        assert!(begun.elapsed() < PATIENCE, "the page is left");
        sleep(Duration::from_millis(25)).await;
    }
}

fn folder() -> std::path::PathBuf {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("screenshots");
    fs::create_dir_all(&folder).unwrap();
    folder
}
