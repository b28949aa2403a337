//! The PostgreSQL server of a run, and what it counts.

use std::fmt::Write as _;
use std::fs;

use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Row};

use crate::Options;
use crate::harness::Outcome;
use crate::postgres;
use crate::usage::CpuTime;

/// Commits wait for the disk, as they do in production. The rest is what a server with a few
/// gigabytes is given; `--set` changes any of it.
const SETTINGS: [&str; 5] = [
    "fsync=on",
    "shared_buffers=1GB",
    "max_wal_size=8GB",
    "shared_preload_libraries=pg_stat_statements",
    "pg_stat_statements.track_utility=off",
];

pub(crate) struct Server {
    server: postgres::Server,
    /// Connections of the bench's own.
    pub(crate) pool: PgPool,
}

impl Server {
    pub(crate) async fn start(options: &Options) -> Outcome<Self> {
        let settings: Vec<&str> =
            SETTINGS.into_iter().chain(options.settings.iter().map(String::as_str)).collect();
        let server = postgres::Server::start_with(&settings);
        let pool = PgPool::connect(&server.url()).await?;
        sqlx::query("CREATE EXTENSION pg_stat_statements").execute(&pool).await?;
        Ok(Self { server, pool })
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// The process that is the parent of all of the server's.
    fn id(&self) -> Outcome<u32> {
        let socket = self.server.socket();
        let folder = socket.parent().ok_or("a socket without a folder")?;
        let text = fs::read_to_string(folder.join("data/postmaster.pid"))?;
        Ok(text.lines().next().ok_or("an empty postmaster.pid")?.parse()?)
    }

    pub(crate) async fn run(&self, sql: &str) -> Outcome {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await?;
        Ok(())
    }

    /// Partitions the empty table if that was asked for, and sets what `docs/databases.md` says.
    pub(crate) async fn shape_table(&self, options: &Options) -> Outcome {
        let parts = options.partitions;
        if parts > 1 {
            let mut sql = "ALTER TABLE scale.hurdlr_tokens RENAME TO whole; \
                           CREATE TABLE scale.hurdlr_tokens (LIKE scale.whole INCLUDING ALL) \
                           PARTITION BY HASH (subject); DROP TABLE scale.whole;"
                .to_owned();
            for part in 0..parts {
                write!(
                    sql,
                    "CREATE TABLE scale.hurdlr_tokens_{part} PARTITION OF scale.hurdlr_tokens \
                     FOR VALUES WITH (MODULUS {parts}, REMAINDER {part});"
                )?;
            }
            self.run(&sql).await?;
        }
        let names = (0..parts).map(|part| format!("_{part}"));
        for part in names.filter(|_| parts > 1).chain((parts == 1).then(String::new)) {
            self.run(&format!(
                "ALTER TABLE scale.hurdlr_tokens{part} SET \
                 (autovacuum_vacuum_scale_factor = 0.02, fillfactor = {})",
                options.fillfactor
            ))
            .await?;
        }
        Ok(())
    }

    pub(crate) async fn number(&self, sql: &str) -> Outcome<f64> {
        let sql = AssertSqlSafe(format!("SELECT CAST(({sql}) AS FLOAT8)"));
        Ok(sqlx::query_scalar::<_, f64>(sql).fetch_one(&self.pool).await?)
    }

    /// How many users are due, for at least so many seconds.
    pub(crate) async fn due_for(&self, seconds: u32) -> Outcome<f64> {
        self.number(&format!(
            "SELECT COUNT(*) FROM scale.hurdlr_tokens WHERE NOT refused \
             AND due_at <= EXTRACT(EPOCH FROM now()) * 1000 - {seconds}000"
        ))
        .await
    }

    /// How many tokens were saved since the counts were reset.
    pub(crate) async fn saved(&self) -> Outcome<f64> {
        let calls = "SELECT COALESCE(SUM(rows), 0) FROM pg_stat_statements WHERE query LIKE";
        self.number(&format!("{calls} '%{SAVE}%'")).await
    }

    pub(crate) async fn reset_counts(&self) -> Outcome {
        self.run(
            "SELECT pg_stat_statements_reset(); SELECT pg_stat_reset_shared('wal'); \
             SELECT pg_stat_reset_shared('bgwriter'); SELECT pg_stat_reset()",
        )
        .await
    }

    pub(crate) fn cpu(&self) -> Outcome<CpuTime> {
        CpuTime::of_family(self.id()?)
    }

    pub(crate) async fn counts(&self) -> Outcome<Counts> {
        let mut statements = [Statement::default(); KINDS.len()];
        let counted = "SELECT query, CAST(calls AS FLOAT8), CAST(rows AS FLOAT8), \
                       total_exec_time, CAST(wal_bytes AS FLOAT8) FROM pg_stat_statements";
        for row in sqlx::query(counted).fetch_all(&self.pool).await? {
            let query: String = row.try_get(0)?;
            let Some(kind) = KINDS.iter().position(|(_, part)| query.contains(part)) else {
                continue;
            };
            let statement = &mut statements[kind];
            statement.calls += row.try_get::<f64, _>(1)?;
            statement.rows += row.try_get::<f64, _>(2)?;
            statement.milliseconds += row.try_get::<f64, _>(3)?;
            statement.wal_bytes += row.try_get::<f64, _>(4)?;
        }
        let wal = sqlx::query(
            "SELECT CAST(wal_bytes AS FLOAT8), CAST(wal_fpi AS FLOAT8), CAST(wal_sync AS FLOAT8) \
             FROM pg_stat_wal",
        )
        .fetch_one(&self.pool)
        .await?;
        let table = sqlx::query(
            "SELECT CAST(SUM(n_tup_upd) AS FLOAT8), CAST(SUM(n_tup_hot_upd) AS FLOAT8), \
             CAST(SUM(autovacuum_count) AS FLOAT8) \
             FROM pg_stat_user_tables WHERE schemaname = 'scale' AND relname LIKE 'hurdlr_tokens%'",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Counts {
            statements,
            wal_bytes: wal.try_get(0)?,
            full_pages: wal.try_get(1)?,
            wal_syncs: wal.try_get(2)?,
            updates: table.try_get(0)?,
            hot_updates: table.try_get(1)?,
            vacuums: table.try_get(2)?,
        })
    }

    pub(crate) async fn sizes(&self) -> Outcome<Sizes> {
        // With those of partitions.
        let bytes = async |is_counted: &str| {
            self.number(&format!(
                "SELECT COALESCE(SUM(pg_relation_size(oid)), 0) FROM pg_class \
                 WHERE relnamespace = 'scale'::regnamespace AND relname LIKE 'hurdlr_tokens%' \
                 AND {is_counted}"
            ))
            .await
        };
        Ok(Sizes {
            table: bytes("relkind = 'r'").await?,
            key: bytes("relkind = 'i' AND relname LIKE '%pkey'").await?,
            due: bytes("relkind = 'i' AND relname LIKE '%due%'").await?,
        })
    }
}

const SAVE: &str = "payload = $";

/// The statements of a store, each with a part of its text that no other has.
pub(crate) const KINDS: [(&str, &str); 5] = [
    ("claim", "in_flight = in_flight OR holder IS NOT NULL"),
    ("save", SAVE),
    ("read", "wanted.place AS place"),
    ("due", "SELECT kind, subject, due_at FROM"),
    ("release", "in_flight = in_flight OR $"),
];

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Statement {
    pub(crate) calls: f64,
    pub(crate) rows: f64,
    pub(crate) milliseconds: f64,
    pub(crate) wal_bytes: f64,
}

/// What the server has counted since the last reset.
#[derive(Debug)]
pub(crate) struct Counts {
    statements: [Statement; KINDS.len()],
    pub(crate) wal_bytes: f64,
    pub(crate) full_pages: f64,
    pub(crate) wal_syncs: f64,
    pub(crate) updates: f64,
    pub(crate) hot_updates: f64,
    pub(crate) vacuums: f64,
}

impl Counts {
    pub(crate) fn statement(&self, name: &str) -> Statement {
        let kind = KINDS.iter().position(|(known, _)| *known == name);
        kind.map(|kind| self.statements[kind]).unwrap_or_default()
    }
}

/// Bytes on disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) table: f64,
    pub(crate) key: f64,
    pub(crate) due: f64,
}

impl Sizes {
    pub(crate) fn all(self) -> f64 {
        self.table + self.key + self.due
    }
}
