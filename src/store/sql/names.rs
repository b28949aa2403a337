//! What the tables are called.

use crate::error::Error;

/// The tables' names as they stand in SQL.
#[derive(Debug)]
pub(in crate::store) struct Tables {
    schema: Option<String>,
    prefix: String,
}

impl Tables {
    pub(in crate::store) fn new(schema: Option<&str>, prefix: &str) -> Result<Self, Error> {
        if let Some(schema) = schema {
            judge("schema", schema)?;
        }
        judge("table_prefix", prefix)?;
        Ok(Self { schema: schema.map(Into::into), prefix: prefix.into() })
    }

    /// A table's name, with its schema.
    pub(in crate::store) fn table(&self, noun: &str) -> String {
        match &self.schema {
            Some(schema) => format!(r#""{schema}"."{}{noun}""#, self.prefix),
            None => self.bare(noun),
        }
    }

    /// The name alone.
    pub(in crate::store) fn bare(&self, noun: &str) -> String {
        format!(r#""{}{noun}""#, self.prefix)
    }
}

/// Takes what is a name in every database without being quoted or cut, since the names become part
/// of statements.
fn judge(setting: &str, name: &str) -> Result<(), Error> {
    const LONGEST: usize = 40;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if starts && name.len() <= LONGEST && name.chars().all(plain) {
        Ok(())
    } else {
        Err(Error::config(format!(
            "{setting} is {name:?}: it takes 1 to {LONGEST} of a-z, 0-9 and _, and does not start \
             with a digit"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_become_a_statement() {
        let long = "x".repeat(41);
        for bad in ["", "1a", "A", "a\"b", "a; drop", "ä", "a.b", &long] {
            assert!(Tables::new(None, bad).is_err(), "{bad:?}");
            assert!(Tables::new(Some(bad), "a").is_err(), "{bad:?}");
        }
        let tables = Tables::new(Some("auth"), "hurdlr_").unwrap();
        assert_eq!(tables.table("tokens"), r#""auth"."hurdlr_tokens""#);
    }
}
